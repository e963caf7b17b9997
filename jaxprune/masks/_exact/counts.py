"""Exact counts of up to 2^47 entries, in 32-bit integers, and how many entries a sparsity removes.

JAX has no 64-bit integers unless enabled, float32 counts are exact only to 2^24, and a leaf or a model may have more
than 2^31 entries. So a count has two limbs in base 2^16.

`ordered` turns floats into integers of the same order, which selection compares instead of scores.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune import _tree

_BASE_BITS = 16
_BASE = 1 << _BASE_BITS
_LIMIT = 1 << 47


class Count(NamedTuple):
    """A number of entries, `high * 2**16 + low`, exact from 0 to 2^47 - 1.

    Attributes:
      high: int32, any shape.
      low: int32 of the same shape, in [0, 2^16).
    """

    high: Any
    low: Any

    @classmethod
    def of(cls, value: int) -> "Count":
        """Returns the count of a Python integer.

        Args:
          value: in [0, 2^47).

        Returns:
          A Count of Python integers.

        Raises:
          ValueError: the integer is out of range.

        Example:
          >>> Count.of(70_000)
          Count(high=1, low=4464)
        """
        if not isinstance(value, Integral):
            raise TypeError(f"a count must be an integer in [0, 2^47), got {value!r}; a fraction is a sparsity")
        if not 0 <= value < _LIMIT:
            raise ValueError(f"a count must be in [0, 2^47), got {value}")
        return cls(value >> _BASE_BITS, value & (_BASE - 1))

    def __int__(self) -> int:
        """Returns the Python integer of a scalar count that is not traced: `int(count)`."""
        return int(self.high) * _BASE + int(self.low)


def as_float(value: Count) -> jax.Array:
    """Returns the count, or a negative difference of counts, rounded to float32."""
    return jnp.float32(_BASE) * jnp.asarray(value.high, jnp.float32) + jnp.asarray(value.low, jnp.float32)


def total(parts: jax.Array, axis: int | tuple[int, ...] | None = None) -> Count:
    """Returns the exact sum of non-negative int32 numbers, at most 2^15 numbers for each result.

    Each number is cut into limbs before the sum, so that the sums of 2^15 limbs stay below 2^31.
    """
    return normalise(Count(_sum(parts >> _BASE_BITS, axis), _sum(parts & (_BASE - 1), axis)))


def _sum(x: jax.Array, axis: int | tuple[int, ...] | None) -> jax.Array:
    # With 64-bit integers enabled, a sum would become a 64-bit integer.
    return x.sum(axis, dtype=jnp.int32)


def sum_counts(parts: Count, axis: int = 0) -> Count:
    """Returns the exact sum of at most 2^15 counts along an axis."""
    return normalise(Count(_sum(parts.high, axis), _sum(parts.low, axis)))


def normalise(value: Count) -> Count:
    """Carries the excess of `low` into `high`; a negative `low` borrows."""
    return Count(value.high + (value.low >> _BASE_BITS), value.low & (_BASE - 1))


def subtract(a: Count, b: Count) -> Count:
    """Returns `a - b`; a negative difference has a negative `high`."""
    return normalise(Count(a.high - b.high, a.low - b.low))


def less(a: Count, b: Count) -> Any:
    """Returns `a < b`, elementwise."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def equal(a: Count, b: Count) -> Any:
    """Returns `a == b`, elementwise."""
    return (a.high == b.high) & (a.low == b.low)


def zeros(like: Count | None = None) -> Count:
    """Returns a zero count, or zero counts in the shape of others."""
    return Count(0, 0) if like is None else Count(jnp.zeros_like(like.high), jnp.zeros_like(like.low))


def where(condition: Any, a: Count, b: Count) -> Count:
    """Returns `a` where the condition holds, else `b`, elementwise."""
    return Count(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def removed(sparsity: Any, n: int) -> Count:
    r"""Returns how many of `n` entries a sparsity removes: $\lfloor s n + 1/2 \rfloor$, exactly.

    Args:
      sparsity: in [0, 1). A Python or NumPy number is evaluated on the host in float64, a Fraction exactly. A floating
        array, traced or not, counts as the exact binary fraction that it holds, without bits below 2^-80; a traced
        value outside [0, 1) is clipped.
      n: the number of entries, below 2^47.

    Returns:
      A Count of Python integers if the sparsity is a number, of int32 arrays in its shape if it is an array.

    Raises:
      ValueError: the sparsity is a number outside [0, 1) or NaN.
      TypeError: the sparsity is not a number.

    Note that float32(0.9) is less than 0.9, so a schedule inside jit may remove one entry less from a large
    leaf than the Python number 0.9 does.

    Example:
      >>> removed(0.5, 5)
      Count(high=0, low=3)
    """
    if isinstance(sparsity, jax.Array):
        return _removed_traced(sparsity, np.asarray(n, np.int64))
    _tree.check_sparsity(sparsity)
    if isinstance(sparsity, Fraction):
        return Count.of(math.floor(sparsity * n + Fraction(1, 2)))
    return Count.of(math.floor(float(sparsity) * n + 0.5))


def kept_in_slices(
    sparsities: Sequence[Any], units: Sequence[int], slices: Sequence[int], names: Sequence[str]
) -> Count:
    """Returns how many units of each slice are kept.

    Args:
      sparsities: for each leaf a sparsity in [0, 1), or the Count to remove: one for all slices, or one for each slice.
      units: for each leaf, the number of units in a slice.
      slices: for each leaf, the number of slices.
      names: for each leaf, its name.

    Returns:
      A Count of int32[slices of all leaves].

    Raises:
      ValueError: a sparsity is outside [0, 1), or a Count of integers is larger than the number of units; the message
        names the leaf.
      TypeError: a sparsity is neither a number, a floating scalar nor a Count.
    """
    for sparsity, name, most in zip(sparsities, names, units, strict=True):
        if isinstance(sparsity, Count) and isinstance(sparsity.low, int) and int(sparsity) > most:
            raise ValueError(f"{name}: the count to remove must be at most its {most} units, got {int(sparsity)}")
        # An allocation may remove a whole leaf: the largest float32 sparsity rounds to 1.
        if not isinstance(sparsity, Count) and not (isinstance(sparsity, jax.Array) and _is_one(sparsity)):
            _tree.check_sparsity(sparsity, f"{name}: sparsity")
    each = _removed_from_each([0.0 if isinstance(s, Count) else s for s in sparsities], units)
    row = np.repeat(np.arange(len(slices)), slices)
    gone = Count(each.high[row], each.low[row])
    if any(isinstance(s, Count) for s in sparsities):
        given = np.repeat([isinstance(s, Count) for s in sparsities], slices)
        gone = where(given, _given(sparsities, slices), gone)
    all_of_them = Count(*(np.array(limbs, np.int32)[row] for limbs in zip(*map(Count.of, units), strict=True)))
    return Count(*(jnp.asarray(limb) for limb in subtract(all_of_them, gone)))


def kept_in_groups(sparsity: Any, kept: int, size: int, what: str) -> int | jax.Array:
    """Returns the number of units kept in each small group: `kept`, or a larger number for a lower, traced sparsity.

    Args:
      sparsity: a number, which must be 1 - kept / size, or a floating scalar array.
      kept: the number that the pattern keeps.
      size: the number of units in a group.
      what: the leaf and its pattern, for messages.

    Raises:
      ValueError: the sparsity has another value, or is a Count.
      TypeError: the sparsity is neither a number nor a floating scalar.
    """
    if isinstance(sparsity, jax.Array):
        return jnp.maximum(kept, size - removed(sparsity, size).low)
    if isinstance(sparsity, Count):
        raise ValueError(f"{what} removes the same number from every group, so it takes no Count; pass a sparsity")
    _tree.check_sparsity(sparsity, f"{what}: sparsity")
    exact = 1 - kept / size
    if abs(float(sparsity) - exact) > 1e-6:
        raise ValueError(
            f"{what} removes exactly {exact:g}, but the sparsity of this leaf is {sparsity:g}; pass {exact:g} with "
            "allocation.uniform, which gives it to every leaf"
        )
    return kept


def _is_one(sparsity: jax.Array) -> bool:
    known = not isinstance(sparsity, Tracer) and sparsity.is_fully_addressable
    return known and sparsity.ndim == 0 and float(sparsity) == 1


def _removed_traced(sparsity: jax.Array, n: np.ndarray) -> Count:
    return _rounded_product(sparsity, np.array([(n >> shift) & (_BASE - 1) for shift in (0, 16, 32)], np.uint32))


@jax.jit
def _rounded_product(sparsity: jax.Array, n_digits: jax.Array) -> Count:
    # s = sum_i s_i 2^(-16 i) with 16-bit digits. n has 16-bit digits too, so the product is exact in limbs. Removing a
    # digit is exact in floating point, because the fraction keeps fewer bits each time.
    fraction = jnp.clip(jnp.nan_to_num(sparsity.astype(jnp.promote_types(sparsity.dtype, jnp.float32))), 0.0, 1.0)
    digits = []
    for _ in range(5):
        fraction = fraction * _BASE
        digit = jnp.floor(fraction)
        digits.append(digit.astype(jnp.uint32))
        fraction = fraction - digit
    # columns[c] collects the terms of weight 2^(16 (c - 5)); the first digit of s is 2^16 for s = 1.
    columns = [jnp.zeros(sparsity.shape, jnp.uint32) for _ in range(9)]
    for i, digit in enumerate(digits):
        for j, n_digit in enumerate(n_digits):
            product_low, product_high = _product(digit, n_digit)
            columns[4 - i + j] += product_low
            columns[5 - i + j] += product_high
    columns[4] += np.uint32(_BASE // 2)
    for c in range(8):
        columns[c + 1] += columns[c] >> _BASE_BITS
        columns[c] &= np.uint32(_BASE - 1)
    return Count((columns[6] + (columns[7] << _BASE_BITS)).astype(jnp.int32), columns[5].astype(jnp.int32))


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    # a <= 2^16, b < 2^16: the product fits 32 bits.
    product = a * b
    return product & np.uint32(_BASE - 1), product >> _BASE_BITS


def _removed_from_each(sparsities: Sequence[Any], sizes: Sequence[int]) -> Count:
    """Returns `removed` for many leaves, as a Count of int32[leaves].

    Arrays are stacked, since operations for each leaf take long to compile.
    """
    traced = np.array([isinstance(s, jax.Array) for s in sparsities])
    known = [
        Count(0, 0) if is_array else removed(s, n) for s, n, is_array in zip(sparsities, sizes, traced, strict=True)
    ]
    numbers = Count(*(np.array(limbs, np.int32) for limbs in zip(*known, strict=True)))
    arrays = {id(s): s for s in sparsities if isinstance(s, jax.Array)}
    if not arrays:
        return numbers
    place = {key: i for i, key in enumerate(arrays)}
    index = np.array([place.get(id(s), 0) for s in sparsities])
    common = jnp.result_type(*arrays.values())
    stacked = jnp.stack([x.astype(common) for x in arrays.values()])[index]
    return where(traced, _removed_traced(stacked, np.asarray(sizes, np.int64)), numbers)


def _given(sparsities: Sequence[Any], slices: Sequence[int]) -> Count:
    """Returns the Counts among the sparsities, for each slice of their leaves; zeros for the other leaves."""
    given = [s if isinstance(s, Count) else zeros() for s in sparsities]
    limbs = zip(*given, strict=True)
    if not any(isinstance(limb, jax.Array) for s in given for limb in s):
        return Count(
            *(np.concatenate([np.broadcast_to(x, n) for x, n in zip(xs, slices, strict=True)]) for xs in limbs)
        )
    return Count(*(jnp.concatenate([jnp.broadcast_to(x, n) for x, n in zip(xs, slices, strict=True)]) for xs in limbs))


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
    """Returns the integer type of the keys of scores of this dtype."""
    return np.dtype(_INTS[dtype.itemsize if dtype.name in _INF_BITS else 4])


def bounds(dtype: np.dtype) -> tuple[int, int]:
    """Returns integers `(low, high)` with `low < key <= high` for every key of scores of this dtype."""
    known = dtype if dtype.name in _INF_BITS else np.dtype(np.float32)
    return _nan_key(known) - 1, int(np.iinfo(integer(known)).max)


def _nan_key(dtype: np.dtype) -> int:
    largest = int(np.iinfo(integer(dtype)).max)
    return largest - 2 * _INF_BITS[dtype.name] - 1
