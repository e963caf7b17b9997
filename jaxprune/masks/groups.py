"""n of m kept: the rank of each member within its group, by comparing pairs."""

import jax
import jax.numpy as jnp

from jaxprune.masks import keys


def keep_in_groups(scores: jax.Array, kept: int | jax.Array, *, axis: int) -> jax.Array:
    """Keeps so many of the largest of each group.

    The rank of a member is the number of members with a larger score, or with an equal one and a lower index; it is
    kept if its rank is below `kept`. So NaN ranks lowest and of equal scores the lowest index is kept.

    Args:
      scores: floating, any shape.
      kept: how many of each group; a traced int32 does not recompile.
      axis: along which the m members of a group lie.

    Returns:
      bool, in the shape of `scores`.
    """
    key = keys.ordered(scores)
    members = key.shape[axis]
    position = jax.lax.broadcasted_iota(jnp.int32, key.shape, axis)
    if isinstance(kept, int) and kept == 1:
        return position == jnp.argmax(key, axis=axis, keepdims=True)
    # Member by member, each against all: the comparisons fuse, and no array of pairs is made.
    rank = jnp.zeros(key.shape, jnp.int32)
    for j in range(members):
        other = jax.lax.slice_in_dim(key, j, j + 1, axis=axis)
        rank += ((other > key) | ((other == key) & (j < position))).astype(jnp.int32)
    return rank < kept
