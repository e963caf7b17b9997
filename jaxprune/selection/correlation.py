"""Features by their correlation with the target, and with each other."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.selection import checks

Array = jax.Array


def pearson(x: Any, y: Any) -> Array:
    r"""The size of each feature's linear correlation with the target.

        s_j = max_k | \sum_i (x_ij - m_j)(y_ik - m_k) | / (n sd_j sd_k)

    Args:
      x: (n, features), numbers.
      y: (n,) a number or two classes; or (n, targets), several classes one-hot: the largest of them counts.

    Returns:
      (features,) scores in [0, 1] in float32 at least; 0 for a feature, or a target, that does not vary.

    Raises:
      ValueError: shapes do not fit, fewer than two samples, NaN or infinite values.

    Example:
      >>> pearson(jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]), jnp.array([1, 0, -1])).round(4).tolist()
      [1.0, 0.0]
    """
    x = checks.samples(x)
    return _strongest(x, checks.targets(y, x.shape[0]))


def spearman(x: Any, y: Any) -> Array:
    """The size of each feature's rank correlation with the target: `pearson` of their ranks.

    It finds any monotone relation. Equal values share the mean of their ranks (Spearman 1904; as scipy counts).

    Args:
      x: (n, features), numbers.
      y: as for `pearson`.

    Returns:
      (features,) scores in [0, 1]; 0 for what does not vary.

    Raises:
      ValueError: as `pearson` does.

    Example:
      >>> spearman(jnp.array([[1.0], [2.0], [40.0]]), jnp.array([1, 8, 9])).round(4).tolist()
      [1.0]
    """
    x = checks.samples(x)
    return _strongest(ranks(x), ranks(checks.targets(y, x.shape[0])))


def correlations(x: Any, *, ranked: bool = False) -> Array:
    """The size of the correlation of each feature with each other, for redundancy: see `mrmr` and `clusters`.

    Args:
      x: (n, features), numbers.
      ranked: whether to correlate ranks (Spearman) and not values.

    Returns:
      (features, features) in [0, 1], symmetric; 1 on the diagonal, and 0 with what does not vary.

    Raises:
      ValueError: as `pearson` does.

    Example:
      >>> correlations(jnp.array([[1.0, -1.0], [2.0, -2.0], [0.0, 0.0]])).round(4).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    x = checks.samples(x)
    return _correlations(ranks(x) if ranked else x)


@jax.jit
def ranks(x: Array) -> Array:
    """The rank of each value in its column, from 1; equal values share the mean of theirs."""

    def column(values: Array) -> Array:
        ordered = jnp.sort(values)
        below = jnp.searchsorted(ordered, values, side="left")
        upto = jnp.searchsorted(ordered, values, side="right")
        return ((below + upto + 1) / 2).astype(values.dtype)

    return jax.vmap(column, 1, 1)(x)


def standard(x: Array) -> Array:
    """Columns of mean 0 and sum of squares 1; a column that does not vary becomes 0."""
    centred = x - x.mean(0)
    # Rounding of the mean leaves something of a constant column: less than an ulp of its values each.
    still = jnp.max(x, 0) == jnp.min(x, 0)
    norm = jnp.linalg.norm(centred, axis=0)
    return jnp.where(still, 0.0, centred / jnp.where(still, 1.0, norm))


@jax.jit
def _strongest(x: Array, y: Array) -> Array:
    return jnp.clip(jnp.abs(standard(x).T @ standard(y)).max(1), 0.0, 1.0)


@jax.jit
def _correlations(x: Array) -> Array:
    unit = standard(x)
    found = jnp.clip(jnp.abs(unit.T @ unit), 0.0, 1.0)
    return jnp.where(jnp.eye(x.shape[1], dtype=bool), 1.0, found)
