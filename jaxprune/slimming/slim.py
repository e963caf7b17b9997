"""`slim`: the smaller function and its parameters, `Slimmed`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import export
from jax.core import Tracer

from jaxprune import criteria
from jaxprune._jaxprs import is_array
from jaxprune.slimming._labels.analysis import Analysis, analyse
from jaxprune.slimming._labels.decide import Piece, labels_that_go
from jaxprune.slimming._labels.evaluate import Decision, evaluate
from jaxprune.slimming._labels.rules import RULES
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.choose import choose
from jaxprune.slimming.groups import Groups, find_groups
from jaxprune.slimming.manifest import Manifest
from jaxprune.slimming.scores import group_scores

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


def slim(
    fn: Callable[..., PyTree],
    params: PyTree,
    what: Any,
    *inputs: Any,
    criterion: criteria.Criterion = criteria.magnitude,
    grads: PyTree | None = None,
    stats: PyTree | None = None,
    key: Any = None,
) -> Slimmed:
    """Removes units from a function's parameters, and makes the smaller function.

    The smaller function runs the traced program of `fn` with smaller shapes; for inputs of other shapes than it
    has seen it traces `fn` again. Constants (the scale of attention, the count in a mean) stay what they were, so
    that for exact groups it equals `fn` of the masked parameters. Random bits are drawn in the whole shape and the
    positions that stay are taken, so dropout agrees too.

    Args:
      fn: a function `fn(params, *inputs)`, with the outputs that must keep their shapes.
      params: arrays, or ShapeDtypeStructs.
      what: what to remove, one of
        a sparsity in [0, 1]: this fraction of the units of each exact group, those of the lowest scores, which are the
        group norms of what `criterion` returns (`group_scores`, then `choose`);
        a `Choice`;
        a mapping from groups, by name or member, to the numbers of the units to remove;
        masks, a tree of bools like params, True is kept: masks that remove only parts of units, as those of
        `prune(pattern=Channel())`, are completed to whole units with a warning (`Choice.from_masks`);
        a `Manifest`.
      *inputs: arrays or ShapeDtypeStructs, to find the groups with.
      criterion: for a sparsity: `criterion(params, *, grads, stats, key) -> scores`. Default: magnitude.
      grads: for a criterion: gradients like params.
      stats: for a criterion: what `jaxprune.calibrate` returned.
      key: for a random criterion: a JAX key.

    Returns:
      The function, its parameters and the manifest.

    Raises:
      KeyError: a mapping names a group that does not exist.
      TypeError: `what` is nothing of the above, or numbers of units are not integers.
      ValueError: a sparsity is out of range; the choice belongs to other parameters, empties a group or removes what
        is frozen; or the masks remove no whole unit.

    Example:
      >>> params = {'a': jnp.array([[3.0, 1.0, 2.0]]), 'b': jnp.ones((3, 2))}
      >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> small = slim(fn, params, 0.33, jnp.ones((5, 1)))
      >>> small.params['a'].tolist(), small.fn(small.params, jnp.ones((7, 1))).shape
      ([[3.0, 2.0]], (7, 2))
      >>> slim(fn, params, {'a[1]': [0, 2]}, jnp.ones((5, 1))).params['a'].tolist()
      [[1.0]]
    """
    manifest = _manifest(fn, params, what, inputs, lambda: criterion(params, grads=grads, stats=stats, key=key))
    _check_shapes(params, manifest, smaller=False)
    return Slimmed(smaller(fn, manifest, fix_outputs=True), manifest.shrink(params), manifest)


def _manifest(
    fn: Callable[..., PyTree], params: PyTree, what: Any, inputs: tuple[Any, ...], scores: Callable[[], PyTree]
) -> Manifest:
    if isinstance(what, Manifest):
        return what
    if isinstance(what, Choice):
        return what.manifest()
    groups = find_groups(fn, params, *inputs)
    if isinstance(what, int | float) and not isinstance(what, bool):
        return choose(groups, group_scores(groups, scores()), float(what)).manifest()
    if isinstance(what, Mapping) and _names_units(groups, params, what):
        return Choice.remove(groups, what).manifest()
    return Choice.from_masks(groups, what, partial="complete").manifest()


def _names_units(groups: Groups, params: PyTree, what: Mapping[Any, Any]) -> bool:
    """Whether a mapping says which units go, rather than being a tree of masks."""
    members = {f"{m.name}[{m.axis}]" for group in groups for m in group.members}
    if members.union(group.name for group in groups).intersection(what):
        return True
    # No key names a group: numbers of units under a mistyped name, or masks, perhaps of another structure.
    masks = any(getattr(np.asarray(leaf), "dtype", None) == np.bool_ for leaf in jax.tree.leaves(what))
    return not masks and jax.tree.structure(dict(what)) != jax.tree.structure(params)


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
    return analysis, decided(analysis, manifest)


def decided(analysis: Analysis, manifest: Manifest) -> Decision:
    """The labels that must go so that exactly the positions go that the manifest removes.

    Args:
      analysis: a function traced with the whole parameters.
      manifest: what stays of the parameters. Leaves that the function does not use may be smaller in any way.

    Raises:
      ValueError: some position goes although no label of it goes; the message names the arrays.
    """
    unused = analysis.labels.reason("not used by the function")
    pieces = []
    for leaf, kept in zip(analysis.leaves, manifest.leaves, strict=True):
        for axis, ids in enumerate(leaf.ids):
            if not (analysis.labels.why(ids) == unused).all():
                stay = kept.stay(axis) if axis in kept.axes else np.ones(ids.shape[-1], bool)
                pieces.append(Piece(f"{leaf.name}, axis {axis}", ids, stay))
    return Decision(analysis.labels, labels_that_go(analysis.labels, pieces), RULES)


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
