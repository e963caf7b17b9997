"""`tails`: the number of entries at or above a value and the sum of their squares, exact, in one pass.

Squares are summed as integers, so the sums have the same bits in any order and on any number of devices.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import counts, shards
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import WHOLE, Shards

SQUARE_BITS = 36  # a square is at most 1 and a multiple of 2^-36
_DIGIT_BITS = 18
_PARTIAL = 1 << 15  # the largest number of partial sums that `counts.total` adds
_FINITE = float(np.finfo(np.float32).max)
_NORMAL = float(np.finfo(np.float32).tiny)


class Tails(NamedTuple):
    """The entries at or above each probe, for each slice.

    Attributes:
      entries: the number of entries, a Count of [slices, probes].
      squares: the sum of their squares, divided by the square of the slice's power of two: float32[slices, probes].
    """

    entries: Count
    squares: jax.Array


def sizes(scores: jax.Array) -> jax.Array:
    """Scores as normal float32 numbers or 0: negative, NaN and denormal become 0, infinity the largest number."""
    rounded = scores.astype(jnp.float32)
    return jnp.where(rounded >= _NORMAL, jnp.minimum(rounded, _FINITE), 0.0)


def keys(sizes: jax.Array) -> jax.Array:
    """Integers in the order of the sizes: the bits of the sizes."""
    return lax.bitcast_convert_type(sizes, jnp.int32)


def largest(scores: jax.Array, batch_axes: int, layout: Shards) -> jax.Array:
    """The largest key of each slice of the whole array: int32, in the shape of its batch axes."""
    found = keys(sizes(scores)).max(tuple(range(batch_axes, scores.ndim)))
    if not layout.is_cut:
        return found
    return lax.pmax(layout.spread(found, scores.shape[:batch_axes]), layout.all_names)


def exponents(largest: jax.Array) -> jax.Array:
    """The least e with size < 2^e, from the keys of sizes; 0 counts as the smallest normal number."""
    return jnp.maximum(largest >> 23, 1) - 126


def scaled_square(sizes: jax.Array, exponent: jax.Array) -> jax.Array:
    """(size / 2^exponent)^2, rounded to float32: in [0, 1]."""
    # Two factors, because 2^128 is not a float32.
    half = exponent // 2
    scaled = sizes * _power_of_two(-half) * _power_of_two(half - exponent)
    return scaled * scaled


def tails(scores: jax.Array, exponent: jax.Array, probes: jax.Array, layout: Shards = WHOLE) -> Tails:
    """Counts the entries at or above each probe, and sums their squares.

    Args:
      scores: floating; the leading axes, which have the shape of `exponent`, are slices.
      exponent: int32, the result of `exponents`, for each slice.
      probes: int32[slices, p], keys.
      layout: how devices of a shard_map share the array. `scores` is a shard; all other values are of the whole array.

    Returns:
      Tails of [slices, p].
    """
    ndim = exponent.ndim
    axes = scores.ndim - ndim
    batch, shape = scores.shape[:ndim], layout.whole(scores.shape)[ndim:]
    wide = batch + (1,) * axes
    exponent = layout.own(exponent, batch)
    own = layout.own(probes.reshape(*layout.whole(batch), -1), batch).reshape(-1, probes.shape[1])
    size = sizes(scores)
    key, square = keys(size), scaled_square(size, exponent.reshape(wide))
    kept_axes, bits = plan(shape)
    digits = _digits(square, bits)
    numbers = []
    for i in range(probes.shape[1]):
        hit = key >= own[:, i].reshape(wide)
        numbers += [hit.astype(jnp.int32)] + [jnp.where(hit, digit, 0) for digit in digits]
    first = tuple(len(batch) + a for a in range(axes) if a not in kept_axes)
    if first:
        zeros = [np.int32(0)] * len(numbers)
        numbers = lax.reduce(numbers, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], first)
    parts = jnp.stack(numbers, -1)
    total = counts.total(parts, tuple(range(len(batch), parts.ndim - 1)))
    total = shards.total_slices(total, layout, batch)
    total = Count(*(x.reshape(*probes.shape, 1 + len(bits)) for x in total))
    squares = [Count(total.high[..., i + 1], total.low[..., i + 1]) for i in range(len(bits))]
    return Tails(Count(total.high[..., 0], total.low[..., 0]), _join(squares, bits))


def plan(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Plans a sum in 32 bits: the axes whose parts are summed separately at first, and the bits of each digit.

    Raises:
      ValueError: the slice is too large for every plan.
    """
    prefixes = [tuple(range(i)) for i in range(len(shape))]
    singles = [(i,) for i in range(1, len(shape))]
    entries = math.prod(shape)
    fitting = []
    for axes in prefixes + singles:
        parts = math.prod(shape[a] for a in axes)
        digit = min(_DIGIT_BITS, 31 - (entries // max(parts, 1)).bit_length())
        if parts <= _PARTIAL and digit > 0:
            fitting.append((-digit, parts, axes))
    if not fitting:
        raise ValueError(f"cannot sum {entries} squares in the shape {shape}: no axis has between 2 and 32768 parts")
    digit, _, axes = min(fitting)
    bits = [-digit] * (SQUARE_BITS // -digit)
    rest = SQUARE_BITS - sum(bits)
    return axes, tuple(bits + [rest] * (rest > 0))


def _digits(square: jax.Array, bits: tuple[int, ...]) -> list[jax.Array]:
    """The digits of squares rounded to SQUARE_BITS, int32 each, the highest digit first."""
    digits = []
    for bit in bits[:-1]:
        square = square * 2.0**bit
        digit = jnp.floor(square)
        digits.append(digit.astype(jnp.int32))
        square = square - digit
    return [*digits, jnp.round(square * 2.0 ** bits[-1]).astype(jnp.int32)]


def _join(totals: list[Count], bits: tuple[int, ...]) -> jax.Array:
    # Starts with the smallest total. Every factor is a power of two, so only the sums round, and rounding keeps the
    # order: an additional entry never makes the result smaller.
    result = jnp.zeros_like(totals[0].high, jnp.float32)
    for i in reversed(range(len(bits))):
        result = result + counts.as_float(totals[i]) * 2.0 ** -sum(bits[: i + 1])
    return result


def _power_of_two(exponent: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
