"""Scores and similarities of hidden channels and layers, computed from their activations.

`distinctness`, `alive` and `map_rank` score channels; pass such scores to `slimming.choose` to slim by them.
`cka`, `channel_similarity`, `layer_similarity` and `similar_layers` compare channels or layers by centred kernel
alignment.

Activations have shape (n, ..., channels), as a layer returns them. Every position counts as a sample, unless the
docstring says otherwise.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.features import _checks
from jaxprune.features.scores import correlations

Array = jax.Array


class Alike(NamedTuple):
    """Two layers that represent samples in nearly the same way.

    Attributes:
      first: the name of the earlier layer.
      second: the name of the later layer, a candidate to drop.
      cka: the CKA of the two layers.
    """

    first: str
    second: str
    cka: float


def distinctness(activations: Any) -> Array:
    """Returns one minus the largest correlation with another channel: high for channels that no other can replace.

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
        raise ValueError("distinctness compares channels with each other, but there is only one channel")
    flat = values.reshape(-1, values.shape[-1])
    alike = correlations(flat)
    still = flat.max(0) == flat.min(0)
    others = jnp.where(jnp.eye(len(alike), dtype=bool), -jnp.inf, alike).max(1)
    return jnp.where(still, 0.0, 1.0 - others)


def alive(activations: Any) -> Array:
    """Returns the fraction of a channel's activations that are not zero: 1 - APoZ.

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
    """Returns the rank of a channel's feature maps, averaged over the samples.

    Lin et al. 2020 (HRank), arXiv 2002.10179, eq. 5. A singular value counts if it exceeds the largest one times the
    longer side times the machine epsilon (the rule of NumPy's `matrix_rank`).

    Args:
      activations: (n, height, width, channels).
      batch: the number of maps decomposed at once, static; default 64; it does not change the result.

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


def cka(a: Any, b: Any) -> Array:
    r"""Returns the linear centred kernel alignment of two representations of the same samples.

        CKA = ||A'B||_F^2 / (||A'A||_F ||B'B||_F),    columns centred

    Kornblith et al. 2019, arXiv 1905.00414, eq. 4 with a linear kernel. CKA is 1 for representations that differ only
    by a rotation and a scale.

    Args:
      a: (n, ...) numbers, one sample per row.
      b: (n, ...) numbers of the same samples.

    Returns:
      A scalar in [0, 1], in float32 or wider; 0 if `a` or `b` does not vary.

    Raises:
      ValueError: `a` and `b` have different numbers of samples, or fewer than two.

    Example:
      >>> a = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
      >>> round(float(cka(a, -2 * a[:, ::-1])), 6)
      1.0
    """
    a, b = _rows(a), _rows(b)
    if a.shape[0] != b.shape[0] or a.shape[0] < 2:
        raise ValueError(f"a and b must have the same number of samples, 2 or more; got {a.shape[0]} and {b.shape[0]}")
    return _aligned(a, b)


def layer_similarity(activations: Mapping[str, Any]) -> np.ndarray:
    """Returns the CKA of each pair of layers.

    Args:
      activations: a mapping from layer names to activations (n, ...) of the same samples.

    Returns:
      (layers, layers) in [0, 1], symmetric; 1 on the diagonal for layers that vary.

    Raises:
      ValueError: there are fewer than two layers or samples, or different numbers of samples.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
      >>> layer_similarity({'first': x, 'second': 2 * x}).round(4).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    if len(activations) < 2:
        raise ValueError(f"layer_similarity needs two layers or more; got {list(activations)}")
    values = list(activations.values())
    found = np.zeros((len(values), len(values)))
    for i, a in enumerate(values):
        for j in range(i + 1):
            found[i, j] = found[j, i] = float(cka(a, values[j]))
    return found


def similar_layers(activations: Mapping[str, Any], *, threshold: float = 0.95) -> list[Alike]:
    """Lists the pairs of layers that represent samples in nearly the same way, the most similar pair first.

    The later layer of a pair is a candidate to drop. Evaluate the network without it: CKA depends only on directions of
    large variance (Davari et al. 2022, arXiv 2210.16156), and the network may need the other directions.

    Args:
      activations: a mapping from layer names to activations (n, ...) of the same samples, in the order of the network.
      threshold: the smallest CKA of a listed pair, in (0, 1]; default 0.95.

    Returns:
      A list of pairs.

    Raises:
      ValueError: `threshold` is out of range, there are fewer than two layers or samples, or different numbers of
        samples.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
      >>> [(pair.first, pair.second) for pair in similar_layers({'first': x, 'second': 2 * x})]
      [('first', 'second')]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be a CKA in (0, 1]; got {threshold}")
    names, found = list(activations), layer_similarity(activations)
    pairs = [
        Alike(names[i], names[j], float(found[i, j]))
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if found[i, j] >= threshold
    ]
    return sorted(pairs, key=lambda pair: -pair.cka)


def channel_similarity(activations: Any) -> Array:
    """Returns the CKA of each pair of channels; the representation of a channel is its maps, (n, height x width).

    Unlike `correlations`, this depends neither on positions in the map nor on the sign.

    Args:
      activations: (n, ..., channels), two samples or more.

    Returns:
      (channels, channels) in [0, 1], symmetric.

    Raises:
      ValueError: activations have fewer than two axes or samples.

    Example:
      >>> x = jnp.array([[0.0, 1.0], [1.0, 0.0], [3.0, -2.0]])
      >>> channel_similarity(x).round(4).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    values = jnp.asarray(activations)
    if values.ndim < 2 or values.shape[0] < 2:
        raise ValueError(f"activations must have shape (n, ..., channels), n of 2 or more; got {values.shape}")
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return _channels(jnp.moveaxis(values, -1, 0).reshape(values.shape[-1], values.shape[0], -1))


@partial(jax.jit, static_argnums=1)
def _map_rank(values: Array, batch: int) -> Array:
    n, height, width, channels = values.shape
    maps = jnp.transpose(values, (0, 3, 1, 2)).reshape(-1, height, width)
    ranks = jax.lax.map(jnp.linalg.matrix_rank, maps, batch_size=min(batch, n * channels))
    return ranks.reshape(n, channels).astype(values.dtype).mean(0)


@jax.jit
def _channels(maps: Array) -> Array:
    return jax.lax.map(lambda a: jax.vmap(lambda b: _aligned(a, b))(maps), maps)


@jax.jit
def _aligned(a: Array, b: Array) -> Array:
    a, b = a - a.mean(0), b - b.mean(0)
    # The values are scaled to a largest value of 1, because fourth powers would overflow float32 early.
    a, b = (x / jnp.maximum(jnp.abs(x).max(), 1e-30) for x in (a, b))
    if a.shape[0] < max(a.shape[1], b.shape[1]):
        a, b = a @ a.T, b @ b.T
        cross, own, other = jnp.sum(a * b), jnp.linalg.norm(a), jnp.linalg.norm(b)
    else:
        cross = jnp.sum(jnp.square(a.T @ b))
        own, other = jnp.linalg.norm(a.T @ a), jnp.linalg.norm(b.T @ b)
    scale = own * other
    return jnp.where(scale > 0, jnp.clip(cross / jnp.where(scale > 0, scale, 1.0), 0.0, 1.0), 0.0)


def _rows(values: Any) -> Array:
    found = jnp.asarray(values)
    if found.ndim < 1:
        raise ValueError("a representation must have samples on its first axis; got a scalar")
    found = found.reshape(found.shape[0], -1)
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))
