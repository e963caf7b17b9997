"""`keep_in_groups`: keeps n of m, by comparing the members of each group in pairs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import keys


def keep_in_groups(scores: jax.Array, kept: int | jax.Array, *, axis: int) -> jax.Array:
    """Keeps the same number of largest scores in each group.

    The rank of a member is the number of members with a larger score, or with an equal score and a lower index. A
    member is kept if its rank is below `kept`. So NaN ranks lowest, and of equal scores the lowest index is kept.

    Args:
      scores: floating, any shape.
      kept: the number to keep in each group; another traced int32 does not recompile.
      axis: the axis of the m members of a group.

    Returns:
      bool, in the shape of `scores`.
    """
    key = keys.ordered(scores)
    if isinstance(kept, int) and kept == 1:
        position = lax.broadcasted_iota(jnp.int32, key.shape, axis)
        return position == jnp.argmax(key, axis=axis, keepdims=True)
    rank = _rank_one_by_one(key, axis) if axis == key.ndim - 1 else _rank_by_pairs(key, axis)
    return rank < kept


# In both functions an earlier member wins a tie, because 1 is subtracted from the key of the other member. No key is
# the least integer, so no key wraps round. Comparing by pairs is slow if groups are along the last axis; one by one is
# slower for larger groups.


def _rank_by_pairs(key: jax.Array, axis: int) -> jax.Array:
    # The broadcast comparison fuses into the sum, so no array of pairs is stored.
    members = key.shape[axis]
    earlier = np.arange(members)[:, None] < np.arange(members)
    shape = [1] * (key.ndim + 1)
    shape[axis : axis + 2] = [members, members]
    behind = jnp.expand_dims(key, axis) - earlier.reshape(shape).astype(key.dtype)
    return (jnp.expand_dims(key, axis + 1) > behind).sum(axis, dtype=jnp.int32)


def _rank_one_by_one(key: jax.Array, axis: int) -> jax.Array:
    position = lax.broadcasted_iota(jnp.int32, key.shape, axis)
    rank = jnp.zeros(key.shape, jnp.int32)
    for j in range(key.shape[axis]):
        other = lax.slice_in_dim(key, j, j + 1, axis=axis)
        rank += (other > key - (j < position).astype(key.dtype)).astype(jnp.int32)
    return rank
