"""Writes by index: scatter and dynamic_update_slice. `indexing` has the reads, and says which indices are followed."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.constants import constant_of
from jaxprune.slimming._labels.evaluate import Keep, ShrinkSite, ranks, single
from jaxprune.slimming._labels.frames import Rule, Site, Zeros, ZeroSite, settled
from jaxprune.slimming._labels.rules.indexing import axis_at, pointed_axes, starts_of, window_dims
from jaxprune.slimming._labels.rules.moving import parts

_WRITE = "a write at indices that the function computes; constant indices are followed"


def _write_axes(eqn: Any) -> tuple[dict[int, int], list[int]]:
    """Returns which axes of a scatter belong together.

    Returns:
      From axes of the operand to axes of the updates, for the windows; the other axes of the updates, which are the
      axes of the indices.
    """
    numbers = eqn.params["dimension_numbers"]
    rank, update_rank = len(eqn.invars[0].aval.shape), len(eqn.invars[2].aval.shape)
    window = window_dims(rank, numbers.inserted_window_dims, numbers.operand_batching_dims)
    rest = [u for u in range(update_rank) if u not in numbers.update_window_dims]
    return dict(zip(window, numbers.update_window_dims, strict=True)), rest


def _constant_writes(site: Any) -> tuple[dict[int, int], dict[int, np.ndarray]]:
    """Returns where a scatter writes on axes with labels that its windows do not fill, where this is constant.

    Returns:
      For each such axis the start of the range, or the one position, that every update is written to; for each axis
      along which a list of updates is written to one position each, these positions.
    """
    eqn, numbers = site.eqn, site.eqn.params["dimension_numbers"]
    operand, shape = site.frame.read(eqn.invars[0]), eqn.invars[2].aval.shape
    window, rest = _write_axes(eqn)
    starts, lists = {}, {}
    for k, d in enumerate(numbers.scatter_dims_to_operand_dims):
        n, full = shape[window[d]] if d in window else 1, ax.size(operand[d])
        column = None if ax.is_fixed(operand[d]) or (d in window and n == full) else column_of(site, 1, k)
        if column is None or not column.size or (column < 0).any() or (column + n > full).any():
            continue
        if (column == column.flat[0]).all():
            starts[d] = int(column.flat[0])
        elif d not in window and len(rest) == 1 and constant_of(site.frame, eqn.invars[1]) is not None:
            lists[d] = column
    return starts, lists


def column_of(site: Any, operand: int, k: int) -> np.ndarray | None:
    """Returns the k-th column of an index, if it is constant."""
    frame, var = site.frame, site.eqn.invars[operand]
    value = constant_of(frame, var)
    if value is not None:
        return value[..., k]
    eqn = frame.jaxpr.eqns[frame.makers[var]] if var in frame.makers else None
    if eqn is None or eqn.primitive.name != "concatenate" or eqn.params["dimension"] != len(var.aval.shape) - 1:
        return None
    if any(v.aval.shape[-1] != 1 for v in eqn.invars):
        return None
    value = constant_of(frame, eqn.invars[k])
    return None if value is None else value[..., 0]


def _replaces(eqn: Any) -> int | None:
    """Returns the axis of a scatter that overwrites a range of one axis; None for any other scatter."""
    numbers, (window, rest) = eqn.params["dimension_numbers"], _write_axes(eqn)
    full, sizes = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    partial = [d for d, u in window.items() if full[d] != sizes[u]]
    alone = not rest and not numbers.inserted_window_dims and len(partial) == 1
    return partial[0] if alone and eqn.primitive.name == "scatter" else None


def _follow_inserted(
    site: Site, operand: Axes, updates: Axes, starts: dict[int, int], lists: dict[int, np.ndarray]
) -> None:
    """Follows the axes to which a scatter writes at one position for each index; see `_constant_writes`."""
    numbers, (_, rest) = site.eqn.params["dimension_numbers"], _write_axes(site.eqn)
    pointed = pointed_axes(site, numbers.scatter_dims_to_operand_dims)
    for d in numbers.inserted_window_dims:
        if d in pointed:
            site.unify(operand[d], pointed[d].axis)
        elif d in lists:
            site.unify(axis_at(site, operand[d], lists[d]), updates[rest[0]])
        elif d in starts:
            _ = parts(site, operand[d], starts[d], starts[d] + 1)
        else:
            site.freeze(operand[d], _WRITE)


def _follow_scatter(site: Site, operands: list[Axes]) -> list[Axes]:
    operand, indices, updates = operands
    numbers = site.eqn.params["dimension_numbers"]
    window, rest = _write_axes(site.eqn)
    (starts, lists), result = _constant_writes(site), list(operand)
    site.freeze(indices[-1], "the index of a scatter")
    _follow_inserted(site, operand, updates, starts, lists)
    for d, b in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        site.unify(operand[d], indices[b])
    for d, u in window.items():
        if ax.size(operand[d]) == ax.size(updates[u]):
            site.unify(operand[d], updates[u])
        elif d in starts:
            result[d] = _written(site, operand[d], updates[u], starts[d], alone=_replaces(site.eqn) == d)
        else:
            site.freeze(operand[d], _WRITE)
            site.freeze(updates[u], _WRITE)
    if not lists:
        for u, b in zip(rest, range(len(indices) - 1), strict=True):
            site.unify(updates[u], indices[b])
    return [tuple(result)]


def _zero_scatter(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    numbers = site.eqn.params["dimension_numbers"]
    window, rest = _write_axes(site.eqn)
    starts, lists = _constant_writes(site)
    zero = [False] * site.rank()
    old = lambda d: settled(site, 0, d, known[0].axes[d])
    new = lambda u: settled(site, 2, u, known[2].axes[u])
    batch = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    aligned = {d: rest[b] for d, b in batch} | dict.fromkeys(lists, rest[0] if rest else 0)
    for d, u in (window | aligned).items():
        zero[d] = old(d) and new(u)
    for d in starts.keys() - window.keys():
        zero[d] = old(d) and known[2].void
    for d in pointed_axes(site, numbers.scatter_dims_to_operand_dims, losing=False):
        zero[d] = d in numbers.inserted_window_dims and known[0].axes[d]  # no index equals a removed position
    for u in set(rest) - set(aligned.values()):
        if not new(u) or not (known[0].void or site.eqn.primitive.name[8:] in ("add", "sub")):
            site.inexact(site.operand(2)[u], "a scatter of updates that change the result although masking zeroes them")
    return [Zeros(tuple(zero))]


def _shrink_scatter(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """Runs a scatter on the smaller arrays, with its indices renumbered to the positions that stay."""
    array, indices, updates = operands
    numbers, full = site.eqn.params["dimension_numbers"], site.eqn.invars[0].aval.shape
    window, rest = _write_axes(site.eqn)
    starts, lists = _constant_writes(site)
    replaced = _replaces(site.eqn)
    if replaced in starts:
        count = site.eqn.invars[2].aval.shape[window[replaced]]
        return [_replaced(site, array, updates, replaced, starts[replaced], count)]
    if not starts and not lists:
        return site.bind(*operands)
    columns = []
    for k, d in enumerate(numbers.scatter_dims_to_operand_dims):
        keep = site.keeps(0)[d]
        if d in lists:
            stay = site.keeps(2)[rest[0]]
            columns.append(ranks(keep, full[d], lists[d] if stay is None else lists[d][stay.positions]))
        elif d in starts:
            columns.append(_before(keep, starts[d]))
            if d not in window and _before(keep, starts[d] + 1) == columns[-1]:
                return [array]  # the one position that is written to is removed
        else:
            columns.append(indices[..., k])
    if updates.size == 0:
        return [array]
    shape = (updates.shape[rest[0]],) if lists else indices.shape[:-1]
    index = jnp.stack([jnp.broadcast_to(jnp.asarray(c, indices.dtype), shape) for c in columns], -1)
    return site.bind(array, index, updates)


def _follow_update(site: Site, operands: list[Axes]) -> list[Axes]:
    array, piece = operands[:2]
    partial = [i for i in range(len(array)) if ax.size(array[i]) != ax.size(piece[i])]
    starts, result = starts_of(site, 2, site.eqn.invars[1].aval.shape), []
    for i, (axis, new) in enumerate(zip(array, piece, strict=True)):
        if i in starts:
            result.append(_written(site, axis, new, starts[i], alone=partial == [i]))
        elif i not in partial:
            result.append(site.unify(axis, new))
        else:
            for frozen in (axis, new):
                site.freeze(frozen, "a write whose start the function computes; a constant start is followed")
            result.append(axis)
    return [tuple(result)]


def _written(site: Site, axis: Axis, new: Axis, start: int, *, alone: bool) -> Axis:
    """Returns an axis after a write into a range of positions; `alone`: every entry of the range is replaced."""
    before, inside, behind = parts(site, axis, start, start + ax.size(new))
    site.mark(new)
    if alone:  # the old entries are overwritten, so the new ones may lose other positions
        return ax.concatenate(site.labels, [before, new, behind])
    _ = site.unify(inside, new)
    return axis


def _zero_update(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zero = [
        settled(site, 0, i, a) and settled(site, 1, i, b)
        for i, (a, b) in enumerate(zip(known[0].axes, known[1].axes, strict=True))
    ]
    return [Zeros(tuple(zero))]


def _shrink_update(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    array, piece, *at = operands
    full, sizes = site.eqn.invars[0].aval.shape, site.eqn.invars[1].aval.shape
    starts = starts_of(site, 2, sizes)
    partial = [i for i in range(len(full)) if full[i] != sizes[i]]
    if len(starts) == len(partial) == 1:
        [[i, start]] = starts.items()
        return [_replaced(site, array, piece, i, start, sizes[i])]
    if piece.size == 0:
        return [array]
    for i, start in starts.items():
        at[i] = _before(site.keeps(0)[i], start)
    return site.bind(array, piece, *at)


def _replaced(site: ShrinkSite, array: Any, piece: Any, axis: int, start: int, count: int) -> Any:
    """Returns an array with a range of an axis replaced."""
    keep = site.keeps(0)[axis]
    first, last = _before(keep, start), _before(keep, start + count)
    parts = lax.slice_in_dim(array, 0, first, 1, axis), piece, lax.slice_in_dim(array, last, None, 1, axis)
    return lax.concatenate([part for part in parts if part.shape[axis]], axis)


def _before(keep: Keep | None, position: int) -> int:
    """Returns how many positions before a position of the whole axis stay."""
    return position if keep is None else int(single((keep.positions < position).sum(-1, keepdims=True))[0])


TABLE = {"dynamic_update_slice": Rule(_follow_update, _zero_update, _shrink_update)}
TABLE |= dict.fromkeys(
    [f"scatter{sep}{kind}" for kind in ("add", "sub", "mul", "min", "max") for sep in "-_"] + ["scatter"],
    Rule(_follow_scatter, _zero_scatter, _shrink_scatter),
)
