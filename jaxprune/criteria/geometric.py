"""`distance_sums`: the sum of distances from each vector to all vectors, for the geometric median of filters (FPGM)."""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def distance_sums(rows: Any) -> Array:
    r"""Returns the sum of the Euclidean distances of each row to all rows.

        s_i = \sum_j || w_i - w_j ||

    The row with the smallest sum is nearest to the geometric median (He et al. 2019, FPGM, arXiv 1811.00250, eq. 4-6).

    Args:
      rows: (n, entries) numbers.

    Returns:
      (n,) sums in float32 at least. Distances are norms of differences, so equal rows have a distance of exactly 0.

    Example:
      >>> distance_sums([[0.0], [1.0], [5.0]]).tolist()
      [6.0, 5.0, 9.0]
    """
    rows = jnp.asarray(rows)
    return _distance_sums(rows.astype(jnp.promote_types(rows.dtype, jnp.float32)))


@jax.jit
def _distance_sums(rows: Array) -> Array:
    return jax.lax.map(lambda own: jnp.linalg.norm(rows - own, axis=1).sum(), rows)
