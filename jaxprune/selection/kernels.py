"""Centred kernel alignment: whether two layers, or two channels, say the same of the same samples."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def cka(a: Any, b: Any) -> Array:
    r"""Linear centred kernel alignment of two representations of the same samples.

        CKA = ||A'B||_F^2 / (||A'A||_F ||B'B||_F),    columns centred

    Kornblith et al. 2019, arXiv 1905.00414, eq. 4 with a linear kernel. It is 1 for what differs by a rotation and a
    scale. Computed over samples or over features, whichever are fewer.

    Args:
      a: (n, ...), one sample a row.
      b: (n, ...).

    Returns:
      A scalar in [0, 1], in float32 at least; 0 where one of them does not vary.

    Raises:
      ValueError: different numbers of samples, or fewer than two.

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
    """CKA of each layer with each other.

    Args:
      activations: by layer (n, ...) of the same samples.

    Returns:
      (layers, layers), 1 on the diagonal for layers that vary.

    Raises:
      ValueError: fewer than two layers, or what `cka` raises.
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
    """Two layers that say nearly the same.

    Attributes:
      first: the earlier layer.
      second: the later one: a candidate to drop, for what came before says it already.
      cka: their alignment.
    """

    first: str
    second: str
    cka: float


def similar_layers(activations: Mapping[str, Any], *, threshold: float = 0.95) -> list[Alike]:
    """Layers that say nearly the same as another, as candidates to drop, the most alike first.

    Whether a candidate can go is to be seen by removing it: alignment looks at directions of much variance alone
    (Davari et al. 2022, arXiv 2210.16156).

    Args:
      activations: by layer (n, ...) of the same samples, in the order of the network.
      threshold: the alignment from which on two layers are reported, in (0, 1].

    Returns:
      The pairs.

    Raises:
      ValueError: a threshold out of range, or what `layer_similarity` raises.
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
    """CKA of each channel with each other: each channel's maps (n, height x width) are a representation of their own.

    Unlike correlation it does not care where in the map something is said, or with which sign.

    Args:
      activations: (n, ..., channels).

    Returns:
      (channels, channels).

    Raises:
      ValueError: fewer than two axes or samples.
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
