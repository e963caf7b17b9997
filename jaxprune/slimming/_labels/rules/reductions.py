"""Reductions, windows, cumulative and sorting primitives."""

from typing import Any

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.rules.base import Rule, no_zeros, rebind, settled, together
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def _remaining(site: Site, operands: list[Axes]) -> list[Axes]:
    gone = site.eqn.params["axes"]
    return [tuple(a for i, a in enumerate(axes) if i not in gone) for axes in operands]


def _follow_sum(site: Site, operands: list[Axes]) -> list[Axes]:
    return _remaining(site, operands)


def _zero_sum(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    for i in site.eqn.params["axes"]:
        if not settled(site, 0, i, known[0].axes[i]):
            site.inexact(site.operand(0)[i], "a sum over values that masking does not make zero")
    return _zero_remaining(site, known)


def _zero_remaining(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    gone = site.eqn.params["axes"]
    axes = tuple(zero for i, zero in enumerate(known[0].axes) if i not in gone)
    return [Zeros(axes, 0.0 if known[0].void else None)] * len(site.eqn.outvars)


def _follow_order(site: Site, operands: list[Axes]) -> list[Axes]:
    for i in site.eqn.params["axes"]:
        site.freeze(operands[0][i], f"{site.name} over it")
    return _remaining(site, operands[:1]) * len(site.eqn.outvars)


def _along(site: Site | ZeroSite) -> int:
    params = site.eqn.params
    if site.eqn.primitive.name == "top_k":
        return params.get("axis", -1) % len(site.eqn.invars[0].aval.shape)
    return params["axis"] if "axis" in params else params["dimension"]


def _follow_along(site: Site, operands: list[Axes]) -> list[Axes]:
    k = _along(site)
    for axes in operands:
        site.freeze(axes[k], f"{site.name} along it")
    joined = [together(site, axes) for axes in zip(*operands, strict=True)]
    return [tuple(ax.fixed(v.aval.shape[k]) if i == k else a for i, a in enumerate(joined)) for v in site.eqn.outvars]


def _zero_along(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    if site.eqn.primitive.name in ("top_k", "sort", "cumlogsumexp"):
        return no_zeros(site, known)
    return [Zeros(known[0].axes)]


def _follow_window(site: Site, operands: list[Axes]) -> list[Axes]:
    count = len(site.eqn.outvars)
    joined = [together(site, axes) for axes in zip(*operands[:count], strict=True)]
    result = []
    for i, (axis, n) in enumerate(zip(joined, site.out_shape(), strict=True)):
        if _untouched(site.eqn.params, i):
            result.append(axis)
        else:
            site.freeze(axis, f"a window of {site.name} along it")
            result.append(ax.fixed(n))
    return [tuple(result)] * count


def _untouched(params: dict[str, Any], i: int) -> bool:
    ones = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    return all((params.get(key) or {i: 1})[i] == 1 for key in ones) and tuple(params["padding"][i]) == (0, 0)


def _zero_window(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    if site.eqn.primitive.name == "reduce_window":
        return no_zeros(site, known)
    return [Zeros(known[0].axes)]


def _follow_fft(site: Site, operands: list[Axes]) -> list[Axes]:
    first = len(operands[0]) - len(site.eqn.params["fft_lengths"])
    for axis in operands[0][first:]:
        site.freeze(axis, "fft over it")
    return [(*operands[0][:first], *(ax.fixed(n) for n in site.out_shape()[first:]))]


def _zero_fft(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    del site
    return [Zeros(known[0].axes)]


_ORDER = Rule(_follow_order, _zero_remaining, rebind)
TABLE = {
    "reduce_sum": Rule(_follow_sum, _zero_sum, rebind),
    "argmax": Rule(_follow_order, no_zeros, rebind),
    "argmin": Rule(_follow_order, no_zeros, rebind),
    "fft": Rule(_follow_fft, _zero_fft, rebind),
}
TABLE |= dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"), _ORDER)
TABLE |= dict.fromkeys(
    ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k"), Rule(_follow_along, _zero_along, rebind)
)
TABLE |= dict.fromkeys(
    ("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"),
    Rule(_follow_window, _zero_window, rebind),
)
