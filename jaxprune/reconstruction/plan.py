"""`plan`: what reconstruction removes from each calibrated leaf, as targets or by a criterion."""

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, allocation, masks
from jaxprune.calibration import Stats
from jaxprune.calibration.stats import Inputs
from jaxprune.masks._exact import counts
from jaxprune.prune import How, Selector
from jaxprune.reconstruction.removal import Entries, Given, Grouped, Target

PyTree = Any


class Leaf(NamedTuple):
    """A leaf and the statistics of its inputs."""

    position: int
    name: str
    array: jax.Array
    inputs: Inputs


def calibrated(params: PyTree, stats: Stats | None, how: How, needs: str = "layout") -> list[Leaf]:
    """Returns the leaves that are pruned, with their statistics.

    Without `where` these are the leaves that the default rule of `prune` selects, among the leaves with statistics.

    Args:
      params: the parameters.
      stats: the result of `calibrate`.
      how: how weights are chosen: `where`, `roles` and `batch_axes` say which leaves are pruned.
      needs: the field of the statistics that is required.

    Raises:
      ValueError: statistics are missing; the message names the leaves.
    """
    found = with_statistics(params, stats)
    assert stats is not None  # for the type checker: `with_statistics` raises for None
    # The roles of the caller, else of calibration, else of conventions.
    roles = Selector(**how).following(params, stats).roles
    known = _tree.leaf_roles(params, roles, how.get("batch_axes", 0))
    where, named = how.get("where"), _tree.named_leaves(params)
    # A leaf without statistics is an error only if `where` selects it.
    asked = [leaf.position for leaf in found] if where is None else range(len(named))
    chosen = _tree.chosen([named[i][1] for i in asked], tuple(known[i] for i in asked), where)
    picked = {i for i, yes in zip(asked, chosen, strict=True) if yes}
    if missing := picked - {leaf.position for leaf in found}:
        lines = "\n".join(f"  {named[i][0]}: {_why_not(stats, named[i][0])}" for i in sorted(missing))
        raise ValueError(f"where selects leaves without statistics; narrow where, or calibrate these leaves:\n{lines}")
    if not picked:
        rule = "the predicate" if callable(where) else "the default rule of prune"
        raise ValueError(
            f"there is nothing to prune: {rule} selects no leaf with statistics; pass a predicate where=lambda name, "
            "leaf: ... that is True for one of them:\n"
            + "\n".join(
                f"  {x.name}" + ("" if callable(where) else f": {known[x.position].why_left_alone}") for x in found
            )
        )
    return having([leaf for leaf in found if leaf.position in picked], needs)


def with_statistics(params: PyTree, stats: Stats | None) -> list[Leaf]:
    """Returns all leaves that have statistics.

    Raises:
      ValueError: `stats` is None, or no leaf of `params` has statistics.
      TypeError: the statistics are another object.
    """
    if stats is None:
        raise ValueError("reconstruction needs stats: pass the result of calibrate(fn, params, batches)")
    if not isinstance(stats, Stats):
        swapped = ": params and stats are swapped" if isinstance(params, Stats) else ""
        raise TypeError(f"stats must be what calibrate(fn, params, batches) returns; got {_tree.shown(stats)}{swapped}")
    both = zip(_tree.named_leaves(params), stats.leaves(params), strict=True)
    found = [Leaf(i, *named, entry) for i, (named, entry) in enumerate(both) if entry is not None]
    if not found:
        there = ", ".join("/".join(identity) for identity in stats.inputs)
        raise ValueError(
            "stats belongs to another network: it has none of the leaves of params; calibrate these params. Its "
            f"leaves are: {there}"
        )
    return found


def having(leaves: list[Leaf], needs: str) -> list[Leaf]:
    """Returns the leaves.

    Raises:
      ValueError: the statistics lack the field `needs`; the message names the leaves.
    """
    lacking = [leaf.name for leaf in leaves if getattr(leaf.inputs, needs) is None]
    if lacking:
        raise ValueError(
            f"this method needs calibrate(..., collect={needs!r}); these leaves were calibrated without it:\n"
            + "\n".join(f"  {name}" for name in lacking)
        )
    return leaves


def _why_not(stats: Stats, name: str) -> str:
    return dict(stats.uncovered).get(name, "was not calibrated")


@dataclass(frozen=True)
class Plan:
    """What is removed from each leaf.

    Attributes:
      targets: for each leaf position a target for all its matrices, or None if nothing is removed. The whole field is
        None if a criterion chooses.
      selector: the criterion, with the sparsity of each leaf as its allocation; None without a criterion.
      ranks_all: whether the criterion ranks all leaves together, which is impossible stage by stage.
      patterns: for each leaf position the pattern, with axes; empty if masks are given.
      orders: for each leaf position with a `Grouped` target the axes of its inputs, in the order of the pattern.
      roles: the role of each leaf of the parameters.
    """

    targets: dict[int, Target | None] | None = None
    selector: Selector | None = None
    ranks_all: bool = False
    patterns: Mapping[int, masks.Pattern] = field(default_factory=dict)
    orders: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    roles: tuple[_tree.LeafRole, ...] = ()

    def of(self, params: PyTree, stats: Stats, leaves: Sequence[Leaf]) -> list[tuple[Leaf, Target | None]]:
        """Returns these leaves with their targets, for the current parameters and statistics.

        The inputs of a leaf with a `Grouped` target have the order in which the pattern counts neighbours.
        """
        if self.targets is not None:
            return [(_ordered(leaf, self.orders.get(leaf.position)), self.targets[leaf.position]) for leaf in leaves]
        assert self.selector is not None
        selector = replace(self.selector, where=among(leaves))
        kept = jax.tree.leaves(selector.masks(selector.scores(params, stats=stats), 0.0))
        return [(leaf, _given(leaf, kept[leaf.position])) for leaf in leaves]

    def result(self, params: PyTree, new: list[Any], kept: list[Any], stats: Stats) -> masks.Pruned:
        """Returns the new leaves and their masks, with what is known about each leaf of `params`."""
        structure = jax.tree.structure(params)
        reasons = [
            f"no statistics ({_why_not(stats, role.name)})" if role.is_weight and entry is None else ""
            for role, entry in zip(self.roles, stats.leaves(params), strict=True)
        ]
        for i in self.patterns:
            reasons[i] = "sparsity 0"
        return masks.Pruned(
            *(structure.unflatten(new), structure.unflatten(kept), self.roles),
            *(tuple(self.patterns.get(i) for i in range(len(new))), tuple(reasons)),
        )


def _ordered(leaf: Leaf, axes: tuple[int, ...] | None) -> Leaf:
    """Returns the leaf with the inputs of its matrices ordered by the axes in `axes`; None keeps the order."""
    inputs, layout = leaf.inputs, leaf.inputs.layout
    if axes is None or axes == layout.input_axes:
        return leaf
    order = [layout.input_axes.index(axis) for axis in axes]
    sizes = [factor.size for factor in layout.inputs]

    def moved(x: Any) -> Any:  # [batch, inputs] or [batch, inputs, inputs]
        twice = x.ndim - 1
        to = [1 + len(sizes) * k + i for k in range(twice) for i in order]
        return x.reshape(len(x), *sizes * twice).transpose(0, *to).reshape(x.shape)

    turned = layout._replace(inputs=tuple(layout.inputs[i] for i in order))
    return leaf._replace(inputs=replace(jax.tree.map(moved, inputs), layout=turned))


def among(leaves: Sequence[Leaf]) -> Callable[[str, Any], bool]:
    """Returns a value for `where` that selects these leaves."""
    names = {leaf.name for leaf in leaves}
    return lambda name, leaf: name in names and _tree.is_floating(leaf)


def plan(
    params: PyTree, stats: Stats, leaves: Sequence[Leaf], sparsity: Any, kept: PyTree | None, how: How, method: str
) -> Plan:
    """Makes the plan; see `reconstruct` for the arguments.

    Args:
      params: the parameters.
      stats: the statistics, which give each leaf's layout and the scores of a criterion.
      leaves: the calibrated leaves.
      sparsity: the user's sparsity.
      kept: masks to use unchanged, or None.
      how: how weights are chosen; if it contains no criterion, the method chooses.
      method: the name of the method, for messages.

    Returns:
      The plan.

    Raises:
      ValueError: the arguments contradict each other, or do not fit a leaf.
    """
    selector = Selector(**{"batch_axes": _scanned(leaves), **how, "where": among(leaves)}).following(params, stats)
    roles = _tree.leaf_roles(params, selector.roles, how.get("batch_axes", 0))
    if how.get("specs") is not None:
        raise ValueError("reconstruction works on whole arrays, outside jax.shard_map; leave specs out")
    if kept is not None:
        given = [name for name in ("criterion", "allocation", "pattern", "batch_axes") if name in how]
        given += [] if sparsity is None else ["sparsity"]
        if given:
            raise ValueError(
                "masks already say what is removed: leave out sparsity, pattern, criterion, allocation and batch_axes; "
                f"got {', '.join(given)}"
            )
        return Plan(_all_given(params, leaves, kept), roles=roles)
    pruned = {leaf.place: leaf for leaf in masks.leaves(params, **selector.units)}
    patterns = {place: leaf.pattern for place, leaf in pruned.items()}
    if "criterion" in how:
        values = _sparsities(params, list(pruned.values()), sparsity, selector, stats)
        if not isinstance(values, masks.Global):
            for place, leaf in pruned.items():
                if isinstance(values[place], masks.Count):
                    each = _removed_from_each(leaf, values[place], leaf.slices)
                    values[place] = masks.Count(*(jnp.asarray(x, jnp.int32) for x in (each >> 16, each & 0xFFFF)))
            values = jax.tree.structure(params).unflatten(values)
        shared = allocation.Allocation(values, None)
        selector = replace(selector, allocation=lambda scores, sparsity, **units: shared)
        return Plan(selector=selector, ranks_all=isinstance(values, masks.Global), patterns=patterns, roles=roles)
    wrong = [problem for leaf in leaves if (problem := _problem(leaf, pruned[leaf.position], method))]
    if wrong:
        raise ValueError(
            "reconstruction cannot follow the patterns of these leaves:\n" + "\n".join(f"  {line}" for line in wrong)
        )
    values = _sparsities(params, list(pruned.values()), sparsity, selector, stats)
    if isinstance(values, masks.Global):
        raise ValueError(
            f"{method} chooses its masks leaf by leaf, and allocation.one_ranking gives no leaf a sparsity; pass a "
            "criterion, such as criterion=criteria.magnitude, which then chooses the masks"
        )
    targets = {x.position: _target(x, pruned[x.position], values[x.position]) for x in leaves}
    orders = {x.position: group.along for x in leaves if (group := pruned[x.position].group) and group.along}
    return Plan(targets, patterns=patterns, orders=orders, roles=roles)


def _scanned(leaves: Sequence[Leaf]) -> dict[str, int]:
    """Returns how many leading axes of each leaf stack scanned layers, one matrix for each index."""
    axes = {}
    for leaf in leaves:
        layout, n = leaf.inputs.layout, 0
        while n < len(layout.batch) and (layout.batch[n].of.axis, layout.batch[n].size) == (n, layout.shape[n]):
            n += 1
        axes[glob.escape(leaf.name)] = n
    return axes


def _all_given(params: PyTree, leaves: Sequence[Leaf], kept: PyTree) -> dict[int, Target | None]:
    _tree.check_masks(params, kept)
    listed = [jnp.asarray(mask) for mask in jax.tree.leaves(kept)]
    covered = {leaf.position for leaf in leaves}
    named = enumerate(_tree.named_leaves(params))
    other = [name for i, (name, _) in named if i not in covered and not listed[i].all()]
    if other:
        raise ValueError(
            "masks remove something from leaves that are not reconstructed (not selected by where, or not calibrated); "
            "set their masks to True:\n" + "\n".join(f"  {name}" for name in other)
        )
    return {leaf.position: _given(leaf, listed[leaf.position]) for leaf in leaves}


def _given(leaf: Leaf, mask: jax.Array) -> Given | None:
    if mask.ndim == 0 and bool(mask):
        return None
    return Given(leaf.inputs.layout.matrices(jnp.broadcast_to(mask, leaf.array.shape)))


def _sparsities(
    params: PyTree, pruned: Sequence[masks.Leaf], sparsity: Any, selector: Selector, stats: Stats
) -> list[Any] | masks.Global:
    """Returns a sparsity or a `masks.Count` for each leaf, or `masks.Global` to rank all leaves together."""
    values, structure = jax.tree.flatten(sparsity, is_leaf=lambda x: isinstance(x, masks.Count))
    treedef = jax.tree.structure(params)
    if sparsity is None:
        fixed = {leaf.place: leaf.pattern.fixed_sparsity for leaf in pruned}
        missing = [leaf.name for leaf in pruned if fixed[leaf.place] is None]
        if missing:
            raise ValueError(f"{missing[0]} has no sparsity: pass a sparsity, an N:M pattern or masks")
        return [fixed.get(i, 0.0) for i in range(treedef.num_leaves)]
    if _is_number(sparsity):
        # The uniform allocation reads only shapes, so no scores are computed.
        uniform = selector.allocation is allocation.uniform
        scores = params if uniform else selector.scores(params, stats=stats)
        shared = selector.allocation(scores, sparsity, **selector.units).sparsities
        return shared if isinstance(shared, masks.Global) else treedef.flatten_up_to(shared)
    if structure == treedef:
        return values
    if isinstance(sparsity, Mapping):
        return _tree.resolve(sparsity, params, default=0.0, what="sparsity")
    raise ValueError(
        f"sparsity must be a number, a mapping of globs, or a tree in the structure of params, got {structure}; for "
        "one ranking over all leaves pass a number, criterion=... and allocation=allocation.one_ranking"
    )


def _is_number(sparsity: Any) -> bool:
    return not isinstance(sparsity, (Mapping, masks.Count)) and np.ndim(sparsity) == 0


def _problem(leaf: Leaf, own: masks.Leaf, method: str) -> str | None:
    """Returns why a method that chooses its own masks cannot follow the pattern of a leaf; None if it can."""
    group, inputs = own.group, leaf.inputs.layout.input_axes
    if own.pattern == masks.Unstructured() or (group and group.along and sorted(group.along) == sorted(inputs)):
        return None
    if group and group.along:
        return f"{leaf.name}: {own.pattern} needs the axes of the inputs; leave axis out, or pass axis={inputs}"
    return (
        f"{leaf.name}: {own.pattern!r} is neither Unstructured() nor NM(n, m), the patterns of {method}; pass "
        "criterion=criteria.magnitude or another, or masks=masks.select(...)"
    )


def _target(leaf: Leaf, own: masks.Leaf, sparsity: Any) -> Target | None:
    """Returns the target for all matrices of a leaf, with stacked fields; None if nothing is removed."""
    if group := own.group:
        fixed = 1 - group.kept / group.size
        if not (_is_number(sparsity) and abs(float(sparsity) - fixed) < 1e-6):
            raise ValueError(
                f"{leaf.name}: {group.kept} of {group.size} has the sparsity {fixed}, but sparsity is {sparsity!r}; "
                "pass sparsity=None"
            )
        return None if group.kept == group.size else Grouped(group.kept, group.size)
    each = _removed_from_each(own, sparsity, leaf.inputs.layout.sizes[0])
    return Entries(jnp.asarray(each, jnp.int32)) if each.any() else None


def _removed_from_each(leaf: masks.Leaf, sparsity: Any, parts: int) -> np.ndarray:
    """Returns how many entries each of the equal parts of a leaf loses: the leaf's number, spread evenly."""
    is_count = isinstance(sparsity, masks.Count)
    if is_count and np.ndim(sparsity.low):
        each = np.asarray(sparsity.high, np.int64) * 2**16 + np.asarray(sparsity.low)
        if parts % len(each):
            raise ValueError(f"{leaf.name}: the Count has {len(each)} slices, but the leaf has {parts} matrices")
        return np.concatenate([_spread(int(k), parts // len(each)) for k in each])
    return _spread(int(sparsity if is_count else counts.removed(sparsity, leaf.entries)), parts)


def _spread(total: int, parts: int) -> np.ndarray:
    return np.diff([(2 * total * i + parts) // (2 * parts) for i in range(parts + 1)])
