"""Recursive elimination: score, drop the worst share, and score what is left anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Round(NamedTuple):
    """One round of an elimination.

    Attributes:
      mask: (features,) bools, what was scored.
      scores: (features,) its scores; NaN elsewhere.
    """

    mask: np.ndarray
    scores: np.ndarray


def eliminate(
    score: Callable[[Array, Array], Any], features: int, keep: int, *, key: Array, rate: float = 0.5
) -> tuple[np.ndarray, list[Round]]:
    """Removes features in rounds, a share of those left in each, and scores what is left again.

    Guyon et al. 2002, Machine Learning 46 (recursive feature elimination), with a share for the one feature at a time.
    Scores of a network trained among many useless features are noisy; each round has fewer of them, so the scores of
    the next are better. `score` trains a network on the features of the mask, say, and returns `input_norms`.

    Args:
      score: `(mask, key) -> scores`, (features,) both; scores of removed features are not looked at. Where it is
        jitted it compiles once, for all masks have one shape.
      features: how many there are.
      keep: how many to keep.
      key: a JAX key; round r gets `fold_in(key, r)`.
      rate: the share of what is left that a round removes, in (0, 1): floor(rate x left), at least one, and no more
        than leaves `keep`.

    Returns:
      (features,) bools, True is kept, and the rounds, the last of them scored with the last features removed yet
      to go. Of equal scores the first feature is kept.

    Raises:
      ValueError: `keep` or `rate` out of range, or scores of another shape or NaN for features that are left.

    Example:
      >>> mask, rounds = eliminate(lambda mask, key: jnp.arange(8), 8, 2, key=jax.random.key(0))
      >>> mask.nonzero()[0].tolist(), [int(r.mask.sum()) for r in rounds]
      ([6, 7], [8, 4])
    """
    if not 1 <= keep <= features:
        raise ValueError(f"keep must be in 1 to {features}, the number of features; got {keep}")
    if not 0 < rate < 1:
        raise ValueError(f"rate is the share of what is left that a round removes and must be in (0, 1); got {rate}")
    mask, rounds = np.ones(features, bool), []
    while (left := int(mask.sum())) > keep:
        scores = _scores(score(jnp.asarray(mask), jax.random.fold_in(key, len(rounds))), mask)
        rounds.append(Round(mask, scores))
        remain = max(keep, left - max(1, int(rate * left)))
        mask = top(np.where(mask, scores, -np.inf), remain)
    return mask, rounds


def top(scores: Any, count: int) -> np.ndarray:
    """The features of the largest scores, as a mask.

    Args:
      scores: (features,) numbers.
      count: how many to keep.

    Returns:
      (features,) bools, `count` of them True; of equal scores the first.

    Raises:
      ValueError: scores are not a vector or hold NaN, or the count is out of range.

    Example:
      >>> top([0.1, 0.7, 0.7, 0.2], 2).tolist()
      [False, True, True, False]
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"scores must be one number a feature, none of them NaN; got shape {scores.shape}")
    if not 1 <= count <= scores.size:
        raise ValueError(f"count must be in 1 to {scores.size}, the number of features; got {count}")
    mask = np.zeros(scores.shape, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def _scores(found: Any, mask: np.ndarray) -> np.ndarray:
    scores = np.asarray(found, np.float64)
    if scores.shape != mask.shape or np.isnan(scores[mask]).any():
        raise ValueError(
            f"score must return one number a feature, {mask.shape}, not NaN where the mask is True; got {scores.shape}"
        )
    return np.where(mask, scores, np.nan)
