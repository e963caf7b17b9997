"""`match`: makes two descriptions of the same positions, as conjunctions of atoms, agree.

Row r of `a` has the atoms of position r in one description, row r of `b` in the other (heads and dimensions in both,
for instance). Making atoms equal column by column is always correct. How columns vary over the rows tells which columns
belong together.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np

Columns = np.ndarray  # (rows, k) integers


class Matched(NamedTuple):
    """Equations under which two descriptions of the same rows agree.

    Attributes:
      equal: pairs of columns to make equal, row by row.
      products: pairs (column, columns): the column is the conjunction of the others.
      unmatched: atoms that must be frozen.
    """

    equal: list[tuple[np.ndarray, np.ndarray]]
    products: list[tuple[np.ndarray, list[np.ndarray]]]
    unmatched: np.ndarray


def match(a: Columns, b: Columns, fixed: int) -> Matched:
    """Finds equations between atoms under which both descriptions agree in every row.

    Args:
      a: (rows, k) atoms, filled up with `fixed` where a row has fewer.
      b: (rows, m) atoms of the same rows.
      fixed: the label that fills up rows.

    Returns:
      The equations.

    Example:
      >>> heads, dims = np.repeat([1, 2], 3), np.tile([3, 4, 5], 2)
      >>> found = match(np.stack([heads, dims], 1), np.stack([dims + 10, heads + 10], 1), 0)
      >>> [(int(x[0]), int(y[0])) for x, y in found.equal]
      [(1, 11), (3, 13)]
    """
    a, b = _without_common(a, b, fixed), _without_common(b, a, fixed)
    # Rows whose atoms are in other columns (pieces of a concatenation, for instance) are matched separately.
    used = np.concatenate([a != fixed, b != fixed], 1)
    kinds, kind_of = np.unique(used, axis=0, return_inverse=True)
    equal, products, unmatched = [], [], [np.zeros(0, np.int64)]
    for kind in range(len(kinds)):
        rows = kind_of.ravel() == kind
        found = _match_rows(_columns(a[rows], fixed), _columns(b[rows], fixed))
        equal += found.equal
        products += found.products
        unmatched.append(found.unmatched)
    return Matched(equal, products, np.unique(np.concatenate(unmatched)))


def _match_rows(left: list[np.ndarray], right: list[np.ndarray]) -> Matched:
    equal = _take_equal(left, right)
    products = _take_products(left, right) + _take_products(right, left)
    if len(left) == 1 and len(right) == 1:
        equal.append((left.pop(), right.pop()))
    rest = np.concatenate([*left, *right, np.zeros(0, np.int64)])
    return Matched(equal, products, rest)


def _without_common(a: Columns, b: Columns, fixed: int) -> Columns:
    # An atom in both descriptions of a row says nothing about the other atoms of that row.
    return np.where((a[:, :, None] == b[:, None, :]).any(-1), fixed, a)


def _columns(a: Columns, fixed: int) -> list[np.ndarray]:
    return [column for column in a.T if (column != fixed).any()]


def _pattern(columns: list[np.ndarray]) -> bytes:
    # The partition of the rows into classes with equal columns, numbered by first appearance.
    keys = np.zeros(columns[0].size, np.int64)
    for column in columns:
        inverse = np.unique(column, return_inverse=True)[1]
        keys = np.unique(keys * (inverse.max() + 1) + inverse, return_inverse=True)[1]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].tobytes()


def _take_equal(left: list[np.ndarray], right: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    equal = []
    patterns = [_pattern([column]) for column in right]
    for column in list(left):
        pattern = _pattern([column])
        if pattern in patterns:
            i = patterns.index(pattern)
            _remove(left, column)
            equal.append((column, right.pop(i)))
            del patterns[i]
    return equal


def _take_products(single: list[np.ndarray], several: list[np.ndarray]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    products = []
    for column in list(single):
        pattern = _pattern([column])
        for count in range(2, len(several) + 1):
            fits = next((c for c in combinations(several, count) if _pattern(list(c)) == pattern), None)
            if fits is not None:
                products.append((column, list(fits)))
                _remove(single, column)
                for part in fits:
                    _remove(several, part)
                break
    return products


def _remove(columns: list[np.ndarray], column: np.ndarray) -> None:
    del columns[next(i for i, other in enumerate(columns) if other is column)]
