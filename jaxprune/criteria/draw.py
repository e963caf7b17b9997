"""Scores drawn at random: the control that every criterion is measured against."""

import zlib
from typing import Any

import jax

from jaxprune import _tree
from jaxprune.criteria.signals import of_leaf, wide
from jaxprune.masks._exact import shards
from jaxprune.masks._exact.axes import named_sharding

PyTree = Any


def random(params: PyTree, *, key: jax.Array | None = None, specs: PyTree = None, **signals: Any) -> PyTree:
    """Uniform random numbers.

        s ~ U[0, 1)

    Each leaf draws from `fold_in(key, crc32(name))`, so its scores depend on the key, its own name and its shape:
    layers that are added, removed or reordered change no other's. Numbers are drawn in float32 where the parameter
    is narrower, else a bfloat16 leaf would have 128 distinct scores. The float32 draws take 2^23 values: in a leaf of
    n entries about n / 2^23 tie with the threshold, and of these the lowest indices are kept. The bits are the same on
    any number of devices (JAX's default, `jax_threefry_partitionable`). On a mesh of Explicit axes they lie where the
    parameter does; on Auto axes the compiler decides, by `out_shardings` of the jitted function that calls this. With
    `specs`, in a shard_map, each device draws the whole leaf and takes its part.

    Args:
      params: any tree.
      key: a key of `jax.random`, typed or raw.
      specs: inside `jax.shard_map`, the `PartitionSpec` of each parameter; see `masks.Units`.
      **signals: ignored.

    Returns:
      A tree of scores in [0, 1), float32 (float64 for float64 leaves); a scalar zero for leaves that are not floating.

    Raises:
      ValueError: there is no key.
      TypeError: a seed in place of a key.

    Example:
      >>> scores = random({'kernel': jnp.ones((2, 3), jnp.bfloat16)}, key=jax.random.key(0))
      >>> scores['kernel'].shape, scores['kernel'].dtype.name
      ((2, 3), 'float32')
    """
    del signals
    if key is None:
        raise ValueError("criteria.random needs key: pass key=jax.random.key(seed)")
    check_key(key)

    def draw(name: str, leaf: Any, layout: shards.Layout) -> jax.Array:
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return of_leaf(lambda w: _uniform(own, w, layout), leaf)

    layouts = jax.tree.unflatten(jax.tree.structure(params), shards.layouts(params, specs))
    return _tree.map_named(draw, params, layouts)


def check_key(key: Any) -> None:
    """Raises where a seed was passed for a key; None is none.

    Args:
      key: a key of `jax.random`, typed or raw, or None.

    Raises:
      TypeError: it is neither.

    Example:
      >>> check_key(jax.random.key(0))
    """
    if key is not None and not hasattr(key, "dtype"):
        raise TypeError(f"key must be a key of jax.random: pass jax.random.key(seed); got {key!r}")


def _uniform(key: jax.Array, w: jax.Array, layout: shards.Layout) -> jax.Array:
    if layout.is_cut:
        return layout.own(jax.random.uniform(key, layout.whole(w.shape), wide(w.dtype)), w.shape)
    # Where types name the devices, drawn where the parameter lies; else it would be whole on each of them.
    return jax.random.uniform(key, w.shape, wide(w.dtype), out_sharding=named_sharding(w))
