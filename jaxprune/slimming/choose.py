"""`choose`: chooses units to remove, by a sparsity, ranked within each group or over several, or down to a cost."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from jaxprune import _tree
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.groups import Group, Groups, names_any

_SCOPES = ("group", "global", "isomorphic")
Rules = float | int | Mapping[str, Any]


class Limits(NamedTuple):
    """The limits of a choice. Each number may be a mapping from globs over group names to numbers.

    Attributes:
      round_to: the kept width of a group is a multiple of this whole number, such as 8, or 128 for TPU lanes. The width
        is the number of units; for units that are blocks of positions on one axis, such as fused heads, it is the
        number of positions. A group too narrow to be rounded stays whole. Default: 1.
      min_units: the least number of units that each group keeps (each layer of a stacked group). 0 allows an empty
        group; see `Choice.empty`. Default: 1.
      max_sparsity: the largest fraction of a group's units to remove, in [0, 1]. Default: 1.
      protect: groups and leaves that stay whole: a glob or several globs over names of groups and paths of leaves.
        Default: (), none.
      inexact: whether groups may lose units where removing is not the same as masking (`Group.inexact` gives the
        reason). Default: False.
    """

    round_to: Rules = 1
    min_units: Rules = 1
    max_sparsity: Rules = 1.0
    protect: str | Sequence[str] = ()
    inexact: bool = False


class Removal(NamedTuple):
    """Units of one group that are removed together: one, one of each layer, or as many as `round_to` requires.

    Attributes:
      key: removals happen in ascending order of their keys.
      units: the numbers of the units among all units.
    """

    key: float
    units: np.ndarray


def choose(
    groups: Groups,
    scores: np.ndarray | Mapping[str, Any],
    sparsity: Rules | None = None,
    *,
    cost: Callable[[Choice], float] | None = None,
    target: float | None = None,
    scope: str = "group",
    limits: Limits | None = None,
) -> Choice:
    """Chooses the units with the lowest scores to remove, up to a sparsity or down to a cost.

    Give either `sparsity`, or `cost` and `target`.

    Args:
      groups: the groups.
      scores: (units,) scores, from `group_scores` or your own; larger = more worth keeping. If scores are equal, the
        first is kept. Or a mapping from groups, by name or member, to the scores of their units, such as scores of
        channels; all other groups stay whole.
      sparsity: the fraction of units to remove, in [0, 1]. With scope "group" each group loses floor(sparsity x units +
        1/2) units, or fewer if the limits demand it; a mapping from globs over group names gives each group its own
        sparsity, and 0 to groups without a match. With the other scopes it is one number for all units, or for all
        units of each class of isomorphic groups, that may be removed. Default None.
      cost: `cost(choice) -> number`: see `costs` (parameters, memory, FLOPs, measured latency), or any function;
        default None.
      target: the largest cost to reach; default None.
      scope: the units that are ranked together. Default: "group".
        "group" ranks the units of each group; with a target every group shrinks by the same fraction.
        "global" ranks the units of all groups together and needs normalised scores.
        "isomorphic" ranks the units of isomorphic groups together, and each class of isomorphic groups loses the same
        fraction (Fang et al. 2024, Isomorphic Pruning for Vision Models, arXiv 2407.04616, section 3): the scores of
        attention heads and MLP channels are never compared. Two groups are isomorphic if the same kinds of leaf axes
        lose positions, whatever their names, order and sizes. Of each member counts what `print(groups.roles)` shows:
        the role of the leaf, the kind of the axis that loses positions, the number of the leaf's axes, and whether one
        of them is stacked or a group of a convolution; and whether a unit holds one or several of the positions. Of
        the group counts whether its units are blocks, such as heads, and whether they are routed. A convolution by 1x1
        is thus of the same kind as one by 3x3, and differs from a matrix product. Torch-Pruning 1.6 compares the types
        of layers, and whether they lose inputs or outputs.
      limits: the limits on the widths of the groups. Default: `Limits()`.

    Returns:
      The choice; all layers of a stacked group lose the same number of units. `Choice.untouched` names the groups that
      could not shrink, with the reason; if `round_to` is the reason, a warning names the groups.

      With a target, the cost crosses the target at the last removal of the choice: one removal fewer costs more. If the
      cost never rises when units are removed (parameters, memory, FLOPs), it is the first choice that meets the target.
      A measured time may rise at odd widths and varies between measurements: the time then crosses the target at the
      choice, and a new measurement may exceed the target by as much as measurements vary. `cost` is called once for
      each of about log2(removals) + 2 choices.

    Raises:
      KeyError: a mapping of scores names a group that does not exist.
      ValueError: neither or both of sparsity and cost are given, the scores have another shape or NaN, a sparsity is
        out of range, a glob matches no group, or the target is below the cost after removing all removable units.

    Example:
      >>> from jaxprune.slimming import costs, find_groups
      >>> params = {'a': np.ones((3, 4)), 'b': np.ones((4, 2))}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, np.ones((5, 3)))
      >>> choose(groups, np.array([3.0, 1.0, 2.0, 4.0]), 0.5).keep.tolist()
      [True, False, False, True]
      >>> choose(groups, np.array([3.0, 1.0, 2.0, 4.0]), cost=costs.parameters, target=15).keep.tolist()
      [True, False, True, True]
    """
    if (sparsity is None) == (cost is None) or (cost is None) != (target is None):
        raise ValueError("choose needs either sparsity, or cost and target")
    limits = _checked(groups, scope, limits)
    if scope != "group" and isinstance(sparsity, Mapping):
        raise ValueError(f'only scope "group" takes a mapping of sparsities; got {scope!r} and {sparsity!r}')
    if isinstance(scores, Mapping):
        scores, limits = _of_some_groups(groups, scores, limits)
    if np.shape(scores) != (groups.size,) or np.isnan(scores).any():
        raise ValueError(
            f"scores must be {groups.size} numbers, one for each unit, none of them NaN; got {np.shape(scores)}"
        )
    if cost is not None and target is not None:
        return _to_cost(groups, scores, cost, target, scope, limits)
    if scope == "group":
        return _by_group(groups, scores, sparsity or 0.0, limits)
    _check_sparsity(sparsity)
    removed: list[Removal] = []
    for together in _ranked_together(groups, scope):
        allowed = sum(g.count for g in together if _obstacle(g, limits) is None)
        count = int(np.floor(float(sparsity or 0) * allowed + 0.5))  # pyright: ignore[reportArgumentType]
        removed += _upto(_ranked(groups, together, scores, limits), count)
    return Choice(groups, _after(groups, removed), True, _untouched(groups, limits) if sparsity else {})


def _of_some_groups(groups: Groups, scores: Mapping[str, Any], limits: Limits) -> tuple[np.ndarray, Limits]:
    """Returns the scores of all units, and limits that protect the groups without scores."""
    if not names_any(groups, scores):
        raise ValueError(
            f"scores must be {groups.size} numbers, one for each unit, which group_scores(groups, scores of entries) "
            f"returns, or a mapping from groups to the scores of their units; got {_tree.shown(scores)}"
        )
    units = np.full(groups.size, np.inf)
    for name, own in scores.items():
        group, values = groups[name], np.asarray(own, np.float64)
        if values.shape != (group.count,) or np.isnan(values).any():
            raise ValueError(f"group {name} has {group.count} units; got scores {values.shape}, none may be NaN")
        units[group.span] = values
    without = [group.name for group in groups if np.isinf(units[group.span]).all()]
    return units, limits._replace(protect=[*limits.protect, *without])


def removal_order(
    groups: Groups, scores: np.ndarray, *, scope: str = "group", limits: Limits | None = None
) -> list[Removal]:
    """Returns the order in which `choose` removes units on the way to a target.

    Args:
      groups: the groups.
      scores: (units,) scores; larger is kept.
      scope: "global" orders by score, and a removal of several units (one of each stacked layer) by their mean; "group"
        shrinks all groups by the same fraction, and "isomorphic" all classes of isomorphic groups. Default: "group".
      limits: the limits on the widths of the groups. Default: `Limits()`.

    Returns:
      The removals. Within a group the units with the lowest scores are removed first.

    Raises:
      ValueError: the scope or a limit is unknown or out of range, or a glob matches no group.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.ones((3, 4)), 'b': np.ones((4, 2))}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, np.ones((5, 3)))
      >>> [removal.units.tolist() for removal in removal_order(groups, np.array([3.0, 1.0, 2.0, 4.0]))]
      [[1], [2], [0]]
    """
    ordered: list[Removal] = []
    limits = _checked(groups, scope, limits)
    for together in _ranked_together(groups, scope):
        removals = _ranked(groups, together, scores, limits)
        if scope != "global":
            gone = np.cumsum([len(removal.units) for removal in removals])
            whole = sum(group.count for group in together if _obstacle(group, limits) is None)
            removals = [removal._replace(key=float(n) / whole) for removal, n in zip(removals, gone, strict=True)]
        ordered += removals
    return sorted(ordered, key=lambda removal: removal.key)


def _ranked_together(groups: Groups, scope: str) -> list[list[Group]]:
    """Returns the groups in the classes whose units are ranked together."""
    if scope == "group":
        return [[group] for group in groups]
    found: dict[Any, list[Group]] = {}
    for group in groups:
        found.setdefault(_topology(groups, group) if scope == "isomorphic" else None, []).append(group)
    return list(found.values())


def _topology(groups: Groups, group: Group) -> Any:
    """Returns what isomorphic groups have in common; the docstring of `choose` explains it."""
    members = []
    for member in group.members:
        leaf = groups.roles.leaves[member.leaf]
        special = {"stacked", "group"} & {kind for kinds in leaf.axes for kind in kinds.split("+")}
        kind = leaf.axes[member.axis]
        members.append((leaf.role, kind, len(leaf.shape), *sorted(special), "several" if member.positions > 1 else ""))
    return (*sorted(members), group.block > 1, group.routed)


def _ranked(groups: Groups, together: Sequence[Group], scores: np.ndarray, limits: Limits) -> list[Removal]:
    removals = [removal for group in together for removal in _removals(groups, group, scores, limits)]
    return sorted(removals, key=lambda removal: removal.key)


def _by_group(groups: Groups, scores: np.ndarray, sparsity: Rules, limits: Limits) -> Choice:
    removed, untouched, narrow = [], {}, []
    for group, own in zip(groups, _resolve(groups, sparsity, 0.0, "sparsity"), strict=True):
        _check_sparsity(own)
        count = int(np.floor(own * (group.count // group.layers) + 0.5))
        removals = _removals(groups, group, scores, limits)
        taken = _upto(removals, count * group.layers)
        removed += taken
        if own and not taken:
            untouched[group.name] = _obstacle(group, limits) or _too_narrow(groups, group, limits, count)
            free = _removals(groups, group, scores, limits._replace(round_to=1))
            narrow += [group.name] if _upto(free, count * group.layers) else []
    if narrow:
        reasons = "".join(f"\n  {name}: {untouched[name]}" for name in narrow)
        warnings.warn(f"these groups stay whole because of round_to:{reasons}", UserWarning, stacklevel=3)
    return Choice(groups, _after(groups, removed), True, untouched)


def _to_cost(
    groups: Groups, scores: np.ndarray, cost: Callable[[Choice], float], target: float, scope: str, limits: Limits
) -> Choice:
    removals = removal_order(groups, scores, scope=scope, limits=limits)
    after = lambda count: Choice(groups, _after(groups, removals[:count]), True, untouched)
    untouched: dict[str, str] = {}
    if cost(after(0)) <= target:
        return after(0)
    untouched = _untouched(groups, limits)
    least = cost(after(len(removals)))
    if least > target:
        raise ValueError(
            f"removing all removable units still costs {least:g}, more than the target {target:g}: "
            "raise the target, which has the unit of cost and is no fraction (half: 0.5 * cost of the whole), "
            "or loosen the limits"
        )
    low, high = 0, len(removals)  # cost(low) > target >= cost(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(after(middle)) <= target else (middle, high)
    return after(high)


def _upto(removals: Sequence[Removal], count: int) -> list[Removal]:
    """Returns the first removals that take no more than `count` units."""
    sizes = np.cumsum([len(removal.units) for removal in removals])
    return list(removals[: int(np.searchsorted(sizes, count, side="right"))])


def _after(groups: Groups, removals: Sequence[Removal]) -> np.ndarray:
    keep = np.ones(groups.size, bool)
    for removal in removals:
        keep[removal.units] = False
    return keep


def _removals(groups: Groups, group: Group, scores: np.ndarray, limits: Limits) -> list[Removal]:
    """Returns the removals of one group, in their order."""
    if _obstacle(group, limits) is not None:
        return []
    own = scores[group.span]
    layer = np.zeros(group.count, int) if group.layer is None else group.layer
    # Ascending; if scores are equal, the last unit is removed first.
    rows = [np.flatnonzero(layer == k)[::-1] for k in range(group.layers)]
    rows = np.stack([row[np.argsort(own[row], kind="stable")] for row in rows])
    removals, before, highest = [], rows.shape[1], -np.inf
    for width in _widths(groups, group, limits):
        units = rows[:, rows.shape[1] - before : rows.shape[1] - width].ravel()
        highest = max(highest, float(own[units].mean()))  # never before the removal that makes it possible
        removals.append(Removal(highest, group.first + units))
        before = width
    return removals


def _widths(groups: Groups, group: Group, limits: Limits) -> list[int]:
    """Returns the numbers of units, of each layer, that a group may keep, in falling order."""
    width = group.count // group.layers
    k = groups.groups.index(group)
    multiple, units, sparsity = (
        _resolve(groups, getattr(limits, what), default, what)[k]
        for what, default in (("round_to", 1), ("min_units", 1), ("max_sparsity", 1.0))
    )
    multiple = int(multiple) // gcd(int(multiple), group.block)
    least = max(int(units), int(np.ceil(width * (1 - sparsity) - 1e-9)), group.least if group.routed else 0)
    return [w for w in range(width - 1, least - 1, -1) if w % multiple == 0]


def _obstacle(group: Group, limits: Limits) -> str | None:
    """Returns why a group must stay whole for every sparsity; None if it may shrink."""
    names = (group.name, *(m.name for m in group.members))
    if any(_tree.matches(name, glob) for name in names for glob in limits.protect):
        return "it is protected"
    if group.inexact is not None and not limits.inexact:
        return (
            f"removing its units is not the same as masking them: {group.inexact} (Limits(inexact=True) removes them; "
            "slim(..., as_built=True) then makes the ordinary smaller architecture)"
        )
    return None


def _too_narrow(groups: Groups, group: Group, limits: Limits, count: int | None = None) -> str:
    width = group.count // group.layers
    widths = _widths(groups, group, limits)
    if not widths:
        return f"the limits allow no width below its {width} units"
    return f"the sparsity removes {count} of its {width} units, and the next width that the limits allow is {widths[0]}"


def _untouched(groups: Groups, limits: Limits) -> dict[str, str]:
    """Returns the groups that no ranking can shrink, with the reason."""
    reasons = {
        group.name: _obstacle(group, limits)
        or ("" if _widths(groups, group, limits) else _too_narrow(groups, group, limits))
        for group in groups
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _checked(groups: Groups, scope: str, limits: Limits | None) -> Limits:
    """Returns the limits, with `protect` as a list of globs.

    Raises:
      ValueError: the scope is unknown, a limit is out of range, or a glob of a limit matches nothing.
    """
    _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
    if scope not in _SCOPES:
        raise ValueError(f'scope must be "group", "global" or "isomorphic"; got {scope!r}')
    limits = limits or Limits()
    _tree.check_instance(limits, Limits, "limits", "slimming.Limits(...)")
    for what, lowest in (("round_to", 1), ("min_units", 0)):
        values = _resolve(groups, getattr(limits, what), lowest, what)
        wrong = [v for v in values if v < lowest or v != int(v)]
        if wrong:
            raise ValueError(f"{what} must be a whole number from {lowest} on; got {wrong[0]}")
    wrong = [v for v in _resolve(groups, limits.max_sparsity, 1.0, "max_sparsity") if not 0 <= v <= 1]
    if wrong:
        raise ValueError(f"max_sparsity must be in [0, 1]; got {wrong[0]}")
    globs = [limits.protect] if isinstance(limits.protect, str) else list(limits.protect)
    names = [name for group in groups for name in (group.name, *(m.name for m in group.members))]
    unknown = [glob for glob in globs if not any(_tree.matches(name, glob) for name in names)]
    if unknown:
        raise ValueError(f"protect: no group or leaf of a group matches {', '.join(map(repr, unknown))}")
    return limits._replace(protect=globs)


def _resolve(groups: Groups, rules: Rules, default: Any, what: str) -> list[Any]:
    return _tree.of_names(rules, [group.name for group in groups], default=default, what=what, kind="group")


def _check_sparsity(sparsity: Any) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1]; got {sparsity}")
