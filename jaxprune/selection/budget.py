"""The levels of pruning that meet a budget: one for each leaf, such that the whole loses least."""

import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxprune import _tree, assess, criteria, masks
from jaxprune.selection.sensitivity import Sensitivity
from jaxprune.slimming import Choice, Groups, choose

PyTree = Any


class Levels(NamedTuple):
    """A level for each leaf.

    Attributes:
      chosen: (leaves,) which level.
      loss: the sum of what the leaves lose.
      cost: the sum of what they cost.
      exact: whether no other choice loses less at this budget.
    """

    chosen: np.ndarray
    loss: float
    cost: float
    exact: bool

    def sparsities(self, found: Sensitivity) -> dict[str, float]:
        """By leaf the sparsity, as rules for `choose` or a tree of `masks.select`."""
        return {name: float(found.levels[i]) for name, i in zip(found.names, self.chosen, strict=True)}


def cheapest_loss(losses: Any, costs: Any, budget: float, *, states: int = 20_000) -> Levels:
    r"""The levels of least total loss within a budget, by dynamic programming.

        min \sum_i loss[i, l_i]    such that    \sum_i cost[i, l_i] <= budget

    Leaf by leaf the pairs (cost, loss) that no other pair beats in both are kept: exact, for any real costs, while
    there are no more of them than `states`. Where there are more, one is kept in each cell of a grid over the costs,
    that of the least loss: the choice still meets the budget, and `exact` is False. That losses add up is an
    assumption, the usual one (of each leaf pruned alone): measure the whole afterwards.

    Args:
      losses: (leaves, levels), such as `Sensitivity.changes` of a loss, or its negative of an accuracy.
      costs: (leaves, levels) what each leaf costs at each level; see `leaf_costs`.
      budget: what the whole may cost.
      states: how many pairs are kept at most.

    Returns:
      The levels. Of equal losses the cheaper choice.

    Raises:
      ValueError: shapes do not fit, NaN, or the cheapest levels still cost more than the budget.

    Example:
      >>> cheapest_loss([[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 2]], 14).chosen.tolist()
      [1, 0]
    """
    losses, costs = _checked(losses, costs, budget)
    rest = np.append(np.cumsum(costs.min(1)[::-1])[::-1], 0.0)  # what the leaves to come cost at the least
    slack = 1e-9 * max(1.0, abs(budget))
    cost, loss, exact = np.zeros(1), np.zeros(1), True
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for i in range(len(losses)):
        total = (cost[:, None] + costs[i]).ravel()
        lost = (loss[:, None] + losses[i]).ravel()
        fits = np.flatnonzero(total + rest[i + 1] <= budget + slack)
        kept = fits[_front(total[fits], lost[fits])]
        if len(kept) > states:
            exact = False
            grid = np.ceil((total[kept] - total[kept][0]) / max(budget - total[kept][0], 1e-300) * states)
            # The last of a cell loses least, and goes on with its own cost, so the budget holds.
            kept = kept[np.flatnonzero(np.diff(grid, append=np.inf))]
        steps.append((kept // costs.shape[1], kept % costs.shape[1]))
        cost, loss = total[kept], lost[kept]
    at = len(loss) - 1  # along the front costs rise and losses fall
    index = np.zeros(len(losses), int)
    for i in reversed(range(len(losses))):
        before, level = steps[i]
        index[i], at = level[at], before[at]
    return _levels(index, losses, costs, exact)


def greedy(losses: Any, costs: Any, budget: float) -> Levels:
    """Levels within a budget, one step at a time: the next is the one that loses least for what it saves.

    A step takes one leaf from its level to any later one. It is fast and close to `cheapest_loss` where the losses are
    convex in the costs; the last step may save more than was needed.

    Args:
      losses: as for `cheapest_loss`; column 0 is where all leaves start.
      costs: as for `cheapest_loss`.
      budget: what the whole may cost.

    Returns:
      The levels; `exact` is False.

    Raises:
      ValueError: as `cheapest_loss` does, or no steps lead to the budget.

    Example:
      >>> greedy([[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 2]], 14).chosen.tolist()
      [1, 0]
    """
    losses, costs = _checked(losses, costs, budget)
    index = np.zeros(len(losses), int)

    def best(i: int) -> tuple[float, int, int, int] | None:
        found = [
            ((losses[i, l] - losses[i, index[i]]) / (costs[i, index[i]] - costs[i, l]), i, l, int(index[i]))
            for l in range(index[i] + 1, losses.shape[1])
            if costs[i, l] < costs[i, index[i]]
        ]
        return min(found) if found else None

    queue = [step for i in range(len(losses)) if (step := best(i)) is not None]
    heapq.heapify(queue)
    total, slack = costs[:, 0].sum(), 1e-9 * max(1.0, abs(budget))
    while total > budget + slack:
        if not queue:
            raise ValueError(f"no further step saves anything, at a cost of {total:g}, above the budget {budget:g}")
        _, i, level, _ = heapq.heappop(queue)
        total += costs[i, level] - costs[i, index[i]]
        index[i] = level
        if (step := best(i)) is not None:
            heapq.heappush(queue, step)
    return _levels(index, losses, costs, False)


def leaf_costs(
    fn: Callable[..., PyTree],
    params: PyTree,
    found: Sensitivity,
    *inputs: Any,
    of: str = "parameters",
    scores: PyTree | None = None,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
) -> np.ndarray:
    """What each leaf costs at each level, unstructured or by any pattern, counted and not estimated.

    Args:
      fn: the network, `fn(params, *inputs)`.
      params: its parameters.
      found: the leaves and the levels.
      *inputs: what it is applied to, or shapes; effective FLOPs are those of this batch.
      of: "parameters", "memory" (bytes of kept values, and of a mask of one bit an entry where the level is not 0) or
        "flops" (effective). Masks alone do not change the time a network takes: for latency see `choose_levels`.
      scores: larger is kept; the parameters' magnitudes by default. Of convolutions with padding the FLOPs depend on
        which weights stay.
      pattern: as in `sensitivity`.
      where: as in `sensitivity`.
      batch_axes: as in `sensitivity`.

    Returns:
      (leaves, levels) float64.

    Raises:
      ValueError: `of` is none of these, or the leaves are others.
    """
    if of not in ("parameters", "memory", "flops"):
        raise ValueError(f'of is "parameters", "memory" or "flops"; got {of!r}')
    ranked = criteria.magnitude(params) if scores is None else scores
    columns = []
    for level in found.levels:
        kept = masks.select(ranked, float(level), pattern, where=where, batch_axes=batch_axes)
        cost = assess.complexity(fn, params, kept, *inputs)
        by_name = {leaf.size.name: leaf for leaf in cost.leaves}
        lacking = [name for name in found.names if name not in by_name]
        if lacking:
            raise ValueError(f"these parameters have no leaf {', '.join(lacking)}; the sensitivity is of others")
        columns.append([_cost(by_name[name], of, masked=level > 0) for name in found.names])
    return np.asarray(columns, np.float64).T


def group_costs(groups: Groups, scores: np.ndarray, found: Sensitivity, cost: Callable[[Choice], float]) -> np.ndarray:
    """What the network costs with one group pruned alone, less what all of it costs; and that shared out.

    Args:
      groups: the groups.
      scores: (units,) larger is kept.
      found: from `group_sensitivity`.
      cost: of a choice: `slimming.costs.parameters`, `memory`, `flops(...)` or `latency(...)`, a measured one.

    Returns:
      (groups, levels); the sum over groups at level 0 is the cost of the whole network.
    """
    whole = cost(Choice.remove(groups, {}))
    alone = [
        [cost(choose(groups, scores, {name: level})) - whole for level in found.levels[1:]] for name in found.names
    ]
    costs = np.concatenate([np.zeros((len(alone), 1)), np.asarray(alone, np.float64)], 1)
    return costs + whole / len(costs)


def choose_levels(
    groups: Groups,
    scores: np.ndarray,
    found: Sensitivity,
    losses: Any,
    cost: Callable[[Choice], float],
    target: float,
    *,
    rounds: int = 12,
) -> tuple[Choice, Levels]:
    """The levels of groups that bring a network down to a cost, by `cheapest_loss`, held to the true cost.

    What two groups save together is less than the sum of what each saves alone, for they share weights. So the
    budget of the sum is lowered, by bisection, until the network's own cost is within the target. Another choice may
    still lose less (the problem of products is harder than that of sums); one with the same level for all groups does
    not.

    Args:
      groups: the groups.
      scores: (units,) larger is kept.
      found: from `group_sensitivity`.
      losses: (groups, levels), such as `found.changes`.
      cost: of a choice; a measured latency is as exact as it is steady, and is held to the target as it was measured:
        once for each choice.
      target: what the network may cost.
      rounds: how often the budget is halved between what fits and what does not.

    Returns:
      The choice for `slim`, and its levels (whose `cost` is the sum, `exact` False).

    Raises:
      ValueError: with each group at its cheapest level the network still costs more, or as `cheapest_loss` does.
    """
    cost = _measured_once(cost)
    costs = group_costs(groups, scores, found, cost)
    losses, costs = _checked(losses, costs, np.inf)

    def chosen(levels: Levels) -> Choice:
        rules = {name: level for name, level in levels.sparsities(found).items() if level}
        return choose(groups, scores, rules) if rules else Choice.remove(groups, {})

    least = _levels(costs.argmin(1), losses, costs, False)
    best = (chosen(least), least)
    if (reached := cost(best[0])) > target:
        raise ValueError(f"with each group at its cheapest level the network costs {reached:g}, above {target:g}")
    for level in range(costs.shape[1]):
        alike = _levels(np.full(len(costs), level), losses, costs, False)
        if alike.loss < best[1].loss and cost(tried := chosen(alike)) <= target:
            best = (tried, alike)
    low, high = least.cost, max(costs[:, 0].sum(), target)
    budget = max(target, low)
    for _ in range(rounds):
        levels = cheapest_loss(losses, costs, budget)
        tried = chosen(levels)
        if cost(tried) <= target:
            low = budget
            best = (tried, levels._replace(exact=False)) if levels.loss <= best[1].loss else best
        else:
            high = budget
        budget = (low + high) / 2
    return best


def _cost(leaf: Any, of: str, *, masked: bool) -> float:
    if of == "flops":
        return leaf.effective_flops
    return leaf.size.kept if of == "parameters" else leaf.size.kept_bytes + masked * leaf.size.mask_bytes


def _measured_once(cost: Callable[[Choice], float]) -> Callable[[Choice], float]:
    """The same cost of the same choice: a second measurement takes time, and may contradict the first."""
    known: dict[bytes, float] = {}

    def once(choice: Choice) -> float:
        which = np.packbits(choice.keep).tobytes()
        if which not in known:
            known[which] = float(cost(choice))
        return known[which]

    return once


def _front(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The pairs that no other beats in both, by rising cost; of equal ones the first."""
    order = np.lexsort((loss, cost))
    before = np.append(np.inf, np.minimum.accumulate(loss[order])[:-1])
    return order[loss[order] < before]


def _levels(index: np.ndarray, losses: np.ndarray, costs: np.ndarray, exact: bool) -> Levels:
    rows = np.arange(len(index))
    return Levels(index, float(losses[rows, index].sum()), float(costs[rows, index].sum()), exact)


def _checked(losses: Any, costs: Any, budget: float) -> tuple[np.ndarray, np.ndarray]:
    losses, costs = np.asarray(losses, np.float64), np.asarray(costs, np.float64)
    if losses.ndim != 2 or losses.shape != costs.shape or not losses.size:
        raise ValueError(f"losses and costs must both be (leaves, levels); got {losses.shape} and {costs.shape}")
    if np.isnan(losses).any() or np.isnan(costs).any():
        raise ValueError("losses and costs must not hold NaN; give what cannot be an infinite loss")
    if (least := costs.min(1).sum()) > budget:
        raise ValueError(f"the cheapest levels cost {least:g}, more than the budget {budget:g}: allow higher levels")
    return losses, costs
