"""Entrywise primitives, reductions and mixes: operands and result lose the same positions."""

from collections.abc import Callable

from jaxprune._jaxprs.primitives import PRIMITIVES, Mix, Reduce, Zero
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.rules.base import Rule, no_zeros, rebind, settled, together
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


def _follow(site: Site, operands: list[Axes]) -> list[Axes]:
    arrays = [axes for axes in operands if axes]
    if not arrays:
        return [()] * len(site.eqn.outvars)
    if len(arrays) == 1:
        return [arrays[0]] * len(site.eqn.outvars)
    columns = zip(zip(*arrays, strict=True), site.out_shape(), strict=True)
    return [tuple(_joined(site, axes, n) for axes, n in columns)] * len(site.eqn.outvars)


def _joined(site: Site, axes: tuple[Axis, ...], n: int) -> Axis:
    # An operand of one position is stretched over the others'.
    for axis in axes:
        if ax.size(axis) != n:
            site.freeze(axis, "a broadcast along it")
    return together(site, [axis for axis in axes if ax.size(axis) == n])


def _axis_zeros(site: ZeroSite, known: list[Zeros], k: int) -> tuple[bool, ...]:
    # A scalar operand, or one stretched along an axis, is zero at a masked position only if it is zero.
    shape = site.eqn.outvars[0].aval.shape
    if not known[k].axes:
        return (known[k].void,) * len(shape)
    sizes = map(ax.size, site.operand(k))
    return tuple(z if m == n else known[k].void for z, m, n in zip(known[k].axes, sizes, shape, strict=True))


def _same(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    del site
    return known[:1]


def _first(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [Zeros(_axis_zeros(site, known, 0), _zero_if(known[0].void))]


def _any(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zeros = [_axis_zeros(site, known, k) for k in range(len(known))]
    return [Zeros(tuple(any(z) for z in zip(*zeros, strict=True)), _zero_if(any(k.void for k in known)))]


def _all(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zeros = [_axis_zeros(site, known, k) for k in range(len(known))]
    return [Zeros(tuple(all(z) for z in zip(*zeros, strict=True)), _zero_if(all(k.void for k in known)))]


def _cases(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zeros = [_axis_zeros(site, known, k) for k in range(1, len(known))]
    return [Zeros(tuple(all(z) for z in zip(*zeros, strict=True)), _zero_if(all(k.void for k in known[1:])))]


def _pole(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    for axis, zero in enumerate(known[0].axes):
        if zero:
            site.inexact(site.operand(0)[axis], f"{site.eqn.primitive.name} of what masking makes zero")
    return no_zeros(site, known)


def _divide(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    for axis, zero in enumerate(known[1].axes):
        if zero and site.operand(1):
            site.inexact(site.operand(1)[axis], "a division by what masking makes zero")
    return _first(site, known)


def _power(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    exponent = site.eqn.params.get("y", known[-1].value if len(known) == 2 else None)
    if exponent is not None and exponent > 0:
        return _first(site, known)
    if exponent is None or exponent < 0:
        return _pole(site, known)
    return no_zeros(site, known)


def _bounded(sign: int) -> Callable[[ZeroSite, list[Zeros]], list[Zeros]]:
    # max(0, c) = 0 for c <= 0 and min(0, c) = 0 for c >= 0.
    def zero(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
        fine = [k._replace(value=0.0) if k.value is not None and sign * k.value <= 0 else k for k in known]
        return [Zeros(_all(site, fine)[0].axes, _zero_if(all(k.void for k in known)))]

    return zero


def _clamp(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    low, x, high = known
    inside = low.value is not None and high.value is not None and low.value <= 0 <= high.value
    return [Zeros(x.axes if inside else (False,) * site.rank())]


def _zero_if(condition: bool) -> float | None:
    return 0.0 if condition else None


_ZERO: dict[Zero, Callable[[ZeroSite, list[Zeros]], list[Zeros]]] = {
    Zero.SAME: _same,
    Zero.FIRST: _first,
    Zero.ANY: _any,
    Zero.ALL: _all,
    Zero.CASES: _cases,
    Zero.NEVER: no_zeros,
    Zero.POLE: _pole,
    Zero.DIVIDE: _divide,
    Zero.POWER: _power,
    Zero.LARGER: _bounded(1),
    Zero.SMALLER: _bounded(-1),
    Zero.CLAMP: _clamp,
}


def _reduced(site: Site | ZeroSite) -> Reduce:
    what = PRIMITIVES[site.eqn.primitive.name]
    assert isinstance(what, Reduce)
    return what


def _follow_reduce(site: Site, operands: list[Axes]) -> list[Axes]:
    what = _reduced(site)
    gone = what.axes(site.eqn)
    if not what.sums:
        for i in gone:
            site.freeze(operands[0][i], f"{site.name} over it")
    return [tuple(a for i, a in enumerate(operands[0]) if i not in gone)] * len(site.eqn.outvars)


def _zero_reduce(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    what = _reduced(site)
    gone = what.axes(site.eqn)
    if not what.keeps_zero:
        return no_zeros(site, known)
    for i in gone if what.sums else ():
        if not settled(site, 0, i, known[0].axes[i]):
            site.inexact(site.operand(0)[i], "a sum over values that masking does not make zero")
    axes = tuple(zero for i, zero in enumerate(known[0].axes) if i not in gone)
    return [Zeros(axes, _zero_if(known[0].void))] * len(site.eqn.outvars)


def _mixed(site: Site | ZeroSite) -> Mix:
    what = PRIMITIVES[site.eqn.primitive.name]
    assert isinstance(what, Mix)
    return what


def _follow_mix(site: Site, operands: list[Axes]) -> list[Axes]:
    along = _mixed(site).axes(site.eqn)
    arrays = [axes for axes in operands if len(axes) == len(site.out_shape())]  # others start or fill up
    for axes in arrays:
        for i in along:
            site.freeze(axes[i], f"{site.name} along it")
    joined = [axes[0] if i in along else together(site, axes) for i, axes in enumerate(zip(*arrays, strict=True))]
    shapes = [v.aval.shape for v in site.eqn.outvars]
    return [tuple(ax.fixed(shape[i]) if i in along else a for i, a in enumerate(joined)) for shape in shapes]


def _zero_mix(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [Zeros(known[0].axes)] if _mixed(site).keeps_zero else no_zeros(site, known)


ENTRYWISE = {zero: Rule(_follow, rule, rebind) for zero, rule in _ZERO.items()}
ALONE = {zero: rule._replace(ragged=True) for zero, rule in ENTRYWISE.items()}  # one operand meets no other layer
REDUCE = Rule(_follow_reduce, _zero_reduce, rebind)
MIX = Rule(_follow_mix, _zero_mix, rebind)
