"""Primitives that only rearrange axes: reshape, broadcast, transpose, squeeze, iota and random bits."""

from typing import Any

from jax import lax

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite, take
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.rules.base import Rule, no_zeros, rebind, whole
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of old axes that hold as many positions as a run of new axes."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ins, outs, have, want = [], [], 1, 1
        while True:
            if i < len(old) and (not ins or have < want):
                ins.append(i)
                have, i = have * old[i], i + 1
            elif j < len(new) and (not outs or want < have):
                outs.append(j)
                want, j = want * new[j], j + 1
            if have == want and ((ins and outs) or i >= len(old) or j >= len(new)):
                break
        blocks.append((ins, outs))
    return blocks


def _follow_reshape(site: Site, operands: list[Axes]) -> list[Axes]:
    old, new = tuple(ax.size(axis) for axis in operands[0]), site.out_shape()
    if 0 in old or site.eqn.params["dimensions"] is not None:
        for axis in operands[0]:
            site.freeze(axis, "a reshape of an empty array")
        return [whole(new)]
    result: list[Axis] = []
    for ins, outs in _blocks(old, new):
        block = ax.merge([operands[0][i] for i in ins])
        if len(ins) == len(outs) == 1:
            result.append(operands[0][ins[0]])
        elif not outs:
            site.freeze(block, "a reshape that drops its axis")
        else:
            result += ax.split(site.labels, block, [new[j] for j in outs])
    return [tuple(result)]


def _zero_reshape(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    old = tuple(ax.size(axis) for axis in site.operand(0))
    new = tuple(site.eqn.outvars[0].aval.shape)
    result: list[bool] = []
    if 0 in old:
        return no_zeros(site, known)
    for ins, outs in _blocks(old, new):
        zero = all(known[0].axes[i] or ax.is_fixed(site.operand(0)[i]) for i in ins)
        result += [zero] * len(outs)
    return [Zeros(tuple(result), known[0].value)]


def _shrink_reshape(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    return [lax.reshape(operands[0], site.out_shape())]


def _follow_broadcast(site: Site, operands: list[Axes]) -> list[Axes]:
    result: list[Axis | None] = [None] * len(site.out_shape())
    for axis, place in zip(operands[0], site.eqn.params["broadcast_dimensions"], strict=True):
        if ax.size(axis) == site.out_shape()[place]:
            result[place] = axis
        else:
            site.freeze(axis, "a broadcast along it")
    return [tuple(site.free(n) if a is None else a for a, n in zip(result, site.out_shape(), strict=True))]


def _zero_broadcast(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    # A new axis is zero at a masked position only if the whole operand is.
    result = [known[0].void] * site.rank()
    for k, place in enumerate(site.eqn.params["broadcast_dimensions"]):
        if ax.size(site.operand(0)[k]) == site.eqn.outvars[0].aval.shape[place]:
            result[place] = known[0].axes[k]
    return [Zeros(tuple(result), known[0].value)]


def _shrink_broadcast(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    return [lax.broadcast_in_dim(operands[0], site.out_shape(), site.eqn.params["broadcast_dimensions"])]


def _follow_transpose(site: Site, operands: list[Axes]) -> list[Axes]:
    return [tuple(operands[0][i] for i in site.eqn.params["permutation"])]


def _zero_transpose(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [Zeros(tuple(known[0].axes[i] for i in site.eqn.params["permutation"]), known[0].value)]


def _follow_squeeze(site: Site, operands: list[Axes]) -> list[Axes]:
    gone = site.eqn.params["dimensions"]
    for i in gone:
        site.freeze(operands[0][i], "an axis of one position that is dropped")
    return [tuple(axis for i, axis in enumerate(operands[0]) if i not in gone)]


def _zero_squeeze(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    gone = site.eqn.params["dimensions"]
    return [Zeros(tuple(zero for i, zero in enumerate(known[0].axes) if i not in gone), known[0].value)]


def _follow_generated(site: Site, operands: list[Axes]) -> list[Axes]:
    # Each position has its own value: the whole is made and what stays is taken, the same in every layer.
    for axis in (axis for axes in operands for axis in axes):
        site.freeze(axis, f"an operand of {site.name}")
    return [tuple(site.shared(n) for n in site.out_shape())]


def _shrink_generated(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    [made] = site.bind(*operands)
    return [take(made, site.out_keeps())]


TABLE = {
    "reshape": Rule(_follow_reshape, _zero_reshape, _shrink_reshape),
    "broadcast_in_dim": Rule(_follow_broadcast, _zero_broadcast, _shrink_broadcast),
    "transpose": Rule(_follow_transpose, _zero_transpose, rebind),
    "squeeze": Rule(_follow_squeeze, _zero_squeeze, rebind),
    "iota": Rule(_follow_generated, no_zeros, _shrink_generated),
    "random_bits": Rule(_follow_generated, no_zeros, _shrink_generated),
}
