"""A parameter leaf seen through reshapes, slices and the like: which of its axes each axis of a value runs along.

Symbolic, where `_jaxprs.follow` looks at entries: what is needed here is which axes of a leaf are summed over where it
meets an activation, and that must not cost an array of the leaf's size.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]
SPREAD = -1  # the axis of a factor along which the same entry of the leaf is repeated


class Factor(NamedTuple):
    """A run along one axis of a leaf: `size` entries, `stride` apart; the same entry again if axis is SPREAD."""

    axis: int
    size: int
    stride: int = 1


Factors = tuple[Factor, ...]


class View(NamedTuple):
    """Part of a value that is (part of) a parameter leaf.

    Attributes:
      leaf: which leaf.
      axes: for each axis of the value, what it runs along, the slowest first; its length is the factors' product.
      start: for each axis of the value, where the part starts (a concatenation has parts that start elsewhere).
      offset: for each axis of the leaf, where the view starts.
      scanned: what loops around have taken one entry of: pairs (loop, factor), outermost first.
    """

    leaf: int
    axes: tuple[Factors, ...]
    start: Shape
    offset: Shape
    scanned: tuple[tuple[tuple[int, ...], Factor], ...] = ()


def whole(leaf: int, shape: Shape) -> View:
    """A leaf as it is.

    Example:
      >>> whole(0, (3, 1)).axes
      ((Factor(axis=0, size=3, stride=1),), ())
    """
    axes = tuple((Factor(a, n),) if n != 1 else () for a, n in enumerate(shape))
    return View(leaf, axes, (0,) * len(shape), (0,) * len(shape))


def length(factors: Sequence[Factor]) -> int:
    """How many entries factors run over."""
    return math.prod(f.size for f in factors)


def transpose(view: View, permutation: Sequence[int]) -> View:
    """The view of a transposed value."""
    return view._replace(axes=tuple(view.axes[p] for p in permutation), start=tuple(view.start[p] for p in permutation))


def squeeze(view: View, dimensions: Sequence[int]) -> View:
    """The view without axes of length 1."""
    kept = [a for a in range(len(view.axes)) if a not in dimensions]
    return transpose(view, kept)


def broadcast(view: View, old: Shape, new: Shape, dimensions: Sequence[int]) -> View:
    """The view of `broadcast_in_dim`: axis i of the value becomes axis `dimensions[i]`."""
    axes: list[Factors] = [(Factor(SPREAD, n),) if n != 1 else () for n in new]
    start = [0] * len(new)
    for i, to in enumerate(dimensions):
        if old[i] == new[to]:
            axes[to], start[to] = view.axes[i], view.start[i]
    return view._replace(axes=tuple(axes), start=tuple(start))


def slice_(view: View, shape: Shape, starts: Shape, limits: Shape, strides: Shape) -> View | None:
    """The view of a slice; None where it holds nothing of the leaf.

    Raises:
      NotFollowed: it cuts through axes that were merged.
    """
    for axis, (begin, end, step) in enumerate(zip(starts, limits, strides, strict=True)):
        if (begin, end, step) == (0, shape[axis], 1):
            continue
        cut = _slice_axis(view, axis, begin, end, step)
        if cut is None:
            return None
        view = cut
    return view


def reshape(view: View, old: Shape, new: Shape) -> View:
    """The view of a reshaped value.

    Raises:
      NotFollowed: an axis is merged of which the view holds a part only, or split across a factor.
    """
    axes: list[Factors] = []
    start: list[int] = []
    for old_axes, new_axes in _blocks(old, new):
        if len(old_axes) == len(new_axes) == 1:
            axes.append(view.axes[old_axes[0]])
            start.append(view.start[old_axes[0]])
            continue
        if any(length(view.axes[a]) != old[a] for a in old_axes):
            raise NotFollowed("a reshape of a concatenation")
        factors = [f for a in old_axes for f in view.axes[a]]
        axes += split(factors, [new[a] for a in new_axes])
        start += [0] * len(new_axes)
    return view._replace(axes=tuple(axes), start=tuple(start))


def split(factors: Sequence[Factor], sizes: Sequence[int]) -> list[Factors]:
    """Distributes factors over axes of the given sizes, cutting a factor in two where it spans two axes.

    Example:
      >>> split([Factor(0, 6)], [2, 3])
      [(Factor(axis=0, size=2, stride=3),), (Factor(axis=0, size=3, stride=1),)]
    """
    left = [f for f in factors if f.size != 1]
    out: list[Factors] = []
    for wanted in sizes:
        size, mine = wanted, []
        while size != 1:
            first = left.pop(0)
            if first.size > size:
                if first.size % size:
                    raise NotFollowed("a reshape that splits an axis unevenly")
                inner = first.size // size
                mine.append(Factor(first.axis, size, first.stride * inner))
                left.insert(0, Factor(first.axis, inner, first.stride))
                size = 1
            elif size % first.size:
                raise NotFollowed("a reshape that splits an axis unevenly")
            else:
                mine.append(first)
                size //= first.size
        out.append(tuple(mine))
    return out


class NotFollowed(Exception):
    """What happens to a parameter cannot be told as a view; the message says what it is."""


def _slice_axis(view: View, axis: int, begin: int, end: int, step: int) -> View | None:
    factors, first = view.axes[axis], view.start[axis]
    have = length(factors)
    low, high = max(begin, first), min(end, first + have)
    if low >= high:
        return None
    if step != 1 and (first != 0 or have < end):
        raise NotFollowed("a strided slice of a concatenation")
    skip, count = low - first, -(-(high - low) // step)
    view = view._replace(start=_put(view.start, axis, max(first - begin, 0)))
    if skip == 0 and count == have:
        return view
    outer, inner = factors[0], length(factors[1:])
    if inner > 1 and (step != 1 or skip % inner or count % inner):
        raise NotFollowed("a slice through merged axes")
    skip, count = skip // inner, count // inner
    kept = (Factor(outer.axis, count, outer.stride * step),) if count != 1 else ()
    if outer.axis != SPREAD:
        view = view._replace(offset=_put(view.offset, outer.axis, view.offset[outer.axis] + skip * outer.stride))
    return view._replace(axes=_put(view.axes, axis, kept + factors[1:]))


def _blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Cuts two shapes into the smallest stretches of axes that have the same number of entries."""
    out, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        mine, other = [i] if i < len(old) else [], [j] if j < len(new) else []
        a, b = (old[i] if mine else 1), (new[j] if other else 1)
        i, j = i + len(mine), j + len(other)
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
                mine.append(i - 1)
            else:
                b, j = b * new[j], j + 1
                other.append(j - 1)
        out.append((mine, other))
    return out


def _put(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])
