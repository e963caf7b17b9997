"""`tied`, `stacked_on`: units that each member of a stack may lose for itself, such as the hidden units of each expert.

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


def stacked_on(labels: Labels, leaves: Sequence[Any], held: Sequence[tuple[int, int]]) -> Ids | None:
    """Returns the labels of the members if several axes belong to one stack of members, else None.

    Args:
      labels: all labels.
      leaves: the leaves of the parameters.
      held: (leaf, axis) of each axis. The axis of the members is the first axis without layers in every leaf.
    """
    found: Ids | None = None
    for leaf, axis in held:
        ids = leaves[leaf].ids
        depth = ids[axis].ndim - 1
        if axis <= depth or ids[depth].ndim != depth + 1:
            return None
        members = labels.find(ids[depth])
        if members.shape[-1] < 2 or (found is not None and not np.array_equal(found, members)):
            return None
        found = members
    return None if found is None or np.unique(found).size != found.size else found
