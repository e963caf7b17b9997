"""The smaller function and its parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export
from jax.core import Tracer

from jaxprune._jaxprs import is_array
from jaxprune.slimming._labels.analysis import Analysis, analyse
from jaxprune.slimming._labels.decide import Piece, labels_that_go
from jaxprune.slimming._labels.evaluate import Decision, evaluate
from jaxprune.slimming._labels.rules import rule_of
from jaxprune.slimming.choice import Choice, choice_from, choice_from_masks
from jaxprune.slimming.groups import find_groups
from jaxprune.slimming.manifest import Manifest

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Slimmed:
    """A smaller function, its parameters, and what was removed.

    Attributes:
      fn: an ordinary JAX function `fn(params, *inputs)` of the smaller parameters.
      params: the smaller parameters.
      manifest: what stays of each leaf.
    """

    fn: Callable[..., PyTree]
    params: PyTree
    manifest: Manifest

    def __iter__(self) -> Any:
        return iter((self.fn, self.params, self.manifest))

    def shrink(self, mirror: PyTree) -> PyTree:
        """What stays of any tree that mirrors the parameters; see `Manifest.shrink`."""
        return self.manifest.shrink(mirror)

    def expand(self, mirror: PyTree) -> PyTree:
        """Puts smaller arrays back where they were, zeros elsewhere; see `Manifest.expand`."""
        return self.manifest.expand(mirror)

    def rebind(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Another function of the same parameters, smaller: a loss, the training mode with its batch statistics.

        Args:
          fn: a function `fn(params, *inputs)` of the whole parameters. Of outputs that hold what was removed
            (new batch statistics) the rest comes out.

        Returns:
          The function of the smaller parameters.
        """
        return smaller(fn, self.manifest, fix_outputs=False)


def slim(fn: Callable[..., PyTree], params: PyTree, choice: Any, *inputs: Any) -> Slimmed:
    """Removes units from a function's parameters, and makes the smaller function.

    The smaller function runs the traced program of `fn` with smaller shapes; for inputs of other shapes than it
    has seen it traces `fn` again. Constants (the scale of attention, the count in a mean) stay what they were, so
    that for exact groups it equals `fn` of the masked parameters. Random bits are drawn in the whole shape and
    what stays of them is taken, so dropout agrees too.

    Args:
      fn: a function `fn(params, *inputs)`, with the outputs that have to keep their shapes.
      params: arrays, or ShapeDtypeStructs.
      choice: a `Choice`; masks (a tree of bools like params, True is kept) which remove whole units; a mapping
        from group names to the units to be removed; or a `Manifest`.
      *inputs: arrays or ShapeDtypeStructs, to find the groups with.

    Returns:
      The function, its parameters and the manifest.

    Raises:
      ValueError: the choice belongs to other parameters, empties a group, removes what is frozen, or the masks
        cut a unit in part.

    Example:
      >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
      >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> small = slim(fn, params, {'a[1]': [0, 2]}, jnp.ones((5, 3)))
      >>> small.params['a'].shape, small.fn(small.params, jnp.ones((7, 3))).shape
      ((3, 2), (7, 2))
    """
    manifest = _manifest(fn, params, choice, inputs)
    _check_shapes(params, manifest, smaller=False)
    return Slimmed(smaller(fn, manifest, fix_outputs=True), manifest.shrink(params), manifest)


def _manifest(fn: Callable[..., PyTree], params: PyTree, choice: Any, inputs: tuple[Any, ...]) -> Manifest:
    if isinstance(choice, Manifest):
        return choice
    if isinstance(choice, Choice):
        return choice.manifest()
    groups = find_groups(fn, params, *inputs)
    names = {group.name for group in groups}
    if isinstance(choice, Mapping) and choice and names.issuperset(choice):
        return choice_from(groups, choice).manifest()
    return choice_from_masks(groups, choice).manifest()


def smaller(fn: Callable[..., PyTree], manifest: Manifest, *, fix_outputs: bool) -> Callable[..., PyTree]:
    """The function `fn` of smaller parameters.

    Args:
      fn: a function `fn(params, *inputs)` of the whole parameters.
      manifest: what stays of them.
      fix_outputs: whether to insist that no output loses positions.

    Returns:
      A function of the smaller parameters.
    """
    traced: dict[Any, tuple[Analysis, Decision]] = {}

    def slimmed(params: PyTree, *inputs: Any) -> PyTree:
        _check_shapes(params, manifest, smaller=True)
        key = _signature((params, inputs))
        found = traced.get(key) if key is not None else None
        if found is None:
            found = _decide(fn, manifest, params, inputs, fix_outputs)
            if key is not None and not _leaks(found[0]):
                traced[key] = found
        analysis, decision = found
        arrays = [leaf for leaf in jax.tree.leaves((params, *inputs)) if is_array(leaf)]
        outputs = evaluate(decision, analysis.frame, arrays)
        return jax.tree.unflatten(analysis.traced.out_tree, outputs)

    return slimmed


def _decide(
    fn: Callable[..., PyTree], manifest: Manifest, params: PyTree, inputs: tuple[Any, ...], fix_outputs: bool
) -> tuple[Analysis, Decision]:
    leaves, structure = jax.tree.flatten(params)
    whole = [
        jax.ShapeDtypeStruct(kept.shape, leaf.dtype) if is_array(leaf) and kept.shape is not None else leaf
        for leaf, kept in zip(leaves, manifest.leaves, strict=True)
    ]
    analysis = analyse(fn, jax.tree.unflatten(structure, whole), inputs, fix_outputs=fix_outputs)
    pieces = []
    for leaf, kept in zip(analysis.leaves, manifest.leaves, strict=True):
        for axis, ids in enumerate(leaf.ids):
            stay = np.ones(ids.shape[-1], bool)
            if axis in kept.axes:
                stay = kept.stay(axis)
            pieces.append(Piece(f"{leaf.name}, axis {axis}", ids, stay))
    return analysis, Decision(analysis.labels, labels_that_go(analysis.labels, pieces), rule_of)


def _check_shapes(params: PyTree, manifest: Manifest, *, smaller: bool) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if len(leaves) != len(manifest.leaves):
        raise ValueError(f"these are other parameters: {len(leaves)} leaves, expected {len(manifest.leaves)}")
    wrong = []
    for (_, leaf), kept in zip(leaves, manifest.leaves, strict=True):
        expected = None if kept.shape is None else kept.small if smaller else kept.shape
        got = tuple(leaf.shape) if is_array(leaf) else None
        if got != expected:
            wrong.append(f"  {kept.name}: expected {expected}, got {got}")
    if wrong:
        which = "the smaller parameters" if smaller else "the parameters that the choice was made for"
        raise ValueError(f"these are not {which}:\n" + "\n".join(wrong[:20]))


def _signature(args: Any) -> Any:
    leaves, structure = jax.tree.flatten(args)
    parts = [(tuple(x.shape), x.dtype, getattr(x, "weak_type", False)) if is_array(x) else (type(x), x) for x in leaves]
    if any(export.is_symbolic_dim(n) for x in leaves if is_array(x) for n in x.shape):
        return None  # symbolic sizes are compared within their scope only
    key = (structure, tuple(parts))
    try:
        hash(key)
    except TypeError:
        return None  # a constant that cannot be compared: traced at each call
    return key


def _leaks(analysis: Analysis) -> bool:
    # A function that closes over values of a surrounding trace has them as constants: not to be used again.
    return any(isinstance(const, Tracer) for const in analysis.traced.closed.consts)
