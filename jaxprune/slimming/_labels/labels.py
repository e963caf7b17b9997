"""`Labels`: labels of positions, a union-find over integers with conjunctions; `match` compares conjunctions.

Each position of an axis has a label. Two positions with equal labels are removed together or not at all. A label is an
atom, or the conjunction of two labels: its position stays only if both stay. Conjunctions arise when an axis of heads
times head dimensions is split: position (i, j) then stays if head i and dimension j stay. An atom can be frozen, with a
reason: it is never removed, and is dropped from conjunctions.

Everything works on whole arrays of labels; there is no loop over positions.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

Ids = np.ndarray  # integer labels, any shape
Columns = np.ndarray  # (rows, k) integers
_CAPACITY = 2**23  # labels; their memory is allocated when they are used
_DEPTH = 12  # conjunctions nested more deeply are circular


class Labels:
    """All labels of an analysis. Labels are added, made equal and frozen, and never deleted.

    Attributes:
      reasons: why atoms are frozen; `why` has indices into it, 0 for an atom that is not frozen.
      marks: labels that an operation selected from their axis.
      chosen: labels of axes from which a softmax, a top-k or an argmax chooses, with how many it chooses and its name.
      origins: the iotas whose positions may be removed.
      shards: labels (shards, positions) of axes that a mesh axis cuts: equally many positions of each shard stay.
    """

    FIXED = 0

    def __init__(self) -> None:
        self._parent = np.zeros(_CAPACITY, np.int64)
        self._left = np.zeros(_CAPACITY, np.int64)  # 0 for an atom: FIXED is never part of a conjunction
        self._right = np.zeros(_CAPACITY, np.int64)
        self._why = np.zeros(_CAPACITY, np.int32)
        self._size = 1
        self.reasons: list[str] = ["", "joined with positions that cannot shrink"]
        self._why[self.FIXED] = 1
        self.marks: list[Ids] = []
        self.chosen: list[tuple[Ids, int, str]] = []
        self.origins: list[Any] = []
        self.shards: list[Ids] = []

    @property
    def size(self) -> int:
        """One more than the largest label."""
        return self._size

    def fresh(self, shape: int | Sequence[int]) -> Ids:
        """Returns new free atoms in an array of the given shape."""
        count = int(np.prod(shape))
        self._reserve(count)
        first, self._size = self._size, self._size + count
        self._parent[first : self._size] = np.arange(first, self._size)
        return np.arange(first, self._size).reshape(shape)

    def reason(self, text: str) -> int:
        """Returns the index of a reason, which is added if it is new."""
        if text not in self.reasons:
            self.reasons.append(text)
        return self.reasons.index(text)

    def find(self, ids: Ids) -> Ids:
        """Returns the representatives of the labels."""
        while True:
            above = self._parent[ids]
            if (above == ids).all():
                return above
            ids = above

    def why(self, ids: Ids) -> np.ndarray:
        """Returns the index of the reason why each label's representative is frozen; 0 if it is not frozen."""
        return self._why[self.find(ids)]

    def why_any(self, ids: Ids) -> np.ndarray:
        """Returns the reasons of frozen labels; a conjunction has the reason of one of its parts."""
        ids = self.find(ids)
        for _ in range(_DEPTH):
            parts = (self._left[ids] > 0) & (self._why[ids] == 0)
            if not parts.any():
                break
            ids = np.where(parts, self.find(np.where(parts, self._left[ids], ids)), ids)
        return self._why[ids]

    def has_parts(self, ids: Ids) -> np.ndarray:
        """Returns for each label whether its representative is a conjunction."""
        return self._left[self.find(ids)] > 0

    def both(self, a: Ids, b: Ids) -> Ids:
        """Labels of positions that stay only if `a` and `b` stay (arrays that broadcast together)."""
        a, b = np.broadcast_arrays(self.find(a), self.find(b))
        result = np.where(self._why[a] > 0, b, a)
        pairs = (self._why[a] == 0) & (self._why[b] == 0) & (a != b)
        if pairs.any():
            new = self.fresh(int(pairs.sum()))
            self._left[new], self._right[new] = a[pairs], b[pairs]
            result = result.copy()
            result[pairs] = new
        return result

    def atoms(self, ids: Ids) -> Ids:
        """Returns the free atoms of each label, in a new last axis filled up with FIXED.

        The last axis is empty if there are no free atoms.
        """
        pending, done = [(self.find(ids), 0)], []
        while pending:
            column, depth = pending.pop()
            parts = self._left[column] > 0
            if not parts.any():
                done.append(np.where(self._why[column] > 0, self.FIXED, column))
                continue
            if depth > _DEPTH:
                self._break_circle(ids)
                return self.atoms(ids)
            pending.append((self.find(np.where(parts, self._right[column], self.FIXED)), depth + 1))
            pending.append((self.find(np.where(parts, self._left[column], column)), depth + 1))
        return _tidy(done)

    def freeze(self, ids: Ids, why: int) -> None:
        """Freezes labels, and every part of conjunctions."""
        roots = self.find(ids)
        if not (self._left[roots] > 0).any():
            self._why[roots] = np.where(self._why[roots] > 0, self._why[roots], why)
            return
        atoms = self.atoms(roots)
        self._why[atoms[atoms != self.FIXED]] = why

    def unify(self, a: Ids, b: Ids) -> None:
        """Makes each label of `a` equal to its partner in `b` (arrays that broadcast together).

        The parts of two conjunctions are matched by how they vary over the positions, which is exact for grids such as
        heads times dimensions; atoms without a match are frozen.
        """
        if a is b:
            return
        a, b = np.broadcast_arrays(a, b)
        work = [(a.ravel(), b.ravel())]
        while work:
            u, v = work.pop()
            u, v = self.find(u), self.find(v)
            differ = u != v
            u, v = u[differ], v[differ]
            if not u.size:
                continue
            parts_u, parts_v = self._left[u] > 0, self._left[v] > 0
            work += self._link(u, v, ~parts_u & ~parts_v)
            mixed = parts_u != parts_v
            if mixed.any():
                atom = np.where(parts_u, v, u)[mixed]
                whole = np.where(parts_u, u, v)[mixed]
                work += self._define(atom, whole)
            if (parts_u & parts_v).any():
                work += self._match(u[parts_u & parts_v], v[parts_u & parts_v])

    def _link(self, u: Ids, v: Ids, where: np.ndarray) -> list[tuple[Ids, Ids]]:
        """Makes the selected pairs of atoms equal; returns the pairs that are left for another call of `unify`."""
        if not where.any():
            return []
        low, high = np.minimum(u, v)[where], np.maximum(u, v)[where]
        self._parent[high] = low
        parents = self._parent[high]
        others = parents != low
        if others.any():
            # A label that is the higher one of several pairs is linked with its lowest partner first.
            np.minimum.at(self._parent, high[others], low[others])
            parents = self._parent[high]
            others = parents != low
        self._parent[high] = roots = self.find(parents)
        passed = (self._why[high] > 0) & (self._why[roots] == 0)
        self._why[roots[passed]] = self._why[high[passed]]
        return [(low[others], high[others])] if others.any() else []

    def _define(self, atom: Ids, whole: Ids) -> list[tuple[Ids, Ids]]:
        """Makes atoms equal to conjunctions; returns the pairs that are left for another call of `unify`.

        The atom becomes a conjunction. A frozen atom freezes the parts. An atom that is one of the parts cannot be
        defined by them; then the other parts are frozen.
        """
        parts = self.atoms(whole)
        frozen = self._why[atom] > 0
        own = (parts == atom[:, None]).any(-1)
        for i in np.flatnonzero(frozen)[:1]:
            self.freeze(parts[frozen], int(self._why[atom[i]]))
        if own.any():
            others = parts[own][parts[own] != atom[own][:, None]]
            self.freeze(others, self.reason("a position that would have to be part of itself"))
        rest = ~frozen & ~own
        self._parent[atom[rest]] = whole[rest]
        done = frozen | own
        if done.any():  # equal from now on: both never go, or the conjunction is the atom alone
            self._left[whole[done]] = 0
            self._parent[whole[done]] = atom[done]
        return [(atom[rest], whole[rest])]

    def _match(self, u: Ids, v: Ids) -> list[tuple[Ids, Ids]]:
        """Returns pairs of labels that make conjunctions equal; freezes atoms without a match."""
        parts_u, parts_v = self.atoms(u), self.atoms(v)
        found = match(parts_u, parts_v, self.FIXED)
        equations = list(found.equal)
        for column, columns in found.products:
            product = columns[0]
            for other in columns[1:]:
                product = self.both(product, other)
            equations.append((column, product))
        if found.unmatched.size:
            self.freeze(found.unmatched, self.reason("two ways of cutting one axis that do not fit together"))
        return equations

    def _break_circle(self, ids: Ids) -> None:
        """Freezes labels of which one is a part of itself, and all their parts."""
        why = self.reason("an axis that would have to be a part of itself")
        reached = np.unique(self.find(ids))
        while True:
            parts = reached[self._left[reached] > 0]
            more = np.unique(np.concatenate([reached, self.find(self._left[parts]), self.find(self._right[parts])]))
            if more.size == reached.size:
                break
            reached = more
        self._left[reached] = 0
        self._why[reached] = np.where(self._why[reached] > 0, self._why[reached], why)

    def _reserve(self, count: int) -> None:
        if self._size + count <= self._parent.size:
            return
        capacity = max(2 * self._parent.size, self._size + count)
        self._parent = _grown(self._parent, capacity)
        self._left, self._right = _grown(self._left, capacity), _grown(self._right, capacity)
        self._why = _grown(self._why, capacity)


def _grown(array: np.ndarray, capacity: int) -> np.ndarray:
    grown = np.zeros(capacity, array.dtype)
    grown[: array.size] = array
    return grown


def _tidy(columns: list[Ids]) -> Ids:
    """Stacks columns of atoms; drops atoms that repeat in a row, and columns without atoms."""
    kept: list[Ids] = []
    for found in columns:
        column = found
        for other in kept:
            column = np.where(column == other, Labels.FIXED, column)
        if (column != Labels.FIXED).any():
            kept.append(column)
    if not kept:
        return np.zeros((*columns[0].shape, 0), np.int64)
    return np.stack(kept, -1)


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

    Row r of `a` has the atoms of position r in one description, row r of `b` in the other (heads and dimensions in
    both, for instance). Making atoms equal column by column is always correct. How columns vary over the rows tells
    which columns belong together.

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
    """Replaces the atoms of `a` that are in the same row of `b` too: they say nothing about the other atoms."""
    return np.where((a[:, :, None] == b[:, None, :]).any(-1), fixed, a)


def _columns(a: Columns, fixed: int) -> list[np.ndarray]:
    return [column for column in a.T if (column != fixed).any()]


def _pattern(columns: list[np.ndarray]) -> bytes:
    """Returns which rows have equal entries in all columns: the number of each row's class, by first appearance."""
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
