"""`analyse`: traces a function and couples the labels of its parameters' axes.

`decided` finds the labels to remove from an analysed function, so that exactly the positions of a manifest remain.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import Literal

from jaxprune import _tree
from jaxprune._jaxprs import Traced, sub_jaxprs, trace
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes
from jaxprune.slimming._labels.evaluate import Decision, Piece, labels_that_go
from jaxprune.slimming._labels.frames import Frame, even, follow
from jaxprune.slimming._labels.labels import Ids, Labels
from jaxprune.slimming._labels.members import tied
from jaxprune.slimming._labels.rules import rule_of
from jaxprune.slimming.manifest import Manifest

PyTree = Any
_NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the parameters.

    Attributes:
      name: the path of the leaf.
      identity: the path as a tuple.
      shape: the shape; None for a leaf that is not an array.
      dtype: the dtype.
      ids: the labels of each axis; (layers..., n) if a scan runs over layers of the leaf.
    """

    name: str
    identity: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: Any
    ids: tuple[Ids, ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A traced function and the labels in it.

    Attributes:
      labels: all labels, coupled as the function requires.
      traced: the jaxpr, and the position of each leaf of (params, *inputs) in it.
      frame: the axes of every value.
      leaves: the leaves of the parameters.
      others: the frames of further functions of the same parameters.
    """

    labels: Labels
    traced: Traced
    frame: Frame
    leaves: tuple[Leaf, ...]
    others: tuple[Frame, ...] = ()


def analyse(
    fn: Callable[..., PyTree],
    params: PyTree,
    inputs: Sequence[Any],
    *,
    fix_outputs: bool,
    also: Sequence[tuple[Any, ...]] = (),
    fix_inputs: bool = True,
) -> Analysis:
    """Traces `fn(params, *inputs)` from shapes and couples the labels of the parameters.

    Args:
      fn: the function.
      params: arrays or ShapeDtypeStructs; other leaves are constants.
      inputs: arrays or ShapeDtypeStructs.
      fix_outputs: whether the outputs of `fn` must keep their shapes.
      also: further functions of the same parameters, each as (function, *inputs); their outputs may shrink.
      fix_inputs: whether the inputs of `fn` must keep their shapes; otherwise they have their own labels.

    Raises:
      TypeError: a function needs numbers, but only shapes are known.
    """
    if not isinstance(also, list | tuple) or not all(isinstance(other, list | tuple) and other for other in also):
        raise TypeError(f"also must be a list of tuples (function, *inputs); got {_tree.shown(also)}")
    others = [traced_from_shapes(other[0], params, other[1:]) for other in also]
    traced = traced_from_shapes(fn, params, inputs)
    return couple(traced, params, fix_outputs=fix_outputs, others=others, fix_inputs=fix_inputs)


def traced_from_shapes(fn: Callable[..., PyTree], params: PyTree, inputs: Sequence[Any]) -> Traced:
    """Traces `fn(params, *inputs)`.

    Raises:
      TypeError: `fn` is not a function, `params` contain no array, or the function needs numbers although only shapes
        are known; the message names the leaves on which the numbers depend.
    """
    if not callable(fn):
        swapped = ": fn and params are swapped" if callable(params) else ""
        raise TypeError(f"fn must be a function fn(params, *inputs); got {type(fn).__name__}{swapped}")
    if not any(map(_tree.is_array, jax.tree.leaves(params))):
        raise TypeError(f"params must be a tree with arrays, the parameters of the model; got {type(params).__name__}")
    try:
        return trace(fn, params, *inputs)
    except _NEEDS_NUMBERS as error:
        paths = [path for path, leaf in _tree.with_paths((params, *inputs)) if _tree.is_array(leaf)]
        asked = {int(k) for k in re.findall(r"arrays\[(\d+)\]", str(error))}  # JAX names the arguments so
        leaves = ", ".join(_argument(paths[k]) for k in sorted(asked)) or "params or inputs"
        raise TypeError(
            f"{getattr(fn, '__name__', repr(fn))} cannot be traced from shapes: it asks for a number that depends on "
            f"{leaves}. Write branches with jnp.where or lax.cond; what has to be a Python number must not be an "
            f"array leaf of params or inputs. JAX says: {str(error).splitlines()[0]}"
        ) from error


def _argument(path: Any) -> str:
    # The arguments are (params, *inputs).
    name = _tree.name(path[1:])
    return name if path[0].idx == 0 else f"input {path[0].idx - 1}" + (f", leaf {name}" if name else "")


def couple(
    traced: Traced, params: PyTree, *, fix_outputs: bool, others: Sequence[Traced] = (), fix_inputs: bool = True
) -> Analysis:
    """Couples the labels of the parameters of a traced function, and of further functions of the same parameters."""
    labels = Labels()
    programs = (traced, *others)
    layers = [_layers(program.closed.jaxpr) for program in programs]
    used = [_used(program.closed.jaxpr) for program in programs]
    given: list[list[Axes]] = [
        [tuple(map(ax.fixed, v.aval.shape)) for v in program.closed.jaxpr.invars] for program in programs
    ]
    leaves = []
    for k, (path, leaf) in enumerate(_tree.with_paths(params)):
        ids: tuple[Ids, ...] = ()
        if _tree.is_array(leaf):
            places: list[Any] = [program.inputs[k] for program in programs]  # every program has a place for an array
            depth = max((own.get(place, ()) for own, place in zip(layers, places, strict=True)), key=len)
            ids = _label(labels, leaf, depth, any(place in own for own, place in zip(used, places, strict=True)))
            for own, place in zip(given, places, strict=True):
                own[place] = tuple(map(ax.labelled, ids))
        shape = tuple(leaf.shape) if _tree.is_array(leaf) else None
        leaves.append(Leaf(_tree.name(path), _tree.identity(path), shape, getattr(leaf, "dtype", None), ids))
    if not fix_inputs:
        for place in traced.inputs[len(leaves) :]:
            if place is not None:
                shape = traced.closed.jaxpr.invars[place].aval.shape
                given[0][place] = tuple(
                    ax.fixed(n) if export.is_symbolic_dim(n) else ax.labelled(labels.fresh(n)) for n in shape
                )
    frames = [
        follow(labels, program.closed.jaxpr, program.closed.consts, own, (), rule_of)
        for program, own in zip(programs, given, strict=True)
    ]
    pointing.settle(labels, lambda axis: even(labels, axis, 0))
    if fix_outputs:
        _fix_outputs(labels, frames[0], traced.closed.jaxpr.outvars)
    return Analysis(labels, traced, frames[0], tuple(leaves), tuple(frames[1:]))


def _fix_outputs(labels: Labels, frame: Frame, outputs: Sequence[Any]) -> None:
    for k, var in enumerate(outputs):
        for axis in frame.read(var):
            ax.freeze(labels, axis, labels.reason(f"output {k} of the function"))
        for axis in pointing.axes_of(frame, var):
            ax.freeze(labels, axis, labels.reason(f"output {k} of the function contains its positions as numbers"))


def _label(labels: Labels, leaf: Any, layers: tuple[int, ...], used: bool) -> tuple[Ids, ...]:
    depth = len(layers)
    ids = tuple(labels.fresh((n,) if i < depth else (*layers, n)) for i, n in enumerate(leaf.shape))
    if not used:
        for axis in ids:
            labels.freeze(axis, labels.reason("not used by the function"))
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        for axis in ids:
            labels.freeze(axis, labels.reason("random keys"))
    return ids


def _layers(jaxpr: Any) -> dict[int, tuple[int, ...]]:
    """Returns the lengths of the scans that run over an input's leading axes, by the number of the input."""
    source = {v: i for i, v in enumerate(jaxpr.invars)}
    found: dict[int, tuple[int, ...]] = {}
    for eqn in jaxpr.eqns:
        if not any(not isinstance(v, Literal) and v in source for v in eqn.invars):
            continue
        rule = rule_of(eqn)
        if rule is None or not rule.ragged:
            continue
        for sub in sub_jaxprs(eqn):
            inner = _layers(sub.jaxpr)
            for k, place in enumerate(sub.inputs):
                var = None if place is None else eqn.invars[place]
                if var is None or isinstance(var, Literal) or var not in source:
                    continue
                lengths = inner.get(k, ())
                if k in sub.stacked_inputs:
                    lengths = (int(eqn.params["length"]), *lengths)
                whole = lengths == tuple(var.aval.shape[: len(lengths)])  # a shard_map may cut the stack itself
                if whole and len(lengths) > len(found.get(source[var], ())):
                    found[source[var]] = lengths
        [*operands] = [v for v in eqn.invars if not isinstance(v, Literal)]
        if len(eqn.invars) == len(operands) == 1 and operands[0] in source and not sub_jaxprs(eqn):
            source[eqn.outvars[0]] = source[operands[0]]
    return found


def _used(jaxpr: Any) -> set[int]:
    """Returns the inputs that the function uses or returns."""
    used = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in jaxpr.eqns:
        operands = [None if isinstance(v, Literal) else v for v in eqn.invars]
        subs = sub_jaxprs(eqn)
        if subs and all(sub.role == "call" for sub in subs):
            places = [sub.inputs[k] for sub in subs for k in _used(sub.jaxpr)]
            used |= {operands[place] for place in places if place is not None}
        else:
            used |= set(operands)
    return {i for i, v in enumerate(jaxpr.invars) if v in used}


def decided(analysis: Analysis, manifest: Manifest, whole: Sequence[tuple[int, int, Piece]] | None = None) -> Decision:
    """Returns the labels to remove so that exactly the positions that the manifest removes are removed.

    Args:
      analysis: a function traced with the whole parameters.
      manifest: the positions that stay. Leaves that the function does not use may have any smaller shape.
      whole: `whole_pieces(analysis)`, to decide about many manifests.

    Raises:
      ValueError: a position must be removed although none of its labels can be; the message names the arrays.
    """
    pieces = [
        piece._replace(stay=_same_in_members(analysis, k, axis, manifest.leaves[k].stay(axis)))
        if axis in manifest.leaves[k].axes
        else piece
        for k, axis, piece in (whole_pieces(analysis) if whole is None else whole)
    ]
    return Decision(analysis.labels, labels_that_go(analysis.labels, pieces))


def _same_in_members(analysis: Analysis, k: int, axis: int, stay: np.ndarray) -> np.ndarray:
    """Returns the positions that stay, made equal in all members of a stack whose members lose different positions.

    The parameters of each member have their own positions. The function is the same for any order of a member's units
    (`_labels.members`), so the program is the same as if all members kept their first units.

    Raises:
      ValueError: the function depends on the order of a member's units.
    """
    labels, leaf = analysis.labels, analysis.leaves[k]
    ids = leaf.ids[axis]
    if stay.ndim <= ids.ndim:
        return stay
    if (stay == stay[..., :1, :]).all():
        return stay[..., 0, :]
    reason = tied(labels, (analysis.frame, *analysis.others), labels.atoms(ids), leaf.ids[ids.ndim - 1])
    if reason is not None:
        raise ValueError(
            f"{leaf.name}, axis {axis}: every member of the stack loses other units, but this function ties the units "
            f"of different members (by {reason}); remove the same units of every member"
        )
    order = [np.unique(row, return_inverse=True)[1] for row in labels.find(ids).reshape(-1, ids.shape[-1])]
    rank = np.stack(order).reshape(ids.shape)
    positions = ids.shape[-1] // (rank.max(-1, keepdims=True) + 1)
    return rank < stay[..., 0, :].sum(-1, keepdims=True) // positions


def whole_pieces(analysis: Analysis) -> list[tuple[int, int, Piece]]:
    """Returns the axes of the leaves that a function uses, with all positions: (place of the leaf, axis, piece)."""
    labels = analysis.labels
    unused = labels.reason("not used by the function")
    return [
        (k, axis, Piece(f"{leaf.name}, axis {axis}", ids, np.ones(ids.shape[-1], bool), labels.atoms(ids)))
        for k, leaf in enumerate(analysis.leaves)
        for axis, ids in enumerate(leaf.ids)
        if not (labels.why(ids) == unused).all()
    ]
