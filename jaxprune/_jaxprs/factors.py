"""Axes as products of factors: `Factor`, `split`, `merge` and `blocks`, which make reshapes exact.

An axis is a tuple of factors, from the slowest to the fastest; its length is the product of their sizes. An axis of
heads times dimensions has two factors, so a reshape that separates them needs no other information. The client decides
what a factor stores about its positions: `views` stores the run along a leaf's axis, `slimming` stores labels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias


class Factor(NamedTuple):
    """Part of an axis.

    Attributes:
      size: the number of positions; a symbolic dimension (for jax.export) if `of` is None.
      of: what the positions are, in the client's terms; None if the positions are all alike.
    """

    size: int
    of: Any = None


Axis: TypeAlias = tuple[Factor, ...]
Cut = Callable[[Factor, int], tuple[Factor, Factor]]


def size(axis: Sequence[Factor]) -> int:
    """The number of positions of an axis."""
    total = 1
    for factor in axis:
        total *= factor.size
    return total


def merge(axes: Sequence[Axis]) -> Axis:
    """Merges axes into one, the last axis fastest; joins factors without `of`, and drops them if their size is 1.

    Example:
      >>> merge([(Factor(2), Factor(1)), (Factor(3),), (Factor(4, "x"),)])
      (Factor(size=6, of=None), Factor(size=4, of='x'))
    """
    factors: list[Factor] = []
    for factor in (f for axis in axes for f in axis):
        if factor.of is None and factors and factors[-1].of is None:
            factors[-1] = Factor(factors[-1].size * factor.size)
        elif factor.size != 1 or factor.of is not None:
            factors.append(factor)
    return tuple(factors)


def split(axis: Axis, sizes: Sequence[int], cut: Cut) -> list[Axis] | None:
    """Distributes the factors of an axis over several axes, the last axis fastest.

    Args:
      axis: the axis.
      sizes: the sizes of the new axes; their product is the size of the axis.
      cut: `cut(factor, fast)` returns two factors of sizes (factor.size / fast, fast), whose product is the factor.

    Returns:
      One axis for each size; None where a factor would have to be cut unevenly.

    Example:
      >>> split((Factor(6),), [2, 3], lambda factor, fast: (Factor(factor.size // fast), Factor(fast)))
      [(Factor(size=2, of=None),), (Factor(size=3, of=None),)]
    """
    rest, found = list(axis), []
    for wanted in reversed(sizes):
        taken: list[Factor] = []
        count = wanted
        while count != 1 or (rest and rest[-1].size == 1):
            factor = rest.pop()
            if count % factor.size == 0:
                taken.insert(0, factor)
                count //= factor.size
            elif factor.size % count == 0:
                slow, fast = cut(factor, count)
                rest.append(slow)
                taken.insert(0, fast)
                count = 1
            else:
                return None
        found.insert(0, merge([tuple(taken)]))
    return found


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that have the same number of positions.

    Args:
      old: a shape without zeros.
      new: another shape with the same number of entries.

    Returns:
      Pairs (axes of `old`, axes of `new`), in order. One of them is empty where the other has axes of size 1.

    Example:
      >>> blocks((4, 6, 5), (24, 5, 1))
      [([0, 1], [0]), ([2], [1]), ([], [2])]
    """
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
