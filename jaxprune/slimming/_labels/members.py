"""`by_member`, `tied`: units that each member of a stack may lose for itself, such as the hidden units of each expert.

A product with one matrix for each expert, [experts, inputs, outputs], treats the hidden units of different experts
alike but never mixes them. If every value that contains the units also contains the axis of the experts, then the units
of each expert can be put in an order of their own without changing the function. Each expert may then lose different
units, as long as each loses equally many: removing them is the same as ordering them last and removing the last ones
of all experts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune._jaxprs import factors, sub_jaxprs
from jaxprune._jaxprs.primitives import (
    PRIMITIVES,
    Broadcast,
    Entrywise,
    Moves,
    Product,
    Ragged,
    Reduce,
    Reshape,
    Same,
    Slice,
    Squeeze,
    Transpose,
)
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.labels import Ids, Labels
from jaxprune.slimming._labels.numbering import Numbers, Patterns


class _Tied(Exception):
    """An equation ties the units of different members."""


class _Check:
    """Whether the units with some labels can be ordered in each member by itself.

    The rows of a ragged product are sorted by member: their values contain the units without the members' axis.
    """

    def __init__(self, labels: Labels, units: Ids, members: Ids) -> None:
        self._labels = labels
        self._units, self._members = np.unique(labels.find(units)), labels.find(members).reshape(-1)
        self._kinds: dict[int, tuple[Axis, str]] = {}
        self._rows: dict[Any, Any] = {}  # from values with rows sorted by member to the row counts

    def frame(self, frame: Frame) -> None:
        """Raises if an equation of a jaxpr ties the units."""
        for var, axes in zip(frame.jaxpr.constvars, map(frame.read, frame.jaxpr.constvars), strict=True):
            if self._at(axes, "units"):
                raise _Tied(f"a constant {var}")
        for index, eqn in enumerate(frame.jaxpr.eqns):
            given = [frame.read(v) for v in eqn.invars]
            out = [frame.read(v) for v in eqn.outvars]
            if not any(self._at(axes, "units") for axes in (*given, *out)):
                continue
            for var in eqn.outvars:
                _ = self._rows.pop(var, None)
            if sub_jaxprs(eqn):
                self._inner(eqn, frame.children.get(index, []))
            else:
                self._equation(eqn, given, out)
            for var, axes in zip(eqn.outvars, out, strict=True):
                if self._alone(axes) and var not in self._rows:
                    raise _Tied(eqn.primitive.name)

    def _inner(self, eqn: Any, children: list[Frame]) -> None:
        """Passes sorted rows to an inner jaxpr, whose variables several calls may share."""
        for sub, child in zip(sub_jaxprs(eqn), children, strict=False):
            for var, place in zip(child.jaxpr.invars, sub.inputs, strict=True):
                owner = (
                    None if place is None or hasattr(eqn.invars[place], "val") else self._rows.get(eqn.invars[place])
                )
                _ = self._rows.pop(var, None)
                if owner is not None and sub.role == "call":
                    self._rows[var] = owner
                elif self._alone(child.read(var)):
                    raise _Tied(eqn.primitive.name)
            self.frame(child)
            for var, place in zip(child.jaxpr.outvars, sub.outputs, strict=True):
                if place is not None and not hasattr(var, "val") and var in self._rows:
                    self._rows[eqn.outvars[place]] = self._rows[var]

    def _alone(self, axes: Axes) -> bool:
        """Returns whether a value contains the units without the members' axis."""
        return bool(self._at(axes, "units")) and not self._at(axes, "members")

    def _kind(self, axis: Axis) -> str:
        if id(axis) not in self._kinds:
            ids = None if ax.is_fixed(axis) else ax.flat(self._labels, axis)
            kind = ""
            if ids is not None:
                roots = self._labels.find(ids).reshape(-1)
                if np.array_equal(roots, self._members):
                    kind = "members"
                elif np.isin(self._labels.atoms(ids), self._units).any():
                    kind = "units"
            self._kinds[id(axis)] = (axis, kind)
        return self._kinds[id(axis)][1]

    def _at(self, axes: Axes, kind: str) -> list[int]:
        return [i for i, axis in enumerate(axes) if self._kind(axis) == kind]

    def _equation(self, eqn: Any, given: list[Axes], out: list[Axes]) -> None:
        name, what = eqn.primitive.name, PRIMITIVES.get(eqn.primitive.name)
        if isinstance(what, Ragged):
            self._ragged(eqn, given)
            return
        owners = [None if hasattr(v, "val") else self._rows.get(v) for v in eqn.invars]
        owner = next((r for r in owners if r is not None), None)
        if any(self._alone(axes) and mine is not owner for axes, mine in zip(given, owners, strict=True)):
            raise _Tied(name)
        if isinstance(what, Moves) and not what.each:
            self._moved(name, what.moves(eqn)[0], given[0], owner)
        elif isinstance(what, Product) and owner is None:
            self._product(name, what.numbers(eqn), given)
        elif not isinstance(what, Entrywise | Moves) and not (isinstance(what, Reduce) and what.sums and owner is None):
            raise _Tied(name)
        if owner is not None:
            self._rows |= dict.fromkeys(eqn.outvars, owner)

    def _moved(self, name: str, move: Any, axes: Axes, owner: Any) -> None:
        held = {*self._at(axes, "units"), *self._at(axes, "members")}
        if isinstance(move, Same | Transpose | Broadcast | Squeeze):
            return
        if isinstance(move, Slice) and owner is None:
            bounds = list(zip(*move, strict=True))
            if all(bounds[i] == (0, ax.size(axes[i]), 1) for i in held):
                return
        if isinstance(move, Reshape) and move.order is None and owner is None:
            blocks = factors.blocks(tuple(map(ax.size, axes)), move.shape)
            if all(len(ins) == len(outs) == 1 for ins, outs in blocks if held.intersection(ins)):
                return
        raise _Tied(name)

    def _product(self, name: str, numbers: Any, given: list[Axes]) -> None:
        (lc, rc), (lb, rb) = numbers
        units = [set(self._at(axes, "units")) for axes in given]
        members = [set(self._at(axes, "members")) for axes in given]
        if all(units):
            pairs = [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]
            if not any(i in members[0] and j in members[1] for i, j in pairs) or units[0] - {*lc, *lb}:
                raise _Tied(name)
        elif units[0] & {*lc, *lb} or units[1] & {*rc, *rb}:
            raise _Tied(name)

    def _ragged(self, eqn: Any, given: list[Axes]) -> None:
        rows, _, sizes = eqn.invars[:3]
        inputs, outputs = (i in self._at(given[1], "units") for i in (1, 2))
        if 0 not in self._at(given[1], "members") or (inputs and outputs) or hasattr(rows, "val"):
            raise _Tied(eqn.primitive.name)
        if inputs and self._rows.get(rows) is not sizes:
            raise _Tied(eqn.primitive.name)
        if outputs:
            self._rows[eqn.outvars[0]] = sizes


def tied(labels: Labels, frames: Sequence[Frame], units: Ids, members: Ids) -> str | None:
    """Returns why the units of different members cannot be chosen independently; None if they can.

    Args:
      labels: all labels.
      frames: the frames of the functions that use the units.
      units: the labels of the units.
      members: the labels of the positions of the members' axis.
    """
    check = _Check(labels, units, members)
    try:
        for frame in frames:
            check.frame(frame)
    except _Tied as reason:
        return str(reason)
    return None


def by_member(
    labels: Labels,
    frames: Sequence[Frame],
    patterns: Patterns,
    numbers: Numbers,
    placed: list[np.ndarray],
    chosen: list[tuple[np.ndarray, int, str]],
    apart: np.ndarray,
) -> tuple[list[np.ndarray], np.ndarray, list[tuple[np.ndarray, int, str]]]:
    """Gives each member of a stack units of its own, if the function does not tie the units of different members.

    Args:
      labels: all labels.
      frames: the frames of the functions.
      patterns: the different arrays of labels.
      numbers: the units, numbered as if all members had the same units.
      placed: for each array of labels the units at its positions.
      chosen: the axes from which operations choose; see `Units.chosen`.
      apart: for each kind whether its members may have units of their own.

    Returns:
      `placed` with an additional axis for the members of such kinds, the number of units of each kind, and `chosen`,
      with the new numbers.
    """
    holding: list[list[int]] = [[] for _ in numbers.counts]  # for each kind the arrays with its units
    for p, units in enumerate(placed):
        for k in numbers.kinds(units):
            holding[k].append(p)
    starts = np.cumsum(numbers.counts) - numbers.counts
    shift, sizes = np.zeros_like(numbers.counts), numbers.counts.copy()
    many: dict[int, np.ndarray] = {}
    for k, (start, count) in enumerate(zip(starts, numbers.counts, strict=True)):
        shift[k] = sizes[:k].sum() - start
        arrays = {p: placed[p] for p in holding[k]}
        members = _members_of(labels, frames, patterns, arrays, start, count) if apart[k] else None
        if members is None:
            continue
        rows = arrays[holding[k][0]]
        rows = [np.unique(row) for row in rows.reshape(-1, rows.shape[-2])]
        each, size = rows[0].size, members.shape[-1]
        base = np.zeros(count, int)  # for each unit its new number in the first member of its layer
        for layer, row in enumerate(rows):
            base[row - start] = layer * size * each + np.arange(each)
        sizes[k] = count * size
        for p, units in arrays.items():
            first = base[units - start][..., None, :, :]
            many[p] = first + each * np.arange(size)[:, None, None] + start + shift[k]
    if not many:
        return placed, numbers.counts, chosen
    moved = lambda units: np.where(units >= 0, units + np.append(shift, 0)[numbers.kind[units]], -1)
    new = [many[p] if p in many else moved(units) for p, units in enumerate(placed)]
    return new, sizes, [(moved(units), count, name) for units, count, name in chosen]


def _members_of(
    labels: Labels,
    frames: Sequence[Frame],
    patterns: Patterns,
    arrays: dict[int, np.ndarray],
    start: int,
    count: int,
) -> Ids | None:
    """Returns the labels of the members if each may have units of its own, of one kind; else None.

    Args:
      labels: all labels.
      frames: the frames of the functions.
      patterns: the different arrays of labels.
      arrays: the units at the positions of each array that has units of the kind.
      start: the first unit of the kind.
      count: the number of its units.
    """
    members = _stacked_on(patterns, list(arrays))
    if members is None:
        return None
    for units in arrays.values():
        if units.shape[-1] != 1 or (units < start).any() or (units >= start + count).any():
            return None  # other units are on the axis too
    first, units = next(iter(arrays.items()))
    rows = [np.unique(row).size for row in units.reshape(-1, units.shape[-2])]
    if sum(rows) != count or len(set(rows)) != 1:
        return None  # the layers share their units
    return None if tied(labels, frames, patterns.atoms[first], members) is not None else members


def _stacked_on(patterns: Patterns, arrays: Sequence[int]) -> Ids | None:
    """Returns the labels of the members if all axes with some arrays of labels belong to one stack, else None.

    In every leaf the axis of the members is the one after the axes of the layers.
    """
    found: Ids | None = None
    for p in arrays:
        layers = patterns.ids[p].ndim - 1
        for leaf, axis in patterns.axes[p]:
            members = patterns.ids[patterns.of[leaf][layers]] if axis > layers else None
            if members is None or members.ndim != layers + 1 or members.shape[-1] < 2:
                return None
            if found is not None and not np.array_equal(found, members):
                return None
            found = members
    return None if found is None or np.unique(found).size != found.size else found
