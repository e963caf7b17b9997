"""`Points`: integers that are positions on an axis, such as the experts that a router chooses for each token.

The indices that `top_k` and `argmax` return point into the axis that they choose from. If positions of this axis are
removed, the others are renumbered. Renumbering is monotone, so sorting and comparing such integers gives the same
result. A comparison with an iota, a gather or a scatter ties the axis that is indexed to the axis that is pointed into.
Any other use depends on the numbers themselves: then no position of the axis can be removed.

An iota points into its own axis. It is renumbered if it is compared with integers that point, and keeps its numbers
otherwise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxprune._jaxprs import sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, Broadcast, Concatenate, Entrywise, Moves, Pad, Stack, Zero
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.labels import Labels

_FLIPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}
_LAST = {"reduce_max", "reduce_min", "cummax", "cummin", "sort", "copy", "gather", "dynamic_slice"}


@dataclasses.dataclass(eq=False)
class Origin:
    """An iota: `ranks` if it is compared with integers that point, `numbers` if its numbers themselves are used."""

    axis: Axis
    ranks: bool = False
    numbers: bool = False


class Points(NamedTuple):
    """Integers that are positions of `axis`.

    Attributes:
      axis: the axis.
      origin: the iota that the integers are; None for integers that are chosen.
      past: whether the size of the axis has been added, as indexing from the end does; the integers are then not used.
    """

    axis: Axis
    origin: Origin | None = None
    past: bool = False


class Number(NamedTuple):
    """A known number, everywhere in the value."""

    value: Any


class Columns(NamedTuple):
    """Indices into several axes: what each column of the last axis points into."""

    columns: tuple[Any, ...]


class Lost(NamedTuple):
    """Integers that depend on positions in an unknown way."""


Meaning: TypeAlias = Points | Number | Columns | Lost | None


def of_iota(labels: Labels, axis: Axis) -> Meaning:
    """Returns the meaning of an iota along an axis."""
    if ax.is_fixed(axis):
        return None
    labels.origins.append(Origin(axis))
    return Points(axis, labels.origins[-1])


def settle(labels: Labels, tie_layers: Any) -> None:
    """Decides for every iota whether it is renumbered; called when a function has been followed.

    Args:
      labels: all labels.
      tie_layers: a function that makes the layers of an axis lose the same positions, since a position is a number.
    """
    for origin in labels.origins:
        if not origin.ranks:
            tie_layers(origin.axis)
        elif origin.numbers:
            ax.freeze(labels, origin.axis, labels.reason("an iota that is compared with indices and used as numbers"))
    labels.origins.clear()


def of_literal(value: Any) -> Meaning:
    """Returns the meaning of a literal."""
    return Number(np.asarray(value)[()]) if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iub" else None


def read(frame: Any, var: Any) -> Meaning:
    """Returns the meaning of a variable or literal."""
    return of_literal(var.val) if isinstance(var, Literal) else frame.points.get(var)


def entering(meaning: Meaning) -> Meaning:
    """Returns the meaning that integers have inside a loop or a shard: chosen positions are lost there."""
    chosen = _chosen(meaning) or isinstance(meaning, Columns | Lost)
    return Lost() if chosen else None


def follow(site: Any) -> None:
    """Stores the meaning of the results of an equation, and freezes what cannot be followed."""
    eqn, frame = site.eqn, site.frame
    given = [read(frame, v) for v in eqn.invars]
    inside = site.index in frame.children  # the inner jaxpr may have a top-k of its own
    if not inside and all(isinstance(g, Number | None) for g in given) and not isinstance((*given, None)[0], Number):
        return
    subs = sub_jaxprs(eqn)
    if subs:
        _inner(site, subs, given)
        return
    for var, meaning in zip(eqn.outvars, _results(site, given), strict=True):
        if meaning is not None and var not in frame.points:
            frame.points[var] = meaning


def _inner(site: Any, subs: Any, given: Sequence[Meaning]) -> None:
    """Stores the meaning of the results of a call or scan, whose inner jaxpr `Site.child` has followed already."""
    frame, children = site.frame, site.frame.children.get(site.index, [])
    derived = site.name.startswith("custom_")
    pointed = any(isinstance(g, Points | Columns) for g in given)
    # A shard_map that cuts no axis with labels is a call. A shard of an axis numbers its positions from zero.
    whole = subs[0].role == "shard_map" and bool(children) and children[-1].layers == frame.layers
    if not (whole or subs[0].role in ("call", "scan")) or not children or (derived and pointed):
        # Indices that the inner jaxpr returns cannot be followed outside of it.
        inside = [read(child, var) for child in children for var in child.jaxpr.outvars]
        where = f"{site.name}, a function with custom derivatives" if derived else site.name
        if subs[0].role == "shard_map":
            where += ", which cuts it into shards; one-hot masks that are made outside of it are followed"
        lose(site, [*given, *inside], where)
        _spoil(site)
        return
    [sub], child = subs, children[-1]
    turning = {into for _, into in sub.carried}
    lose(site, [g for g, into in zip(given, sub.inputs, strict=False) if into in turning], "the carry of a scan")
    carried = {out for out, _ in sub.carried}
    for k, place in enumerate(sub.outputs):
        meaning = read(child, child.jaxpr.outvars[k])
        if place is None or meaning is None or isinstance(meaning, Number):
            continue
        if k in carried or site.name == "custom_vjp_call":
            lose(site, [meaning], site.name)
            meaning = Lost()
        frame.points[site.eqn.outvars[place]] = meaning


def _spoil(site: Any) -> None:
    for var in site.eqn.outvars:
        if getattr(var.aval, "dtype", np.dtype(float)).kind in "iub":
            site.frame.points[var] = Lost()


def _results(site: Any, given: list[Meaning]) -> list[Meaning]:
    """Returns the meanings of the results of an equation (what an index points into), from those of its operands."""
    eqn, name = site.eqn, site.name
    what, count = PRIMITIVES.get(name), len(eqn.outvars)
    first = given[0]
    if name in ("gather", "dynamic_slice") or name.startswith("scatter"):
        return [_indexed(site, given)]
    if isinstance(what, Moves):
        return _moves(site, what, given)
    if (isinstance(what, Entrywise) and what.zero is Zero.SAME) or name in _LAST:
        if name == "sort":
            return list(given)
        boolean = getattr(eqn.outvars[0].aval, "dtype", None) == jnp.bool_
        if not (boolean and isinstance(first, Points)):
            return [first] * count
    if name in _FLIPPED:
        return [_compared(site, name, given)]
    if name in ("add", "sub", "max", "min", "clamp", "select_n"):
        found = _arithmetic(site, name, given)
        if not isinstance(found, Lost):
            return [found]
    if all(isinstance(g, Number | None) for g in given):
        return [None] * count
    lose(site, given, name)
    spoilt = any(isinstance(g, Lost) or _chosen(g) for g in given)
    counted = lambda dtype: dtype.kind in "iu" or (isinstance(what, Entrywise) and dtype != jnp.bool_)
    return [Lost() if spoilt and counted(v.aval.dtype) else None for v in eqn.outvars]


def _moves(site: Any, what: Moves, given: list[Meaning]) -> list[Meaning]:
    eqn = site.eqn
    if what.each:
        return list(given)
    moves = what.moves(eqn)
    if isinstance(moves[0], Concatenate):
        if len(given) == 1:
            return given
        points = [g for g in given if isinstance(g, Points)]
        if len(points) == len(given) and all(same(site.labels, g.axis, points[0].axis) for g in points):
            return [points[0] if all(g.origin is points[0].origin for g in points) else Points(points[0].axis)]
        last = moves[0].axis == len(eqn.outvars[0].aval.shape) - 1
        if last and all(v.aval.shape[-1] == 1 for v in eqn.invars):
            return [Columns(tuple(given))]
    elif not isinstance(moves[0], Pad | Stack):
        if isinstance(given[0], Number):
            return [given[0] if isinstance(m, Broadcast) else None for m in moves]
        if not isinstance(given[0], Columns):
            return [given[0]] * len(moves)
    lose(site, given, site.name)
    return [Lost() if any(isinstance(g, Lost) or _chosen(g) for g in given) else None] * len(moves)


def _chosen(meaning: Meaning) -> bool:
    return isinstance(meaning, Points) and meaning.origin is None


def _compared(site: Any, name: str, given: list[Meaning]) -> Meaning:
    a, b = given[:2]
    if isinstance(a, Points) and isinstance(b, Points) and not (a.past or b.past) and None in (a.origin, b.origin):
        tie(site, a, b)
        return None
    if isinstance(b, Points) and isinstance(a, Number):
        a, b, name = b, a, _FLIPPED[name]
    if isinstance(a, Points) and isinstance(b, Number) and not a.past:
        size = ax.size(a.axis)
        always = {"lt": b.value >= size, "le": b.value >= size - 1, "ge": b.value <= 0, "gt": b.value < 0}
        never = {"lt": b.value <= 0, "le": b.value < 0, "ge": b.value >= size, "gt": b.value >= size - 1}
        outside = b.value < 0 or b.value >= size
        if always.get(name, name == "ne" and outside):
            return Number(np.True_)
        if never.get(name, name == "eq" and outside):
            return Number(np.False_)
    lose(site, given, name)
    if any(isinstance(g, Lost) for g in given) and not any(isinstance(g, Number) for g in given):
        # A compared axis may be the axis of the experts. The indices of the router are lost here, so nothing ties this
        # axis to the router: slimming would remove an expert here, and the router would still choose it.
        for axis in (axis for var in site.eqn.invars for axis in site.frame.read(var)):
            site.freeze(axis, "a comparison with indices that slimming cannot follow")
    return None


def _arithmetic(site: Any, name: str, given: list[Meaning]) -> Meaning:
    """Returns the meaning of what indexing computes; Lost for anything else."""
    points = [g for g in given if isinstance(g, Points)]
    numbers = [g.value for g in given if isinstance(g, Number)]
    if not points:
        return Lost()
    point, size = points[0], ax.size(points[0].axis)
    if name == "add" and len(points) == 1 and numbers == [size]:
        return point._replace(past=True)
    if name == "select_n":
        which, *cases = given
        if isinstance(which, Number) and len(cases) == 2:
            return cases[int(which.value)]
        good = [isinstance(c, Points) and not c.past for c in cases]
        beyond = [isinstance(c, Number) and c.value >= size for c in cases]
        if all(g or n for g, n in zip(good, beyond, strict=True)) and all(
            same(site.labels, p.axis, point.axis) and p.origin is None for p in points
        ):
            return point
        return Lost()
    if len(points) == 1 and not point.past:
        if name == "max" and len(numbers) == 1 and numbers[0] <= 0:
            return point
        if name == "min" and len(numbers) == 1 and numbers[0] >= size - 1:
            return point
        if name == "clamp" and len(numbers) == 2 and numbers[0] <= 0 and numbers[1] >= size - 1:
            return point
    return Lost()


def _indexed(site: Any, given: list[Meaning]) -> Meaning:
    """Returns the meaning of what a gather or slice reads; the rule of the primitive handles its indices."""
    if site.name == "gather" and not isinstance(given[0], Columns | Number):
        lose(site, [g for g in given[1:] if not isinstance(g, Points | Columns)], site.name)
        return given[0]
    values = [given[0], *given[2:]] if site.name.startswith("scatter") else given
    lose(site, values, site.name)
    return Lost() if any(isinstance(g, Lost) or _chosen(g) for g in given) and site.name == "dynamic_slice" else None


def columns(site: Any, operand: int, count: int, *, losing: bool = True) -> list[Points | None]:
    """Returns what each of `count` columns of an operand, which is used as an index, points into.

    Args:
      site: the equation.
      operand: the number of the operand.
      count: the number of columns.
      losing: whether the numbers of other integers count as used. Default: True.
    """
    meaning = read(site.frame, site.eqn.invars[operand])
    found: list[Meaning] = [None] * count
    if isinstance(meaning, Columns) and len(meaning.columns) == count:
        found = list(meaning.columns)
    elif count == 1:
        found = [meaning]
    chosen = [g if isinstance(g, Points) and g.origin is None and not g.past else None for g in found]
    if losing:
        lose(site, [g for g, own in zip(found, chosen, strict=True) if own is None], f"{site.name}, as an index")
    return chosen


def tie(site: Any, a: Points, b: Points) -> None:
    """Couples the axes that two operands point into; an iota is renumbered from now on."""
    for point in (a, b):
        if point.origin is not None:
            point.origin.ranks = True
    _ = site.unify(a.axis, b.axis)


def same(labels: Labels, a: Axis, b: Axis) -> bool:
    """Returns whether two axes have the same labels."""
    if a is b:
        return True
    left, right = ax.flat(labels, a), ax.flat(labels, b)
    if left is None or right is None:
        return left is right and ax.size(a) == ax.size(b)
    return left.shape == right.shape and bool((labels.find(left) == labels.find(right)).all())


def lose(site: Any, meanings: Sequence[Meaning], what: str) -> None:
    """Freezes chosen positions whose numbers are used as numbers; an iota keeps its numbers."""
    for meaning in meanings:
        if isinstance(meaning, Columns):
            lose(site, meaning.columns, what)
        elif isinstance(meaning, Points) and meaning.origin is not None:
            meaning.origin.numbers = True
        elif isinstance(meaning, Points):
            site.freeze(meaning.axis, f"its positions are numbers in {what}")


def axes_of(frame: Any, var: Any) -> list[Axis]:
    """Returns the axes whose positions a value contains as numbers, chosen by the data."""
    meaning = read(frame, var)
    found = meaning.columns if isinstance(meaning, Columns) else (meaning,)
    return [point.axis for point in found if isinstance(point, Points) and point.origin is None]
