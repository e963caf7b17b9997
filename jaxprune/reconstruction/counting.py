"""Which entries of a matrix of saliencies are kept: n of m along the inputs, so many of each block."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import keys

_INPUTS = 46_340  # 2 * _INPUTS**2 < 2**32


def n_of_m(saliency: jax.Array, n: int, m: int) -> jax.Array:
    """The n largest of each m consecutive inputs, in every output; of equal ones the lowest index is kept.

    Args:
      saliency: float[inputs, outputs], m divides inputs.
      n: how many are kept.
      m: of how many.

    Returns:
      bool of the same shape.

    Example:
      >>> n_of_m(jnp.array([[3.0], [1.0], [1.0], [2.0]]), 1, 2)[:, 0].tolist()
      [True, False, False, True]
    """
    rows = saliency.reshape(-1, m, saliency.shape[1])
    mine, other = rows[:, :, None], rows[:, None, :]
    earlier = (jnp.arange(m)[None, :] < jnp.arange(m)[:, None])[None, :, :, None]
    ahead = (other > mine) | ((other == mine) & earlier)
    return (ahead.sum(2) < n).reshape(saliency.shape)


def kept_by_block(removed: jax.Array | int, inputs: int, outputs: int, block: int) -> jax.Array:
    r"""How many entries each block of inputs keeps, so that all blocks together lose exactly `removed`.

    Up to the end of a block at row $r$, $\lfloor k r / \text{inputs} + 1/2 \rfloor$ entries are removed.

    Args:
      removed: $k$, at most inputs times outputs; an int32 scalar may be traced.
      inputs: rows in all, at most 46,340.
      outputs: columns; fewer than 2^31 entries in all.
      block: rows in a block. The last block counts as full: rows that it lacks are kept, by infinite saliencies.

    Returns:
      int32[blocks].

    Raises:
      ValueError: the matrix is too large for exact 32-bit arithmetic.

    Example:
      >>> kept_by_block(5, 5, 2, 2).tolist()
      [2, 2, 3]
    """
    if inputs > _INPUTS or inputs * outputs >= 2**31:
        raise ValueError(
            f"a matrix of {inputs} x {outputs} is too large to be counted exactly: at most {_INPUTS} inputs and fewer "
            "than 2^31 entries"
        )
    ends = np.minimum(np.arange(block, inputs + block, block), inputs).astype(np.uint32)
    # k = q inputs + rest, so k r / inputs = q r + rest r / inputs, and 2 rest r < 2^32.
    k = jnp.asarray(removed).astype(jnp.uint32)
    quotient, rest = k // np.uint32(inputs), k % np.uint32(inputs)
    upto = quotient * ends + (2 * rest * ends + np.uint32(inputs)) // np.uint32(2 * inputs)
    return (np.uint32(block * outputs) - jnp.diff(upto, prepend=jnp.zeros(1, jnp.uint32))).astype(jnp.int32)


def keep_largest(saliency: jax.Array, kept: jax.Array | int) -> jax.Array:
    """The so many largest of a matrix; of equal ones the lowest index is kept.

    The threshold is found bit by bit, in as many counting passes as a key has bits. `masks.select` needs far fewer
    passes, but as the body of a scan it takes ten times as long to compile, and a block fits the cache.

    Args:
      saliency: float[rows, columns], fewer than 2^31 entries. NaN ranks lowest.
      kept: int32 scalar, may be traced.

    Returns:
      bool of the same shape.

    Example:
      >>> keep_largest(jnp.array([[1.0, 3.0], [1.0, 2.0]]), 3).tolist()
      [[True, True], [False, True]]
    """
    signed = keys.ordered(saliency)
    bits = signed.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{bits}")
    key = lax.bitcast_convert_type(signed, unsigned) ^ jnp.array(1 << (bits - 1), unsigned)
    one = jnp.array(1, unsigned)

    def refine(i: jax.Array, threshold: jax.Array) -> jax.Array:
        probe = threshold | (one << (bits - 1 - i).astype(unsigned))
        return jnp.where((key >= probe).sum() >= kept, probe, threshold)

    threshold = lax.fori_loop(0, bits, refine, jnp.array(0, unsigned))
    above, tied = key > threshold, key == threshold
    wanted = kept - above.sum()
    return above | (tied & (_flat_index(key.shape) < _cut(tied, wanted)))


def _cut(tied: jax.Array, wanted: jax.Array) -> jax.Array:
    # The largest flat index before which no more than `wanted` entries tie; none to look for if all of them are kept.
    index = _flat_index(tied.shape)

    def refine(i: jax.Array, cut: jax.Array) -> jax.Array:
        probe = cut | (jnp.int32(1) << (30 - i))
        return jnp.where((tied & (index < probe)).sum() <= wanted, probe, cut)

    turns = jnp.where(tied.sum() == wanted, 0, 31)
    return lax.fori_loop(0, turns, refine, jnp.where(turns == 0, jnp.int32(2**31 - 1), 0))


def _flat_index(shape: tuple[int, ...]) -> jax.Array:
    rows, columns = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return rows * shape[1] + columns


def keep_per_output(saliency: jax.Array, removed: jax.Array | int) -> jax.Array:
    """Keeps all but the `removed` smallest of each output; of equal ones the lowest index is kept.

    Args:
      saliency: float[inputs, outputs].
      removed: from each output; an int32 scalar may be traced.

    Returns:
      bool of the same shape.

    Example:
      >>> keep_per_output(jnp.array([[1.0, 5.0], [2.0, 4.0]]), 1).tolist()
      [[False, True], [True, False]]
    """
    keep = lambda column: keep_largest(column[:, None], saliency.shape[0] - removed)[:, 0]
    return jax.vmap(keep, in_axes=1, out_axes=1)(saliency)
