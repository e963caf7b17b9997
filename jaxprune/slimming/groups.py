"""`find_groups`: the units of a function's parameters that must be removed together, as `Groups`, a table in print."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.slimming._labels.analysis import Analysis, analyse
from jaxprune.slimming._labels.axes import Axis, flat
from jaxprune.slimming._labels.labels import Labels
from jaxprune.slimming._labels.rules import rule_of
from jaxprune.slimming._labels.zeros import Zeros, follow_zeros

PyTree = Any
_SHOWN_MEMBERS = 6


class Member(NamedTuple):
    """An axis of a leaf that loses positions when units of a group go.

    Attributes:
      leaf: the place of the leaf in `jax.tree.leaves(params)`.
      name: the leaf's path.
      axis: the axis.
      positions: how many positions of the axis one unit holds (of one layer, in stacked parameters).
    """

    leaf: int
    name: str
    axis: int
    positions: int


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units of one kind: the channels of one layer, its heads, or the dimensions of its heads.

    Attributes:
      name: the leaf and axis that the group is named after, and the form of a unit where an axis has units of several
        kinds.
      first: the index of the group's first unit among all units.
      count: the number of units.
      members: the axes that lose positions.
      layer: the layer of each unit, where each layer of a scan may lose units of its own, as many as the other layers;
        None where the group is not stacked.
      inexact: why removing units is not the same as masking them; None if it is the same.
      block: the smallest number of neighbouring positions that a unit holds on an axis; more than 1 for units such as
        fused heads.
    """

    name: str
    first: int
    count: int
    members: tuple[Member, ...]
    layer: np.ndarray | None = dataclasses.field(repr=False)
    inexact: str | None
    block: int = 1

    @property
    def exact(self) -> bool:
        """Whether the smaller function equals the function of masked parameters, to rounding."""
        return self.inexact is None

    @property
    def layers(self) -> int:
        """The number of layers, which all lose the same number of units; 1 if the group is not stacked."""
        return 1 if self.layer is None else int(self.layer.max()) + 1

    @property
    def span(self) -> slice:
        """The slice of the group's units among all units."""
        return slice(self.first, self.first + self.count)


class Frozen(NamedTuple):
    """Positions of a leaf's axis that cannot be removed, and why."""

    name: str
    axis: int
    positions: int
    of: int
    reason: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Groups:
    """What of a function's parameters can be removed together.

    Iterate over the groups, or take one by its number, by its name, or by any member: `groups["layer/kernel[3]"]` is
    the group that holds axis 3 of that leaf. `print` shows a table.

    Attributes:
      groups: the groups.
      frozen: what cannot be removed, with the reason.
      analysis: the traced function and its labels.
      units: for each leaf and axis the units of each position, shape (layers..., n, k); -1 fills up.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    analysis: Analysis
    units: tuple[tuple[np.ndarray, ...], ...]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: str | int) -> Group:
        if not isinstance(key, str):
            return self.groups[key]
        named = [group for group in self.groups if group.name == key]
        found = named or [group for group in self.groups if any(f"{m.name}[{m.axis}]" == key for m in group.members)]
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(f"several groups hold {key!r}; name one of: {', '.join(g.name for g in found)}")
        frozen = [f.reason for f in self.frozen if f"{f.name}[{f.axis}]" == key]
        why = f" (it is frozen: {frozen[0]})" if frozen else ""
        names = [g.name for g in self.groups]
        close = difflib.get_close_matches(key, names, 1)
        raise KeyError(
            f"no group {key!r}{why}{f'; did you mean {close[0]!r}?' if close else ''}; there are: {', '.join(names)}"
        )

    def __repr__(self) -> str:
        return _table(self)

    @property
    def size(self) -> int:
        """The number of units in all groups."""
        return sum(group.count for group in self.groups)

    def to_dot(self) -> str:
        """The groups (boxes) and the leaves they hold (ellipses) as a graph in Graphviz' language."""
        lines = ["graph groups {", "  rankdir=LR;"]
        for k, group in enumerate(self.groups):
            colour = "black" if group.exact else "orange"
            lines.append(f'  g{k} [shape=box, color={colour}, label="{_quoted(group.name)}\\n{group.count} units"];')
        for k, leaf in enumerate(self.analysis.leaves):
            if leaf.shape is not None:
                lines.append(f'  p{k} [label="{_quoted(leaf.name)}\\n{"x".join(map(str, leaf.shape))}"];')
        for k, group in enumerate(self.groups):
            lines += [f'  g{k} -- p{m.leaf} [label="{m.axis}"];' for m in group.members]
        return "\n".join([*lines, "}"])


def find_groups(
    fn: Callable[..., PyTree], params: PyTree, *inputs: Any, also: Sequence[tuple[Any, ...]] = ()
) -> Groups:
    """Finds which slices of the parameters of any JAX function have to be removed together.

    The function is traced from shapes; nothing is computed. Labels of positions are followed through its jaxpr:
    an addition couples the channels of both operands, a contraction those of a layer with the next layer's rows,
    a reshape of heads times dimensions makes heads and dimensions units of their own (Fang et al., DepGraph,
    2023, arXiv:2301.12900, do this by hooks on modules; a jaxpr needs no list of layers). Whatever the outputs, the
    inputs, a softmax, a sort, an index or an unknown primitive needs whole is frozen, and the reason is reported.

    Batch statistics belong into `params`. A function that returns them freezes their channels, as it freezes all
    outputs: find the groups on the function without them, and use `Slimmed.rebind` for training. Leaves that only the
    training mode reads follow where it is named in `also`.

    Args:
      fn: a function `fn(params, *inputs)`.
      params: any tree of arrays or ShapeDtypeStructs.
      *inputs: arrays or ShapeDtypeStructs in any trees; anything else is a constant.
      also: further functions of the same parameters that must run with fewer units too, each as a tuple
        (function, *inputs), such as [(train, x, key)]. They tie leaves that `fn` does not use; their outputs may
        shrink. Default: none.

    Returns:
      The groups.

    Raises:
      TypeError: a function needs numbers where there are only shapes.

    Example:
      >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2)), 'mean': jnp.ones(4)}
      >>> hidden = lambda p, x: jnp.tanh(x @ p['a'])
      >>> train = lambda p, x: 0.9 * p['mean'] + 0.1 * hidden(p, x).mean(0)
      >>> fn, x = lambda p, x: hidden(p, x) @ p['b'], jnp.ones((5, 3))
      >>> groups = find_groups(fn, params, x, also=[(train, x)])
      >>> [(g.name, g.count, [m.name for m in g.members]) for g in groups]
      [('a[1]', 4, ['a', 'b', 'mean'])]
    """
    return group(analyse(fn, params, inputs, fix_outputs=True, also=also))


def group(analysis: Analysis) -> Groups:
    """Sorts the units of an analysed function into groups."""
    labels = analysis.labels
    atoms = tuple(tuple(labels.atoms(ids) for ids in leaf.ids) for leaf in analysis.leaves)
    signature, content, first = _signatures(analysis, atoms)
    present = np.flatnonzero(first < np.iinfo(np.int64).max)
    present = present[present != Labels.FIXED]
    present = present[np.argsort(first[present], kind="stable")]
    # Atoms that are at the same positions of all leaves (two cuts of one axis that leave nothing to choose) are one.
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
    groups = _make_groups(analysis, placed, counts, _inexact(analysis, number))
    return Groups(groups, _frozen(analysis, atoms), analysis, placed)


def _once(units: np.ndarray) -> np.ndarray:
    # (..., n, k) units: of those that a position names twice the first alone counts.
    for i in range(1, units.shape[-1]):
        again = (units[..., :i] == units[..., i : i + 1]).any(-1)
        units[..., i] = np.where(again, -1, units[..., i])
    return units


def _signatures(analysis: Analysis, atoms: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each atom a number that tells its kind, one that tells its positions, and where it comes first.

    Units are of one kind if they hold positions of the same axes, in the same form.
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


def _make_groups(analysis: Analysis, placed: Any, counts: np.ndarray, inexact: dict[int, str]) -> tuple[Group, ...]:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    members: list[list[Member]] = [[] for _ in counts]
    layers: list[np.ndarray | None] = [None] * len(counts)
    forms: list[str] = [""] * len(counts)
    blocks: list[list[int]] = [[] for _ in counts]
    of_unit = np.repeat(np.arange(len(counts)), counts)
    for k, (leaf, axes) in enumerate(zip(analysis.leaves, placed, strict=True)):
        for axis, units in enumerate(axes):
            if not units.size:
                continue
            rows = units.reshape(-1, *units.shape[-2:])
            for g in np.flatnonzero(np.bincount(of_unit[units[units >= 0]])):
                layer = _layer_of(rows, int(starts[g]), int(counts[g]))
                row = rows[0] if layer is None else rows[layer[0]]
                places = np.flatnonzero((row == starts[g]).any(-1))
                if not places.size:
                    places = np.flatnonzero((rows == starts[g]).any(-1).any(0))
                members[g].append(Member(k, leaf.name, axis, places.size))
                layers[g] = layer if layers[g] is None else layers[g]
                forms[g] = forms[g] or _form(places)
                blocks[g].append(_block(places))
    names = _names(members, forms)
    return tuple(
        Group(
            names[g],
            int(starts[g]),
            int(counts[g]),
            tuple(members[g]),
            layers[g],
            _first_reason(inexact, starts, g),
            min(blocks[g]),
        )
        for g in range(len(counts))
    )


def _layer_of(rows: np.ndarray, first: int, count: int) -> np.ndarray | None:
    # (layers, n, k) units; each unit of the group in one layer only, and there is more than one layer.
    if len(rows) == 1:
        return None
    layer, seen = np.zeros(count, int), np.zeros(count, int)
    for i, row in enumerate(rows):
        here = np.zeros(count, bool)
        here[row[(row >= first) & (row < first + count)] - first] = True
        layer[here] = i
        seen += here
    return layer if (seen == 1).all() else None


def _block(places: np.ndarray) -> int:
    # The length of the shortest run of neighbours.
    ends = np.flatnonzero(np.diff(places) != 1)
    return int(np.diff(np.concatenate([[-1], ends, [places.size - 1]])).min())


def _form(places: np.ndarray) -> str:
    if places.size < 2:
        return ""
    steps = np.unique(np.diff(places))
    if steps.size == 1:
        return f"block of {places.size}" if steps[0] == 1 else f"every {steps[0]}"
    return f"{places.size} positions"


def _names(members: list[list[Member]], forms: list[str]) -> list[str]:
    leaders = [next((m for m in found if m.axis > 0), found[0]) for found in members]
    bases = [f"{m.name}[{m.axis}]" for m in leaders]
    names = [f"{b} {f}" if bases.count(b) > 1 and f else b for b, f in zip(bases, forms, strict=True)]
    return [n if names.count(n) == 1 else f"{n} #{names[:i].count(n)}" for i, n in enumerate(names)]


def _first_reason(inexact: dict[int, str], starts: np.ndarray, g: int) -> str | None:
    return next((reason for unit, reason in inexact.items() if starts[g] <= unit < starts[g + 1]), None)


def _inexact(analysis: Analysis, number: np.ndarray) -> dict[int, str]:
    jaxpr = analysis.traced.closed.jaxpr
    marks: list[tuple[Axis, str]] = []
    params = {place for place in analysis.traced.inputs[: len(analysis.leaves)] if place is not None}
    known = [Zeros((i in params,) * len(v.aval.shape)) for i, v in enumerate(jaxpr.invars)]
    _ = follow_zeros(analysis.labels, analysis.frame, known, rule_of, marks)
    found: dict[int, str] = {}
    done: set[tuple[int, str]] = set()
    for axis, text in marks:
        ids = None if (id(axis), text) in done else flat(analysis.labels, axis)
        done.add((id(axis), text))
        if ids is not None:
            units = number[np.unique(analysis.labels.atoms(ids))]
            found.update({int(u): text for u in units if u >= 0 and int(u) not in found})
    return found


def _frozen(analysis: Analysis, atoms: Any) -> tuple[Frozen, ...]:
    found = []
    for leaf, axes in zip(analysis.leaves, atoms, strict=True):
        for axis, (ids, columns) in enumerate(zip(leaf.ids, axes, strict=True)):
            stuck = (columns == Labels.FIXED).all(-1)
            if stuck.any():
                why = analysis.labels.why_any(ids[stuck])
                counts = np.bincount(why, minlength=len(analysis.labels.reasons))
                for reason in np.flatnonzero(counts):
                    share = counts[reason] // max(1, int(np.prod(ids.shape[:-1])))
                    found.append(Frozen(leaf.name, axis, int(share), ids.shape[-1], analysis.labels.reasons[reason]))
    return tuple(found)


def _table(groups: Groups) -> str:
    """The groups with their members, then what is frozen and why."""
    rows = [("group", "units", "exact", "members: positions of a unit")]
    for group in groups:
        layers = f" in each of {group.layers} layers" if group.layer is not None else ""
        shown = [f"{m.name}[{m.axis}]:{m.positions}" for m in group.members[:_SHOWN_MEMBERS]]
        more = len(group.members) - _SHOWN_MEMBERS
        shown += [f"and {more} more"] if more > 0 else []
        exact = "yes" if group.exact else f"no: {group.inexact}"
        rows.append((group.name, f"{group.count // group.layers}{layers}", exact, ", ".join(shown)))
    lines = _aligned(rows) if len(groups) else ["no groups: nothing can be removed"]
    # The axes of a leaf that are frozen for one reason share a line.
    shared: dict[tuple[str, str], list[Frozen]] = {}
    for found in groups.frozen:
        shared.setdefault((found.name, found.reason), []).append(found)
    frozen = [
        (f"{name}[{', '.join(str(f.axis) for f in axes)}]", ", ".join(f"{f.positions} of {f.of}" for f in axes), reason)
        for (name, reason), axes in shared.items()
    ]
    return "\n".join(lines + (["", *_aligned([("frozen", "positions", "reason"), *frozen])] if frozen else []))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
