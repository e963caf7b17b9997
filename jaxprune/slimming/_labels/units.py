"""`units_of`: the units of an analysed function, numbered and sorted by kind.

Atoms at the same positions of all leaves are one unit. Units are of one kind if they have positions on the same axes,
in the same form. For each kind `units_of` also finds whether removing a unit equals masking it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxprune._jaxprs import is_product
from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.analysis import Analysis
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.frames import Frame, Zeros, follow_zeros
from jaxprune.slimming._labels.labels import Ids, Labels
from jaxprune.slimming._labels.members import stacked_on, tied


class Units(NamedTuple):
    """The units, numbered kind by kind.

    Attributes:
      placed: the different arrays of units that the axes of all leaves have: the units of each position,
        (layers..., n, k), filled up with -1.
      of: for each leaf and axis the index of its array in `placed`.
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

    placed: list[np.ndarray]
    of: list[list[int]]
    counts: np.ndarray
    inexact: list[str | None]
    inner: np.ndarray
    frozen: list[tuple[str, int, int, int, str]]
    routed: list[bool]
    chosen: list[tuple[np.ndarray, int, str]]
    shards: list[np.ndarray | None]


class _Patterns(NamedTuple):
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


def units_of(analysis: Analysis) -> Units:
    """Finds the units of an analysed function and sorts them by kind.

    Kinds whose units are not spread evenly over the shards of a mesh axis are frozen.
    """
    while (found := _units(analysis)) is None:
        pass
    return found


def _units(analysis: Analysis) -> Units | None:
    """Returns the units; None if this freezes some, so that they must be found again."""
    labels, patterns = analysis.labels, _patterns(analysis)
    frozen, inexact, contracted = _frozen(analysis, patterns), _inexact(analysis, patterns), _contracted(analysis)
    present, same, form = _present(labels, patterns.atoms)
    alone = np.flatnonzero(same == np.arange(same.size))
    order = _classes(form[alone])
    units = alone[np.argsort(order, kind="stable")]
    counts = np.bincount(order)
    number = np.full(labels.size, -1)  # for each atom its unit
    number[present[units]] = np.arange(units.size)
    number[present] = number[present[same]]
    placed = [_once(number[atoms]) for atoms in patterns.atoms]
    kind_of = np.append(np.repeat(np.arange(counts.size), counts), -1)  # of each unit; -1 at the end, for no unit
    kinds = lambda atoms: np.flatnonzero(np.bincount(kind_of[number[atoms]].ravel() + 1, minlength=1)[1:])
    reasons: list[str | None] = [None] * counts.size
    for atoms, text in inexact:
        for k in kinds(atoms):
            reasons[k] = reasons[k] or text
    shards = _shards(labels, number, kind_of, counts)
    if shards is None:
        return None
    inner = np.ones(counts.size, int)
    for atoms, positions in contracted:
        inner[kinds(atoms)] = np.maximum(inner[kinds(atoms)], positions)
    chosen = [(labels.atoms(ids), count, name) for ids, count, name in labels.chosen]
    routed = np.zeros(counts.size, bool)
    for atoms, _, _ in chosen:
        routed[kinds(atoms)] = True
    among = [(_once(number[atoms]), count, name) for atoms, count, name in chosen]
    among = [entry for entry in among if (entry[0] >= 0).any()]
    apart = ~routed & np.array([own is None for own in shards], bool)  # kinds that neither routing nor a mesh ties
    placed, counts, among = _by_member(analysis, patterns, placed, counts, among, apart)
    return Units(placed, patterns.of, counts, reasons, inner, frozen, routed.tolist(), among, shards)


def _patterns(analysis: Analysis) -> _Patterns:
    index: dict[tuple[tuple[int, ...], bytes], int] = {}
    found = _Patterns([], [], [[] for _ in analysis.leaves], [])
    for k, leaf in enumerate(analysis.leaves):
        for axis, roots in enumerate(map(analysis.labels.find, leaf.ids)):
            p = index.setdefault((roots.shape, roots.tobytes()), len(index))
            if p == len(found.ids):
                found.ids.append(roots)
                found.atoms.append(analysis.labels.atoms(roots))
                found.axes.append([])
            found.of[k].append(p)
            found.axes[p].append((k, axis))
    return found


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
        bad = np.isin(kind_of[number], np.unique(kind_of[:-1][uneven]))
        why = "mesh axes cut it into shards with different numbers of removable units; cut it evenly, or not at all"
        labels.freeze(np.flatnonzero(bad), labels.reason(why))
        return None
    return shards


def _by_member(
    analysis: Analysis,
    patterns: _Patterns,
    placed: list[np.ndarray],
    counts: np.ndarray,
    chosen: list[tuple[np.ndarray, int, str]],
    apart: np.ndarray,
) -> tuple[list[np.ndarray], np.ndarray, list[tuple[np.ndarray, int, str]]]:
    """Numbers the units of each member of a stack by themselves, where nothing ties the members (`members`).

    Args:
      analysis: the analysed function.
      patterns: the different arrays of labels.
      placed: for each array the units at its positions.
      counts: the number of units of each kind.
      chosen: the units among which an operation chooses.
      apart: which kinds may be numbered so.
    """
    starts = np.cumsum(counts) - counts
    kinds = np.append(np.repeat(np.arange(counts.size), counts), -1)  # of each unit; -1 at the end, for no unit
    holding: list[list[int]] = [[] for _ in counts]  # for each kind the arrays with its units
    for p, units in enumerate(placed):
        for k in np.flatnonzero(np.bincount(kinds[units].ravel() + 1, minlength=1)[1:]):
            holding[k].append(p)
    shift, sizes = np.zeros(counts.size, int), counts.copy()
    many: dict[int, np.ndarray] = {}
    for k, (start, count) in enumerate(zip(starts, counts, strict=True)):
        shift[k] = sizes[:k].sum() - start
        members = _members_of(analysis, patterns, placed, holding[k], start, count) if apart[k] else None
        if members is None:
            continue
        rows = placed[holding[k][0]]
        rows = [np.unique(row) for row in rows.reshape(-1, rows.shape[-2])]
        each, size = rows[0].size, members.shape[-1]
        base = np.zeros(count, int)  # for each unit its number in the first member of its layer
        for layer, row in enumerate(rows):
            base[row - start] = layer * size * each + np.arange(each)
        sizes[k] = count * size
        for p in holding[k]:
            first = base[placed[p] - start][..., None, :, :]
            many[p] = first + each * np.arange(size)[:, None, None] + start + shift[k]
    if not many:
        return placed, counts, chosen
    moved = lambda units: np.where(units >= 0, units + np.append(shift, 0)[kinds[units]], -1)
    new = [many[p] if p in many else moved(units) for p, units in enumerate(placed)]
    return new, sizes, [(moved(units), count, name) for units, count, name in chosen]


def _members_of(
    analysis: Analysis,
    patterns: _Patterns,
    placed: list[np.ndarray],
    holding: list[int],
    start: int,
    count: int,
) -> Ids | None:
    """Returns the labels of the members if each may lose units of one kind for itself, else None."""
    held = [axis for p in holding for axis in patterns.axes[p]]
    members = stacked_on(analysis.labels, analysis.leaves, held)
    if members is None:
        return None
    arrays = [placed[p] for p in holding]
    if any(units.shape[-1] != 1 or (units < start).any() or (units >= start + count).any() for units in arrays):
        return None
    rows = [np.unique(row).size for row in arrays[0].reshape(-1, arrays[0].shape[-2])]
    if sum(rows) != count or len(set(rows)) != 1:
        return None  # the layers share their units
    frames = (analysis.frame, *analysis.others)
    return None if tied(analysis.labels, frames, patterns.atoms[holding[0]], members) is not None else members


def _once(units: np.ndarray) -> np.ndarray:
    # (..., n, k) units: if a position has a unit twice, only the first counts.
    for i in range(1, units.shape[-1]):
        again = (units[..., :i] == units[..., i : i + 1]).any(-1)
        units[..., i] = np.where(again, -1, units[..., i])
    return units


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
    salts = rng.integers(2**63, size=len(patterns), dtype=np.uint64)
    index = np.full(labels.size, -1)
    most = min(labels.size, sum(columns.size for columns in patterns))
    present, first = np.zeros((2, most), int)
    form, content = np.zeros((2, most), np.uint64)
    total = start = 0
    for columns, salt in zip(patterns, salts, strict=True):
        used, size = columns != Labels.FIXED, int(np.prod(columns.shape[:-1]))
        atom = columns[used]
        if atom.size:
            place = np.broadcast_to(np.arange(size).reshape(*columns.shape[:-1], 1), columns.shape)[used]
            unit, of = _numbered(atom)
            lowest, sums = np.full(unit.size, size), np.zeros(unit.size, np.uint64)
            np.minimum.at(lowest, of, place)
            np.add.at(sums, of, _mix((place - lowest[of]).astype(np.uint64) + salt))
            new = np.flatnonzero(index[unit] < 0)
            new = new[np.argsort(lowest[new], kind="stable")]
            added = slice(total, total + new.size)
            present[added], first[added] = unit[new], start + lowest[new]
            index[unit[new]] = np.arange(total, total + new.size)
            total += new.size
            form[index[unit]] += sums
            content[index[unit]] += _mix(lowest.astype(np.uint64) + salt)
        start += size
    present, first, form = present[:total], first[:total], form[:total]
    content = content[:total] ^ _mix(form)  # the form and the lowest position on each axis determine all positions
    same = np.arange(total)
    again = np.flatnonzero(first[1:] == first[:-1]) + 1  # atoms at the same positions have the same first position
    tied = np.union1d(again, again - 1)
    if tied.size:
        _, where, of_content = np.unique(content[tied], return_index=True, return_inverse=True)
        same[tied] = tied[where[of_content]]
    for ids in (*labels.marks, *labels.shards):
        here = index[labels.atoms(ids)].ravel()
        form[here[here >= 0]] += rng.integers(2**63, dtype=np.uint64)  # once, even if an atom is marked repeatedly
    return present, same, form


def _classes(values: np.ndarray) -> np.ndarray:
    """Returns for each value the number of its class of equal values; classes are numbered as they appear first."""
    heads = np.flatnonzero(
        np.append(True, values[1:] != values[:-1])[: values.size]
    )  # equal values mostly follow each other
    _, where, inverse = np.unique(values[heads], return_index=True, return_inverse=True)
    return np.repeat(np.argsort(np.argsort(where))[inverse], np.diff(np.append(heads, values.size)))


def _numbered(atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if (atoms[1:] > atoms[:-1]).all():
        return atoms, np.arange(atoms.size)
    if int(atoms.max()) - int(atoms.min()) < 8 * atoms.size:  # nearly dense: count instead of sorting
        used = np.bincount(atoms - atoms.min()) > 0
        return np.flatnonzero(used) + atoms.min(), (np.cumsum(used) - 1)[atoms - atoms.min()]
    return np.unique(atoms, return_inverse=True)


def _mix(x: np.ndarray) -> np.ndarray:
    # splitmix64, so that sums of several positions do not collide.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _inexact(analysis: Analysis, patterns: _Patterns) -> list[tuple[Ids, str]]:
    """Returns the atoms for which removing is not the same as masking, with the reason."""
    labels, jaxpr = analysis.labels, analysis.traced.closed.jaxpr
    marks: list[tuple[Axis, str]] = []
    # The parameters of units from which an operation chooses are not masked: their logits are minus infinity.
    chosen = np.zeros(labels.size + 1, bool)
    for ids, _, _ in labels.chosen:
        chosen[labels.atoms(ids)] = True
    chosen[Labels.FIXED] = False
    masked = [not chosen[atoms].any() for atoms in patterns.atoms]
    known = [Zeros((False,) * len(v.aval.shape)) for v in jaxpr.invars]
    for place, axes in zip(analysis.traced.inputs, patterns.of, strict=False):
        if place is not None:
            known[place] = Zeros(tuple(masked[p] for p in axes))
    _ = follow_zeros(labels, analysis.frame, known, marks)
    once = {(id(axis), text): axis for axis, text in marks}
    flat = [(ax.flat(labels, axis), text) for (_, text), axis in once.items()]
    return [(labels.atoms(ids), text) for ids, text in flat if ids is not None]


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
                found.append((analysis.labels.atoms(ids), together))
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


def _frozen(analysis: Analysis, patterns: _Patterns) -> list[tuple[str, int, int, int, str]]:
    labels = analysis.labels
    of_pattern: list[list[tuple[int, int, str]]] = []
    for ids, atoms in zip(patterns.ids, patterns.atoms, strict=True):
        stuck = (atoms == Labels.FIXED).all(-1)
        counts = np.bincount(labels.why_any(ids[stuck]))
        layers = max(1, int(np.prod(ids.shape[:-1])))
        of_pattern.append(
            [(int(counts[k]) // layers, ids.shape[-1], labels.reasons[k]) for k in np.flatnonzero(counts)]
        )
    return [
        (leaf.name, axis, *found)
        for leaf, axes in zip(analysis.leaves, patterns.of, strict=True)
        for axis, p in enumerate(axes)
        for found in of_pattern[p]
    ]
