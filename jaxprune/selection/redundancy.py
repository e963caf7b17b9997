"""Features by what they share with each other: removing redundancy, or looking for it.

Whether features that say the same are to be removed or sought depends on the data. Of copies one is enough. But where
the target is a joint function of several directions, each of them measured by several features, noise stands alone and
what matters stands together: there `mrmr` and `one_of_each` delete what matters and `relatedness` finds it.
"""

from typing import Any

import numpy as np

from jaxprune.selection import checks


def mrmr(relevance: Any, similarity: Any, count: int, *, quotient: bool = False) -> np.ndarray:
    r"""Minimum redundancy, maximum relevance: features one by one, each like the target and unlike those before.

        next = argmax_j  relevance_j - mean_{i chosen} similarity_ij          (or the quotient of the two)

    Peng, Long and Ding 2005, IEEE TPAMI 27(8), eq. 6, where both are mutual informations; any scores of one scale
    will do, such as `pearson` and `correlations`.

    Args:
      relevance: (features,) scores, larger is better.
      similarity: (features, features), symmetric.
      count: how many features to choose.
      quotient: divide by the redundancy, and do not subtract it.

    Returns:
      (count,) the features in the order in which they are chosen. Of equal ones the first.

    Raises:
      ValueError: shapes do not fit, NaN, or a count out of range.

    Example:
      >>> copies = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
      >>> mrmr([0.9, 0.8, 0.1], copies, 2).tolist()
      [0, 2]
    """
    relevance, similarity = _fitting(relevance, similarity)
    if not 1 <= count <= len(relevance):
        raise ValueError(f"count must be in 1 to {len(relevance)}, the number of features; got {count}")
    chosen: list[int] = []
    shared = np.zeros(len(relevance))
    for taken in range(count):
        mean = shared / max(taken, 1)
        # A quotient of a feature that shares nothing is limited by the smallest redundancy that float64 tells from 0.
        value = relevance / np.maximum(mean, 1e-12) if quotient and taken else relevance - mean
        value[chosen] = -np.inf
        chosen.append(int(np.argmax(value)))
        shared += similarity[chosen[-1]]
    return np.asarray(chosen)


def clusters(similarity: Any, threshold: float) -> np.ndarray:
    """Features that are connected by similarities of at least `threshold`: single linkage.

    Args:
      similarity: (features, features), symmetric, such as `correlations`.
      threshold: what counts as similar.

    Returns:
      (features,) the cluster of each, numbered by its first feature: 0, 1, 2 and so on.

    Raises:
      ValueError: the similarity is not square, not symmetric, or holds NaN.

    Example:
      >>> clusters([[1.0, 0.2, 0.9], [0.2, 1.0, 0.1], [0.9, 0.1, 1.0]], 0.8).tolist()
      [0, 1, 0]
    """
    linked = checks.similarity(similarity) >= threshold
    found = np.full(len(linked), -1)
    number = 0
    for first in range(len(linked)):
        if found[first] >= 0:
            continue
        front = [first]
        while front:
            found[front] = number
            front = list(np.flatnonzero(linked[front].any(0) & (found < 0)))
        number += 1
    return found


def one_of_each(scores: Any, clusters: Any) -> np.ndarray:
    """Keeps the best feature of each cluster.

    Args:
      scores: (features,), larger is kept; of equal ones the first.
      clusters: (features,) integers, from `clusters`.

    Returns:
      (features,) bools, True is kept.

    Raises:
      ValueError: shapes do not fit, or NaN.

    Example:
      >>> one_of_each([0.1, 0.5, 0.3], [0, 1, 0]).tolist()
      [False, True, True]
    """
    scores, clusters = checks.scores(scores), np.asarray(clusters)
    if clusters.shape != scores.shape:
        raise ValueError(f"clusters must have the shape of scores, {scores.shape}; got {clusters.shape}")
    mask = np.zeros(scores.shape, bool)
    for cluster in np.unique(clusters):
        own = np.flatnonzero(clusters == cluster)
        mask[own[np.argmax(scores[own])]] = True
    return mask


def relatedness(similarity: Any) -> np.ndarray:
    """For each feature the largest similarity with another one: the opposite of removing redundancy.

    It needs no target. Noise is like nothing else; measurements of the same directions are like each other.

    Args:
      similarity: (features, features), symmetric, such as `correlations`; two features or more.

    Returns:
      (features,) scores.

    Raises:
      ValueError: the similarity is not square, not symmetric, holds NaN, or is of one feature alone.

    Example:
      >>> relatedness([[1.0, 0.2, 0.9], [0.2, 1.0, 0.1], [0.9, 0.1, 1.0]]).tolist()
      [0.9, 0.2, 0.9]
    """
    others = checks.similarity(similarity).copy()
    if len(others) < 2:
        raise ValueError("relatedness compares a feature with others; there is one feature alone")
    np.fill_diagonal(others, -np.inf)
    return others.max(0)


def _fitting(relevance: Any, similarity: Any) -> tuple[np.ndarray, np.ndarray]:
    relevance, similarity = checks.scores(relevance, what="relevance"), checks.similarity(similarity)
    if len(similarity) != len(relevance):
        raise ValueError(f"similarity is of {len(similarity)} features, relevance of {len(relevance)}")
    return relevance, similarity
