"""`number_units`: which atoms are one unit, which units are of one kind, and the number of each unit.

Atoms at the same positions of all leaves are one unit. Units are of one kind if they have positions on the same axes,
in the same form.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.slimming._labels.labels import Ids, Labels


class Patterns(NamedTuple):
    """The different arrays of labels that the axes of all leaves have.

    Most axes have the labels of another axis: the outputs of a layer, its bias, the inputs of the next layer, and every
    axis that a residual stream ties. What follows from the labels alone is computed once for each array.

    Attributes:
      ids: the different arrays of representatives, in the order in which the leaves have them.
      atoms: the atoms of each array.
      of: for each leaf and axis the index of its array.
      axes: for each array the (leaf, axis) that have it.
    """

    ids: list[Ids]
    atoms: list[Ids]
    of: list[list[int]]
    axes: list[list[tuple[int, int]]]


class Numbers(NamedTuple):
    """The numbers of units and kinds.

    Attributes:
      unit: for each label its unit; -1 for a label of no unit.
      kind: for each unit its kind, and -1 at the end, so that no unit (-1) has no kind (-1).
      counts: for each kind the number of its units.
    """

    unit: np.ndarray
    kind: np.ndarray
    counts: np.ndarray

    def kinds(self, units: np.ndarray) -> np.ndarray:
        """Returns the kinds of some units in ascending order, each once."""
        return np.flatnonzero(np.bincount(self.kind[units].ravel() + 1, minlength=1)[1:])


def patterns_of(labels: Labels, leaves: Sequence[Any]) -> Patterns:
    """Returns the different arrays of labels of the leaves of an analysis."""
    index: dict[tuple[tuple[int, ...], bytes], int] = {}
    found = Patterns([], [], [[] for _ in leaves], [])
    for k, leaf in enumerate(leaves):
        for axis, roots in enumerate(map(labels.find, leaf.ids)):
            p = index.setdefault((roots.shape, roots.tobytes()), len(index))
            if p == len(found.ids):
                found.ids.append(roots)
                found.atoms.append(labels.atoms(roots))
                found.axes.append([])
            found.of[k].append(p)
            found.axes[p].append((k, axis))
    return found


def number_units(labels: Labels, patterns: Patterns) -> Numbers:
    """Numbers the units by kind, and in each kind by their first position."""
    atoms, same, form = _present(labels, patterns.atoms)
    alone = np.flatnonzero(same == np.arange(same.size))
    kind = _classes(form[alone])
    order = np.argsort(kind, kind="stable")
    unit = np.full(labels.size, -1)
    unit[atoms[alone[order]]] = np.arange(order.size)
    unit[atoms] = unit[atoms[same]]
    return Numbers(unit, np.append(kind[order], -1), np.bincount(kind))


def _present(labels: Labels, patterns: Sequence[Ids]) -> tuple[Ids, np.ndarray, np.ndarray]:
    """Finds the atoms that label positions of leaves, ordered by their first position.

    Args:
      labels: all labels.
      patterns: the different arrays of atoms of all axes.

    Returns:
      The atoms; for each the index of the first atom that labels the same positions of all leaves, so that nothing
      tells the two apart; for each a hash of its form, which is equal for atoms of one kind: they have positions on the
      same axes, in the same form.
    """
    rng = np.random.default_rng(0)
    index = np.full(labels.size, -1)
    most = min(labels.size, sum(columns.size for columns in patterns))
    present, first = np.zeros((2, most), int)
    form, content = np.zeros((2, most), np.uint64)
    total = start = 0
    for columns in patterns:
        salt = rng.integers(2**63, dtype=np.uint64)
        atoms, lowest, own = _forms(columns, salt)
        new = np.flatnonzero(index[atoms] < 0)
        new = new[np.argsort(lowest[new], kind="stable")]
        added = np.arange(total, total + new.size)
        index[atoms[new]] = added
        present[added], first[added] = atoms[new], start + lowest[new]
        form[index[atoms]] += own
        content[index[atoms]] += _mix(lowest.astype(np.uint64) + salt)
        total, start = total + new.size, start + columns.size
    present, first, form = present[:total], first[:total], form[:total]
    content = content[:total] ^ _mix(form)  # the form and the lowest position on each axis determine all positions
    same = np.arange(total)
    again = np.flatnonzero(first[1:] == first[:-1])  # atoms at the same positions have the same first position
    tied = np.union1d(again, again + 1)
    _, where, inverse = np.unique(content[tied], return_index=True, return_inverse=True)
    same[tied] = tied[where[inverse]]
    for ids in (*labels.marks, *labels.shards):
        here = index[labels.atoms(ids)].ravel()
        form[here[here >= 0]] += rng.integers(2**63, dtype=np.uint64)  # once, even if an atom is there repeatedly
    return present, same, form


def _forms(columns: Ids, salt: np.uint64) -> tuple[Ids, np.ndarray, np.ndarray]:
    """Returns the atoms of an axis, each once and ascending, their lowest positions, and hashes of their forms.

    The form of an atom is the set of its positions, counted from the lowest.

    Args:
      columns: (..., n, k) atoms of the positions.
      salt: a random number, for this axis alone.
    """
    used = columns != Labels.FIXED
    atoms, rows = columns[used], columns.shape[:-1]
    places = np.broadcast_to(np.arange(int(np.prod(rows))).reshape(*rows, 1), columns.shape)[used]
    if (atoms[1:] > atoms[:-1]).all():
        return atoms, places, np.repeat(_mix(np.array([salt])), atoms.size)
    distance = atoms - atoms.min()
    if int(distance.max()) < 8 * atoms.size:  # nearly dense: count instead of sorting
        present = np.bincount(distance) > 0
        found, of = np.flatnonzero(present) + atoms.min(), (np.cumsum(present) - 1)[distance]
    else:
        found, of = np.unique(atoms, return_inverse=True)
    lowest, form = np.full(found.size, places[-1]), np.zeros(found.size, np.uint64)
    np.minimum.at(lowest, of, places)
    np.add.at(form, of, _mix((places - lowest[of]).astype(np.uint64) + salt))
    return found, lowest, form


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns hashes of integers by splitmix64: sums of the hashes of different positions do not collide."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _classes(values: np.ndarray) -> np.ndarray:
    """Returns for each value the number of its class of equal values; classes are numbered by first appearance."""
    # Equal values mostly follow each other, so only the first value of each run is sorted.
    heads = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: values.size])
    _, where, inverse = np.unique(values[heads], return_index=True, return_inverse=True)
    return np.repeat(np.argsort(np.argsort(where))[inverse], np.diff(np.append(heads, values.size)))
