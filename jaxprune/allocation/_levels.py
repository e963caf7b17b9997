"""`keep_first`: how many entries of each row are among the first K in a common ranking, by counting.

Each entry of a row has an integer key, and each key has a level that does not fall as the key rises. All entries are
ranked by level, then by key, then by row (the earlier row first). `keep_first` returns how many of the first K entries
each row has. Only a few probes in each row are sorted, and levels are computed only for probes: one pass over the data
counts the entries at or above each probe.

Each row has a bracket: keys below `low` are removed, keys from `high` on are kept. A common bracket bounds the rank of
the last kept entry. The probes of ALL rows together bound how many entries rank at or before each probe; these bounds
narrow the common bracket, and with it the bracket of every row.

`tails` computes what a level needs: the number of entries at or above a value and the sum of their squares, exact, in
one pass. Squares are summed as integers, so the sums have the same bits in any order and on any number of devices.
"""

import math
from collections.abc import Callable
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
    """Returns scores as normal float32 numbers: negative, NaN and denormal become 0, infinity the largest number."""
    rounded = scores.astype(jnp.float32)
    return jnp.where(rounded >= _NORMAL, jnp.minimum(rounded, _FINITE), 0.0)


def keys(sizes: jax.Array) -> jax.Array:
    """Returns the bits of the sizes, which are integers in the order of the sizes."""
    return lax.bitcast_convert_type(sizes, jnp.int32)


def largest(scores: jax.Array, batch_axes: int, layout: Shards) -> jax.Array:
    """Returns the largest key of each slice of the whole array: int32, in the shape of its batch axes."""
    found = keys(sizes(scores)).max(tuple(range(batch_axes, scores.ndim)))
    if not layout.is_cut:
        return found
    return lax.pmax(layout.spread(found, scores.shape[:batch_axes]), layout.all_names)


def exponents(largest: jax.Array) -> jax.Array:
    """Returns the least e with size < 2^e, from the keys of sizes; 0 counts as the smallest normal number."""
    return jnp.maximum(largest >> 23, 1) - 126


def scaled_square(sizes: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns (size / 2^exponent)^2, rounded to float32: in [0, 1]."""
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
    """Returns the digits of squares rounded to SQUARE_BITS, int32 each, the highest digit first."""
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


PROBES = 8
_BINADE = 1 << 23  # the rise of a key when the number doubles
# Positions of the first probes, in halvings of the largest number of the row: the first ones suit bell-shaped rows, the
# last ones heavy tails.
_FIRST = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
_LAST = jnp.iinfo(jnp.int32).max

# A function `(probes, turn) -> (counts, levels)`. `probes` are keys, int32[rows, PROBES], ascending in each row. `turn`
# is an integer that changes with every pass. `counts` are the numbers of entries of each row at or above each probe,
# and `levels`, float32 and at least 0, are the levels of the probes.
Look = Callable[[jax.Array, jax.Array], tuple[Count, jax.Array]]


class Rank(NamedTuple):
    """A position in the common ranking: a larger level first, then a larger key, then an earlier row; int32 each."""

    level: jax.Array  # the bits of a float32 that is 0 or more
    key: jax.Array
    row: jax.Array


class Bracket(NamedTuple):
    """Bounds on the kept keys of each row, and on the rank of the last kept entry."""

    low: jax.Array  # int32[rows]: smaller keys are removed
    high: jax.Array  # int32[rows]: this key and larger keys are kept
    level: jax.Array  # int32[rows], the level of `low`
    from_low: Count  # [rows], the entries at or above `low`
    from_high: Count  # [rows], the entries at or above `high`
    reached: Rank  # at least K entries rank at or before this rank
    missed: Rank  # at most K entries rank at or before this rank
    passes: jax.Array  # int32, the number of passes over the data so far


def keep_first(look: Look, entries: Count, largest: jax.Array, kept: Count) -> tuple[Count, jax.Array]:
    """Returns how many of the first `kept` entries in the common ranking each row has.

    Args:
      look: a function that counts the entries at probes and computes their levels.
      entries: the number of entries of each row, a Count of [rows], for at most 2^15 rows.
      largest: the largest key of each row, int32[rows]. Keys are 0 or more, and key 0 has level 0.
      kept: K, a Count of scalars, at most the number of all entries.

    Returns:
      A Count of [rows] whose sum is K; and the number of passes, int32.
    """
    nothing, zeros = jnp.full_like(largest, -1), jnp.zeros_like(largest)
    bracket = Bracket(
        low=nothing,
        high=largest + 1,
        level=nothing,
        from_low=entries,
        from_high=Count(zeros, zeros),
        # No row's `low` may rank before `reached`, here or later: see _bound.
        reached=Rank(jnp.int32(-1), jnp.int32(-1), jnp.int32(0)),
        missed=Rank(*(jnp.int32(_LAST),) * 3),
        passes=jnp.int32(0),
    )
    bracket = lax.while_loop(lambda b: _is_open(b, kept), lambda b: _narrow(b, look, kept), bracket)
    return _fill(bracket, kept), bracket.passes


def _is_open(bracket: Bracket, kept: Count) -> jax.Array:
    rows = (bracket.high - bracket.low > 1) & ~counts.equal(bracket.from_low, bracket.from_high)
    found = [counts.equal(counts.sum_counts(x), kept) for x in (bracket.from_low, bracket.from_high)]
    return jnp.any(rows) & ~found[0] & ~found[1]


def _narrow(bracket: Bracket, look: Look, kept: Count) -> Bracket:
    probes = _probes(bracket)
    found, level = look(probes, bracket.passes)
    rows = jnp.arange(len(probes), dtype=jnp.int32)[:, None]
    rank = Rank(lax.bitcast_convert_type(level, jnp.int32), probes, jnp.broadcast_to(rows, probes.shape))
    marks = jnp.concatenate([bracket.low[:, None], probes, bracket.high[:, None]], 1)
    table = _columns(bracket.from_low, found, bracket.from_high)
    bracket = _bound(bracket, rank, marks, table, kept)
    # In each row: the last probe that ranks not before `reached`, and the first that ranks at or before `missed`.
    out = _at_or_before(bracket.reached, rank).sum(1, dtype=jnp.int32)
    into = (~_at_or_before(rank, bracket.missed)).sum(1, dtype=jnp.int32) + 1
    levels = jnp.concatenate([bracket.level[:, None], rank.level], 1)
    return bracket._replace(
        low=_pick(marks, out),
        high=_pick(marks, into),
        level=_pick(levels, out),
        from_low=Count(*(_pick(limb, out) for limb in table)),
        from_high=Count(*(_pick(limb, into) for limb in table)),
        passes=bracket.passes + 1,
    )


def _probes(bracket: Bracket) -> jax.Array:
    """Returns keys that cut each bracket into equal parts.

    Interpolating the position of a level, row by row or in common, took as many passes or more. The bounds are loose by
    the number of entries between the probes next to a level, in every row; equal parts make the widest gap narrowest.
    """
    span = (bracket.high - bracket.low)[:, None]
    first = span - 1 - jnp.array([round(x * _BINADE) for x in reversed(_FIRST)], jnp.int32)
    step = jnp.minimum(-(-span // (PROBES + 1)), _LAST // PROBES)
    equal = step * jnp.arange(1, PROBES + 1, dtype=jnp.int32)
    # `low` itself is a probe only if it is the last key left.
    offset = jnp.clip(jnp.where(bracket.passes == 0, first, equal), 1, None)
    return bracket.low[:, None] + jnp.minimum(offset, jnp.maximum(span - 1, 0))


def _bound(bracket: Bracket, rank: Rank, marks: jax.Array, table: Count, kept: Count) -> Bracket:
    """Narrows the common bracket as far as the probes of all rows allow.

    Let N(r) be the number of entries that rank at or before r. In one row let p and q be the probes next to r (p after
    r, with the smaller key). The row has at least as many entries at or before r as entries at or above q, and at most
    as many as at or above p; if q is the next key after p, exactly as many as at or above q. Without such a p, the
    row's `low` replaces it, because `low` ranks at or after `reached`; without such a q, `high` replaces it.
    """
    at = Count(*(limb[:, 1:-1] for limb in table))
    above = Count(*(limb[:, 2:] for limb in table))
    # Bounds on the number of entries above a mark; exact where the next mark is the next key.
    adjacent = marks[:, 1:] == marks[:, :-1] + 1
    over = Count(*(jnp.where(adjacent, limb[:, 1:], limb[:, :-1]) for limb in table))
    over_at, over_below = (Count(*(limb[:, cut] for limb in over)) for cut in (slice(1, None), slice(None, -1)))
    # The bounds of N rise from rank to rank by what each probe adds, so one sort of the probes computes them all.
    code = rank.row * PROBES + jnp.arange(PROBES - 1, -1, -1, dtype=jnp.int32)
    *_, order = lax.sort((~rank.level.ravel(), ~rank.key.ravel(), code.ravel(), jnp.arange(code.size)), num_keys=3)
    least = _add(_running(counts.subtract(at, above), order), counts.sum_counts(bracket.from_high))
    upto, past = counts.subtract(at, over_at), counts.subtract(over_below, at)
    rise = _add(_running(upto, order), _running(past, order, inclusive=False))
    most = _add(rise, counts.sum_counts(Count(*(limb[:, -1] for limb in over_at))))
    ranks = Rank(*(x.ravel()[order] for x in rank))
    # The bounds are valid only inside the common bracket: `low` and `high` are no probes and rank at its ends or
    # outside.
    enough = ~counts.less(least, kept) & _at_or_before(bracket.missed, ranks)
    spare = ~counts.less(kept, most) & ~_at_or_before(bracket.reached, ranks)
    first, last = jnp.argmax(enough), jnp.maximum(spare.sum(dtype=jnp.int32) - 1, 0)
    better = enough.any() & _at_or_before(_take(ranks, first), bracket.reached)
    closer = spare.any() & _at_or_before(bracket.missed, _take(ranks, last))
    return bracket._replace(
        reached=_select(better, _take(ranks, first), bracket.reached),
        missed=_select(closer, _take(ranks, last), bracket.missed),
    )


def _fill(bracket: Bracket, kept: Count) -> Count:
    """Counts the kept entries; if entries are missing, the last keys of the rows fill up, in the common ranking."""
    last = counts.subtract(bracket.from_low, bracket.from_high)
    rows = jnp.arange(len(bracket.low), dtype=jnp.int32)
    *_, order = lax.sort((~bracket.level, ~bracket.low, rows), num_keys=3)
    before = _running(last, order, inclusive=False)
    wanted = counts.subtract(kept, counts.sum_counts(bracket.from_high))
    left = counts.subtract(wanted, before)
    some = ~counts.less(left, Count(jnp.int32(0), jnp.int32(1)))
    taken = Count(*(limb[order] for limb in last))
    partly = counts.less(left, taken)
    taken = Count(*(jnp.where(some, jnp.where(partly, x, t), 0) for x, t in zip(left, taken, strict=True)))
    placed = Count(*(jnp.zeros_like(limb).at[order].set(limb) for limb in taken))
    return _add(bracket.from_high, placed)


def _running(parts: Count, order: jax.Array, *, inclusive: bool = True) -> Count:
    """Returns running sums of counts in the given order; exact for up to 2^23 counts."""
    high, low = (limb.ravel()[order] for limb in parts)
    totals = [jnp.cumsum(x, dtype=jnp.int32) - (0 if inclusive else x) for x in (high, low >> 8, low & 255)]
    return counts.normalise(Count(totals[0] + (totals[1] >> 8), ((totals[1] & 255) << 8) + totals[2]))


def _at_or_before(a: Rank, b: Rank) -> jax.Array:
    same = a.level == b.level
    return (a.level > b.level) | (same & ((a.key > b.key) | ((a.key == b.key) & (a.row <= b.row))))


def _columns(first: Count, middle: Count, last: Count) -> Count:
    parts = zip(first, middle, last, strict=True)
    return Count(*(jnp.concatenate([a[:, None], b, c[:, None]], 1) for a, b, c in parts))


def _pick(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]


def _take(ranks: Rank, index: jax.Array) -> Rank:
    return Rank(*(x[index] for x in ranks))


def _select(condition: jax.Array, a: Rank, b: Rank) -> Rank:
    return Rank(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def _add(a: Count, b: Count) -> Count:
    return counts.normalise(Count(a.high + b.high, a.low + b.low))
