"""`ordered`: floats as integers of the same order, which selection compares instead of scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The bits of +inf, by dtype; larger bits, without the sign, are NaN.
_INF_BITS = {"float64": 0x7FF0000000000000, "float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}
_INTS = {8: np.int64, 4: np.int32, 2: np.int16}


def ordered(scores: jax.Array) -> jax.Array:
    """Returns integers in the same order as the scores, elementwise.

    NaN of either sign and any payload becomes one value below -inf; -0.0 equals 0.0; denormals stay distinct (some back
    ends flush them when comparing floats). No key is the least integer of its type.

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
    key_type = integer(scores.dtype)
    least = np.iinfo(key_type).min
    # Sign and magnitude become two's complement, shifted up until +inf is the largest integer. Every NaN then wraps to
    # a value below -inf, and the maximum makes them all equal.
    shift = -int(least) - 1 - _INF_BITS[scores.dtype.name]
    bits = lax.bitcast_convert_type(scores, key_type)
    scalar = partial(np.asarray, dtype=key_type)
    key = lax.select(lax.lt(bits, scalar(0)), lax.sub(scalar(least + shift), bits), lax.add(bits, scalar(shift)))
    return lax.max(key, scalar(_nan_key(scores.dtype)))


def integer(dtype: np.dtype) -> np.dtype:
    """The integer type of the keys of scores of this dtype."""
    return np.dtype(_INTS[dtype.itemsize if dtype.name in _INF_BITS else 4])


def bounds(dtype: np.dtype) -> tuple[int, int]:
    """Integers `(low, high)` with `low < key <= high` for every key of scores of this dtype."""
    known = dtype if dtype.name in _INF_BITS else np.dtype(np.float32)
    return _nan_key(known) - 1, int(np.iinfo(integer(known)).max)


def _nan_key(dtype: np.dtype) -> int:
    largest = int(np.iinfo(integer(dtype)).max)
    return largest - 2 * _INF_BITS[dtype.name] - 1
