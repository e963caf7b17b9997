"""`find_groups` and `Groups`: the units of a function's parameters that must be removed together."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune import _tree
from jaxprune._jaxprs import roles_of
from jaxprune._tree import LeafRole, Roles
from jaxprune.slimming._labels.analysis import Analysis, analyse
from jaxprune.slimming._labels.units import Units, units_of

PyTree = Any
_SHOWN_MEMBERS = 6


class Member(NamedTuple):
    """An axis of a leaf that loses positions when units of a group are removed.

    Attributes:
      leaf: the index of the leaf in `jax.tree.leaves(params)`.
      name: the path of the leaf.
      axis: the axis.
      positions: the number of positions of the axis in one unit (of one layer, in stacked parameters).
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
      layer: the layer of each unit, if each layer of a scan, each member of a stack such as the experts of a mixture,
        or each shard of an axis that a `shard_map` cuts, may lose different units of the same number; None for other
        groups.
      inexact: why removing units is not the same as masking them; None if it is the same.
      least: the number of units that must stay, in each layer: as many as an operation chooses from them, at least 1.
      routed: whether a softmax, a top-k or an argmax chooses among the units, as a router does among its experts. To
        remove such a unit means that its logit is minus infinity; to remove another unit means that its parameters are
        zero.
      block: the smallest number of neighbouring positions that a unit holds on an axis; more than 1 for units such as
        heads. Axes that a product contracts together, such as heads and their dimensions, count as one axis.
    """

    name: str
    first: int
    count: int
    members: tuple[Member, ...]
    layer: np.ndarray | None = dataclasses.field(repr=False)
    inexact: str | None
    block: int = 1
    least: int = 1
    routed: bool = False

    @property
    def exact(self) -> bool:
        """Whether the smaller function equals the function without the units, to rounding.

        The function without the units has masked parameters; for `routed` units, it has logits of minus infinity.
        """
        return self.inexact is None

    @property
    def layers(self) -> int:
        """The number of layers (or members, or shards), which all lose the same number of units; 1 without layers."""
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
    """The groups of a function's parameters, and the frozen positions.

    Iterate over the groups, or get one by its number, by its name, or by any member: `groups["layer/kernel[3]"]` is the
    group with axis 3 of that leaf. `print` shows a table.

    Attributes:
      groups: the groups.
      frozen: the positions that cannot be removed, with the reason.
      analysis: the traced function and its labels.
      units: for each leaf and axis the units of each position, shape (layers..., n, k), filled up with -1.
      chosen: the axes that a softmax, a top-k or an argmax chooses from: the units of each position, (layers..., n, k),
        how many positions the operation chooses, and its name.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    analysis: Analysis
    units: tuple[tuple[np.ndarray, ...], ...]
    chosen: tuple[tuple[np.ndarray, int, str], ...] = ()

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
            raise KeyError(f"several groups contain {key!r}; name one of: {', '.join(g.name for g in found)}")
        frozen = [f.reason for f in self.frozen if f"{f.name}[{f.axis}]" == key]
        why = f" (it is frozen: {frozen[0]})" if frozen else ""
        names = [g.name for g in self.groups]
        close = difflib.get_close_matches(key, names, 1)
        raise KeyError(
            f"no group {key!r}{why}{f'; did you mean {close[0]!r}?' if close else ''}; there are: {', '.join(names)}"
        )

    def __repr__(self) -> str:
        return _table(self)

    @functools.cached_property
    def roles(self) -> Roles:
        """The role of each leaf, as returned by `find_roles`."""
        shaped = [
            LeafRole(leaf.name, leaf.identity, leaf.shape or (), (), ("unknown",) * len(leaf.shape or ()))
            for leaf in self.analysis.leaves
        ]
        return roles_of(self.analysis.traced, shaped)

    @property
    def size(self) -> int:
        """The number of units in all groups."""
        return sum(group.count for group in self.groups)

    def to_dot(self) -> str:
        """Returns the groups (boxes) and their leaves (ellipses) as a graph in Graphviz' language."""
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


def names_any(groups: Groups, mapping: Mapping[Any, Any]) -> bool:
    """Returns whether a key of the mapping is the name of a group or of a member, such as `layer/kernel[3]`."""
    members = {f"{m.name}[{m.axis}]" for group in groups for m in group.members}
    return bool(members.union(group.name for group in groups).intersection(mapping))


def find_groups(
    fn: Callable[..., PyTree], params: PyTree, *inputs: Any, also: Sequence[tuple[Any, ...]] = ()
) -> Groups:
    """Finds the slices of the parameters of any JAX function that must be removed together.

    The function is traced from shapes; nothing is computed. Labels of positions are followed through its jaxpr:
    an addition couples the channels of both operands, a contraction couples a layer's channels with the next layer's
    rows, a reshape of heads times dimensions makes heads and dimensions separate units (Fang et al., DepGraph, 2023,
    arXiv:2301.12900, do this by hooks on modules; a jaxpr needs no list of layers). Positions that the outputs, the
    inputs, a sort, an index or an unknown primitive need are frozen, and the reason is reported.

    Experts are units too. The indices that a router's `top_k` or `argmax` returns are followed through sorts,
    comparisons, one-hot masks, gathers, scatters, counts and `ragged_dot`, so an expert is removed with its column of
    the router; the remaining experts are renumbered. To remove a unit that a softmax, a top-k or an argmax chooses from
    means that its logit is minus infinity (`Group.routed`): the smaller function equals the whole one with this logit.
    To remove a unit that an argmin chooses from, such as an entry of a codebook, means that its value is infinity.
    At least as many units stay as are chosen (`Group.least`). An index that is used in any other way freezes all
    experts, and the reason is reported. If no operation ties the experts, each expert may lose other hidden units, the
    same number in each expert (`Group.layer`).

    A `shard_map` or `pmap` is followed too. If a mesh axis cuts an axis into shards, each shard may lose other units,
    the same number in each shard (`Group.layer`), so the smaller function runs on the same mesh.

    Batch statistics belong in `params`. A function that returns them freezes their channels, because it freezes all
    outputs: find the groups on the function without them, and use `Slimmed.rebind` for training. Leaves that only the
    training mode reads are included if it is passed in `also`.

    Args:
      fn: a function `fn(params, *inputs)`.
      params: any tree of arrays or ShapeDtypeStructs.
      *inputs: arrays or ShapeDtypeStructs in any trees; other leaves are constants.
      also: further functions of the same parameters that must run with fewer units too, each as a tuple
        (function, *inputs), such as [(train, x, key)]. They tie leaves that `fn` does not use; their outputs may
        shrink. Default: none.

    Returns:
      The groups.

    Raises:
      TypeError: a function needs numbers, but only shapes are known.

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
    """Returns the groups of an analysed function."""
    found = units_of(analysis)
    frozen = tuple(Frozen(*entry) for entry in found.frozen)
    units = tuple(tuple(found.placed[p] for p in axes) for axes in found.of)
    return Groups(_make_groups(analysis, found), frozen, analysis, units, tuple(found.chosen))


class _Places(NamedTuple):
    """The positions of the first unit of a group on an axis, in one layer, and the layer of each unit."""

    group: int
    positions: np.ndarray
    layer: np.ndarray | None


def _make_groups(analysis: Analysis, found: Units) -> tuple[Group, ...]:
    """Returns the groups: the units of each, its members (the axes of leaves that its units remove), and its limits."""
    counts = found.counts
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    members: list[list[Member]] = [[] for _ in counts]
    layers: list[np.ndarray | None] = [None] * len(counts)
    forms: list[str] = [""] * len(counts)
    blocks: list[list[int]] = [[] for _ in counts]
    of_unit = np.repeat(np.arange(len(counts)), counts)
    places = [_places(units, of_unit, starts) for units in found.placed]
    for k, (leaf, axes) in enumerate(zip(analysis.leaves, found.of, strict=True)):
        for axis, p in enumerate(axes):
            for g, positions, layer in places[p]:
                members[g].append(Member(k, leaf.name, axis, positions.size))
                layers[g] = layer if layers[g] is None else layers[g]
                forms[g] = forms[g] or _form(positions)
                blocks[g].append(_block(positions))
    names = _names(members, forms)
    least = [_least(found, int(start), int(count)) for start, count in zip(starts, counts, strict=False)]
    for g, shard in enumerate(found.shards):
        if shard is not None:
            layer = layers[g]
            cells = shard if layer is None else layer * (shard.max() + 1) + shard
            layers[g] = np.unique(cells, return_inverse=True)[1].reshape(-1)
            least[g] = -(-least[g] // (int(shard.max()) + 1))
    return tuple(
        Group(
            names[g],
            int(starts[g]),
            int(counts[g]),
            tuple(members[g]),
            layers[g],
            found.inexact[g],
            min(blocks[g]) if min(blocks[g]) > 1 else int(found.inner[g]),
            least[g],
            found.routed[g],
        )
        for g in range(len(counts))
    )


def _least(found: Units, first: int, count: int) -> int:
    """Returns the number of units of a group that must stay if all units of other groups do."""
    least = 1
    for units, chosen, _ in found.chosen:
        own = (units >= first) & (units < first + count)
        others = int((~own.any(-1)).sum(-1).min())
        positions = int(own.any(-1).sum(-1).max())  # of each layer
        distinct = max((np.unique(row[mine]).size for row, mine in _rows(units, own)), default=0)
        if distinct:
            each = positions // distinct
            least = max(least, -(-(chosen - others) // each))
    return least


def _rows(units: np.ndarray, own: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    shape = (-1, *units.shape[-2:])
    return zip(units.reshape(shape), own.reshape(shape), strict=True)


def _places(units: np.ndarray, of_unit: np.ndarray, starts: np.ndarray) -> list[_Places]:
    """Returns for each group with units on an axis where its first unit is."""
    found: list[_Places] = []
    if not units.size:
        return found
    rows = units.reshape(-1, *units.shape[-2:])
    for g in np.flatnonzero(np.bincount(of_unit[units[units >= 0]])):
        layer = _layer_of(rows, int(starts[g]), int(starts[g + 1] - starts[g]))
        row = rows[0] if layer is None else rows[layer[0]]
        positions = np.flatnonzero((row == starts[g]).any(-1))
        if not positions.size:
            positions = np.flatnonzero((rows == starts[g]).any(-1).any(0))
        found.append(_Places(int(g), positions, layer))
    return found


def _layer_of(rows: np.ndarray, first: int, count: int) -> np.ndarray | None:
    # (layers, n, k) units; each unit of the group in one layer only, and there is more than one layer.
    if len(rows) == 1:
        return None
    own = (rows >= first) & (rows < first + count)
    units, of = rows[own] - first, np.broadcast_to(np.arange(len(rows))[:, None, None], rows.shape)[own]
    layer = np.full(count, -1)
    layer[units] = of
    return layer if (layer[units] == of).all() and (layer >= 0).all() else None


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


def _table(groups: Groups) -> str:
    """Returns the groups with their members, then the frozen positions with the reasons."""
    rows = []
    for group in groups:
        layers = f" in each of {group.layers} layers" if group.layer is not None else ""
        shown = [f"{m.name}[{m.axis}]:{m.positions}" for m in group.members[:_SHOWN_MEMBERS]]
        more = len(group.members) - _SHOWN_MEMBERS
        shown += [f"and {more} more"] if more > 0 else []
        exact = "yes" if group.exact else f"no: {group.inexact}"
        rows.append((group.name, f"{group.count // group.layers}{layers}", exact, ", ".join(shown)))
    header = ("group", "units", "exact", "members: positions of a unit")
    parts = [_tree.table(header, rows, numbers=False) if rows else "no groups: nothing can be removed"]
    # The axes of a leaf that are frozen for one reason share a line.
    shared: dict[tuple[str, str], list[Frozen]] = {}
    for found in groups.frozen:
        shared.setdefault((found.name, found.reason), []).append(found)
    frozen = [
        (f"{name}[{', '.join(str(f.axis) for f in axes)}]", ", ".join(f"{f.positions} of {f.of}" for f in axes), reason)
        for (name, reason), axes in shared.items()
    ]
    if frozen:
        parts.append(_tree.table(("frozen", "positions", "reason"), frozen, numbers=False))
    return "\n\n".join(parts)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
