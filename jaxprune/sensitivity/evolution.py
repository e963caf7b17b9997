"""`evolve_levels`: an evolutionary search for levels within a budget, by the loss of the whole network."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune import _progress, _tree
from jaxprune.checkpoints.states import Run
from jaxprune.sensitivity.levels import Levels, checked_table, levels_of

Loss = Callable[[np.ndarray, int], Any]


def evolve_levels(
    loss: Loss,
    costs: Any,
    budget: float,
    *,
    key: jax.Array,
    start: Sequence[int] | np.ndarray | None = None,
    generations: int = 100,
    offspring: int = 16,
    stages: Sequence[tuple[int, int]] = ((1, 1),),
    folder: Any = None,
    progress: bool | None = None,
) -> Levels:
    r"""Chooses levels within a budget by evolution: which blocks to drop, or how sparse each leaf is.

    Use it where losses of leaves pruned alone do not add up, as `cheapest_loss` assumes: dropping two neighbouring
    blocks costs more than the sum of both. Sieberling et al. 2024, EvoPress (arXiv 2410.14649), Algorithm 1: each
    generation mutates the best candidate by level switches (a leaf moves to a level of higher cost, others to levels of
    lower cost until the budget holds again; one to three switches, few being more likely). Stages of selection compare
    the mutants, the first stages on few samples; the last stage compares the survivors with the parent.

    The loop is not an Optuna study, because a sampler of independent parameters would propose candidates outside the
    budget nearly always.

    Args:
      loss: `(levels, samples) -> loss` of the network with the leaves at these levels, int[leaves], on the first
        `samples` samples of the calibration data. It must return the same value for the same arguments.
      costs: (leaves, levels) the cost of each leaf at each level, such as `leaf_costs` returns, descending in each row;
        for blocks that are kept or dropped `[[1, 0]] * blocks`.
      budget: the largest total cost.
      key: a JAX key.
      start: the levels of the first candidate, within the budget; default None: random leaves rise level by level.
      generations: the number of generations; default 100.
      offspring: the number of mutants of a generation; default 16.
      stages: pairs (survivors, samples), one for each stage of selection. The last one must have 1 survivor.
      folder: a folder in which each finished generation is stored, so that a killed search resumes after it; default
        None. It needs orbax-checkpoint.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      `Levels` with the loss of the last stage; `exact` is False. The loss is at most the loss of `start`.

    Raises:
      ValueError: shapes do not fit, costs rise with the level, the budget cannot be met, `start` exceeds it, a number
        is out of range, or the folder belongs to another search.

    Example:
      >>> loss = lambda dropped, samples: float(dropped @ [3, 1, 1, 2] + 9 * dropped[:-1] @ dropped[1:])
      >>> evolve_levels(loss, [[1, 0]] * 4, 2, key=jax.random.key(0), generations=20).chosen.tolist()
      [0, 1, 0, 1]
    """
    costs, _ = checked_table(costs, costs, budget)
    rising = np.argwhere(np.diff(costs, axis=1) > 0)
    if len(rising):
        row, level = rising[0].tolist()
        raise ValueError(
            f"costs must not rise with the level, but leaf {row} costs {costs[row, level]:g} at level {level} and "
            f"{costs[row, level + 1]:g} at level {level + 1}; order the levels of each leaf by falling cost"
        )
    if generations < 0 or offspring < 1 or not stages or stages[-1][0] != 1 or min(map(min, stages)) < 1:
        raise ValueError(
            "generations must be 0 or more, offspring 1 or more, and stages pairs (survivors, samples) of 1 or more, "
            f"the last with 1 survivor; got {generations}, {offspring}, {tuple(stages)}"
        )
    _tree.check_key(key)
    best = _start(costs, budget, start, _generator(key, 0))
    known: dict[tuple[bytes, int], float] = {}

    def measured(levels: np.ndarray, samples: int) -> float:
        which = (levels.tobytes(), samples)
        if which not in known:
            known[which] = float(loss(levels, samples))
            if np.isnan(known[which]):
                known[which] = np.inf
        return known[which]

    options = {"loss": loss, "budget": budget, "offspring": offspring, "stages": [list(map(int, s)) for s in stages]}
    run = None if folder is None else Run(folder, options, params={"costs": costs, "start": best}, key=key)
    for number in _progress.bar(range(1, generations + 1), progress, what="generations"):
        if run is not None and (saved := run.load(number)) is not None:
            best = saved["levels"]
            continue
        random = _generator(key, number)
        pool = [_mutant(best, costs, budget, random) for _ in range(offspring)]
        for stage, (survivors, samples) in enumerate(stages):
            # The parent comes first, so that it stays where a mutant is no better.
            pool = [best, *pool] if stage == len(stages) - 1 else pool
            pool = sorted(pool, key=lambda levels, samples=samples: measured(levels, samples))[:survivors]
        best = pool[0]
        if run is not None:
            run.save(number, {"levels": best})
    return levels_of(best, np.zeros_like(costs), costs, exact=False)._replace(loss=measured(best, stages[-1][1]))


def _generator(key: jax.Array, number: int) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.bits(jax.random.fold_in(key, number), (4,))).tolist())


def _total(levels: np.ndarray, costs: np.ndarray) -> float:
    return float(costs[np.arange(len(levels)), levels].sum())


def _start(costs: np.ndarray, budget: float, start: Any, random: np.random.Generator) -> np.ndarray:
    if start is None:
        return _within(np.zeros(len(costs), np.int64), costs, budget, random, fixed=-1)
    levels = np.asarray(start, np.int64)
    if levels.shape != costs.shape[:1] or not ((levels >= 0) & (levels < costs.shape[1])).all():
        raise ValueError(f"start must have a level from 0 to {costs.shape[1] - 1} for each of {len(costs)} leaves")
    if _total(levels, costs) > budget + _slack(budget):
        raise ValueError(f"start costs {_total(levels, costs):g}, more than the budget {budget:g}")
    return levels


def _slack(budget: float) -> float:
    return 1e-9 * max(1.0, abs(budget))


def _mutant(levels: np.ndarray, costs: np.ndarray, budget: float, random: np.random.Generator) -> np.ndarray:
    """Mutates by level switches: one leaf moves down a level, and others move up until the budget holds."""
    levels = levels.copy()
    for _ in range(min(random.integers(1, 4), random.integers(1, 4))):
        lowered = np.flatnonzero(levels > 0)
        if not len(lowered):
            break
        leaf = random.choice(lowered)
        levels[leaf] -= 1
        levels = _within(levels, costs, budget, random, fixed=leaf)
    return levels


def _within(
    levels: np.ndarray, costs: np.ndarray, budget: float, random: np.random.Generator, *, fixed: int
) -> np.ndarray:
    """Moves random leaves up level by level until the budget holds; the fixed leaf only if no other can."""
    levels = levels.copy()
    while _total(levels, costs) > budget + _slack(budget):
        open_ = np.flatnonzero(levels < costs.shape[1] - 1)
        others = open_[open_ != fixed]
        levels[random.choice(others if len(others) else open_)] += 1
    return levels
