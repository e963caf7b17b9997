"""`top` and `eliminate`: turn scores into a mask over features, in one step or in rounds that score the rest again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.features import _checks

Array = jax.Array


class Round(NamedTuple):
    """One round of an elimination.

    Attributes:
      mask: (features,) bool, True = the feature was scored in this round.
      scores: (features,) the scores; NaN for the other features.
    """

    mask: np.ndarray
    scores: np.ndarray


def top(scores: Any, count: int) -> np.ndarray:
    """Keeps the features with the largest scores.

    Args:
      scores: (features,) numbers.
      count: the number of features to keep, 1 to `features`.

    Returns:
      (features,) bool mask with `count` True, True = kept. Of equal scores the first feature is kept.

    Raises:
      ValueError: `scores` is not a vector or has NaN, or `count` is out of range.

    Example:
      >>> top([0.1, 0.7, 0.7, 0.2], 2).tolist()
      [False, True, True, False]
    """
    scores = _checks.scores(scores)
    _checks.count(count, scores.size)
    mask = np.zeros(scores.shape, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def eliminate(
    score: Callable[[Array, Array], Any], features: int, keep: int, *, key: Array, sparsity: float = 0.5
) -> tuple[np.ndarray, list[Round]]:
    """Removes features in rounds: each round scores the remaining features and removes the worst ones.

    Guyon et al. 2002, Machine Learning 46 (recursive feature elimination), remove one feature in each round. The scores
    of a network trained on many useless features are noisy; each round has fewer useless features, so its scores are
    better. For example, `score` may train a network on the features of the mask and return its `input_norms`.

    Args:
      score: `(mask, key) -> scores`, both (features,). Scores of removed features are ignored. A jitted `score`
        compiles once, because every mask has the same shape.
      features: the number of features.
      keep: the number of features to keep, 1 to `features`.
      key: a JAX key; round r gets `fold_in(key, r)`.
      sparsity: the fraction of the remaining features to remove in each round, in (0, 1), rounded down; default 0.5.
        Each round removes at least one feature, and stops at `keep` features.

    Returns:
      (features,) bool mask, True = kept; and a list of rounds. Of equal scores the first feature is kept.

    Raises:
      ValueError: `keep` or `sparsity` is out of range, or the scores have another shape or NaN for a remaining
        feature.

    Example:
      >>> mask, rounds = eliminate(lambda mask, key: jnp.arange(8), 8, 2, key=jax.random.key(0))
      >>> mask.nonzero()[0].tolist(), [int(r.mask.sum()) for r in rounds]
      ([6, 7], [8, 4])
    """
    _tree.check_function(score, "score", "score(mask, key) -> one number a feature")
    _tree.check_instance(features, int | np.integer, "features", "the number of features")
    _tree.check_key(key, needed_by="eliminate")
    if not 1 <= keep <= features:
        raise ValueError(f"keep must be in 1 to {features}, the number of features; got {keep}")
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be in (0, 1), the fraction of the features removed in a round; got {sparsity}")
    mask, rounds = np.ones(features, bool), []
    while (left := int(mask.sum())) > keep:
        scores = np.asarray(score(jnp.asarray(mask), jax.random.fold_in(key, len(rounds))), np.float64)
        if scores.shape != mask.shape or np.isnan(scores[mask]).any():
            raise ValueError(
                f"score must return one number for each feature, {mask.shape}, and no NaN where the mask is True; "
                f"got {scores.shape}"
            )
        rounds.append(Round(mask, np.where(mask, scores, np.nan)))
        mask = top(np.where(mask, scores, -np.inf), max(keep, left - max(1, int(sparsity * left))))
    return mask, rounds
