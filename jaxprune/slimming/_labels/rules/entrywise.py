"""Arithmetic: entrywise primitives, reductions, cumulative sums and other mixes along an axis.

The operands and the result of an entrywise primitive lose the same positions. Along an axis, sums and cumulative sums
are followed, and so are argmax, argmin and the maximum of a softmax, which choose from the axis. Other reductions and
cumulative operations are followed too, but a masked unit counts in them, as zero. Other mixes freeze the axes along
which they work.
"""

from collections.abc import Callable

import numpy as np
from jax.extend.core import Literal

from jaxprune._jaxprs.primitives import PRIMITIVES, Mix, Reduce, Zero
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import rebind
from jaxprune.slimming._labels.frames import Rule, Site, Zeros, ZeroSite, no_zeros, settled, together


def _follow(site: Site, operands: list[Axes]) -> list[Axes]:
    arrays = [axes for axes in operands if axes]
    if not arrays:
        return [()] * len(site.eqn.outvars)
    if len(arrays) == 1:
        return [arrays[0]] * len(site.eqn.outvars)
    columns = zip(zip(*arrays, strict=True), site.out_shape(), strict=True)
    return [tuple(_joined(site, axes, n) for axes, n in columns)] * len(site.eqn.outvars)


def _joined(site: Site, axes: tuple[Axis, ...], n: int) -> Axis:
    # An operand with one position on an axis is broadcast along this axis.
    for axis in axes:
        if ax.size(axis) != n:
            site.freeze(axis, "a broadcast along it")
    return together(site, [axis for axis in axes if ax.size(axis) == n])


def _axis_zeros(site: ZeroSite, known: list[Zeros], k: int) -> tuple[bool, ...]:
    # An operand that is broadcast along an axis is zero at removed positions only if it is zero everywhere.
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


_PASSES = {
    "max",
    "stop_gradient",
    "broadcast_in_dim",
    "reshape",
    "select_n",
    "convert_element_type",
    "copy",
    "pmax",
    "pcast",
    "pvary",
}


def _is_of_softmax(site: Site | ZeroSite) -> bool:
    """Returns whether a maximum is subtracted before the exponentials of a softmax or a logsumexp."""
    later = site.frame.jaxpr.eqns[site.index + 1 :]
    maxima, shifted = {site.eqn.outvars[0]}, set()
    values = {site.eqn.invars[0]}
    for eqn in later:
        given = [v for v in eqn.invars if not isinstance(v, Literal)]
        name = eqn.primitive.name
        if name in _PASSES and any(v in maxima for v in given):
            maxima |= set(eqn.outvars)
        elif name == "sub" and len(given) == 2 and given[0] in values and given[1] in maxima:
            shifted |= set(eqn.outvars)
        elif name in ("exp", "exp2") and given and given[0] in shifted:
            return True
        elif name in ("convert_element_type", "copy") and given and given[0] in values | shifted:
            (values if given[0] in values else shifted).update(eqn.outvars)
    return False


def _follow_reduce(site: Site, operands: list[Axes]) -> list[Axes]:
    what = _reduced(site)
    gone = what.axes(site.eqn)
    if site.name == "argmax" or (site.name == "reduce_max" and _is_of_softmax(site)):
        for i in gone:
            site.choose(0, i, 1)
    elif site.name == "argmin":
        # To remove such a unit means that its value is plus infinity: nothing else about this value is known.
        ids = ax.flat(site.labels, operands[0][gone[0]])
        if ids is not None:
            site.labels.chosen.append((ids, 1, site.name))
    if site.name in ("argmax", "argmin"):
        site.frame.points[site.eqn.outvars[0]] = pointing.Points(operands[0][gone[0]])
    return [tuple(a for i, a in enumerate(operands[0]) if i not in gone)] * len(site.eqn.outvars)


def _ignores_zeros(site: ZeroSite) -> bool:
    """Returns whether zeros among its operand's entries do not change a reduction that is no sum."""
    name, operand = site.eqn.primitive.name, site.eqn.invars[0]
    made = site.frame.makers.get(operand)
    absolute = made is not None and site.frame.jaxpr.eqns[made].primitive.name in ("abs", "square", "exp")
    return name in ("reduce_or", "reduce_xor") or (name == "reduce_max" and (absolute or _is_of_softmax(site)))


def _zero_reduce(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    what = _reduced(site)
    gone = what.axes(site.eqn)
    if not what.keeps_zero:
        return no_zeros(site, known)
    for i in gone:
        if what.sums and not settled(site, 0, i, known[0].axes[i]):
            site.inexact(site.operand(0)[i], "a sum over values that masking does not make zero")
        elif not (what.sums or i in known[0].low or (known[0].axes[i] and _ignores_zeros(site))):
            site.inexact(site.operand(0)[i], f"{site.eqn.primitive.name} over it, where a masked unit counts as zero")
    axes = tuple(zero for i, zero in enumerate(known[0].axes) if i not in gone)
    return [Zeros(axes, _zero_if(known[0].void))] * len(site.eqn.outvars)


def _mixed(site: Site | ZeroSite) -> Mix:
    what = PRIMITIVES[site.eqn.primitive.name]
    assert isinstance(what, Mix)
    return what


def _follow_mix(site: Site, operands: list[Axes]) -> list[Axes]:
    along = _mixed(site).axes(site.eqn)
    arrays = [axes for axes in operands if len(axes) == len(site.out_shape())]  # scalars are initial values or padding
    for axes in arrays:
        for i in along:
            site.freeze(axes[i], f"{site.name} along it")
    joined = [axes[0] if i in along else together(site, axes) for i, axes in enumerate(zip(*arrays, strict=True))]
    shapes = [v.aval.shape for v in site.eqn.outvars]
    return [tuple(ax.fixed(shape[i]) if i in along else a for i, a in enumerate(joined)) for shape in shapes]


def _zero_cumsum(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    # A removed unit adds nothing to the sums of the others, but the sum at its own position is not zero.
    [along] = _mixed(site).axes(site.eqn)
    axes = list(known[0].axes)
    if not settled(site, 0, along, axes[along]):
        site.inexact(site.operand(0)[along], "a cumulative sum over values that masking does not make zero")
    axes[along] = known[0].void
    return [Zeros(tuple(axes), _zero_if(known[0].void))]


def _zero_cumulative(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    [along] = _mixed(site).axes(site.eqn)
    site.inexact(site.operand(0)[along], f"{site.eqn.primitive.name} along it, where a masked unit counts as zero")
    [zeros] = _zero_mix(site, known)
    return [Zeros(tuple(zero and i != along for i, zero in enumerate(zeros.axes)))]


def _zero_mix(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return [Zeros(known[0].axes)] if _mixed(site).keeps_zero else no_zeros(site, known)


def _with_limits(
    rule: Callable[[ZeroSite, list[Zeros]], list[Zeros]],
) -> Callable[[ZeroSite, list[Zeros]], list[Zeros]]:
    """Returns a rule that also follows values that are minus infinity or compared with zero at removed positions."""

    def zero(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
        results = rule(site, known)
        name, shape = site.eqn.primitive.name, site.eqn.outvars[0].aval.shape
        more = _false_or_zero(site, name, known, shape)
        low = _stays_low(site, name, known, shape)
        if not more and not low:
            return results
        axes = [tuple(z or i in more for i, z in enumerate(r.axes)) for r in results]
        return [r._replace(axes=a, low=r.low | low) for r, a in zip(results, axes, strict=True)]

    return zero


def _lows(site: ZeroSite, known: list[Zeros], k: int, shape: tuple[int, ...]) -> frozenset[int]:
    sizes = [ax.size(axis) for axis in site.operand(k)]
    return frozenset(i for i in known[k].low if sizes[i] == shape[i])


# For each comparison of x with a constant c: whether it is false at x = 0.
_FALSE_AT_ZERO: dict[str, Callable[[float], bool]] = {
    "gt": lambda c: c >= 0,
    "ge": lambda c: c > 0,
    "lt": lambda c: c <= 0,
    "le": lambda c: c < 0,
    "ne": lambda c: c == 0,
    "eq": lambda c: c != 0,
}
_FLIPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "ne": "ne", "eq": "eq"}


def _false_or_zero(site: ZeroSite, name: str, known: list[Zeros], shape: tuple[int, ...]) -> set[int]:
    """Returns the axes along which the result is zero or false at removed positions, beyond what the table says."""
    if name in ("exp", "exp2", "logistic"):
        return set(_lows(site, known, 0, shape))
    if name not in _FALSE_AT_ZERO:
        return set()
    found = set(_lows(site, known, 0, shape)) if name in ("gt", "ge") else set()
    found |= set(_lows(site, known, 1, shape)) if name in ("lt", "le") else set()
    for mine, other, own in ((0, 1, name), (1, 0, _FLIPPED[name])):
        value = known[other].value
        if value is not None and known[mine].axes and _FALSE_AT_ZERO[own](value):
            found |= {i for i, zero in enumerate(_axis_zeros(site, known, mine)) if zero}
    if name == "eq":
        # Indices never equal a removed position.
        points = [pointing.read(site.frame, v) for v in site.eqn.invars]
        iotas = [p.axis for p in points if isinstance(p, pointing.Points) and p.origin is not None and p.origin.ranks]
        axes = site.frame.read(site.eqn.outvars[0])
        found |= {
            i for i, a in enumerate(axes) for b in iotas if not ax.is_fixed(a) and pointing.same(site.labels, a, b)
        }
    return found


def _stays_low(site: ZeroSite, name: str, known: list[Zeros], shape: tuple[int, ...]) -> frozenset[int]:
    if not any(z.low for z in known):
        return frozenset()
    lows = [_lows(site, known, k, shape) for k in range(len(known))]
    positive = [z.value is not None and z.value > 0 for z in known]
    if name in ("add", "add_any"):
        return lows[0] | lows[1]
    if name == "sub" or (name in ("mul", "div") and positive[1]):
        return lows[0]
    if name == "mul" and positive[0]:
        return lows[1]
    if name == "max":
        return lows[0] & lows[1]
    if name == "select_n":
        cases = [own for own, z in zip(lows[1:], known[1:], strict=True) if z.value != -np.inf]
        return frozenset.intersection(*cases) if cases else frozenset()
    return frozenset()


ENTRYWISE = {zero: Rule(_follow, _with_limits(rule), rebind) for zero, rule in _ZERO.items()}
ALONE = {zero: rule._replace(ragged=True) for zero, rule in ENTRYWISE.items()}  # a single operand couples no layers
REDUCE = Rule(_follow_reduce, _zero_reduce, rebind)
MIX = Rule(_follow_mix, _zero_mix, rebind)
CUMSUM = Rule(lambda site, operands: [operands[0]], _zero_cumsum, rebind)
CUMULATIVE = CUMSUM._replace(zero=_zero_cumulative)
