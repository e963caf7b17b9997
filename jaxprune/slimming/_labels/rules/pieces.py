"""Taking axes apart and putting them together: slice, split, concatenate, stack, pad, rev, tile."""

from typing import Any

import numpy as np
from jax import lax

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite, move, select
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.keeps import ranks, single
from jaxprune.slimming._labels.rules.base import Rule, rebind, settled, together
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def _piece(site: Site, axis: Axis, start: int, stop: int, step: int) -> Axis:
    if (start, stop, step) == (0, ax.size(axis), 1):
        return axis
    piece = ax.take(site.labels, axis, slice(start, stop, step))
    site.mark(piece)
    return piece


def _bounds(eqn: Any) -> list[tuple[int, int, int]]:
    strides = eqn.params["strides"] or (1,) * len(eqn.params["start_indices"])
    return list(zip(eqn.params["start_indices"], eqn.params["limit_indices"], strides, strict=True))


def _follow_slice(site: Site, operands: list[Axes]) -> list[Axes]:
    return [tuple(_piece(site, a, *bounds) for a, bounds in zip(operands[0], _bounds(site.eqn), strict=True))]


def _same_axes(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [known[0]] * len(site.eqn.outvars)


def _shrink_slice(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    array = operands[0]
    for axis, (start, stop, step) in enumerate(_bounds(site.eqn)):
        array = move(site, array, axis, np.arange(start, stop, step), site.out_keeps()[axis])
    return [array]


def _offsets(eqn: Any) -> list[tuple[int, int]]:
    ends = np.cumsum(eqn.params["sizes"]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _follow_split(site: Site, operands: list[Axes]) -> list[Axes]:
    [axes], k = operands, site.eqn.params["axis"]
    return [(*axes[:k], _piece(site, axes[k], a, b, 1), *axes[k + 1 :]) for a, b in _offsets(site.eqn)]


def _shrink_split(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    k, offsets = site.eqn.params["axis"], _offsets(site.eqn)
    return [move(site, operands[0], k, np.arange(a, b), site.out_keeps(i)[k]) for i, (a, b) in enumerate(offsets)]


def _follow_concatenate(site: Site, operands: list[Axes]) -> list[Axes]:
    k = site.eqn.params["dimension"]
    if len(operands) == 1:
        return operands
    columns = list(zip(*operands, strict=True))
    joined = ax.concatenate(site.labels, columns[k])
    return [tuple(joined if i == k else together(site, axes) for i, axes in enumerate(columns))]


def _zero_concatenate(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    rank = len(known[0].axes)
    zeros = [[settled(site, k, i, z.axes[i]) for i in range(rank)] for k, z in enumerate(known)]
    return [Zeros(tuple(all(z) for z in zip(*zeros, strict=True)), 0.0 if all(z.void for z in known) else None)]


def _follow_stack(site: Site, operands: list[Axes]) -> list[Axes]:
    k = site.eqn.params["axis"]
    joined = [together(site, axes) for axes in zip(*operands, strict=True)]
    return [(*joined[:k], ax.fixed(len(operands)), *joined[k:])]


def _zero_stack(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    k = site.eqn.params["axis"]
    joined = [all(z) for z in zip(*(z.axes for z in known), strict=True)]
    return [Zeros((*joined[:k], True, *joined[k:]))]


def _follow_pad(site: Site, operands: list[Axes]) -> list[Axes]:
    result = []
    for axis, (low, high, inside), n in zip(
        operands[0], site.eqn.params["padding_config"], site.out_shape(), strict=True
    ):
        if (low, high, inside) == (0, 0, 0):
            result.append(axis)
        elif ax.is_fixed(axis) or inside or n == 0:
            site.freeze(axis, "padding between positions")
            result.append(ax.fixed(n))
        else:
            middle = ax.take(site.labels, axis, slice(max(-low, 0), ax.size(axis) - max(-high, 0)))
            parts = [*([site.free(low)] if low > 0 else []), middle, *([site.free(high)] if high > 0 else [])]
            result.append(ax.concatenate(site.labels, parts))
    return [tuple(result)]


def _zero_pad(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [Zeros(tuple(zero and known[1].void for zero in known[0].axes), 0.0 if all(k.void for k in known) else None)]


def _shrink_pad(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    array, value = operands
    config, padding = site.eqn.params["padding_config"], []
    for axis, (low, high, inside) in enumerate(config):
        before, after = site.keeps(0)[axis], site.out_keeps()[axis]
        if before is None and after is None:
            padding.append((low, high, inside))
            continue
        full = site.eqn.invars[0].aval.shape[axis]
        source = np.arange(-low, full + high)
        inner = (source >= 0) & (source < full)
        kept = np.arange(source.size) if after is None else after.positions
        counts = [_count(kept, source < 0), _count(kept, source >= full)]
        places = single(_subset(kept, inner)) - low
        array = select(array, axis, ranks(before, full, places) if before is not None else places)
        padding.append((*counts, 0))
    return [lax.pad(array, value, padding)]


def _count(kept: np.ndarray, which: np.ndarray) -> int:
    return int(single(which[kept].sum(-1, keepdims=True))[0])


def _subset(kept: np.ndarray, which: np.ndarray) -> np.ndarray:
    return kept[which[kept]].reshape(*kept.shape[:-1], -1)


def _follow_rev(site: Site, operands: list[Axes]) -> list[Axes]:
    turned = site.eqn.params["dimensions"]
    backwards = slice(None, None, -1)
    return [tuple(ax.take(site.labels, a, backwards) if i in turned else a for i, a in enumerate(operands[0]))]


def _follow_tile(site: Site, operands: list[Axes]) -> list[Axes]:
    repeats = site.eqn.params["reps"]
    return [tuple(a if r == 1 else ax.merge([ax.fixed(r), a]) for r, a in zip(repeats, operands[0], strict=True))]


TABLE = {
    "slice": Rule(_follow_slice, _same_axes, _shrink_slice),
    "split": Rule(_follow_split, _same_axes, _shrink_split),
    "concatenate": Rule(_follow_concatenate, _zero_concatenate, rebind),
    "stack": Rule(_follow_stack, _zero_stack, rebind),
    "pad": Rule(_follow_pad, _zero_pad, _shrink_pad),
    "rev": Rule(_follow_rev, _same_axes, rebind),
    "tile": Rule(_follow_tile, _same_axes, rebind),
}
