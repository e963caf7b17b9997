"""`units_of`: the units of an analysed function, sorted by kind, and the positions of each unit."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxprune._jaxprs import is_product
from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune.slimming._labels.analysis import Analysis
from jaxprune.slimming._labels.axes import Axis, flat, size
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.labels import Labels
from jaxprune.slimming._labels.zeros import Zeros, follow_zeros


class Units(NamedTuple):
    """The units, numbered kind by kind.

    Attributes:
      placed: for each leaf and axis the units of each position, (layers..., n, k), filled up with -1.
      counts: the number of units of each kind.
      inexact: for each kind why removing its units is not the same as masking them, or None.
      inner: for each kind the positions that are contracted together with one of its positions: the dimensions of a
        head, where heads and dimensions are axes of their own.
      frozen: (leaf's name, axis, positions that cannot go, positions in all, the reason).
    """

    placed: tuple[tuple[np.ndarray, ...], ...]
    counts: np.ndarray
    inexact: list[str | None]
    inner: np.ndarray
    frozen: list[tuple[str, int, int, int, str]]


def units_of(analysis: Analysis) -> Units:
    """Finds the units of an analysed function and sorts them by kind."""
    labels = analysis.labels
    atoms = tuple(tuple(labels.atoms(ids) for ids in leaf.ids) for leaf in analysis.leaves)
    signature, content, first = _signatures(analysis, atoms)
    present = np.flatnonzero(first < np.iinfo(np.int64).max)
    present = present[present != Labels.FIXED]
    present = present[np.argsort(first[present], kind="stable")]
    # Atoms at the same positions of all leaves (two splits of one axis without a choice between them) are one unit.
    _, where, of_content = np.unique(content[present], return_index=True, return_inverse=True)
    same = present[where[of_content.ravel()]]
    alone = present[same == present]
    _, where, kind = np.unique(signature[alone], return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(where))[kind.ravel()]
    units = alone[np.argsort(order, kind="stable")]
    number = np.full(labels.size, -1)
    number[units] = np.arange(units.size)
    number[present] = number[same]
    placed = tuple(tuple(_once(number[a]) for a in axes) for axes in atoms)
    counts = np.bincount(order) if units.size else np.zeros(0, int)
    kind_of = np.append(np.repeat(np.arange(len(counts)), counts), -1)[number]  # of each atom; -1 for no unit
    reasons, inner = _inexact(analysis, number), _inner(analysis, kind_of, len(counts))
    ends = np.cumsum(counts)
    inexact = [
        next((reason for unit, reason in reasons.items() if end - count <= unit < end), None)
        for count, end in zip(counts, ends, strict=True)
    ]
    return Units(placed, counts, inexact, inner, _frozen(analysis, atoms))


def _once(units: np.ndarray) -> np.ndarray:
    # (..., n, k) units: if a position has a unit twice, only the first counts.
    for i in range(1, units.shape[-1]):
        again = (units[..., :i] == units[..., i : i + 1]).any(-1)
        units[..., i] = np.where(again, -1, units[..., i])
    return units


def _signatures(analysis: Analysis, atoms: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each atom a number for its kind, a number for its positions, and its first position.

    Units are of one kind if they have positions on the same axes, in the same form.
    """
    rng = np.random.default_rng(0)
    signature, content = np.zeros((2, analysis.labels.size), np.uint64)
    first = np.full(analysis.labels.size, np.iinfo(np.int64).max)
    start = 0
    for leaf, axes in zip(analysis.leaves, atoms, strict=True):
        for ids, columns in zip(leaf.ids, axes, strict=True):
            salt = rng.integers(2**63, dtype=np.uint64)
            place = np.broadcast_to(np.arange(ids.size).reshape(ids.shape)[..., None], columns.shape)
            atom, place = columns[columns != Labels.FIXED], place[columns != Labels.FIXED]
            if not atom.size:
                start += ids.size
                continue
            unit, of = _numbered(atom)
            lowest, sums = np.full(unit.size, ids.size), np.zeros(unit.size, np.uint64)
            np.minimum.at(lowest, of, place)
            np.add.at(sums, of, _mix((place - lowest[of]).astype(np.uint64) + salt))
            signature[unit] += sums
            content[unit] += _mix(lowest.astype(np.uint64) + salt)
            first[unit] = np.minimum(first[unit], lowest + start)
            start += ids.size
    content ^= _mix(signature)  # the form and the lowest position in each axis: together the positions
    for ids in analysis.labels.marks:
        atom = np.unique(analysis.labels.atoms(ids))
        signature[atom] += rng.integers(2**63, dtype=np.uint64)
    return signature, content, first


def _numbered(atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if (atoms[1:] > atoms[:-1]).all():
        return atoms, np.arange(atoms.size)
    if int(atoms.max()) - int(atoms.min()) < 8 * atoms.size:  # nearly dense: count instead of sorting
        present = np.flatnonzero(np.bincount(atoms - atoms.min())) + atoms.min()
        return present, np.searchsorted(present, atoms)
    return np.unique(atoms, return_inverse=True)


def _mix(x: np.ndarray) -> np.ndarray:
    # splitmix64, so that sums of several positions do not collide.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _inexact(analysis: Analysis, number: np.ndarray) -> dict[int, str]:
    jaxpr = analysis.traced.closed.jaxpr
    marks: list[tuple[Axis, str]] = []
    params = {place for place in analysis.traced.inputs[: len(analysis.leaves)] if place is not None}
    known = [Zeros((i in params,) * len(v.aval.shape)) for i, v in enumerate(jaxpr.invars)]
    _ = follow_zeros(analysis.labels, analysis.frame, known, marks)
    found: dict[int, str] = {}
    done: set[tuple[int, str]] = set()
    for axis, text in marks:
        ids = None if (id(axis), text) in done else flat(analysis.labels, axis)
        done.add((id(axis), text))
        if ids is not None:
            units = number[np.unique(analysis.labels.atoms(ids))]
            found.update({int(u): text for u in units if u >= 0 and int(u) not in found})
    return found


def _inner(analysis: Analysis, kind_of: np.ndarray, kinds: int) -> np.ndarray:
    inner = np.ones(kinds, int)
    for operand, contracted in _contractions(analysis.frame):
        for axis in contracted:
            following = axis + 1
            while following in contracted:
                following += 1
            ids = flat(analysis.labels, operand[axis]) if following > axis + 1 else None
            if ids is not None:
                here = np.unique(kind_of[np.unique(analysis.labels.atoms(ids))])
                together = int(np.prod([size(other) for other in operand[axis + 1 : following]]))
                inner[here[here >= 0]] = np.maximum(inner[here[here >= 0]], together)
    return inner


def _contractions(frame: Frame) -> Iterator[tuple[tuple[Axis, ...], tuple[int, ...]]]:
    """Each operand of a product that contracts several of its axes, with these axes."""
    for index, eqn in enumerate(frame.jaxpr.eqns):
        for child in frame.children.get(index, []):
            yield from _contractions(child)
        primitive = PRIMITIVES.get(eqn.primitive.name) if is_product(eqn) else None
        if isinstance(primitive, Product):
            for var, contracted in zip(eqn.invars, primitive.numbers(eqn)[0], strict=True):
                if len(contracted) > 1:
                    yield frame.read(var), tuple(contracted)


def _frozen(analysis: Analysis, atoms: Any) -> list[tuple[str, int, int, int, str]]:
    found = []
    for leaf, axes in zip(analysis.leaves, atoms, strict=True):
        for axis, (ids, columns) in enumerate(zip(leaf.ids, axes, strict=True)):
            stuck = (columns == Labels.FIXED).all(-1)
            if stuck.any():
                why = analysis.labels.why_any(ids[stuck])
                counts = np.bincount(why, minlength=len(analysis.labels.reasons))
                for reason in np.flatnonzero(counts):
                    share = counts[reason] // max(1, int(np.prod(ids.shape[:-1])))
                    found.append((leaf.name, axis, int(share), ids.shape[-1], analysis.labels.reasons[reason]))
    return found
