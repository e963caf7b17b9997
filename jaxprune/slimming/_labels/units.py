"""`units_of`: the units of an analysed function, numbered and sorted by kind.

Atoms at the same positions of all leaves are one unit. Units are of one kind if they have positions on the same axes,
in the same form. For each kind `units_of` also finds whether removing a unit equals masking it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxprune._jaxprs import is_product
from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.analysis import Analysis
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.frames import Frame, Zeros, follow_zeros
from jaxprune.slimming._labels.labels import Ids, Labels
from jaxprune.slimming._labels.members import by_member
from jaxprune.slimming._labels.numbering import Numbers, Patterns, number_units, patterns_of


class Units(NamedTuple):
    """The units, numbered kind by kind.

    Attributes:
      placed: the different arrays of units that the axes of all leaves have: the units of each position,
        (layers..., n, k), filled up with -1.
      of: for each leaf and axis the index of its array in `placed`.
      counts: the number of units of each kind.
      inexact: for each kind why removing its units is not the same as masking them, or None.
      inner: for each kind how many positions a product contracts together with one of its positions, such as the
        dimensions of a head if heads and dimensions are separate axes; 1 if there is no such product.
      frozen: the leaf's name, the axis, how many of its positions cannot be removed, how many it has, and the reason.
      routed: for each kind whether a softmax, a top-k or an argmax chooses among its units.
      chosen: for each such operation the units of each position of the axis, (layers..., n, k), filled up with -1; how
        many positions it chooses; its name.
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


def units_of(analysis: Analysis) -> Units:
    """Finds the units of an analysed function and sorts them by kind.

    Kinds whose units are not spread evenly over the shards of a mesh axis are frozen.
    """
    while (found := _units(analysis)) is None:
        pass
    return found


def _units(analysis: Analysis) -> Units | None:
    """Returns the units; None if it has frozen some of them, so that the units must be found again."""
    labels, patterns = analysis.labels, patterns_of(analysis.labels, analysis.leaves)
    frozen, inexact, contracted = _frozen(analysis, patterns), _inexact(analysis, patterns), _contracted(analysis)
    numbers = number_units(labels, patterns)
    shards = _shards(labels, numbers)
    if shards is None:
        return None
    reasons: list[str | None] = [None] * numbers.counts.size
    for atoms, text in inexact:
        for k in numbers.kinds(numbers.unit[atoms]):
            reasons[k] = reasons[k] or text
    inner = np.ones(numbers.counts.size, int)
    for atoms, positions in contracted:
        kinds = numbers.kinds(numbers.unit[atoms])
        inner[kinds] = np.maximum(inner[kinds], positions)
    placed = [_once(numbers.unit[atoms]) for atoms in patterns.atoms]
    chosen = [(_once(numbers.unit[labels.atoms(ids)]), count, name) for ids, count, name in labels.chosen]
    chosen = [entry for entry in chosen if (entry[0] >= 0).any()]
    routed = np.zeros(numbers.counts.size, bool)
    for units, _, _ in chosen:
        routed[numbers.kinds(units)] = True
    apart = ~routed & np.array([own is None for own in shards], bool)  # kinds that neither routing nor a mesh ties
    frames = (analysis.frame, *analysis.others)
    placed, counts, chosen = by_member(labels, frames, patterns, numbers, placed, chosen, apart)
    return Units(placed, patterns.of, counts, reasons, inner, frozen, routed.tolist(), chosen, shards)


def _shards(labels: Labels, numbers: Numbers) -> list[np.ndarray | None] | None:
    """Returns for each kind the shard of each unit; freezes kinds with uneven shards and then returns None."""
    shards: list[np.ndarray | None] = [None] * numbers.counts.size
    if not labels.shards:
        return shards
    total = int(numbers.counts.sum())
    found, uneven = np.zeros(total, int), np.zeros(total, bool)
    for ids in labels.shards:
        units = numbers.unit[labels.atoms(ids)]
        of = np.broadcast_to(np.arange(len(units))[:, None, None], units.shape)[units >= 0]
        held = np.zeros((total, len(units)), int)
        np.add.at(held, (units[units >= 0], of), 1)
        spread = (held == held[:, :1]).all(1)  # equally often in every shard
        alone = (held > 0).sum(1) == 1
        uneven |= ~spread & ~alone
        found = np.unique(found * (len(units) + 1) + np.where(alone, held.argmax(1) + 1, 0), return_inverse=True)[1]
    for k, (end, count) in enumerate(zip(np.cumsum(numbers.counts), numbers.counts, strict=True)):
        kind = slice(end - count, end)
        own = np.unique(found[kind], return_inverse=True)[1].reshape(-1)
        sizes = np.bincount(own)
        uneven[kind] |= sizes.min() != sizes.max()
        shards[k] = own if sizes.size > 1 else None
    if uneven.any():
        bad = np.isin(numbers.kind[numbers.unit], numbers.kind[:-1][uneven])
        why = "mesh axes cut it into shards with different numbers of removable units; cut it evenly, or not at all"
        labels.freeze(np.flatnonzero(bad), labels.reason(why))
        return None
    return shards


def _once(units: np.ndarray) -> np.ndarray:
    """Replaces repeated units of a position by -1, in place; the shape is (..., n, k)."""
    for i in range(1, units.shape[-1]):
        again = (units[..., :i] == units[..., i : i + 1]).any(-1)
        units[..., i] = np.where(again, -1, units[..., i])
    return units


def _inexact(analysis: Analysis, patterns: Patterns) -> list[tuple[Ids, str]]:
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
    """Returns atoms of axes that a product contracts together with the axes after them, and the size of the latter."""
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


def _frozen(analysis: Analysis, patterns: Patterns) -> list[tuple[str, int, int, int, str]]:
    """Returns the frozen positions of every axis, by reason; see `Units.frozen`."""
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
