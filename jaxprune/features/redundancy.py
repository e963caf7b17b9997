"""Redundancy between features: `correlations`, `mrmr`, `clusters`, `one_of_each` and `relatedness`.

Whether to remove redundant features or to look for them depends on the data. In smooth inputs (neighbouring pixels,
spectra) the best features by any single score are neighbours with the same information: `mrmr` and `one_of_each` remove
such copies. If instead the target is a joint function of several directions, and several features measure each
direction among many noise features, then the informative features are correlated and the noise is not: `relatedness`
finds them, while `mrmr` and `one_of_each` would remove them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxprune.features import _checks
from jaxprune.features.scores import ranks, standard

Array = jax.Array


def correlations(x: Any, *, ranked: bool = False) -> Array:
    """Returns the absolute correlation of each pair of features, or of each pair of channels.

    Args:
      x: (n, features) numbers, or activations (n, ..., channels); every position then counts as a sample.
      ranked: True correlates ranks (Spearman), False (default) correlates values (Pearson).

    Returns:
      (features, features) in [0, 1], symmetric; 1 on the diagonal, and 0 for a feature that does not vary.

    Raises:
      ValueError: `x` has fewer than two axes or samples, or NaN or infinite values.

    Example:
      >>> correlations(jnp.array([[1.0, -1.0], [2.0, -2.0], [0.0, 0.0]])).round(4).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    x = jnp.asarray(x)
    x = _checks.samples(x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x)
    return _correlations(ranks(x) if ranked else x)


def mrmr(
    relevance: Any,
    similarity: Any,
    count: int,
    *,
    quotient: bool = False,
    pool: Callable[..., np.ndarray] = np.mean,
) -> np.ndarray:
    r"""Minimum redundancy, maximum relevance: chooses features one by one, relevant and unlike the chosen ones.

        next = argmax_j  relevance_j - mean_{i chosen} similarity_ij          (or the quotient of the two)

    Peng, Long and Ding 2005, IEEE TPAMI 27(8), eq. 6, use mutual informations for both. Any two scores on one scale
    work, for example `pearson(x, y)` (which treats class labels as classes) with `correlations(x)`; both are in [0, 1].

    With many chosen features the mean dilutes redundancy: among fifty chosen features, a copy of one of them has a
    redundancy of about 1/50. With `pool=np.max` the redundancy of a feature is its largest similarity with a chosen
    feature, which excludes copies at any number of chosen features (like CMIM, Fleuret 2004). Use it where groups of
    features have the same information.

    Args:
      relevance: (features,) scores, larger is better.
      similarity: (features, features) symmetric.
      count: the number of features to choose, 1 to `features`.
      quotient: True divides the relevance by the redundancy, False (default) subtracts it.
      pool: reduces the similarities with the chosen features, (chosen, features), along `axis=0`: `np.mean` (default)
        or `np.max`.

    Returns:
      (count,) the numbers of the chosen features, in the order in which they were chosen. Of equal features the first
      is chosen.

    Raises:
      ValueError: shapes do not fit, values are NaN, or `count` is out of range.

    Example:
      >>> copies = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
      >>> mrmr([0.9, 0.8, 0.1], copies, 2).tolist()
      [0, 2]
    """
    relevance, similarity = _checks.scores(relevance, what="relevance"), _checks.similarity(similarity)
    if len(similarity) != len(relevance):
        raise ValueError(f"similarity has {len(similarity)} features, but relevance has {len(relevance)}")
    _checks.count(count, len(relevance))
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < count:
        shared = pool(similarity[chosen], axis=0)
        # A feature without any similarity would have an infinite quotient.
        value = relevance / np.maximum(shared, 1e-12) if quotient else relevance - shared
        value[chosen] = -np.inf
        chosen.append(int(np.argmax(value)))
    return np.asarray(chosen)


def clusters(similarity: Any, threshold: float) -> np.ndarray:
    """Groups features that are connected by similarities of at least `threshold` (single linkage).

    Args:
      similarity: (features, features) symmetric, such as `correlations(x)`.
      threshold: the smallest similarity that connects two features.

    Returns:
      (features,) the number of the cluster of each feature. Clusters are numbered 0, 1, 2, ... by their first feature.

    Raises:
      ValueError: the similarity is not square, not symmetric, or has NaN.

    Example:
      >>> clusters([[1.0, 0.2, 0.9], [0.2, 1.0, 0.1], [0.9, 0.1, 1.0]], 0.8).tolist()
      [0, 1, 0]
    """
    linked = _checks.similarity(similarity) >= threshold
    return scipy.sparse.csgraph.connected_components(linked, directed=False)[1].astype(int)


def one_of_each(scores: Any, clusters: Any) -> np.ndarray:
    """Keeps the best feature of each cluster.

    Args:
      scores: (features,) larger is kept; of equal scores the first feature is kept.
      clusters: (features,) integers, from `clusters`.

    Returns:
      (features,) bool mask, True = kept.

    Raises:
      ValueError: shapes do not fit, or scores are NaN.

    Example:
      >>> one_of_each([0.1, 0.5, 0.3], [0, 1, 0]).tolist()
      [False, True, True]
    """
    scores, clusters = _checks.scores(scores), np.asarray(clusters)
    if clusters.shape != scores.shape:
        raise ValueError(f"clusters must have the shape of scores, {scores.shape}; got {clusters.shape}")
    mask = np.zeros(scores.shape, bool)
    for cluster in np.unique(clusters):
        own = np.flatnonzero(clusters == cluster)
        mask[own[np.argmax(scores[own])]] = True
    return mask


def relatedness(similarity: Any) -> np.ndarray:
    """Returns the largest similarity of each feature with another feature: a score that looks for redundancy.

    The score needs no target. It finds features that measure the same directions among independent noise features. Do
    not use it where all features are informative (pixels, spectra): there it chooses copies, and random features are
    better.

    Args:
      similarity: (features, features) symmetric, such as `correlations(x)`; two features or more.

    Returns:
      (features,) scores.

    Raises:
      ValueError: the similarity is not square, not symmetric, has NaN, or has only one feature.

    Example:
      >>> relatedness([[1.0, 0.2, 0.9], [0.2, 1.0, 0.1], [0.9, 0.1, 1.0]]).tolist()
      [0.9, 0.2, 0.9]
    """
    others = _checks.similarity(similarity).copy()
    if len(others) < 2:
        raise ValueError("relatedness compares features with each other, but there is only one feature")
    np.fill_diagonal(others, -np.inf)
    return others.max(0)


@jax.jit
def _correlations(x: Array) -> Array:
    unit = standard(x)
    sizes = jnp.clip(jnp.abs(unit.T @ unit), 0.0, 1.0)
    return jnp.where(jnp.eye(x.shape[1], dtype=bool), 1.0, sizes)
