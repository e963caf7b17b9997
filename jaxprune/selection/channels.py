"""Hidden features: what the activations of channels say about each of them. Kernels of arrays, for any layer.

All take activations (n, ..., channels), as a network gives them out at a layer; samples and places are put together,
save where the docstring says otherwise. `unit_scores` takes them to slimming.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.criteria.geometric import distance_sums
from jaxprune.selection.correlation import correlations
from jaxprune.slimming import Groups

Array = jax.Array


def similarity(activations: Any, *, ranked: bool = False) -> Array:
    """The size of the correlation of each channel with each other.

    Args:
      activations: (n, ..., channels).
      ranked: whether to correlate ranks.

    Returns:
      (channels, channels) in [0, 1].

    Raises:
      ValueError: fewer than two axes or samples, NaN or infinite values.
    """
    values = _activations(activations)
    return correlations(values.reshape(-1, values.shape[-1]), ranked=ranked)


def distinctness(activations: Any) -> Array:
    """One less the largest correlation of a channel with another: what nothing else says is worth keeping.

    Args:
      activations: (n, ..., channels), two channels or more.

    Returns:
      (channels,) scores in [0, 1]; a channel that does not vary has 0.

    Raises:
      ValueError: as `similarity` does, or there is one channel alone.

    Example:
      >>> x = jnp.array([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [3.0, 6.0, 0.0]])
      >>> [round(s, 3) for s in distinctness(x).tolist()]
      [0.0, 0.0, 1.0]
    """
    values = _activations(activations)
    if values.shape[-1] < 2:
        raise ValueError("distinctness compares a channel with others; there is one channel alone")
    found = similarity(values)
    flat = values.reshape(-1, values.shape[-1])
    still = flat.max(0) == flat.min(0)
    others = jnp.where(jnp.eye(len(found), dtype=bool), -jnp.inf, found).max(1)
    return jnp.where(still, 0.0, 1.0 - others)


def alive(activations: Any) -> Array:
    """The fraction of activations that are not zero: 1 - APoZ.

    Hu et al. 2016 (Network Trimming), arXiv 1607.03250, eq. 1. `criteria.apoz` is the same from a calibration.

    Args:
      activations: (n, ..., channels), after a ReLU.

    Returns:
      (channels,) scores in [0, 1].

    Raises:
      ValueError: fewer than two axes, NaN or infinite values.

    Example:
      >>> alive(jnp.array([[1.0, 0.0], [2.0, 0.0]])).tolist()
      [1.0, 0.0]
    """
    values = _activations(activations)
    return (values != 0).mean(tuple(range(values.ndim - 1)), dtype=jnp.float32)


def map_rank(activations: Any, *, batch: int = 64) -> Array:
    """The mean rank of a channel's feature maps over the samples.

    Lin et al. 2020 (HRank), arXiv 2002.10179, eq. 5. A singular value counts above the largest times the greater side
    times the machine epsilon, as in NumPy's matrix_rank.

    Args:
      activations: (n, height, width, channels).
      batch: how many maps are decomposed at once, static; the result does not depend on it.

    Returns:
      (channels,) scores from 0 to the smaller of height and width.

    Raises:
      ValueError: not four axes, NaN or infinite values.
    """
    values = _activations(activations)
    if values.ndim != 4:
        raise ValueError(f"map_rank needs activations (n, height, width, channels); got {values.shape}")
    return _map_rank(values, batch)


def median_distance(kernel: Any, *, axis: int = -1) -> Array:
    r"""The sum of the distances of a filter to all others: small near the geometric median, where others can stand in.

        s_j = \sum_k || w_j - w_k ||

    He et al. 2019 (FPGM), arXiv 1811.00250, eq. 4 to 6.

    Args:
      kernel: the weights.
      axis: the axis of filters.

    Returns:
      (channels,) scores, 0 or more, in float32 at least.

    Raises:
      ValueError: there is no such axis.

    Example:
      >>> median_distance(jnp.array([[0.0, 1.0, 5.0]])).tolist()
      [6.0, 5.0, 9.0]
    """
    kernel = jnp.asarray(kernel)
    if not -kernel.ndim <= axis < kernel.ndim:
        raise ValueError(f"the kernel has shape {kernel.shape} and no axis {axis}")
    filters = jnp.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    return distance_sums(filters)


def unit_scores(groups: Groups, scores: Mapping[str, Any]) -> np.ndarray:
    """Scores of channels as scores of slimming's units, for `slimming.choose`.

    Args:
      groups: the groups.
      scores: for groups by name the scores of their units, in the order of their channels. Groups that are left out
        get infinite scores: they go last. Give `choose` a ratio of those groups alone.

    Returns:
      (units,) float64 scores.

    Raises:
      KeyError: there is no such group.
      ValueError: another number of scores than the group has units, or NaN.
    """
    found = np.full(groups.size, np.inf)
    for name, own in scores.items():
        group, values = groups[name], np.asarray(own, np.float64)
        if values.shape != (group.count,) or np.isnan(values).any():
            raise ValueError(f"group {name} has {group.count} units; got scores {values.shape}, none may be NaN")
        found[group.span] = values
    return found


@partial(jax.jit, static_argnums=1)
def _map_rank(values: Array, batch: int) -> Array:
    n, height, width, channels = values.shape
    maps = jnp.transpose(values, (0, 3, 1, 2)).reshape(-1, height, width)
    ranks = jax.lax.map(jnp.linalg.matrix_rank, maps, batch_size=min(batch, n * channels))
    return ranks.reshape(n, channels).astype(values.dtype).mean(0)


def _activations(values: Any) -> Array:
    found = jnp.asarray(values)
    if found.ndim < 2 or not found.size:
        raise ValueError(f"activations must have shape (n, ..., channels); got {found.shape}")
    found = found.astype(jnp.promote_types(found.dtype, jnp.float32))
    if not isinstance(found, Tracer) and not bool(jnp.isfinite(found).all()):
        raise ValueError(f"activations of shape {found.shape} hold NaN or infinite values")
    return found
