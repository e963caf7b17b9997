"""Elementwise primitives: operands and result lose the same positions."""

from typing import Any

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.rules.base import Rule, no_zeros, rebind, together
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite

_KEEP_ZERO = (
    "abs asin asinh atan atanh cbrt ceil conj convert_element_type copy copy_p erf erf_inv expm1 floor imag log1p "
    "name neg real reduce_precision round sign sin sinh sqrt square stop_gradient tan tanh sharding_constraint "
    "population_count bessel_i1e optimization_barrier"
)
_LOSE_ZERO = (
    "acos acosh bessel_i0e bitcast_convert_type clz cos cosh digamma erfc exp exp2 is_finite lgamma logistic not "
    "eq ne ge gt le lt igamma igammac regularized_incomplete_beta zeta polygamma"
)
_INFINITE = "log rsqrt"
_ALL_ZERO = "add add_any atan2 complex max min nextafter or sub xor"
_ANY_ZERO = "and mul"
_FIRST_ZERO = "rem shift_left shift_right_arithmetic shift_right_logical"


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


def _follow_each(site: Site, operands: list[Axes]) -> list[Axes]:
    del site
    return operands


def _axis_zeros(site: ZeroSite, known: list[Zeros], k: int) -> tuple[bool, ...]:
    # A scalar operand, or one stretched along an axis, is zero at a masked position only if it is zero.
    shape = site.eqn.outvars[0].aval.shape
    if not known[k].axes:
        return (known[k].void,) * len(shape)
    sizes = map(ax.size, site.operand(k))
    return tuple(z if m == n else known[k].void for z, m, n in zip(known[k].axes, sizes, shape, strict=True))


def _keep(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    del site
    return [Zeros(k.axes, 0.0 if k.void else None) for k in known]


def _copy(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    del site
    return known


def _all(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zeros = [_axis_zeros(site, known, k) for k in range(len(known))]
    return [Zeros(tuple(all(z) for z in zip(*zeros, strict=True)), _zero_if(all(k.void for k in known)))]


def _any(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zeros = [_axis_zeros(site, known, k) for k in range(len(known))]
    return [Zeros(tuple(any(z) for z in zip(*zeros, strict=True)), _zero_if(any(k.void for k in known)))]


def _first(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [Zeros(_axis_zeros(site, known, 0), _zero_if(known[0].void))]


def _div(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    for axis, zero in enumerate(known[1].axes):
        if zero and site.operand(1):
            site.inexact(site.operand(1)[axis], "a division by what masking makes zero")
    return _first(site, known)


def _infinite(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    for axis, zero in enumerate(known[0].axes):
        if zero:
            site.inexact(site.operand(0)[axis], f"{site.eqn.primitive.name} of what masking makes zero")
    return no_zeros(site, known)


def _max(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    # max(0, c) = 0 for c <= 0 and min(0, c) = 0 for c >= 0.
    sign = 1 if site.eqn.primitive.name == "max" else -1
    fine = [k._replace(value=0.0) if k.value is not None and sign * k.value <= 0 else k for k in known]
    zeros = _all(site, fine)[0]
    return [Zeros(zeros.axes, _zero_if(all(k.void for k in known)))]


def _clamp(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    low, x, high = known
    inside = low.value is not None and high.value is not None and low.value <= 0 <= high.value
    return [Zeros(x.axes if inside else (False,) * site.rank())]


def _select(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zeros = [_axis_zeros(site, known, k) for k in range(1, len(known))]
    return [Zeros(tuple(all(z) for z in zip(*zeros, strict=True)), _zero_if(all(k.void for k in known[1:])))]


def _pow(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    exponent = site.eqn.params.get("y", known[-1].value if len(known) == 2 else None)
    if exponent is not None and exponent > 0:
        return _first(site, known)
    if exponent is None or exponent < 0:
        return _infinite(site, known)
    return no_zeros(site, known)


def _zero_if(condition: bool) -> float | None:
    return 0.0 if condition else None


def _barrier(site: Any, operands: list[Any]) -> list[Any]:
    return site.bind(*operands)


def _table() -> dict[str, Rule]:
    zero_rules = {_KEEP_ZERO: _keep, _LOSE_ZERO: no_zeros, _INFINITE: _infinite, _ALL_ZERO: _all, _ANY_ZERO: _any}
    zero_rules |= {_FIRST_ZERO: _first}
    table = {
        name: Rule(_follow, zero, rebind, ragged=name in _UNARY)
        for names, zero in zero_rules.items()
        for name in names.split()
    }
    table |= {
        name: Rule(_follow, zero, rebind)
        for name, zero in {
            "div": _div,
            "max": _max,
            "min": _max,
            "clamp": _clamp,
            "select_n": _select,
            "pow": _pow,
            "integer_pow": _pow,
        }.items()
    }
    table["optimization_barrier"] = Rule(_follow_each, _copy, _barrier, ragged=True)
    for name in ("convert_element_type", "stop_gradient", "copy", "copy_p", "reduce_precision", "name"):
        table[name] = table[name]._replace(zero=_copy)
    return table


_COMPARE = frozenset({"eq", "ne", "ge", "gt", "le", "lt"})
_UNARY = frozenset(f"{_KEEP_ZERO} {_LOSE_ZERO} {_INFINITE}".split()) - _COMPARE
TABLE = _table()
