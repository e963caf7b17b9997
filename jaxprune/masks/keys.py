"""Floats as integers of the same order: what selection compares instead of scores."""

import jax
import jax.numpy as jnp
from jax import lax

# The bits of +inf, by dtype; what is above them, sign aside, is NaN.
_INF_BITS = {"float64": 0x7FF0000000000000, "float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}
_INTS = {8: jnp.int64, 4: jnp.int32, 2: jnp.int16}


def ordered(scores: jax.Array) -> jax.Array:
    """Integers that order as the scores do, elementwise.

    NaN, of either sign and any payload, is one value below -inf; -0.0 equals 0.0; denormals are told apart
    (a comparison of floats would flush them on some back ends). No key is the least integer of its type.

    Args:
      scores: float64, float32, bfloat16 or float16, any shape. Other floats are cast to float32 first.

    Returns:
      int64, int32, or int16, of the same shape.

    Example:
      >>> ordered(jnp.array([-1.0, -0.0, 0.0, 1.0])).argsort().tolist()
      [0, 1, 2, 3]
    """
    if scores.dtype.name not in _INF_BITS:
        scores = scores.astype(jnp.float32)
    integer = _INTS[scores.dtype.itemsize]
    least = jnp.iinfo(integer).min
    # Sign and magnitude become two's complement, shifted up until +inf is next to the largest integer: every
    # NaN then wraps round to below -inf, where the maximum makes them one.
    shift = -least - 1 - _INF_BITS[scores.dtype.name]
    bits = lax.bitcast_convert_type(scores, integer)
    key = jnp.where(bits < 0, integer(least + shift) - bits, bits + integer(shift))
    return jnp.maximum(key, integer(_nan_key(scores.dtype)))


def bounds(dtype: jnp.dtype) -> tuple[int, int]:
    """Integers `(low, high)` with `low < key <= high` for every key of scores of this dtype."""
    name = dtype.name if dtype.name in _INF_BITS else "float32"
    return _nan_key(jnp.dtype(name)) - 1, int(jnp.iinfo(_INTS[jnp.dtype(name).itemsize]).max)


def _nan_key(dtype: jnp.dtype) -> int:
    largest = int(jnp.iinfo(_INTS[dtype.itemsize]).max)
    return largest - 2 * _INF_BITS[dtype.name] - 1
