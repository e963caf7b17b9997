"""Criteria that read the weights alone: `magnitude`, and `random`, the control for every other criterion."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _tree
from jaxprune.criteria._scores import score_leaf, wide
from jaxprune.masks._exact import shards

PyTree = Any
_NORMS = ("l1", "l2", "mean", "max")


def magnitude(
    params: PyTree,
    *,
    power: int = 1,
    normalise: str | None = None,
    batch_axes: _tree.BatchAxes = 0,
    specs: PyTree = None,
    **signals: Any,
) -> PyTree:
    r"""Returns the absolute value of each weight or its square, optionally divided by a norm of its leaf.

        s = |w|^power / norm

    The norm of a leaf, over its n scores a = |w|^power, is

        None   1
        "l1"   sum a
        "l2"   sqrt(sum a^2)
        "mean" sum a / n
        "max"  max a

    Norms change no ranking within a leaf; they matter where leaves are ranked together (`allocation.one_ranking`).
    An entry that is NaN or infinite has the score NaN or infinity. It adds 0 to the norm, but counts in n. Sums are
    exact, so scores have the same bits for every sharding; inside a shard_map pass `specs`.

    Args:
      params: any tree.
      power: 1 (default) or 2. Both give the same ranking of single weights, unless squares under- or overflow. Sums
        over blocks or channels are L1 norms for 1 and squared L2 norms for 2.
      normalise: None (default), "l1", "l2", "mean" or "max".
      batch_axes: the axes of a leaf along which a scan stacks layers, each normalised separately: a number of leading
        axes, a tuple of axes, or a mapping from globs over names; default 0. Axes that a framework marks are known.
      specs: inside `jax.shard_map`, the `PartitionSpec` of each parameter; see `masks.Units`. Default None.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more: |w| in the dtype of the parameter, squares and normalised scores in float32 at least;
      a scalar zero for leaves that are not floating.

    Raises:
      ValueError: `power` or `normalise` has another value.

    Example:
      >>> magnitude({'kernel': jnp.array([-3.0, 1.0])}, normalise='l1')
      {'kernel': Array([0.75, 0.25], dtype=float32)}
    """
    del signals
    if power not in (1, 2):
        raise ValueError(f"criteria.magnitude: power must be 1 or 2; got {power!r}")
    if normalise is not None and normalise not in _NORMS:
        raise ValueError(f"criteria.magnitude: normalise must be None or one of {', '.join(_NORMS)}; got {normalise!r}")

    leaves, treedef = jax.tree.flatten(params)
    layouts = shards.of_leaves(params, specs)
    floating = [k for k, leaf in enumerate(leaves) if _tree.is_floating(leaf)]
    function, on_host = (_size, np.abs) if power == 1 else (_square, None)
    sizes = _tree.each(function, [leaves[k] for k in floating], on_host=on_host)
    if normalise is not None:
        roles = _tree.leaf_roles(params, None, batch_axes)
        for i, (k, size) in enumerate(zip(floating, sizes, strict=True)):
            axes = tuple(a for a in range(size.ndim) if a not in roles[k].stacked)
            sizes[i] = _normalised(size, normalise, axes, layouts[k])
    found = dict(zip(floating, sizes, strict=True))
    return treedef.unflatten([found[k] if k in found else jnp.zeros(()) for k in range(len(leaves))])


def _size(w: Any) -> jax.Array:
    return jnp.abs(jnp.asarray(w))


def _square(w: Any) -> jax.Array:
    size = _size(w)
    return jnp.square(size.astype(wide(size.dtype)))


def _normalised(size: jax.Array, norm: str, axes: tuple[int, ...], layout: shards.Shards) -> jax.Array:
    size = size.astype(wide(size.dtype))
    if not size.size:
        return size
    finite = jnp.where(jnp.isfinite(size), size, 0)
    largest = finite.max(axes, keepdims=True)
    if layout.along(axes):
        largest = lax.pmax(largest, layout.along(axes))
    # Scaling to about 1 by a power of two is exact. It keeps sums from overflowing and from underflowing to zero.
    scale = jnp.ldexp(jnp.ones_like(largest), -jnp.clip(jnp.frexp(largest)[1], -120, 120))
    scaled, largest = size * scale, largest * scale
    finite = finite * scale
    if norm == "max":
        divisor = largest
    else:
        divisor = shards.exact_sum(finite * finite if norm == "l2" else finite, axes, layout).astype(size.dtype)
    if norm == "l2":
        divisor = jnp.sqrt(divisor)
    if norm == "mean":
        divisor = divisor * (divisor.size / (size.size * layout.number(axes)))
    # Without the barrier a compiler turns a division by a constant into a product for some shardings but not for
    # others, and the bits differ.
    return scaled / lax.optimization_barrier(jnp.where(largest > 0, divisor, 1))


def random(params: PyTree, *, key: jax.Array | None = None, specs: PyTree = None, **signals: Any) -> PyTree:
    """Returns uniform random scores, the control for every other criterion.

        s ~ U[0, 1)

    Each leaf draws from `fold_in(key, crc32(name))`, so its scores depend on the key, its name and its shape only;
    adding, removing or reordering layers changes no other leaf. Numbers are drawn in float32 at least, because a
    bfloat16 leaf would have only 128 distinct scores. float32 draws take 2^23 values, so about n / 2^23 of a leaf's n
    entries tie with the threshold; the lowest indices are kept. The bits are the same on any number of devices (with
    JAX's default, `jax_threefry_partitionable`). On a mesh with Explicit axes the scores have the sharding of the
    parameter; with Auto axes the compiler decides, by `out_shardings` of the enclosing jit. Inside a shard_map, with
    `specs`, each device draws the scores of the whole leaf and takes its shard.

    Args:
      params: any tree.
      key: a key of `jax.random`, typed or raw.
      specs: inside `jax.shard_map`, the `PartitionSpec` of each parameter; see `masks.Units`. Default None.
      **signals: ignored.

    Returns:
      A tree of scores in [0, 1), float32 (float64 for float64 leaves); a scalar zero for leaves that are not floating.

    Raises:
      ValueError: the key is missing.
      TypeError: `key` is a seed or another value that is not a key.

    Example:
      >>> scores = random({'kernel': jnp.ones((2, 3), jnp.bfloat16)}, key=jax.random.key(0))
      >>> scores['kernel'].shape, scores['kernel'].dtype.name
      ((2, 3), 'float32')
    """
    del signals
    if key is None:
        raise ValueError("criteria.random needs key: pass key=jax.random.key(seed)")
    _tree.check_key(key)

    def draw(name: str, leaf: Any, layout: shards.Shards) -> jax.Array:
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return score_leaf(lambda w: _uniform(own, w, layout), leaf)

    layouts = jax.tree.unflatten(jax.tree.structure(params), shards.of_leaves(params, specs))
    return _tree.map_named(draw, params, layouts)


def _uniform(key: jax.Array, w: jax.Array, layout: shards.Shards) -> jax.Array:
    if layout.is_cut:
        return layout.own(jax.random.uniform(key, layout.whole(w.shape), wide(w.dtype)), w.shape)
    # With Explicit axes the scores are drawn in the parameter's sharding; otherwise each device would hold all of them.
    return jax.random.uniform(key, w.shape, wide(w.dtype), out_sharding=shards.named_sharding(w))
