"""Primitives that only move entries, with one rule for each move; and primitives that create entries."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from jaxprune._jaxprs import factors
from jaxprune._jaxprs.primitives import (
    PRIMITIVES,
    Broadcast,
    Concatenate,
    Moves,
    Pad,
    Reshape,
    Reverse,
    Same,
    Slice,
    Squeeze,
    Stack,
    Tile,
    Transpose,
)
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite, move, ranks, rebind, select, single, take
from jaxprune.slimming._labels.frames import Rule, Site, Zeros, ZeroSite, no_zeros, settled, together, whole
from jaxprune.slimming._labels.rules import shuffles


def _moves(site: Site | ZeroSite | ShrinkSite) -> Moves:
    what = PRIMITIVES[site.eqn.primitive.name]
    assert isinstance(what, Moves)
    return what


def _follow(site: Site, operands: list[Axes]) -> list[Axes]:
    moves = _moves(site).moves(site.eqn)
    return [_FOLLOW[type(m)](site, m, operands) for m in moves]


def _zero(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    moves = _moves(site).moves(site.eqn)
    return [_ZERO[type(m)](site, m, known)._replace(low=_low(m, known[0])) for m in moves]


def _low(m: Any, known: Zeros) -> frozenset[int]:
    """Returns the axes along which a moved value is minus infinity at removed positions."""
    if isinstance(m, Same | Slice | Reverse):
        return known.low
    if isinstance(m, Transpose):
        return frozenset(i for i, source in enumerate(m.permutation) if source in known.low)
    if isinstance(m, Broadcast):
        return frozenset(m.dimensions[axis] for axis in known.low)
    return frozenset()


def _shrink(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    # A primitive with shapes among its parameters gets new ones; any other primitive runs unchanged.
    moves = _moves(site).moves(site.eqn)
    if all(type(m) in _SHRINK for m in moves):
        return [_SHRINK[type(m)](site, m, operands, k) for k, m in enumerate(moves)]
    return rebind(site, operands)


def _follow_transpose(site: Site, m: Transpose, operands: list[Axes]) -> Axes:
    del site
    return tuple(operands[0][i] for i in m.permutation)


def _zero_transpose(site: ZeroSite, m: Transpose, known: list[Zeros]) -> Zeros:
    del site
    return Zeros(tuple(known[0].axes[i] for i in m.permutation), known[0].value)


def _follow_reshape(site: Site, m: Reshape, operands: list[Axes]) -> Axes:
    axes = operands[0] if m.order is None else tuple(operands[0][a] for a in m.order)
    old = tuple(map(ax.size, axes))
    if 0 in old:
        for axis in axes:
            site.freeze(axis, "a reshape of an empty array")
        return whole(m.shape)
    shuffled = shuffles.follow(site, axes)
    if shuffled is not None:
        return shuffled
    result: list[Axis] = []
    for ins, outs in factors.blocks(old, m.shape):
        if len(ins) == len(outs) == 1:
            result.append(axes[ins[0]])
            continue
        block = ax.merge([axes[i] for i in ins])
        if not outs:
            site.freeze(block, "a reshape that drops its axis")
        else:
            result += ax.split(site.labels, block, [m.shape[j] for j in outs])
    return tuple(result)


def _zero_reshape(site: ZeroSite, m: Reshape, known: list[Zeros]) -> Zeros:
    order = m.order or range(len(known[0].axes))
    old = tuple(ax.size(site.operand(0)[a]) for a in order)
    if 0 in old:
        return Zeros((False,) * len(m.shape))
    shuffled = shuffles.zero(site, known)
    if shuffled is not None:
        return shuffled
    zeros = [settled(site, 0, a, known[0].axes[a]) for a in order]
    result: list[bool] = []
    for ins, outs in factors.blocks(old, m.shape):
        result += [all(zeros[i] for i in ins)] * len(outs)
    return Zeros(tuple(result), known[0].value)


def _shrink_reshape(site: ShrinkSite, m: Reshape, operands: list[Any], k: int) -> Any:
    shuffled = shuffles.shrink(site, operands[0], k)
    if shuffled is not None:
        return shuffled
    return lax.reshape(operands[0], site.out_shape(k), m.order)


def _follow_squeeze(site: Site, m: Squeeze, operands: list[Axes]) -> Axes:
    for i in m.dimensions:
        site.freeze(operands[0][i], "a single position that an index or a squeeze drops")
    return tuple(axis for i, axis in enumerate(operands[0]) if i not in m.dimensions)


def _zero_squeeze(site: ZeroSite, m: Squeeze, known: list[Zeros]) -> Zeros:
    del site
    return Zeros(tuple(zero for i, zero in enumerate(known[0].axes) if i not in m.dimensions), known[0].value)


def _follow_broadcast(site: Site, m: Broadcast, operands: list[Axes]) -> Axes:
    result: list[Axis | None] = [None] * len(m.shape)
    for axis, place in zip(operands[0], m.dimensions, strict=True):
        if ax.size(axis) == m.shape[place]:
            result[place] = axis
        else:
            site.freeze(axis, "a broadcast along it")
    return tuple(site.free(n) if a is None else a for a, n in zip(result, m.shape, strict=True))


def _zero_broadcast(site: ZeroSite, m: Broadcast, known: list[Zeros]) -> Zeros:
    # A value is zero at removed positions of a new axis only if it is zero everywhere.
    result = [known[0].void] * len(m.shape)
    for k, place in enumerate(m.dimensions):
        if ax.size(site.operand(0)[k]) == m.shape[place]:
            result[place] = known[0].axes[k]
    return Zeros(tuple(result), known[0].value)


def _shrink_broadcast(site: ShrinkSite, m: Broadcast, operands: list[Any], k: int) -> Any:
    return lax.broadcast_in_dim(operands[0], site.out_shape(k), m.dimensions)


def _follow_slice(site: Site, m: Slice, operands: list[Axes]) -> Axes:
    result = []
    for axis, bounds in zip(operands[0], zip(*m, strict=True), strict=True):
        if bounds == (0, ax.size(axis), 1):
            result.append(axis)
        else:
            start, stop, step = bounds
            layered = step == 1 and any(factor.of is not None and factor.of.ndim > 1 for factor in axis)
            taken = parts(site, axis, start, stop)[1] if layered else ax.take(site.labels, axis, slice(*bounds))
            site.mark(taken)
            result.append(taken)
    return tuple(result)


def parts(site: Site, axis: Axis, start: int, stop: int) -> list[Axis]:
    """Returns the positions before, in and behind a range; each layer of a scan keeps equally many of each."""
    found = [ax.take(site.labels, axis, slice(*b)) for b in ((0, start), (start, stop), (stop, ax.size(axis)))]
    for part in found:
        site.mark(part)
    return found


def _same_zeros(site: ZeroSite, m: Any, known: list[Zeros]) -> Zeros:
    del site, m
    return known[0]


def _shrink_slice(site: ShrinkSite, m: Slice, operands: list[Any], k: int) -> Any:
    array = operands[0]
    for axis, bounds in enumerate(zip(*m, strict=True)):
        if bounds != (0, site.eqn.invars[0].aval.shape[axis], 1):
            array = move(site, array, axis, np.arange(*bounds), site.out_keeps(k)[axis])
    return array


def _follow_reverse(site: Site, m: Reverse, operands: list[Axes]) -> Axes:
    backwards = slice(None, None, -1)
    return tuple(ax.take(site.labels, a, backwards) if i in m.dimensions else a for i, a in enumerate(operands[0]))


def _follow_tile(site: Site, m: Tile, operands: list[Axes]) -> Axes:
    del site
    return tuple(a if r == 1 else ax.merge([ax.fixed(r), a]) for r, a in zip(m.reps, operands[0], strict=True))


def _follow_concatenate(site: Site, m: Concatenate, operands: list[Axes]) -> Axes:
    if len(operands) == 1:
        return operands[0]
    columns = list(zip(*operands, strict=True))
    joined = ax.concatenate(site.labels, columns[m.axis])
    return tuple(joined if i == m.axis else together(site, axes) for i, axes in enumerate(columns))


def _zero_concatenate(site: ZeroSite, m: Concatenate, known: list[Zeros]) -> Zeros:
    del m
    rank = len(known[0].axes)
    zeros = [[settled(site, k, i, z.axes[i]) for i in range(rank)] for k, z in enumerate(known)]
    return Zeros(tuple(all(z) for z in zip(*zeros, strict=True)), 0.0 if all(z.void for z in known) else None)


def _follow_stack(site: Site, m: Stack, operands: list[Axes]) -> Axes:
    joined = [together(site, axes) for axes in zip(*operands, strict=True)]
    return (*joined[: m.axis], ax.fixed(len(operands)), *joined[m.axis :])


def _zero_stack(site: ZeroSite, m: Stack, known: list[Zeros]) -> Zeros:
    del site
    joined = [all(z) for z in zip(*(z.axes for z in known), strict=True)]
    return Zeros((*joined[: m.axis], True, *joined[m.axis :]))


def _follow_pad(site: Site, m: Pad, operands: list[Axes]) -> Axes:
    result = []
    for axis, (low, high, inside), n in zip(operands[0], m.config, site.out_shape(), strict=True):
        if (low, high, inside) == (0, 0, 0):
            result.append(axis)
        elif ax.is_fixed(axis) or inside or n == 0:
            site.freeze(axis, "padding between positions")
            result.append(ax.fixed(n))
        else:
            middle = ax.take(site.labels, axis, slice(max(-low, 0), ax.size(axis) - max(-high, 0)))
            parts = [*([site.free(low)] if low > 0 else []), middle, *([site.free(high)] if high > 0 else [])]
            result.append(ax.concatenate(site.labels, parts))
    return tuple(result)


def _zero_pad(site: ZeroSite, m: Pad, known: list[Zeros]) -> Zeros:
    del site, m
    return Zeros(tuple(zero and known[1].void for zero in known[0].axes), 0.0 if all(k.void for k in known) else None)


def _shrink_pad(site: ShrinkSite, m: Pad, operands: list[Any], k: int) -> Any:
    array, value = operands
    padding = []
    for axis, (low, high, inside) in enumerate(m.config):
        before, after = site.keeps(0)[axis], site.out_keeps(k)[axis]
        if before is None and after is None:
            padding.append((low, high, inside))
            continue
        full = site.eqn.invars[0].aval.shape[axis]
        source = np.arange(-low, full + high)
        inner = (source >= 0) & (source < full)
        kept = np.arange(source.size) if after is None else after.positions
        counts = [_count(kept, source < 0), _count(kept, source >= full)]
        places = single(kept[inner[kept]].reshape(*kept.shape[:-1], -1)) - low
        array = select(array, axis, ranks(before, full, places) if before is not None else places)
        padding.append((*counts, 0))
    return lax.pad(array, value, padding)


def _count(kept: np.ndarray, which: np.ndarray) -> int:
    return int(single(which[kept].sum(-1, keepdims=True))[0])


def _follow_made(site: Site, operands: list[Axes]) -> list[Axes]:
    # Each position has its own value: the smaller program makes the whole array and takes the kept positions.
    for axis in (axis for axes in operands for axis in axes):
        site.freeze(axis, f"an operand of {site.name}")
    along = site.eqn.params.get("dimension") if site.name == "iota" else None
    axes = tuple(site.free(n) if i == along else site.shared(n) for i, n in enumerate(site.out_shape()))
    if along is not None and site.eqn.outvars[0].aval.dtype.kind in "iu":
        site.frame.points[site.eqn.outvars[0]] = pointing.of_iota(site.labels, axes[along])
    return [axes]


def _shrink_made(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    point = site.frame.points.get(site.eqn.outvars[0])
    ranks = isinstance(point, pointing.Points) and point.origin is not None and point.origin.ranks
    if ranks or (site.decision.numbers is not None and site.eqn.primitive.name == "random_bits"):
        return site.bind(*operands, shape=site.out_shape())
    [made] = site.bind(*operands)
    return [take(made, site.out_keeps())]


_FOLLOW: dict[type, Callable[[Site, Any, list[Axes]], Axes]] = {
    Same: lambda site, m, operands: operands[0],
    Transpose: _follow_transpose,
    Reshape: _follow_reshape,
    Squeeze: _follow_squeeze,
    Broadcast: _follow_broadcast,
    Slice: _follow_slice,
    Reverse: _follow_reverse,
    Tile: _follow_tile,
    Pad: _follow_pad,
    Concatenate: _follow_concatenate,
    Stack: _follow_stack,
}
_ZERO: dict[type, Callable[[ZeroSite, Any, list[Zeros]], Zeros]] = {
    Same: _same_zeros,
    Transpose: _zero_transpose,
    Reshape: _zero_reshape,
    Squeeze: _zero_squeeze,
    Broadcast: _zero_broadcast,
    Slice: _same_zeros,
    Reverse: _same_zeros,
    Tile: _same_zeros,
    Pad: _zero_pad,
    Concatenate: _zero_concatenate,
    Stack: _zero_stack,
}
_SHRINK: dict[type, Callable[[ShrinkSite, Any, list[Any], int], Any]] = {
    Reshape: _shrink_reshape,
    Broadcast: _shrink_broadcast,
    Slice: _shrink_slice,
    Pad: _shrink_pad,
}
MOVES = Rule(_follow, _zero, _shrink)
EACH = Rule(lambda site, operands: operands, lambda site, known: known, rebind, ragged=True)
MAKE = Rule(_follow_made, no_zeros, _shrink_made)
