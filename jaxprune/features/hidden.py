"""Scores of hidden channels by their activations: `distinctness`, `alive` and `map_rank`.

Activations have shape (n, ..., channels), as a layer returns them. Every position counts as a sample, except where the
docstring says otherwise. `slimming.unit_scores` takes such scores to slimming; `correlations` and `channel_similarity`
compare channels with each other.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.features import _checks
from jaxprune.features.redundancy import correlations

Array = jax.Array


def distinctness(activations: Any) -> Array:
    """One minus the largest correlation of a channel with another: a channel that no other can replace scores high.

    Args:
      activations: (n, ..., channels), two channels or more.

    Returns:
      (channels,) scores in [0, 1]; 0 for a channel that does not vary.

    Raises:
      ValueError: activations have fewer than two axes, samples or channels, or NaN or infinite values.

    Example:
      >>> x = jnp.array([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0]])
      >>> [round(s, 3) for s in distinctness(x).tolist()]
      [0.0, 0.0, 1.0]
    """
    values = _checks.activations(activations)
    if values.shape[-1] < 2:
        raise ValueError("distinctness compares a channel with others; there is one channel alone")
    flat = values.reshape(-1, values.shape[-1])
    alike = correlations(flat)
    still = flat.max(0) == flat.min(0)
    others = jnp.where(jnp.eye(len(alike), dtype=bool), -jnp.inf, alike).max(1)
    return jnp.where(still, 0.0, 1.0 - others)


def alive(activations: Any) -> Array:
    """The fraction of a channel's activations that are not zero: 1 - APoZ.

    Hu et al. 2016 (Network Trimming), arXiv 1607.03250, eq. 1. `criteria.apoz` computes it from calibration stats.

    Args:
      activations: (n, ..., channels), after a ReLU.

    Returns:
      (channels,) scores in [0, 1].

    Raises:
      ValueError: activations have fewer than two axes, or NaN or infinite values.

    Example:
      >>> alive(jnp.array([[1.0, 0.0], [2.0, 0.0]])).tolist()
      [1.0, 0.0]
    """
    values = _checks.activations(activations)
    return (values != 0).mean(tuple(range(values.ndim - 1)), dtype=jnp.float32)


def map_rank(activations: Any, *, batch: int = 64) -> Array:
    """The rank of a channel's feature maps, averaged over the samples.

    Lin et al. 2020 (HRank), arXiv 2002.10179, eq. 5. A singular value counts if it is above the largest one times the
    longer side times the machine epsilon, NumPy's rule for `matrix_rank`.

    Args:
      activations: (n, height, width, channels).
      batch: the number of maps decomposed at once, static; the result does not depend on it.

    Returns:
      (channels,) scores from 0 to the smaller of height and width.

    Raises:
      ValueError: activations do not have four axes, or have NaN or infinite values.

    Example:
      >>> maps = jnp.stack([jnp.eye(3), jnp.ones((3, 3))], -1)[None]
      >>> map_rank(maps).tolist()
      [3.0, 1.0]
    """
    values = _checks.activations(activations)
    if values.ndim != 4:
        raise ValueError(f"map_rank needs activations (n, height, width, channels); got {values.shape}")
    return _map_rank(values, batch)


@partial(jax.jit, static_argnums=1)
def _map_rank(values: Array, batch: int) -> Array:
    n, height, width, channels = values.shape
    maps = jnp.transpose(values, (0, 3, 1, 2)).reshape(-1, height, width)
    ranks = jax.lax.map(jnp.linalg.matrix_rank, maps, batch_size=min(batch, n * channels))
    return ranks.reshape(n, channels).astype(values.dtype).mean(0)
