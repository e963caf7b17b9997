"""One level over several rows: how many entries of each row lie at or above it, found by counting.

The entries of a row have integer keys, and the level of a key is a number that does not fall as the key rises. All
entries are ranked by level, then by key, then by row (the earlier first); wanted is how many of the first K each row
holds. Nothing is sorted but a few probes a row, and no level is computed but theirs: one pass over the data counts
what lies at or above each probe.

What is known of a row is a bracket: its keys under `low` are out, those from `high` on are in. What is known of all
is a bracket on the rank of the last entry kept. The probes of ALL rows together bound how many entries rank at or
before each of them; that narrows the common bracket, and with it every row's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.masks._exact import counts
from jaxprune.masks._exact.counts import Count

PROBES = 8
_BINADE = 1 << 23  # how much a key rises where the number doubles
# Where the first probes fall, in halvings of the largest number of the row: thresholds of bell-shaped rows are among
# the first, heavy tails among the last.
_FIRST = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
_LAST = jnp.iinfo(jnp.int32).max

# int32[rows, PROBES] keys, ascending in each row, and an integer that changes with every pass -> how many entries of
# each row lie at or above each, and the level there, float32, at least 0.
Look = Callable[[jax.Array, jax.Array], tuple[Count, jax.Array]]


class Rank(NamedTuple):
    """A place in the common order: a larger level first, then a larger key, then an earlier row; int32 each."""

    level: jax.Array  # the bits of a float32 that is 0 or more
    key: jax.Array
    row: jax.Array


class Bracket(NamedTuple):
    """What is known of each row, and of the rank of the last entry kept."""

    low: jax.Array  # int32[rows]: smaller keys are out
    high: jax.Array  # int32[rows]: this and larger keys are in
    level: jax.Array  # int32[rows], the level of `low`
    from_low: Count  # [rows], the entries at or above `low`
    from_high: Count  # [rows], those at or above `high`
    reached: Rank  # K entries or more rank here or before
    missed: Rank  # K entries or fewer do
    passes: jax.Array  # int32, over the data so far


def keep_first(look: Look, entries: Count, largest: jax.Array, kept: Count) -> tuple[Count, jax.Array]:
    """How many of the first `kept` entries in the common order each row holds.

    Args:
      look: counts of entries, and levels, at probes.
      entries: how many entries each row has, a Count of [rows], of at most 2^15 rows.
      largest: each row's largest key, int32[rows]. No key is negative, and the level of the key 0 is 0.
      kept: K, a Count of scalars, at most the number of all entries.

    Returns:
      A Count of [rows], of which the sum is K; and how many passes it took, int32.
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
    # Each row for itself: its last probe not before `reached`, its first at or before `missed`.
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
    """Keys that cut each bracket into equal parts.

    Interpolating where a level would fall, row by row or in common, took as many passes or more: the bounds are loose
    by what lies between the probes next to a level, in every row, and equal parts make the widest of them narrowest.
    """
    span = (bracket.high - bracket.low)[:, None]
    first = span - 1 - jnp.array([round(x * _BINADE) for x in reversed(_FIRST)], jnp.int32)
    step = jnp.minimum(-(-span // (PROBES + 1)), _LAST // PROBES)
    equal = step * jnp.arange(1, PROBES + 1, dtype=jnp.int32)
    # The key `low` is a probe only where it is the last one left.
    offset = jnp.clip(jnp.where(bracket.passes == 0, first, equal), 1, None)
    return bracket.low[:, None] + jnp.minimum(offset, jnp.maximum(span - 1, 0))


def _bound(bracket: Bracket, rank: Rank, marks: jax.Array, table: Count, kept: Count) -> Bracket:
    """Narrows the common bracket as far as the probes of all rows allow.

    Let N(r) be how many entries rank at or before r, and of one row p and q the probes next to r on either side (p
    after r, with the smaller key). The row holds at least what lies at or above q, and at most what lies at or above
    p; exactly the former if q is the next key after p. Its `low` stands in for a missing p, as it ranks at or after
    `reached`, and its `high` for a missing q.
    """
    at = Count(*(limb[:, 1:-1] for limb in table))
    above = Count(*(limb[:, 2:] for limb in table))
    # What lies above a mark, as far as it is known: exactly where the next mark is the next key.
    adjacent = marks[:, 1:] == marks[:, :-1] + 1
    over = Count(*(jnp.where(adjacent, limb[:, 1:], limb[:, :-1]) for limb in table))
    over_at, over_below = (Count(*(limb[:, cut] for limb in over)) for cut in (slice(1, None), slice(None, -1)))
    # From the first rank to the last, N's bounds rise by what each probe adds: one sort of the probes does it.
    code = rank.row * PROBES + jnp.arange(PROBES - 1, -1, -1, dtype=jnp.int32)
    *_, order = lax.sort((~rank.level.ravel(), ~rank.key.ravel(), code.ravel(), jnp.arange(code.size)), num_keys=3)
    least = _add(_running(counts.subtract(at, above), order), counts.sum_counts(bracket.from_high))
    upto, past = counts.subtract(at, over_at), counts.subtract(over_below, at)
    rise = _add(_running(upto, order), _running(past, order, inclusive=False))
    most = _add(rise, counts.sum_counts(Count(*(limb[:, -1] for limb in over_at))))
    ranks = Rank(*(x.ravel()[order] for x in rank))
    # The bounds hold inside the common bracket only: `low` and `high` are no probes, and rank on its ends or outside.
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
    """What is in, and of the last key of each row, in the common order, as many entries as are still wanted."""
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
    """Running sums of counts, in the given order; exact for up to 2^23 of them."""
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
