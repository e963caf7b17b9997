"""Centred kernel alignment (CKA) of layers and of channels: `cka`, `layer_similarity`, `similar_layers` and others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def cka(a: Any, b: Any) -> Array:
    r"""Linear centred kernel alignment of two representations of the same samples.

        CKA = ||A'B||_F^2 / (||A'A||_F ||B'B||_F),    columns centred

    Kornblith et al. 2019, arXiv 1905.00414, eq. 4 with a linear kernel. It is 1 for representations that differ by a
    rotation and a scale.

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
        raise ValueError(f"a and b must be of the same two samples or more; got {a.shape[0]} and {b.shape[0]}")
    return _cka(a, b)


def layer_similarity(activations: Mapping[str, Any]) -> np.ndarray:
    """The CKA of each layer with each other layer.

    Args:
      activations: by the name of a layer its activations (n, ...), all of the same samples.

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
        raise ValueError(f"there must be two layers to compare; got {list(activations)}")
    values = list(activations.values())
    found = np.zeros((len(values), len(values)))
    for i, a in enumerate(values):
        for j in range(i + 1):
            found[i, j] = found[j, i] = float(cka(a, values[j]))
    return found


class Alike(NamedTuple):
    """Two layers that represent samples in nearly the same way.

    Attributes:
      first: the name of the earlier layer.
      second: the name of the later layer, a candidate to drop.
      cka: their alignment.
    """

    first: str
    second: str
    cka: float


def similar_layers(activations: Mapping[str, Any], *, threshold: float = 0.95) -> list[Alike]:
    """Lists the pairs of layers that represent samples in nearly the same way, the most similar pair first.

    Such a layer is a candidate to drop. Try it: CKA sees only directions of large variance (Davari et al. 2022, arXiv
    2210.16156), and the network may need the others.

    Args:
      activations: by the name of a layer its activations (n, ...), all of the same samples, in the order of the
        network.
      threshold: the CKA from which on a pair is listed, in (0, 1].

    Returns:
      The pairs.

    Raises:
      ValueError: `threshold` is out of range, there are fewer than two layers or samples, or different numbers of
        samples.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
      >>> [(pair.first, pair.second) for pair in similar_layers({'first': x, 'second': 2 * x})]
      [('first', 'second')]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is an alignment in (0, 1]; got {threshold}")
    names, found = list(activations), layer_similarity(activations)
    pairs = [
        Alike(names[i], names[j], float(found[i, j]))
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if found[i, j] >= threshold
    ]
    return sorted(pairs, key=lambda pair: -pair.cka)


def channel_similarity(activations: Any) -> Array:
    """The CKA of each channel with each other, where the maps (n, height x width) of a channel are its representation.

    Unlike `correlations` it depends neither on the positions in the map nor on the sign.

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


@jax.jit
def _channels(maps: Array) -> Array:
    return jax.lax.map(lambda a: jax.vmap(lambda b: _aligned(a, b))(maps), maps)


@jax.jit
def _cka(a: Array, b: Array) -> Array:
    return _aligned(a, b)


def _aligned(a: Array, b: Array) -> Array:
    a, b = a - a.mean(0), b - b.mean(0)
    # One scale for all: squares of squares would overflow float32 early.
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
