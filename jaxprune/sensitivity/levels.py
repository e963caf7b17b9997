"""`cheapest_loss` and `greedy_levels`: sparsities within a budget at the least loss; and the costs that they need."""

import heapq
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import numpy as np

from jaxprune import assess, criteria, masks
from jaxprune.sensitivity.losses import Sensitivity, at_levels
from jaxprune.slimming import Choice, Groups

PyTree = Any


class Levels(NamedTuple):
    """A level (one of several sparsities) for each leaf or group.

    Attributes:
      chosen: (leaves,) the index of the level of each leaf.
      loss: the sum of the losses of the leaves.
      cost: the sum of the costs of the leaves.
      exact: whether no other levels within the budget have a lower loss.
    """

    chosen: np.ndarray
    loss: float
    cost: float
    exact: bool

    def sparsities(self, found: Sensitivity) -> dict[str, float]:
        """Returns the sparsity of each leaf or group by name, for `prune`, `masks.select` or `slimming.choose`."""
        return {name: float(found.levels[i]) for name, i in zip(found.names, self.chosen, strict=True)}


def cheapest_loss(losses: Any, costs: Any, budget: float, *, states: int = 20_000) -> Levels:
    r"""Chooses levels of the least total loss within a budget, by dynamic programming.

        min \sum_i loss[i, l_i]    such that    \sum_i cost[i, l_i] <= budget

    After each leaf the algorithm keeps the pairs (cost, loss) that no other pair beats in both. This is exact for any
    real costs while there are at most `states` pairs. If there are more, it keeps the pair of the least loss in each
    cell of a grid over the costs: the result still meets the budget, but `exact` is False. The method assumes that the
    losses of leaves pruned alone add up, so evaluate the pruned network afterwards.

    Args:
      losses: (leaves, levels) losses, such as `Sensitivity.changes` of a loss, or minus the changes of an accuracy.
      costs: (leaves, levels) the cost of each leaf at each level, such as `leaf_costs` returns.
      budget: the largest total cost.
      states: the largest number of pairs to keep; default 20,000.

    Returns:
      `Levels`. If losses are equal, the cheaper levels are chosen.

    Raises:
      ValueError: shapes do not fit, values are NaN, or the cheapest levels cost more than the budget.

    Example:
      >>> cheapest_loss([[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 2]], 14).chosen.tolist()
      [1, 0]
    """
    losses, costs = checked_table(losses, costs, budget)
    rest = np.append(np.cumsum(costs.min(1)[::-1])[::-1], 0.0)  # the least cost of all later leaves
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
            # The last pair of a cell has the least loss. It keeps its own cost, so the budget is met.
            kept = kept[np.flatnonzero(np.diff(grid, append=np.inf))]
        steps.append((kept // costs.shape[1], kept % costs.shape[1]))
        cost, loss = total[kept], lost[kept]
    at = len(loss) - 1  # costs rise and losses fall along the front
    index = np.zeros(len(losses), int)
    for i in reversed(range(len(losses))):
        before, level = steps[i]
        index[i], at = level[at], before[at]
    return levels_of(index, losses, costs, exact)


def greedy_levels(losses: Any, costs: Any, budget: float) -> Levels:
    """Chooses levels within a budget step by step: each step adds the least loss for the cost that it saves.

    A step moves one leaf from its level to any later level. This is fast, and close to `cheapest_loss` where losses are
    convex in costs. The last step may save more than needed.

    Args:
      losses: (leaves, levels) losses; every leaf starts at level 0.
      costs: (leaves, levels) the cost of each leaf at each level.
      budget: the largest total cost.

    Returns:
      `Levels`; `exact` is False.

    Raises:
      ValueError: shapes do not fit, values are NaN, the cheapest levels cost more than the budget, or no further step
        saves cost.

    Example:
      >>> greedy_levels([[0.0, 1.0], [0.0, 5.0]], [[10, 4], [10, 2]], 14).chosen.tolist()
      [1, 0]
    """
    losses, costs = checked_table(losses, costs, budget)
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
            raise ValueError(f"no further step saves cost; the cost is {total:g}, above the budget {budget:g}")
        _, i, level, _ = heapq.heappop(queue)
        total += costs[i, level] - costs[i, index[i]]
        index[i] = level
        if (step := best(i)) is not None:
            heapq.heappush(queue, step)
    return levels_of(index, losses, costs, False)


def leaf_costs(
    fn: Callable[..., PyTree],
    params: PyTree,
    found: Sensitivity,
    *inputs: Any,
    of: str = "parameters",
    scores: PyTree | None = None,
    **units: Unpack[masks.Units],
) -> np.ndarray:
    """Returns the cost of each leaf at each level, for any pattern, counted from the masks of that level.

    Args:
      fn: the network, `fn(params, *inputs)`.
      params: its parameters, any pytree.
      found: the result of `leaf_sensitivity`; its leaves and levels are used.
      *inputs: the inputs of the network, or their ShapeDtypeStructs; effective FLOPs are counted for this batch.
      of: the cost: "parameters" (default); "memory", in bytes: the kept values, and one bit per entry for the mask of a
        pruned leaf; or "flops", the effective FLOPs. Masks do not change the time that a network takes: for latency see
        `choose_levels`.
      scores: a tree of scores, larger = more worth keeping; default None: magnitudes. The FLOPs of padded convolutions
        depend on which weights are kept.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`.

    Returns:
      (leaves, levels) float64.

    Raises:
      ValueError: `of` is another string, or `params` lacks a leaf of `found`.

    Example:
      >>> import jax.numpy as jnp
      >>> params, x = {'w': jnp.ones((4, 2))}, jnp.ones((1, 4))
      >>> found = Sensitivity(('w',), np.array([0.0, 0.5]), np.zeros((1, 2)))
      >>> leaf_costs(lambda p, x: x @ p['w'], params, found, x).tolist()
      [[8.0, 4.0]]
    """
    if of not in ("parameters", "memory", "flops"):
        raise ValueError(f'of must be "parameters", "memory" or "flops"; got {of!r}')
    ranked = criteria.magnitude(params) if scores is None else scores
    columns = []
    for level in found.levels:
        kept = masks.select(ranked, float(level), **units)
        cost = assess.complexity(fn, params, kept, *inputs)
        by_name = {leaf.size.name: leaf for leaf in cost.leaves}
        lacking = [name for name in found.names if name not in by_name]
        if lacking:
            raise ValueError(f"these parameters have no leaf {', '.join(lacking)}; `found` belongs to another network")
        columns.append([_cost(by_name[name], of, masked=level > 0) for name in found.names])
    return np.asarray(columns, np.float64).T


def group_costs(groups: Groups, scores: np.ndarray, found: Sensitivity, cost: Callable[[Choice], float]) -> np.ndarray:
    """Returns the cost of each group at each level: the change of the whole cost, plus an equal part of the whole cost.

    Args:
      groups: the groups of the network, from `find_groups`.
      scores: (units,) larger = more worth keeping.
      found: the result of `group_sensitivity`; its groups and levels are used.
      cost: the cost of a choice: `slimming.costs.parameters`, `memory`, `flops(...)` or `latency(...)`, or a function
        `Choice -> float`.

    Returns:
      (groups, levels) float64; column 0 sums to the cost of the whole network.
    """
    whole = cost(Choice.remove(groups, {}))
    alone = [
        [cost(at_levels(groups, scores, {name: level})) - whole for level in found.levels[1:]] for name in found.names
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
    """Chooses levels for groups of units, by `cheapest_loss`, so that the slim network's cost is within a target.

    Groups share weights, so two groups together save less than the sum of their separate savings. A bisection therefore
    lowers the budget of the sum until the cost of the whole network is within the target. The loss is at most that of
    the best choice with one level for all groups. It need not be the smallest possible loss, because a cost of products
    is harder to minimise than a sum.

    This is an architecture of its own for each layer, as in Puzzle (Bercovich et al. 2024, arXiv 2411.19146), which
    solves the same problem by integer programming: the options are the levels of `group_sensitivity`, from the whole
    layer to nothing at level 1, and the cost may be a measured latency. The layers of a scan are one group, unless
    `slimming.unstack` has made them layers of their own.

    Args:
      groups: the groups of the network, from `find_groups`.
      scores: (units,) larger = more worth keeping.
      found: the result of `group_sensitivity`.
      losses: (groups, levels), such as `found.changes`.
      cost: the cost of a choice, `Choice -> float`. It is called once for each choice, so that a measured latency is
        compared with the target as it was measured.
      target: the largest cost of the network.
      rounds: the number of bisections of the budget, default 12.

    Returns:
      The choice for `slim`, and its levels. `cost` of the levels is the sum over groups, and `exact` is False.

    Raises:
      ValueError: the network costs more than the target even with each group at its cheapest level, shapes do not fit,
        or values are NaN.
    """
    cost = _measured_once(cost)
    costs = group_costs(groups, scores, found, cost)
    losses, costs = checked_table(losses, costs, np.inf)

    chosen = lambda levels: at_levels(groups, scores, levels.sparsities(found))
    least = levels_of(costs.argmin(1), losses, costs, False)
    best = (chosen(least), least)
    if (reached := cost(best[0])) > target:
        raise ValueError(f"with each group at its cheapest level the network costs {reached:g}, above {target:g}")
    for level in range(costs.shape[1]):
        alike = levels_of(np.full(len(costs), level), losses, costs, False)
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
    """Remembers the cost of each choice: a second measurement takes time and may differ from the first."""
    known: dict[bytes, float] = {}

    def once(choice: Choice) -> float:
        which = np.packbits(choice.keep).tobytes()
        if which not in known:
            known[which] = float(cost(choice))
        return known[which]

    return once


def _front(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Returns the pairs that no other pair beats in both, by rising cost; if pairs are equal, the first."""
    order = np.lexsort((loss, cost))
    before = np.append(np.inf, np.minimum.accumulate(loss[order])[:-1])
    return order[loss[order] < before]


def levels_of(index: np.ndarray, losses: np.ndarray, costs: np.ndarray, exact: bool) -> Levels:
    """Returns the `Levels` of these indices, with their loss and cost."""
    rows = np.arange(len(index))
    return Levels(index, float(losses[rows, index].sum()), float(costs[rows, index].sum()), exact)


def checked_table(losses: Any, costs: Any, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns losses and costs as float64, checked.

    Raises:
      ValueError: shapes do not fit, values are NaN, or the cheapest levels cost more than the budget.
    """
    losses, costs = np.asarray(losses, np.float64), np.asarray(costs, np.float64)
    if losses.ndim != 2 or losses.shape != costs.shape or not losses.size:
        raise ValueError(f"losses and costs must both be (leaves, levels); got {losses.shape} and {costs.shape}")
    if np.isnan(losses).any() or np.isnan(costs).any():
        raise ValueError("losses and costs must not contain NaN; give an impossible level an infinite loss")
    if (least := costs.min(1).sum()) > budget:
        part = ", or pass a cost, such as budget=0.5 * costs[:, 0].sum()" if budget <= 1 else ""
        raise ValueError(
            f"the cheapest levels cost {least:g}, more than the budget {budget:g}: allow higher levels{part}"
        )
    return losses, costs
