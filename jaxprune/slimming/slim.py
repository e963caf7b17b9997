"""`slim`: removes units of a function's parameters and returns `Slimmed`, the smaller function and its parameters."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import jax
import numpy as np
from jax import export
from jax.core import Tracer

from jaxprune import _tree, criteria
from jaxprune.prune import Selector
from jaxprune.slimming._labels.analysis import Analysis, analyse, decided
from jaxprune.slimming._labels.axes import freeze, unify
from jaxprune.slimming._labels.counts import find_counts, numbers_after
from jaxprune.slimming._labels.evaluate import Decision, evaluate
from jaxprune.slimming._labels.rules.control import LAYER
from jaxprune.slimming._labels.rules.shuffles import misplaced
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.choose import Limits, choose
from jaxprune.slimming.compensate import compensated
from jaxprune.slimming.groups import Groups, find_groups, names_any
from jaxprune.slimming.manifest import Manifest
from jaxprune.slimming.scores import group_scores

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Slimmed:
    """A smaller function, its parameters, and the manifest of the remaining positions.

    Attributes:
      fn: an ordinary JAX function `fn(params, *inputs)` of the smaller parameters. State that the function updates in
        place, such as the running statistics of an NNX module, is updated in the parameters it is called with.
      params: the smaller parameters.
      manifest: the positions of each leaf that stay.
    """

    fn: Callable[..., PyTree]
    params: PyTree
    manifest: Manifest

    def __iter__(self) -> Any:
        return iter((self.fn, self.params, self.manifest))

    def shrink(self, mirror: PyTree) -> PyTree:
        """Makes any tree that mirrors the parameters smaller; see `Manifest.shrink`."""
        return self.manifest.shrink(mirror)

    def expand(self, mirror: PyTree) -> PyTree:
        """Puts smaller arrays back where they were, zeros elsewhere; see `Manifest.expand`."""
        return self.manifest.expand(mirror)

    def __repr__(self) -> str:
        return f"Slimmed({self.manifest})"

    def rebind(self, fn: Callable[..., PyTree], *inputs: Any) -> Callable[..., PyTree]:
        """Makes another function of the same parameters smaller: a loss, the training mode, one step of decoding.

        Args:
          fn: a function `fn(params, *inputs)` of the whole parameters, or of some of their leaves. Outputs with removed
            units (new batch statistics) become smaller.
          *inputs: arrays or ShapeDtypeStructs, the inputs of `fn` before slimming. Pass them if inputs have removed
            units too, such as the heads of a key-value cache: these axes then shrink like the parameters, and the
            function takes smaller inputs. Without them the inputs keep their shapes.

        Returns:
          The function of the smaller parameters.

        Example:
          >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
          >>> encode, decode = lambda p, x: jnp.tanh(x @ p['a']), lambda p, h: h @ p['b']
          >>> small = slim(lambda p, x: decode(p, encode(p, x)), params, {'a[1]': [0]}, jnp.ones((5, 3)))
          >>> hidden = small.rebind(encode)(small.params, jnp.ones((5, 3)))
          >>> hidden.shape, small.rebind(decode, jnp.ones((5, 4)))(small.params, hidden).shape
          ((5, 3), (5, 2))
        """
        return smaller(fn, self.manifest, fix_outputs=False, whole=inputs)


def slim(
    fn: Callable[..., PyTree],
    params: PyTree,
    what: Any,
    *inputs: Any,
    criterion: criteria.Criterion = criteria.magnitude,
    grads: PyTree | None = None,
    stats: PyTree | None = None,
    key: Any = None,
    as_built: bool | Mapping[float, float] = False,
    compensate: bool = False,
) -> Slimmed:
    """Removes units from a function's parameters, and makes the smaller function.

    The smaller function runs the traced program of `fn` with smaller shapes; for inputs of new shapes it traces
    `fn` again. Removing has two meanings:

    Masking (the default). Numbers of the program (the scale of attention, the count in a mean) keep their values, so
    for exact groups the smaller function equals `fn` with masked parameters: nothing changes at the moment of removal.
    Random bits are drawn in the whole shape and only the kept positions are used, so dropout masks agree too.

    Building smaller (`as_built=True`). Counts in means and variances and the scales of attention follow the new widths.
    The smaller function is the ordinary smaller architecture: it equals, to rounding, the model that is built with the
    smaller hyperparameters on the same weights. The function `hyperparameters` returns these hyperparameters. In this
    meaning, inexact groups can shrink too, such as the width over which a variance of differences is computed. A
    slice or an index at constant positions, such as `x[:, 2:6]`, reads those of its positions that stay.

    Args:
      fn: a function `fn(params, *inputs)`, with the outputs that must keep their shapes.
      params: arrays, or ShapeDtypeStructs.
      what: what to remove, one of
        a sparsity in [0, 1]: the fraction of the units of each exact group to remove; the units with the lowest group
        norms of the scores of `criterion` are removed (`group_scores`, then `choose`);
        a `Choice`;
        a mapping from groups, by name or member, to the numbers of the units to remove;
        masks, a tree of bools like params, True = kept: masks that remove only parts of units, such as the masks of
        `prune(pattern=Channel())`, are completed to whole units with a warning (`Choice.from_masks`);
        a `Manifest`.
      *inputs: arrays or ShapeDtypeStructs, to find the groups with.
      criterion: for a sparsity: `criterion(params, *, grads, stats, key) -> scores`. Default: magnitude.
      grads: for a criterion: gradients like params; default None.
      stats: for a criterion, and for `compensate`: the result of `jaxprune.calibrate`; default None.
      key: for a random criterion: a JAX key; default None.
      as_built: True builds the smaller architecture. A number such as 8 = sqrt(64) may count positions or not; if the
        traced function does not decide this, an error names the number; pass a mapping {number: new
        number} to set it. Default: False, masking.
      compensate: whether the remaining parameters make up for what is removed, as far as `stats` of the whole
        parameters allow. Default: False.
        `calibrate(fn, params, batches, collect=("gram", "total"))`, the best: the remaining weights of each layer that
        loses inputs are fitted so that its output changes least (least squares with a bias, damping 0.01). Zeros of a
        sparse kernel are fitted too.
        "gram" alone: the same without changes of biases, also for layers that have none.
        "total" alone: weights stay. If a layer with the weights W [inputs, outputs] loses inputs x_i, its bias
        increases by the sum of mean(x_i) W[i]; the running mean of a batch normalisation behind a layer without bias
        decreases by it (An et al. 2024, FLAP, arXiv 2312.11983). Layers behind vary less than before around means that
        stay; a ReLU then switches less, which harms a network without normalisation if much is removed.
        With means, the mean of each layer's output stays, and the smaller function is exact if the removed inputs are
        constant and no convolution pads. A warning names the layers that nothing can compensate; a product of two
        activations, such as queries and keys, is not looked at.

    Returns:
      The function, its parameters and the manifest.

    Raises:
      KeyError: a mapping names a group that does not exist.
      TypeError: `what` has another type, or numbers of units are not integers.
      ValueError: a sparsity is out of range; the choice belongs to other parameters, empties a group or removes frozen
        positions; the masks remove no whole unit; `as_built` is given and the numbers of the smaller architecture do
        not follow from the function, or its shuffles or rolls would put the kept channels in other places; or
        `compensate` is given and no layer can be compensated, means and Gram matrices are missing, or experts are
        removed.

    Example:
      >>> params = {'a': jnp.array([[3.0, 1.0, 2.0]]), 'b': jnp.ones((3, 2))}
      >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> small = slim(fn, params, 0.33, jnp.ones((5, 1)))
      >>> small.params['a'].tolist(), small.fn(small.params, jnp.ones((7, 1))).shape
      ([[3.0, 2.0]], (7, 2))
      >>> slim(fn, params, {'a[1]': [0, 2]}, jnp.ones((5, 1))).params['a'].tolist()
      [[1.0]]
    """
    selector = Selector(criterion=criterion, key=key)
    if not isinstance(as_built, bool | Mapping):
        raise TypeError(f"as_built must be a bool or a mapping from numbers to numbers; got {_tree.shown(as_built)}")
    scores = lambda: selector.scores(params, grads=grads, stats=stats)
    manifest, groups = _manifest(fn, params, what, inputs, scores, as_built is not False)
    if as_built is not False:
        given = {} if as_built is True else {float(old): float(new) for old, new in as_built.items()}
        manifest = dataclasses.replace(manifest, as_built=given)
    _check_shapes(params, manifest, smaller=False)
    if manifest.as_built is not None and inputs:  # raises early if a smaller number is not known
        _ = _decide(_with_state(fn), manifest, params, inputs, True, True)
    if compensate:
        groups = find_groups(fn, params, *inputs) if groups is None else groups
        params = compensated(groups, params, manifest, stats)
    return Slimmed(smaller(fn, manifest, fix_outputs=True), manifest.shrink(params), manifest)


def _manifest(
    fn: Callable[..., PyTree],
    params: PyTree,
    what: Any,
    inputs: tuple[Any, ...],
    scores: Callable[[], PyTree],
    as_built: bool,
) -> tuple[Manifest, Groups | None]:
    """Returns the manifest of what stays, and the groups of `fn`, or None if the manifest was made without them."""
    if isinstance(what, Manifest):
        return what, None
    if isinstance(what, Choice):
        return what.manifest(), None
    groups = find_groups(fn, params, *inputs)
    scalar = isinstance(what, Real | np.ndarray | jax.Array) and not getattr(what, "ndim", 0)
    if scalar and not isinstance(what, bool | Tracer) and getattr(what, "dtype", None) != np.bool_:
        what = float(np.asarray(what))
    if isinstance(what, float):
        whole = [group.name for group in groups if group.inexact == LAYER] if as_built else []
        limits = Limits(inexact=as_built, protect=whole)
        choice = choose(groups, group_scores(groups, scores()), float(what), limits=limits)
        reasons = {name: why for name, why in choice.untouched.items() if groups[name].inexact != LAYER}
        text = "".join(f"\n  {name}: {why}" for name, why in (reasons or choice.untouched).items())
        if choice.untouched and choice.keep.all():
            warnings.warn(f"slim removes nothing, since no group can shrink by {what}:{text}", stacklevel=3)
        elif any(groups[name].inexact is not None for name in reasons):
            warnings.warn(f"slim leaves groups whole, which cannot shrink by {what}:{text}", stacklevel=3)
        return choice.manifest(), groups
    if not jax.tree.leaves(what) or jax.tree.structure(what) == jax.tree.structure(0) != jax.tree.structure(params):
        raise TypeError(
            "what must be a number in [0, 1] (a sparsity), a Choice, a mapping from groups to unit numbers, masks or a "
            f"Manifest; got {_tree.shown(what)}"
        )
    if isinstance(what, Mapping) and _names_units(groups, params, what):
        return Choice.remove(groups, what).manifest(), groups
    return Choice.from_masks(groups, what, partial="complete").manifest(), groups


def _names_units(groups: Groups, params: PyTree, what: Mapping[Any, Any]) -> bool:
    """Returns whether a mapping gives units to remove, and is not a tree of masks."""
    if names_any(groups, what):
        return True
    # No key names a group: it has unit numbers under a mistyped name, or masks, perhaps of another structure.
    masks = any(getattr(np.asarray(leaf), "dtype", None) == np.bool_ for leaf in jax.tree.leaves(what))
    return not masks and jax.tree.structure(dict(what)) != jax.tree.structure(params)


def smaller(
    fn: Callable[..., PyTree], manifest: Manifest, *, fix_outputs: bool, whole: tuple[Any, ...] = ()
) -> Callable[..., PyTree]:
    """Makes the function `fn` of smaller parameters.

    Args:
      fn: a function `fn(params, *inputs)` of the whole parameters.
      manifest: the positions of each leaf that stay.
      fix_outputs: whether all outputs must keep their shapes.
      whole: the inputs before slimming, if they may shrink with the parameters.

    Returns:
      A function of the smaller parameters.
    """
    traced: dict[Any, tuple[Analysis, Decision]] = {}
    given: dict[Any, Any] = {}  # from the structure of the parameters to the axes of inputs that shrink
    stateful = _with_state(fn)

    def slimmed(params: PyTree, *inputs: Any) -> PyTree:
        _check_shapes(params, manifest, smaller=True)
        key = _signature((params, inputs))
        found = traced.get(key) if key is not None else None
        if found is None:
            before = inputs
            if whole:
                structure = jax.tree.structure(params)
                if structure not in given:
                    given[structure] = _shrinking(*_decide(stateful, manifest, params, whole, fix_outputs, False))
                before = _whole_inputs(inputs, given[structure], whole)
            try:
                found = _decide(stateful, manifest, params, before, fix_outputs, not whole)
            except TypeError as error:
                if not fix_outputs and not whole:
                    error.add_note(
                        "fn was traced with the parameters before slimming and the inputs as given; if the inputs have "
                        "removed units, pass inputs of the shapes before slimming: rebind(fn, *inputs)"
                    )
                raise
            if key is not None and not _leaks(found[0]):
                traced[key] = found
        analysis, decision = found
        arrays = [leaf for leaf in jax.tree.leaves((params, *inputs)) if _tree.is_array(leaf)]
        results = evaluate(decision, analysis.frame, arrays)
        outputs, state = jax.tree.unflatten(analysis.traced.out_tree, results)
        if state:
            _update_in_place((params, *inputs), state)
        return outputs

    return slimmed


def _with_state(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Returns a function that also returns the leaves of its arguments that `fn` replaces in place, by their index."""

    @functools.wraps(fn)
    def run(*args: Any) -> tuple[PyTree, dict[int, Any]]:
        before = _leaves_by_path(args)
        outputs = fn(*args)
        after = _leaves_by_path(args)
        return outputs, {
            k: after[path]
            for k, (path, leaf) in enumerate(before.items())
            if _tree.is_array(leaf) and after.get(path, leaf) is not leaf
        }

    return run


def _leaves_by_path(tree: PyTree) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def _update_in_place(args: tuple[Any, ...], state: dict[int, Any]) -> None:
    """Replaces the leaves that the function replaced; their containers can be changed, as the function shows."""
    for k, path in enumerate(_leaves_by_path(args)):
        if k in state:
            try:
                parent: Any = args
                for step in path[:-1]:
                    parent = getattr(parent, step.name) if hasattr(step, "name") else parent[_key(step)]
                if hasattr(parent, "set_value"):  # a variable of NNX
                    parent.set_value(state[k])
                elif hasattr(path[-1], "name"):
                    setattr(parent, path[-1].name, state[k])
                else:
                    parent[_key(path[-1])] = state[k]
            except (TypeError, AttributeError) as error:
                name = jax.tree_util.keystr(path[1:])
                raise TypeError(
                    f"the function replaces {name} of its argument {path[0].idx} in place, which the smaller function "
                    "cannot do with this container; return the new value instead"
                ) from error


def _key(step: Any) -> Any:
    return step.key if hasattr(step, "key") else step.idx


def _shrinking(analysis: Analysis, decision: Decision) -> list[dict[int, tuple[int, int]]]:
    """Returns for each leaf of the inputs the axes that shrink, with their sizes before and after."""
    found: list[dict[int, tuple[int, int]]] = []
    for place in analysis.traced.inputs[len(analysis.leaves) :]:
        axes = () if place is None else analysis.frame.read(analysis.frame.jaxpr.invars[place])
        keeps = [decision.keep(axis) for axis in axes]
        found.append({axis: (keep.full, keep.size) for axis, keep in enumerate(keeps) if keep is not None})
    return found


def _whole_inputs(inputs: tuple[Any, ...], shrinking: list[dict[int, tuple[int, int]]], whole: tuple[Any, ...]) -> Any:
    """Returns the inputs in the shapes that the function took before slimming."""
    paths, structure = jax.tree_util.tree_flatten_with_path(inputs)
    if structure != jax.tree.structure(whole):
        raise ValueError(
            f"the inputs must have the structure of the inputs given to rebind, {jax.tree.structure(whole)}; "
            f"got {structure}"
        )
    leaves, wrong = [], []
    for (path, leaf), axes in zip(paths, shrinking, strict=True):
        name = f"input {path[0].idx}" + (f", leaf {_tree.name(path[1:])}" if path[1:] else "")
        wrong += [
            f"  {name}: expected {small} of {full} positions on axis {axis}, got shape {tuple(leaf.shape)}"
            for axis, (full, small) in axes.items()
            if len(leaf.shape) <= axis or leaf.shape[axis] != small
        ]
        full = [axes[axis][0] if axis in axes else n for axis, n in enumerate(leaf.shape)] if axes else []
        leaves.append(jax.ShapeDtypeStruct(tuple(full), leaf.dtype) if axes else leaf)
    if wrong:
        raise ValueError("these inputs contain removed units, and must be smaller:\n" + "\n".join(wrong))
    return jax.tree.unflatten(structure, leaves)


def _decide(
    fn: Callable[..., PyTree],
    manifest: Manifest,
    params: PyTree,
    inputs: tuple[Any, ...],
    fix_outputs: bool,
    fix_inputs: bool,
) -> tuple[Analysis, Decision]:
    """Traces a function that returns (outputs, state) with the whole parameters, and decides which labels to remove."""
    leaves, structure = jax.tree.flatten(params)
    whole = [
        jax.ShapeDtypeStruct(kept.shape, leaf.dtype) if _tree.is_array(leaf) and kept.shape is not None else leaf
        for leaf, kept in zip(leaves, manifest.leaves, strict=True)
    ]
    analysis = analyse(fn, jax.tree.unflatten(structure, whole), inputs, fix_outputs=False, fix_inputs=fix_inputs)
    labels, results = analysis.labels, analysis.traced.closed.jaxpr.outvars
    outputs, state = jax.tree.unflatten(analysis.traced.out_tree, range(len(results)))
    if fix_outputs:
        for k in jax.tree.leaves(outputs):
            for axis in analysis.frame.read(results[k]):
                freeze(labels, axis, labels.reason(f"output {k} of the function"))
    for place, k in state.items():  # the new value of a leaf loses the same positions as the leaf
        why = labels.reason(f"the new state of leaf {place} of the arguments")
        old = analysis.frame.jaxpr.invars[analysis.traced.inputs[place]]
        for a, b in zip(analysis.frame.read(old), analysis.frame.read(results[k]), strict=True):
            unify(labels, a, b, why)
    decision = decided(analysis, manifest)
    if manifest.as_built is not None:
        counts = find_counts(analysis.frame, analysis.traced.inputs[: len(analysis.leaves)])
        decision.numbers = numbers_after(decision, analysis.frame, counts, manifest.as_built)
        if moved := list(dict.fromkeys(misplaced(decision, analysis.frame))):
            raise ValueError(
                "as_built: the smaller architecture shuffles or rolls its channels to other positions than those that "
                "stay. Remove the same places of each part, or leave as_built out:\n" + "\n".join(moved)
            )
    return analysis, decision


def _check_shapes(params: PyTree, manifest: Manifest, *, smaller: bool) -> None:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if len(leaves) != len(manifest.leaves):
        raise ValueError(f"these are other parameters: {len(leaves)} leaves, expected {len(manifest.leaves)}")
    wrong = []
    for (_, leaf), kept in zip(leaves, manifest.leaves, strict=True):
        expected = None if kept.shape is None else kept.small if smaller else kept.shape
        got = tuple(leaf.shape) if _tree.is_array(leaf) else None
        if got != expected:
            wrong.append(f"  {kept.name}: expected {expected}, got {got}")
    if wrong:
        which = "the smaller parameters" if smaller else "the parameters that the choice was made for"
        raise ValueError(f"these are not {which}:\n" + "\n".join(wrong[:20]))


def _signature(args: Any) -> Any:
    leaves, structure = jax.tree.flatten(args)
    parts = [
        (tuple(x.shape), x.dtype, getattr(x, "weak_type", False)) if _tree.is_array(x) else (type(x), x) for x in leaves
    ]
    if any(export.is_symbolic_dim(n) for x in leaves if _tree.is_array(x) for n in x.shape):
        return None  # symbolic sizes are compared within their scope only
    key = (structure, tuple(parts))
    try:
        hash(key)
    except TypeError:
        return None  # a constant that cannot be compared: traced at each call
    return key


def _leaks(analysis: Analysis) -> bool:
    # A function that closes over values of a surrounding trace has them as constants, which cannot be reused.
    return any(isinstance(const, Tracer) for const in analysis.traced.closed.consts)
