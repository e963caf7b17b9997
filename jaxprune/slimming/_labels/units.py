"""`units_of`: the units of an analysed function, numbered and sorted by kind.

Atoms at the same positions of all leaves are one unit. Units are of one kind if they have positions on the same axes,
in the same form. For each kind `units_of` also finds whether removing a unit equals masking it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxprune._jaxprs import is_product
from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.analysis import Analysis
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.frames import Frame, Zeros, follow_zeros
from jaxprune.slimming._labels.labels import Labels
from jaxprune.slimming._labels.members import free_members


class Units(NamedTuple):
    """The units, numbered kind by kind.

    Attributes:
      placed: for each leaf and axis the units of each position, (layers..., n, k), filled up with -1.
      counts: the number of units of each kind.
      inexact: for each kind why removing its units is not the same as masking them, or None.
      inner: for each kind the positions that are contracted together with one of its positions: the dimensions of a
        head, where heads and dimensions are axes of their own.
      frozen: (leaf's name, axis, positions that cannot go, positions in all, the reason).
      routed: for each kind whether a softmax, a top-k or an argmax chooses among its units.
      chosen: the units of each position of an axis that such an operation chooses from, (layers..., n, k), filled up
        with -1; how many positions it chooses; its name.
      shards: for each kind the shard of each unit, if a mesh axis cuts an axis of the kind into shards that must keep
        equally many units; None for other kinds.
    """

    placed: tuple[tuple[np.ndarray, ...], ...]
    counts: np.ndarray
    inexact: list[str | None]
    inner: np.ndarray
    frozen: list[tuple[str, int, int, int, str]]
    routed: list[bool]
    chosen: list[tuple[np.ndarray, int, str]]
    shards: list[np.ndarray | None]


def units_of(analysis: Analysis) -> Units:
    """Finds the units of an analysed function and sorts them by kind.

    Kinds whose units are not spread evenly over the shards of a mesh axis are frozen.
    """
    while (found := _units(analysis)) is None:
        pass
    return found


def _units(analysis: Analysis) -> Units | None:
    """Returns the units; None if this freezes some, so that they must be found again."""
    labels = analysis.labels
    atoms = tuple(tuple(labels.atoms(ids) for ids in leaf.ids) for leaf in analysis.leaves)
    frozen, inexact, contracted = _frozen(analysis, atoms), _inexact(analysis), _contracted(analysis)
    signature, content, first = _signatures(analysis, atoms)
    present = np.flatnonzero(first < np.iinfo(np.int64).max)
    present = present[present != Labels.FIXED]
    present = present[np.argsort(first[present], kind="stable")]
    # Atoms that label the same positions of all leaves are one unit: nothing tells them apart.
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
    kind_of = np.append(np.repeat(np.arange(len(counts)), counts), -1)[number]  # for each atom its kind; -1 for no unit
    kinds = lambda found: (here := np.unique(kind_of[found]))[here >= 0]
    reasons: list[str | None] = [None] * len(counts)
    for found, text in inexact:
        for k in kinds(found):
            reasons[k] = reasons[k] or text
    shards = _shards(labels, number, kind_of, counts)
    if shards is None:
        return None
    inner = np.ones(len(counts), int)
    for found, positions in contracted:
        inner[kinds(found)] = np.maximum(inner[kinds(found)], positions)
    chosen = [(labels.atoms(ids), count, name) for ids, count, name in labels.chosen]
    routed = np.zeros(len(counts), bool)
    for found, _, _ in chosen:
        routed[kinds(np.unique(found))] = True
    among = [(_once(number[found]), count, name) for found, count, name in chosen]
    among = [entry for entry in among if (entry[0] >= 0).any()]
    apart = ~routed & np.array([own is None for own in shards], bool)  # kinds that neither routing nor a mesh ties
    placed, counts, among = _by_member(analysis, placed, counts, among, kind_of, apart)
    return Units(placed, counts, reasons, inner, frozen, routed.tolist(), among, shards)


def _shards(
    labels: Labels, number: np.ndarray, kind_of: np.ndarray, counts: np.ndarray
) -> list[np.ndarray | None] | None:
    """Returns for each kind the shard of each unit; freezes kinds with uneven shards and then returns None."""
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    found, uneven = np.zeros(total, int), np.zeros(total, bool)
    for ids in labels.shards:
        atoms = labels.atoms(ids)
        units = np.where(atoms == Labels.FIXED, -1, number[atoms])
        of = np.broadcast_to(np.arange(len(units))[:, None, None], units.shape)[units >= 0]
        held = np.zeros((total, len(units)), int)
        np.add.at(held, (units[units >= 0], of), 1)
        spread = (held == held[:, :1]).all(1)  # equally often in every shard
        alone = (held > 0).sum(1) == 1
        uneven |= ~spread & ~alone
        found = np.unique(found * (len(units) + 1) + np.where(alone, held.argmax(1) + 1, 0), return_inverse=True)[1]
    shards: list[np.ndarray | None] = []
    for start, count in zip(starts, counts, strict=True):
        own = np.unique(found[start : start + count], return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(own)
        uneven[start : start + count] |= sizes.min() != sizes.max()
        shards.append(own if sizes.size > 1 else None)
    if uneven.any():
        bad = np.isin(kind_of, np.unique(np.repeat(np.arange(len(counts)), counts)[uneven]))
        why = "mesh axes cut it into shards with different numbers of removable units; cut it evenly, or not at all"
        labels.freeze(np.flatnonzero(bad), labels.reason(why))
        return None
    return shards


def _by_member(
    analysis: Analysis,
    placed: tuple[tuple[np.ndarray, ...], ...],
    counts: np.ndarray,
    chosen: list[tuple[np.ndarray, int, str]],
    kind_of: np.ndarray,
    apart: np.ndarray,
) -> tuple[tuple[tuple[np.ndarray, ...], ...], np.ndarray, list[tuple[np.ndarray, int, str]]]:
    """Numbers the units of each member of a stack by themselves, where nothing ties the members (`members`).

    Args:
      analysis: the analysed function.
      placed: for each axis of each leaf the units at its positions.
      counts: the number of units of each kind.
      chosen: the units among which an operation chooses.
      kind_of: the kind of each atom; -1 for none.
      apart: which kinds may be numbered so.
    """
    frames = (analysis.frame, *analysis.others)
    starts = np.cumsum(counts) - counts
    kinds = np.append(np.repeat(np.arange(len(counts)), counts), -1)  # of each unit; -1 at the end, for no unit
    holding = _holding(placed, kinds, len(counts))
    shift, sizes = np.zeros(len(counts), int), counts.copy()
    many: dict[tuple[int, int], tuple[int, int, np.ndarray]] = {}  # for each (leaf, axis): (kind, members, places)
    for k, (start, count) in enumerate(zip(starts, counts, strict=True)):
        shift[k] = sizes[:k].sum() - start
        held = holding[k]
        if not apart[k] or any(len(analysis.leaves[i].ids) < analysis.leaves[i].ids[a].ndim + 1 for i, a in held):
            continue
        if any(placed[i][a].shape[-1] != 1 or not (kinds[placed[i][a]] == k).all() for i, a in held):
            continue
        rows = placed[held[0][0]][held[0][1]][..., 0]
        rows = [np.unique(row) for row in rows.reshape(-1, rows.shape[-1])]
        if sum(row.size for row in rows) != count or len({row.size for row in rows}) != 1:
            continue  # the layers share their units
        members = free_members(analysis.labels, frames, analysis.leaves, held, np.flatnonzero(kind_of == k))
        if members is None:
            continue
        each, size = rows[0].size, members.shape[-1]
        base = np.zeros(count, int)  # for each unit its number in the first member of its layer
        for layer, row in enumerate(rows):
            base[row - start] = layer * size * each + np.arange(each)
        sizes[k] = count * size
        for i, a in held:
            first = base[placed[i][a] - start][..., None, :, :]
            many[i, a] = (k, size, first + each * np.arange(size)[:, None, None])
    if not many:
        return placed, counts, chosen
    moved = lambda units: np.where(units >= 0, units + np.append(shift, 0)[kinds[units]], -1)
    new = tuple(
        tuple(
            many[i, a][2] + starts[many[i, a][0]] + shift[many[i, a][0]] if (i, a) in many else moved(units)
            for a, units in enumerate(axes)
        )
        for i, axes in enumerate(placed)
    )
    return new, sizes, [(moved(units), count, name) for units, count, name in chosen]


def _holding(placed: tuple[tuple[np.ndarray, ...], ...], kinds: np.ndarray, count: int) -> list[list[tuple[int, int]]]:
    """Returns for each of `count` kinds the axes with its units; `kinds` holds the kind of each unit and -1."""
    holding: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for i, axes in enumerate(placed):
        for a, units in enumerate(axes):
            here = np.zeros(count + 1, bool)
            here[kinds[units]] = True
            for k in np.flatnonzero(here[:-1]):
                holding[k].append((i, a))
    return holding


def _once(units: np.ndarray) -> np.ndarray:
    # (..., n, k) units: if a position has a unit twice, only the first counts.
    for i in range(1, units.shape[-1]):
        again = (units[..., :i] == units[..., i : i + 1]).any(-1)
        units[..., i] = np.where(again, -1, units[..., i])
    return units


def _signatures(analysis: Analysis, atoms: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each atom a number for its kind, a number for its positions, and its first position.

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
    content ^= _mix(signature)  # the form and the lowest position on each axis determine all positions
    for ids in (*analysis.labels.marks, *analysis.labels.shards):
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


def _inexact(analysis: Analysis) -> list[tuple[np.ndarray, str]]:
    """Returns the atoms for which removing is not the same as masking, with the reason."""
    jaxpr = analysis.traced.closed.jaxpr
    marks: list[tuple[Axis, str]] = []
    params = {place for place in analysis.traced.inputs[: len(analysis.leaves)] if place is not None}
    # The parameters of units from which an operation chooses are not masked: their logits are minus infinity.
    chosen = np.zeros(analysis.labels.size + 1, bool)
    for ids, _, _ in analysis.labels.chosen:
        chosen[analysis.labels.atoms(ids)] = True
    chosen[Labels.FIXED] = False
    masked = lambda axis: (
        not ((ids := ax.flat(analysis.labels, axis)) is not None and chosen[analysis.labels.atoms(ids)].any())
    )
    known = [
        Zeros(tuple(i in params and masked(axis) for axis in analysis.frame.read(v)))
        for i, v in enumerate(jaxpr.invars)
    ]
    _ = follow_zeros(analysis.labels, analysis.frame, known, marks)
    once = {(id(axis), text): axis for axis, text in marks}
    flat = [(ax.flat(analysis.labels, axis), text) for (_, text), axis in once.items()]
    return [(np.unique(analysis.labels.atoms(ids)), text) for ids, text in flat if ids is not None]


def _contracted(analysis: Analysis) -> list[tuple[np.ndarray, int]]:
    """Returns atoms of axes that products contract with the axes behind them, and the number of inner positions."""
    found = []
    for operand, contracted in _contractions(analysis.frame):
        for axis in contracted:
            following = axis + 1
            while following in contracted:
                following += 1
            ids = ax.flat(analysis.labels, operand[axis]) if following > axis + 1 else None
            if ids is not None:
                together = int(np.prod([ax.size(other) for other in operand[axis + 1 : following]]))
                found.append((np.unique(analysis.labels.atoms(ids)), together))
    return found


def _contractions(frame: Frame) -> Iterator[tuple[tuple[Axis, ...], tuple[int, ...]]]:
    """Yields each operand of a product that contracts several of its axes, and these axes."""
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
