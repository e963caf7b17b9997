r"""Scores of features from samples and targets alone: `pearson`, `spearman`, `anova_f` and `mutual_information`.

Each score considers one feature at a time. It misses information that only several features have together (an exclusive
or); use a score of a trained network instead (`permutation`, `gradient_saliency`, `input_lasso`, `StochasticGates`). It
also ignores redundancy: where many features measure few directions (spectra, pixels of high resolution), the features
with the largest scores are copies of each other, and random features are better; use `mrmr` or `one_of_each` instead.

Redundancy between features: `correlations`, `mrmr`, `clusters`, `one_of_each` and `relatedness`. Whether to remove
redundant features or to look for them depends on the data. In smooth inputs (neighbouring pixels, spectra) the best
features by any single score are neighbours with the same information: `mrmr` and `one_of_each` remove such copies. If
instead the target is a joint function of several directions, and several features measure each direction among many
noise features, then the informative features are correlated and the noise is not: `relatedness` finds them, while
`mrmr` and `one_of_each` would remove them.

Targets `y` of shape (n,) are class labels if they are integers, booleans or strings, and numbers if they are floats.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.core import Tracer
from jax.scipy.stats import rankdata

from jaxprune.features import _checks

Array = jax.Array


def pearson(x: Any, y: Any) -> Array:
    r"""Returns how much of each feature the target explains: its correlation with numbers, or the ratio for classes.

        numbers:           s_j = | \sum_i (x_ij - m_j)(y_i - m) | / (n sd_j sd)
        classes:           s_j = sqrt( \sum_k n_k (m_jk - m_j)^2 / \sum_i (x_ij - m_j)^2 )
        several targets:   s_j = the multiple correlation of x_j with all columns of y

    For numbers, the score says how well a linear function of `y` explains the feature. The formula for classes is the
    correlation ratio (Pearson 1905; Fisher 1925), the square root of the fraction of the feature's variance between the
    classes: any function of the class may explain the feature. For two classes it equals the absolute correlation with
    a label of 0 and 1; for one-hot labels the formula for several targets equals it. Distances between classes count
    squared: a feature that separates a few classes widely scores higher than a feature that separates all classes a
    little. If it selects features for a few easy classes only, use `spearman` or `mutual_information`, which no
    distance dominates.

    Args:
      x: (n, features) numbers.
      y: (n,) class labels (integers, booleans, strings) or floats; or (n, targets) numbers, such as one-hot labels.

    Returns:
      (features,) scores in [0, 1], in float32 or wider; 0 for a feature, or a target, that does not vary.

    Raises:
      ValueError: shapes do not fit, there are fewer than two samples, values are NaN or infinite, or integer labels
        give every sample a class of its own.

    Example:
      >>> pearson(jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]), jnp.array([1.0, 0.0, -1.0])).round(4).tolist()
      [1.0, 0.0]
      >>> x, y = jnp.array([[0.0], [2.0], [9.0], [11.0], [0.0], [2.0]]), np.array([0, 0, 1, 1, 2, 2])
      >>> [round(float(pearson(x, labels)[0]), 3) for labels in (y, y.astype(float))]  # class 1 has the high values
      [0.973, 0.0]
    """
    return _explained(x, y, ranked=False)


def spearman(x: Any, y: Any) -> Array:
    """Returns the rank correlation of each feature with the target: `pearson` of the ranks of `x` and of numeric `y`.

    The score finds any monotone relation. Neither outliers nor a distant class dominate it. Equal values share the mean
    of their ranks (Spearman 1904). For classes it is the square root of H / (n - 1), where H is the statistic of
    Kruskal and Wallis (1952).

    Args:
      x: (n, features) numbers.
      y: (n,) class labels (integers, booleans, strings) or floats; or (n, targets) numbers, such as one-hot labels.

    Returns:
      (features,) scores in [0, 1], in float32 or wider; 0 for a feature, or a target, that does not vary.

    Raises:
      ValueError: shapes do not fit, there are fewer than two samples, values are NaN or infinite, or integer labels
        give every sample a class of its own.

    Example:
      >>> spearman(jnp.array([[1.0], [2.0], [40.0]]), jnp.array([1.0, 8.0, 9.0])).round(4).tolist()
      [1.0]
    """
    return _explained(x, y, ranked=True)


def anova_f(x: Any, y: Any) -> np.ndarray:
    """Returns the F statistic of each feature from scikit-learn: variance between classes over variance within classes.

    It is computed in float64, orders features like `pearson` and has the same limits. It is a test statistic, with a
    value of about 1 for a feature that is independent of the target. For float targets it is the F statistic of the
    slope.

    Args:
      x: (n, features) numbers.
      y: (n,) class labels (integers, booleans, strings) or floats.

    Returns:
      (features,) float64 scores, 0 or more; 0 for a feature, or a target, that does not vary; infinite for a feature
      that varies only between classes.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: shapes do not fit, values are NaN or infinite, or integer labels put every sample into a different
        class.

    Example:
      >>> anova_f([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]], [0, 0, 1, 1]).round(4).tolist()
      [8.0, 0.0]
    """
    try:
        from sklearn import feature_selection
    except ImportError as error:
        raise ImportError("anova_f needs scikit-learn: pip install scikit-learn") from error
    x = _checks.shifted(np.asarray(x))[0]
    if np.shape(y) != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), class labels or floats; got {np.shape(y)}")
    if _checks.is_classes(y):
        statistic, y = feature_selection.f_classif, np.asarray(_checks.classes(y, len(x))[0])
    else:
        statistic, y = feature_selection.f_regression, _checks.shifted(_checks.numbers(y, len(x)), what="y")[0][:, 0]
    varies = (x.max(0) > x.min(0)) & (y.max() > y.min())
    found = np.zeros(x.shape[1])
    if varies.any():
        with np.errstate(divide="ignore"):
            found[varies] = statistic(x[:, varies], y)[0]
    return found


def mutual_information(x: Any, y: Any, *, bins: int | None = None) -> Array:
    r"""Returns the mutual information of each feature with the target, in nats, from counts of quantile bins.

        I_j = \sum_{b,k} p_bk ln( p_bk / (p_b p_k) )  -  (B_j - 1)(K - 1) / 2n

    The score finds any relation between one feature and the target, monotone or not. Each feature is cut at its
    quantiles into B bins of about n / B samples; equal values share a bin. p_bk is the fraction of samples in bin b and
    class k. The last term, with B_j bins that are not empty, is the mean for independent features (Miller 1955).

    The cost is a sort of each feature and one pass over the samples. scikit-learn's `mutual_info_classif` uses a
    nearest-neighbour estimate, which needs no bins and resolves finer structure, but takes much longer.

    Args:
      x: (n, features) numbers.
      y: (n,) class labels (integers, booleans, strings), or floats, which are cut into B bins as well.
      bins: B, 2 or more. Default None: as many bins as leave five samples in a cell of the table of bins and classes,
        at least 4 and at most 16.

    Returns:
      (features,) float32 scores, 0 or more.

    Raises:
      ValueError: shapes do not fit, values are NaN or infinite, `bins` is below 2, or integer labels give every
        sample a class of its own.

    Example:
      >>> x = jnp.array([[-2.0], [-1.0], [1.0], [2.0]] * 10)  # the class is the size of x, which is not monotone
      >>> [round(float(s), 2) for s in mutual_information(x, [1, 0, 0, 1] * 10, bins=4)]
      [0.66]
    """
    x = _checks.ordered(x)
    n = x.shape[0]
    if bins is not None and bins < 2:
        raise ValueError(f"bins must be 2 or more; got {bins}")
    if _checks.is_classes(y):
        labels, count = _checks.classes(y, n)
        bins = bins or int(np.clip(n // (5 * count), 4, 16))
    else:
        if np.shape(y) != (n,):
            raise ValueError(f"y must have shape ({n},), class labels or floats; got {np.shape(y)}")
        bins = bins or int(np.clip((n / 5) ** 0.5, 4, 16))
        labels, count = _binned(_checks.ordered(_checks.numbers(y, n), what="y")[:, 0], bins), bins
    return _information(x, labels, bins, count)


@jax.jit
def ranks(x: Array) -> Array:
    """Returns the rank of each value in its column, starting at 1; equal values share the mean of their ranks."""
    return rankdata(x, axis=0).astype(x.dtype)


def standard(x: Array) -> Array:
    """Shifts columns to mean 0 and scales them to a sum of squares of 1; a column that does not vary becomes 0."""
    centred = x - x.mean(0)
    # The mean of a constant column is rounded, so centred values may differ from 0.
    still = jnp.max(x, 0) == jnp.min(x, 0)
    norm = jnp.linalg.norm(centred, axis=0)
    return jnp.where(still, 0.0, centred / jnp.where(still, 1.0, norm))


def _explained(x: Any, y: Any, *, ranked: bool) -> Array:
    prepared = _ranked if ranked else _shifted
    x = prepared(x, "x")
    if _checks.is_classes(y):
        labels, bound = _checks.classes(y, x.shape[0])
        return _between(x, labels, bound)
    return _multiple(x, prepared(_checks.numbers(y, x.shape[0]), "y"))


def _ranked(x: Any, what: str = "x") -> Array:
    return ranks(_checks.ordered(x, what=what))


def _shifted(x: Any, what: str = "x") -> Array:
    return jnp.asarray(*_checks.shifted(x, what=what))


@partial(jax.jit, static_argnums=2)
def _between(x: Array, labels: Array, bound: int) -> Array:
    sums = jax.ops.segment_sum(standard(x), labels, bound)
    counts = jax.ops.segment_sum(jnp.ones(labels.shape, x.dtype), labels, bound)[:, None]
    share = jnp.where(counts > 0, jnp.square(sums) / jnp.maximum(counts, 1), 0.0).sum(0)
    return jnp.where(labels.min() == labels.max(), 0.0, jnp.clip(jnp.sqrt(share), 0.0, 1.0))


@jax.jit
def _multiple(x: Array, y: Array) -> Array:
    y = standard(y)
    if y.shape[1] == 1:
        return jnp.clip(jnp.abs(standard(x).T @ y)[:, 0], 0.0, 1.0)
    # An orthonormal basis of the columns of y; centred one-hot labels span one dimension fewer than they have columns.
    basis, sizes, _ = jnp.linalg.svd(y, full_matrices=False)
    real = sizes > sizes.max() * max(y.shape) * jnp.finfo(y.dtype).eps
    parts = standard(x).T @ jnp.where(real, basis, 0.0)
    return jnp.clip(jnp.linalg.norm(parts, axis=1), 0.0, 1.0)


def _binned(values: Array, bins: int) -> Array:
    """Returns bins of about equal counts; equal values share the bin of the first value."""
    below = jnp.searchsorted(jnp.sort(values), values, side="left")
    return (below * bins) // values.shape[0]


@partial(jax.jit, static_argnums=(2, 3))
def _information(x: Array, labels: Array, bins: int, classes: int) -> Array:
    n = x.shape[0]
    entropy = lambda counts: jax.scipy.special.entr(counts / n).sum()

    def feature(column: Array) -> Array:
        cells = _binned(column, bins) * classes + labels
        table = jnp.zeros(bins * classes).at[cells].add(1.0).reshape(bins, classes)
        of_bins, of_classes = table.sum(1), table.sum(0)
        chance = ((of_bins > 0).sum() - 1) * ((of_classes > 0).sum() - 1) / (2 * n)
        return jnp.maximum(entropy(of_bins) + entropy(of_classes) - entropy(table) - chance, 0.0)

    return jax.lax.map(feature, x.T, batch_size=64)


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
    x = x if isinstance(x, Tracer) else np.asarray(x)
    x = x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x
    return _correlations(_ranked(x) if ranked else _shifted(x))


def mrmr(
    relevance: Any,
    similarity: Any,
    count: int,
    *,
    quotient: bool = False,
    pool: Callable[..., np.ndarray] = np.mean,
) -> np.ndarray:
    r"""Chooses features one by one, relevant and unlike the chosen ones (minimum redundancy, maximum relevance).

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
      (count,) the numbers of the chosen features, in the order in which they were chosen. If features are equal, the
      first is chosen.

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
      scores: (features,) larger is kept; if scores are equal, the first feature is kept.
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
