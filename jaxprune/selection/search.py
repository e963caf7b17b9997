"""Search by successive halving: many candidates on a small budget, the better ones on a larger, and so on."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import _progress
from jaxprune.selection.journal import Journal

Evaluate = Callable[[Any, float, Any], float]


class Trial(NamedTuple):
    """One evaluation.

    Attributes:
      candidate: the candidate.
      budget: what it was given.
      loss: what came out.
      bracket: the bracket of Hyperband; 0 for successive halving.
      rung: the rung of that bracket, from 0.
    """

    candidate: Any
    budget: float
    loss: float
    bracket: int
    rung: int


class Found(NamedTuple):
    """What a search found.

    Attributes:
      best: the trial of the least loss among those on the largest budget.
      trials: all, in the order in which they ran.
    """

    best: Trial
    trials: tuple[Trial, ...]


def successive_halving(
    evaluate: Evaluate,
    candidates: Sequence[Any],
    *,
    key: Any,
    least: float,
    most: float,
    factor: float = 3,
    journal: Any = None,
    progress: bool | None = None,
) -> Found:
    """Evaluates all candidates on the least budget, the best 1/factor of them on factor times it, up to the most.

    Jamieson and Talwalkar 2016, arXiv 1502.07943; the rungs as in Li et al. 2018 (Hyperband), arXiv 1603.06560.

    Args:
      evaluate: `(candidate, budget, key) -> loss`: trains, prunes, and returns a validation loss, smaller is better.
        It starts anew at each budget, unless it keeps its own checkpoints. A loss that is NaN or infinite counts as
        worst.
      candidates: dicts, see `draw_candidates`, or whatever `evaluate` takes.
      key: a JAX key; candidate i gets `fold_in(key, i)` on every rung.
      least: the budget of the first rung, in steps or epochs or samples; above 0.
      most: the budget of the last, at least `least`. Rungs are most / factor^k, the last ones of them, not below least.
      factor: how much the budget grows and the field shrinks, above 1; floor(n / factor) candidates go on, one at
        least. Of equal losses the earlier candidate goes on.
      journal: a file in which every evaluation is noted as it ends. A call with the same arguments goes on after the
        last one noted, to the same result as without a break. None keeps nothing.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      The best trial on the largest budget, and all trials.

    Raises:
      ValueError: no candidate, budgets or factor out of range, every candidate failed, a journal of another search.
      ImportError: `progress=True` and tqdm is not installed.

    Example:
      >>> loss = lambda c, budget, key: abs(c - 3) + 1 / budget
      >>> found = successive_halving(loss, range(9), key=jax.random.key(0), least=1, most=9, progress=False)
      >>> found.best.candidate, [int(t.budget) for t in found.trials].count(3)
      (3, 3)
    """
    budgets = _rungs(least, most, factor)
    brackets = [_Bracket(0, list(candidates), budgets)]
    return _search(evaluate, brackets, key, factor, journal, progress)


def hyperband(
    evaluate: Evaluate,
    draw: Callable[[int], Sequence[Any]],
    *,
    key: Any,
    least: float,
    most: float,
    factor: float = 3,
    journal: Any = None,
    progress: bool | None = None,
) -> Found:
    r"""Successive halving several times, from many candidates on little to few on much.

        bracket s = s_max, ..., 0:    n = ceil((s_max + 1) / (s + 1) factor^s) candidates,  first budget most / factor^s

    Li et al. 2018, arXiv 1603.06560, algorithm 1, s_max = floor(log_factor(most / least)). How soon a candidate shows
    what it is worth need not be known.

    Args:
      evaluate: as for `successive_halving`.
      draw: `count -> candidates`: see `draw_candidates`. The brackets share them out in order.
      key: a JAX key.
      least: the least budget.
      most: the largest budget.
      factor: as for `successive_halving`.
      journal: as for `successive_halving`.
      progress: as for `successive_halving`.

    Returns:
      The best trial on the largest budget over all brackets, and all trials.

    Raises:
      ValueError: as `successive_halving` does, or `draw` gives another number of candidates.
      ImportError: `progress=True` and tqdm is not installed.
    """
    rungs = _rungs(least, most, factor)
    s_max = len(rungs) - 1
    counts = {s: math.ceil((s_max + 1) / (s + 1) * factor**s - 1e-9) for s in range(s_max, -1, -1)}
    drawn = list(draw(sum(counts.values())))
    if len(drawn) != sum(counts.values()):
        raise ValueError(f"draw({sum(counts.values())}) must give as many candidates; got {len(drawn)}")
    brackets, at = [], 0
    for s, count in counts.items():
        brackets.append(_Bracket(s, drawn[at : at + count], rungs[s_max - s :], at))
        at += count
    return _search(evaluate, brackets, key, factor, journal, progress)


class _Bracket(NamedTuple):
    number: int
    candidates: list[Any]
    budgets: list[float]
    first: int = 0


def _search(
    evaluate: Evaluate, brackets: list[_Bracket], key: Any, factor: float, journal: Any, progress: bool | None
) -> Found:
    if not all(bracket.candidates for bracket in brackets):
        raise ValueError("a search needs a candidate")
    data = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    identity = {"key": np.asarray(data).tolist(), "factor": factor}
    identity |= {"candidates": [list(b.candidates) for b in brackets], "budgets": [b.budgets for b in brackets]}
    notes = Journal(journal, identity)
    trials: list[Trial] = []
    total = sum(_survivors(len(b.candidates), factor, rung) for b in brackets for rung in range(len(b.budgets)))
    with _progress.bar(progress=progress, what="candidates", total=total) as bar:
        for bracket in brackets:
            left = list(range(len(bracket.candidates)))
            for rung, budget in enumerate(bracket.budgets):
                losses = []
                for i in left:
                    name, candidate = f"{bracket.number}/{rung}/{i}", bracket.candidates[i]
                    loss = notes.known(name)
                    if loss is None:
                        loss = float(evaluate(candidate, budget, jax.random.fold_in(key, bracket.first + i)))
                        notes.add(name, candidate, loss)
                    losses.append(loss if math.isfinite(loss) else math.inf)
                    trials.append(Trial(candidate, budget, loss, bracket.number, rung))
                    bar.update(1)
                following = _survivors(len(bracket.candidates), factor, rung + 1)
                order = np.argsort(losses, kind="stable")[:following]
                left = sorted(left[k] for k in order)
    most = max(trial.budget for trial in trials)
    last = [trial for trial in trials if trial.budget == most and math.isfinite(trial.loss)]
    if not last:
        raise ValueError(f"every candidate on the largest budget, {most:g}, had a loss that is NaN or infinite")
    return Found(min(last, key=lambda trial: trial.loss), tuple(trials))


def _survivors(count: int, factor: float, rung: int) -> int:
    for _ in range(rung):
        count = max(1, int(count / factor + 1e-9))
    return count


def _rungs(least: float, most: float, factor: float) -> list[float]:
    if not (0 < least <= most and factor > 1):
        raise ValueError(f"needs 0 < least <= most and a factor above 1; got {least}, {most} and {factor}")
    count = int(math.log(most / least) / math.log(factor) + 1e-9)
    return [most / factor**k for k in range(count, -1, -1)]
