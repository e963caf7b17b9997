"""`plan`: which leaves reconstruction prunes, and what it removes from each of them, as targets or by a criterion."""

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
from jaxprune.prune import How, Selector, fixed_sparsities
from jaxprune.reconstruction.removal import Given, Target, by_slice, target_of

PyTree = Any

_NEVER = "was not calibrated"


class Leaf(NamedTuple):
    """A leaf and the statistics of its inputs."""

    position: int
    name: str
    array: jax.Array
    inputs: Inputs


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
    lacking = [_tree.label(leaf.name) for leaf in leaves if getattr(leaf.inputs, needs) is None]
    if lacking:
        raise ValueError(
            f"this method needs calibrate(..., collect={needs!r}); these leaves were calibrated without it:\n"
            + "\n".join(f"  {name}" for name in lacking)
        )
    return leaves


@dataclass(frozen=True)
class Plan:
    """What is removed from each leaf.

    Attributes:
      leaves: the leaves that are pruned, with the statistics that the plan was made from.
      known: the roles, patterns and reasons of all leaves of the parameters, for the table of `masks.Pruned`.
      targets: for each leaf position a target for all its matrices, or None if nothing is removed. The whole field is
        None if a criterion chooses.
      selector: the criterion, with the sparsity of each leaf as its allocation; None without a criterion.
      ranks_all: whether the criterion ranks all leaves together, which is impossible stage by stage.
      orders: for each leaf position with a `Grouped` target the axes of its inputs, in the order of the pattern.
    """

    leaves: list[Leaf]
    known: tuple[tuple[_tree.LeafRole, ...], tuple[masks.Pattern | None, ...], tuple[str, ...]]
    targets: dict[int, Target | None] | None = None
    selector: Selector | None = None
    ranks_all: bool = False
    orders: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def of(self, params: PyTree, stats: Stats | None, leaves: Sequence[Leaf]) -> list[tuple[Leaf, Target | None]]:
        """Returns these leaves with their targets, for the current parameters and statistics.

        The inputs of a leaf with a `Grouped` target have the order in which the pattern counts neighbours.
        """
        if self.targets is not None:
            return [(_ordered(leaf, self.orders.get(leaf.position)), self.targets[leaf.position]) for leaf in leaves]
        assert self.selector is not None
        selector = replace(self.selector, where=among(leaves))
        kept = jax.tree.leaves(selector.masks(selector.scores(params, stats=stats), 0.0))
        return [(leaf, _given(leaf, kept[leaf.position])) for leaf in leaves]


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
    params: PyTree,
    stats: Stats | None,
    sparsity: Any,
    kept: PyTree | None,
    how: How,
    method: str,
    needs: str = "layout",
) -> Plan:
    """Makes the plan; see `reconstruct` for the arguments.

    Args:
      params: the parameters.
      stats: the statistics, which give each leaf's layout and the scores of a criterion.
      sparsity: the user's sparsity.
      kept: masks to use unchanged, or None.
      how: how weights are chosen; if it contains no criterion, the method chooses.
      method: the name of the method, for messages.
      needs: the field of the statistics that the method reads.

    Returns:
      The plan.

    Raises:
      ValueError: statistics are missing; the arguments contradict each other, or do not fit a leaf. The message names
        the leaves.
    """
    found = with_statistics(params, stats)
    assert stats is not None  # for the type checker: `with_statistics` raises for None
    selector = Selector(**how).following(params, stats)
    # The roles of the caller, else of calibration, else of conventions.
    roles = _tree.leaf_roles(params, selector.roles, selector.batch_axes)
    leaves = having(_selected(params, stats, found, selector.where, roles), needs)
    if selector.specs is not None:
        raise ValueError("reconstruction works on whole arrays, outside jax.shard_map; leave specs out")
    if kept is not None:
        given = [name for name in ("criterion", "allocation", "pattern", "batch_axes") if name in how]
        given += [] if sparsity is None else ["sparsity"]
        if given:
            raise ValueError(
                "masks already say what is removed: leave out sparsity, pattern, criterion, allocation and batch_axes; "
                f"got {', '.join(given)}"
            )
        return Plan(leaves, _known(stats, found, roles, {}), _all_given(params, leaves, kept))
    selector = replace(selector, where=among(leaves), batch_axes=how.get("batch_axes", _scanned(leaves)))
    pruned = {leaf.place: leaf for leaf in masks.leaves(params, **selector.units)}
    known = _known(stats, found, roles, pruned)
    chooses = "criterion" not in how  # the method chooses its masks
    wrong = [problem for x in leaves if chooses and (problem := _problem(x, pruned[x.position], method))]
    if wrong:
        raise ValueError(
            "reconstruction cannot follow the patterns of these leaves:\n" + "\n".join(f"  {line}" for line in wrong)
        )
    values = _sparsities(params, pruned, sparsity, selector, stats)
    ranks_all = isinstance(values, masks.Global)
    if chooses and ranks_all:
        raise ValueError(
            f"{method} chooses its masks leaf by leaf, and allocation.one_ranking gives no leaf a sparsity; pass a "
            "criterion, such as criterion=criteria.magnitude, which then chooses the masks"
        )
    if not chooses:
        of_leaves = values if ranks_all else jax.tree.structure(params).unflatten(by_slice(values, pruned))
        shared = allocation.Allocation(of_leaves, None)
        selector = replace(selector, allocation=lambda scores, sparsity, **units: shared)
        return Plan(leaves, known, selector=selector, ranks_all=ranks_all)
    targets = {x.position: target_of(pruned[x.position], values[x.position], x.inputs.layout.sizes[0]) for x in leaves}
    orders = {x.position: group.along for x in leaves if (group := pruned[x.position].group) and group.along}
    return Plan(leaves, known, targets, orders=orders)


def _selected(
    params: PyTree, stats: Stats, found: list[Leaf], where: _tree.Where, roles: tuple[_tree.LeafRole, ...]
) -> list[Leaf]:
    """Returns the leaves that `where` selects; by default those of the leaves with statistics that `prune` selects."""
    named = _tree.named_leaves(params)
    # A leaf without statistics is an error only if `where` selects it.
    asked = [leaf.position for leaf in found] if where is None else range(len(named))
    chosen = _tree.chosen([named[i][1] for i in asked], tuple(roles[i] for i in asked), where)
    picked = {i for i, yes in zip(asked, chosen, strict=True) if yes}
    if missing := picked - {leaf.position for leaf in found}:
        why = dict(stats.uncovered)
        lines = "\n".join(f"  {_tree.label(named[i][0])}: {why.get(named[i][0], _NEVER)}" for i in sorted(missing))
        raise ValueError(f"where selects leaves without statistics; narrow where, or calibrate these leaves:\n{lines}")
    if not picked:
        rule = "the predicate" if callable(where) else "the default rule of prune"
        raise ValueError(
            f"there is nothing to prune: {rule} selects no leaf with statistics; pass a predicate where=lambda name, "
            "leaf: ... that is True for one of them:\n"
            + "\n".join(
                f"  {_tree.label(x.name)}" + ("" if callable(where) else f": {roles[x.position].why_left_alone}")
                for x in found
            )
        )
    return [leaf for leaf in found if leaf.position in picked]


def _known(
    stats: Stats, found: list[Leaf], roles: tuple[_tree.LeafRole, ...], pruned: Mapping[int, masks.Leaf]
) -> tuple[tuple[_tree.LeafRole, ...], tuple[masks.Pattern | None, ...], tuple[str, ...]]:
    """Returns the roles, patterns and reasons of all leaves; the pruned leaves have the reason for a sparsity of 0."""
    covered, why = {leaf.position for leaf in found}, dict(stats.uncovered)
    reasons = [
        f"no statistics ({why.get(role.name, _NEVER)})" if role.is_weight and i not in covered else ""
        for i, role in enumerate(roles)
    ]
    reasons = ["sparsity 0" if i in pruned else reason for i, reason in enumerate(reasons)]
    return roles, tuple(pruned[i].pattern if i in pruned else None for i in range(len(roles))), tuple(reasons)


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
            "set their masks to True:\n" + "\n".join(f"  {_tree.label(name)}" for name in other)
        )
    return {leaf.position: _given(leaf, listed[leaf.position]) for leaf in leaves}


def _given(leaf: Leaf, mask: jax.Array) -> Given | None:
    if mask.ndim == 0 and bool(mask):
        return None
    return Given(leaf.inputs.layout.matrices(jnp.broadcast_to(mask, leaf.array.shape)))


def _sparsities(
    params: PyTree, pruned: Mapping[int, masks.Leaf], sparsity: Any, selector: Selector, stats: Stats
) -> list[Any] | masks.Global:
    """Returns a sparsity or a `masks.Count` for each leaf, or `masks.Global` to rank all leaves together."""
    values, structure = jax.tree.flatten(sparsity, is_leaf=lambda x: isinstance(x, masks.Count))
    treedef = jax.tree.structure(params)
    if sparsity is None:
        return fixed_sparsities(pruned.values(), treedef.num_leaves)
    if not isinstance(sparsity, (Mapping, masks.Count)) and np.ndim(sparsity) == 0:
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


def _problem(leaf: Leaf, own: masks.Leaf, method: str) -> str | None:
    """Returns why a method that chooses its own masks cannot follow the pattern of a leaf; None if it can."""
    label, group, inputs = _tree.label(leaf.name), own.group, leaf.inputs.layout.input_axes
    if own.pattern == masks.Unstructured() or (group and group.along and sorted(group.along) == sorted(inputs)):
        return None
    if group and group.along:
        return f"{label}: {own.pattern} needs the axes of the inputs; leave axis out, or pass axis={inputs}"
    return (
        f"{label}: {own.pattern!r} is neither Unstructured() nor NM(n, m), the patterns of {method}; pass "
        "criterion=criteria.magnitude or another, or masks=masks.select(...)"
    )
