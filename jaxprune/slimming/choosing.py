"""Which units to remove: by a ratio in each group, by one ranking over all groups, or down to a budget."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from jaxprune.slimming.choice import Choice
from jaxprune.slimming.groups import Group, Groups

Rules = float | int | Mapping[str, Any]


class Limits(NamedTuple):
    """What a choice has to respect; each value may be a mapping from globs over group names.

    Attributes:
      round_to: the kept width of a group is a multiple of this (8, or 128 for TPU lanes). The width is the number of
        units, for units that are blocks of positions (heads) the number of positions. A group too narrow stays
        whole.
      floor: at least so many units of a group (of each stacked layer) stay; 0 lets all go, see `Choice.empty`.
      most: at most this share of a group's units goes.
      protect: groups and leaves to leave alone, as globs over group names and paths of leaves.
      inexact: whether groups may lose units for which removing is not the same as masking.
    """

    round_to: Rules = 1
    floor: Rules = 1
    most: Rules = 1.0
    protect: str | Sequence[str] = ()
    inexact: bool = False


class Step(NamedTuple):
    """Units of one group that go at once: one, or one of each layer, or as many as keep the width rounded.

    Attributes:
      key: the steps go in ascending order of their keys.
      units: the numbers of the units.
    """

    key: float
    units: np.ndarray


def choose(
    groups: Groups, scores: np.ndarray, ratio: Rules, *, scope: str = "group", limits: Limits | None = None
) -> Choice:
    """Removes a share of the units, those of the lowest scores.

    Args:
      groups: the groups.
      scores: (units,) scores, from `group_scores` or your own; larger is kept. Of equal scores the first is kept.
      ratio: the share to remove, in [0, 1]: of each group (floor(ratio x units + 1/2), then fewer if the limits
        demand it), where a mapping from globs over group names may give each its own and 0 to the others; or of
        all units that may go together, with scope "global".
      scope: "group", or "global" for one ranking over all groups; normalise the scores then.
      limits: what to respect.

    Returns:
      The choice. Of stacked layers each loses as many units.

    Raises:
      ValueError: scores of another shape or with NaN, a ratio out of range, a glob that matches no group.
    """
    limits = _checked(groups, limits)
    _check(groups, scores)
    keep = np.ones(groups.size, bool)
    if scope == "group":
        for group, share in zip(groups, _resolve(groups, ratio, 0.0, "ratio"), strict=True):
            _check_share(share)
            count = int(np.floor(share * (group.count // group.layers) + 0.5))
            steps = _steps(groups, group, scores, limits)
            taken = 0
            for step in steps:
                taken += len(step.units) // group.layers
                if taken > count:
                    break
                keep[step.units] = False
        return Choice(groups, keep, empty=True)
    if scope != "global" or isinstance(ratio, Mapping):
        raise ValueError(f'scope is "group" or "global", the latter with one ratio; got {scope!r}, ratio {ratio!r}')
    _check_share(ratio)
    steps = removal_order(groups, scores, scope="global", limits=limits)
    allowed = sum(g.count for g in groups if _may_go(groups, g, limits))
    wanted, gone = int(np.floor(ratio * allowed + 0.5)), 0
    for step in steps:
        gone += len(step.units)
        if gone > wanted:
            break
        keep[step.units] = False
    return Choice(groups, keep, empty=True)


def choose_budget(
    groups: Groups,
    scores: np.ndarray,
    cost: Callable[[Choice], float],
    target: float,
    *,
    scope: str = "global",
    limits: Limits | None = None,
) -> Choice:
    """Removes as few units as bring a cost down to a target.

    Args:
      groups: the groups.
      scores: (units,) scores; larger is kept.
      cost: what a choice costs: see `costs` (parameters, memory, FLOPs, measured latency), or any function.
      target: the cost to come down to.
      scope: "global": units go by one ranking of their scores. "group": every group shrinks by the same share.
      limits: what to respect.

    Returns:
      The choice after a step in the order of removal that cost no more than the target when it was asked for, where
      with one step fewer it cost more. That holds for every cost. Of a cost that does not rise as units go, as
      parameters, memory and FLOPs, it is the first such step, and nothing is removed that need not be. A measured
      time may rise (odd widths) and is never the same twice: the step is then one of those where it crosses the
      target, not always the first, and measured again it may lie beyond the target by as much as the measurement
      varies. The cost of about log2(steps) + 2 choices is asked for, each once.

    Raises:
      ValueError: removing all that may go still costs more. (Of a cost that rises, a choice in between may cost less.)
    """
    limits = _checked(groups, limits)
    _check(groups, scores)
    steps = removal_order(groups, scores, scope=scope, limits=limits)

    def after(count: int) -> Choice:
        keep = np.ones(groups.size, bool)
        for step in steps[:count]:
            keep[step.units] = False
        return Choice(groups, keep, empty=True)

    if cost(after(0)) <= target:
        return after(0)
    least = cost(after(len(steps)))
    if least > target:
        raise ValueError(
            f"removing all that may go still costs {least:g}, more than the target {target:g}: "
            "raise the target, or loosen the limits"
        )
    low, high = 0, len(steps)  # cost(low) > target >= cost(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(after(middle)) <= target else (middle, high)
    return after(high)


def removal_order(groups: Groups, scores: np.ndarray, *, scope: str, limits: Limits | None = None) -> list[Step]:
    """The order in which units go.

    Args:
      groups: the groups.
      scores: (units,) scores.
      scope: "global": by score; a step of several units (one of each stacked layer) by their mean. "group": so that
        all groups shrink by the same share.
      limits: what to respect.

    Returns:
      The steps. Within a group they are in the order of its scores.
    """
    if scope not in ("group", "global"):
        raise ValueError(f'scope is "group" or "global"; got {scope!r}')
    ordered: list[Step] = []
    limits = _checked(groups, limits)
    for group in groups:
        steps = _steps(groups, group, scores, limits)
        gone = 0
        for step in steps:
            gone += len(step.units)
            ordered.append(step if scope == "global" else step._replace(key=gone / group.count))
    return sorted(ordered, key=lambda step: step.key)


def _steps(groups: Groups, group: Group, scores: np.ndarray, limits: Limits) -> list[Step]:
    if not _may_go(groups, group, limits):
        return []
    own = scores[group.span]
    layer = np.zeros(group.count, int) if group.layer is None else group.layer
    # Ascending; of equal scores the last goes first.
    rows = [np.flatnonzero(layer == k)[::-1] for k in range(group.layers)]
    rows = np.stack([row[np.argsort(own[row], kind="stable")] for row in rows])
    width = rows.shape[1]
    multiple = _one(groups, group, limits.round_to, 1, "round_to")
    multiple = int(multiple) // gcd(int(multiple), group.block)
    least = max(
        int(_one(groups, group, limits.floor, 1, "floor")),
        int(np.ceil(width * (1 - _one(groups, group, limits.most, 1.0, "most")) - 1e-9)),
    )
    widths = [w for w in range(width - 1, least - 1, -1) if w % multiple == 0]
    steps, before, highest = [], width, -np.inf
    for w in widths:
        units = rows[:, width - before : width - w].ravel()
        highest = max(highest, float(own[units].mean()))  # never before the step that makes it possible
        steps.append(Step(highest, group.first + units))
        before = w
    return steps


def _checked(groups: Groups, limits: Limits | None) -> Limits:
    limits = limits or Limits()
    least = {"round_to": 1, "floor": 0}
    for what, lowest in least.items():
        values = _resolve(groups, getattr(limits, what), lowest, what)
        wrong = [v for v in values if v < lowest or v != int(v)]
        if wrong:
            raise ValueError(f"{what} is a whole number from {lowest} on; got {wrong[0]}")
    wrong = [v for v in _resolve(groups, limits.most, 1.0, "most") if not 0 <= v <= 1]
    if wrong:
        raise ValueError(f"most is a share in [0, 1]; got {wrong[0]}")
    return limits


def _may_go(groups: Groups, group: Group, limits: Limits) -> bool:
    globs = [limits.protect] if isinstance(limits.protect, str) else list(limits.protect)
    names = [group.name, *(m.name for m in group.members)]
    known = [name for g in groups for name in (g.name, *(m.name for m in g.members))]
    unknown = [glob for glob in globs if not any(fnmatchcase(name, glob) or name == glob for name in known)]
    if unknown:
        raise ValueError(f"protect: no group or leaf of a group matches {', '.join(map(repr, unknown))}")
    if any(fnmatchcase(name, glob) or name == glob for name in names for glob in globs):
        return False
    return group.exact or limits.inexact


def _one(groups: Groups, group: Group, rules: Rules, default: Any, what: str) -> Any:
    return _resolve(groups, rules, default, what)[[g.name for g in groups].index(group.name)]


def _resolve(groups: Groups, rules: Rules, default: Any, what: str) -> list[Any]:
    if not isinstance(rules, Mapping):
        return [rules] * len(groups)
    # A group's name holds brackets, which a glob reads as a set: the name itself is tried first.
    matches = lambda name, glob: name == glob or fnmatchcase(name, glob)
    unmatched = [glob for glob in rules if not any(matches(g.name, glob) for g in groups)]
    if unmatched:
        raise ValueError(
            f"{what}: no group matches {', '.join(map(repr, unmatched))}; there are {[g.name for g in groups]}"
        )
    return [next((v for glob, v in rules.items() if matches(g.name, glob)), default) for g in groups]


def _check(groups: Groups, scores: np.ndarray) -> None:
    if np.shape(scores) != (groups.size,) or np.isnan(scores).any():
        raise ValueError(f"scores must be {groups.size} numbers, one a unit, none of them NaN; got {np.shape(scores)}")


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"a ratio is a share in [0, 1]; got {share}")
