"""The k-th largest by counting: brackets on an integer, narrowed a few probes at a time.

Selection never sorts and never gathers. All it asks of the data is: how many keys are above these integers?
That is one pass at the price of a read, the answer is a handful of exact integers whatever the layout of the
data, and three or four such questions settle a leaf of any size.

Words of this file: a row is one independent stretch of entries (a leaf, or one slice of it along its batch axes);
a segment is what one threshold is sought for: a row, or several rows that are ranked together.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.masks import counts
from jaxprune.masks.counts import Count

PROBES = 8  # more of them break the fusion into one pass, fewer cost more passes

# Where probes fall around the expected place, in standard deviations of a rank's error. The outer two catch
# what the inner ones miss; the inner ones, where all went well, leave a bracket a tenth as wide.
_FIRST = (-3.0, -1.2, -0.5, -0.15, 0.15, 0.5, 1.2, 3.0)
_LATER = (-3.0, -0.8, -0.2, 0.2, 0.8, 3.0)


class Bracket(NamedTuple):
    """What is known of each segment's threshold, and how many entries of each row lie above its ends.

    With A(x) the number of keys above x: A(low) >= kept, and A(high) < kept unless low = high.
    """

    low: jax.Array  # int[segments]
    high: jax.Array  # int[segments]
    above_low: Count  # int32[rows]
    above_high: Count  # int32[rows]


class Rows(NamedTuple):
    """How rows make up segments: `shared` rows each, row r belonging to segment r modulo `segments`."""

    segments: int
    shared: int = 1

    def total(self, parts: Count) -> Count:
        """Sums counts over the rows of each segment: [rows, ...] -> [segments, ...]."""
        if self.shared == 1:
            return parts
        shape = (self.shared, self.segments, *parts.high.shape[1:])
        return counts.sum_counts(Count(parts.high.reshape(shape), parts.low.reshape(shape)))

    def spread(self, values: jax.Array) -> jax.Array:
        """Gives each row its segment's value: [segments, ...] -> [rows, ...]."""
        return values if self.shared == 1 else jnp.tile(values, (self.shared, *[1] * (values.ndim - 1)))


def search(
    count_above: Callable[[jax.Array], Count],
    rows: Rows,
    kept: Count,
    start: Bracket,
    first_probes: jax.Array | None = None,
) -> Bracket:
    """Narrows the brackets until each is settled.

    Args:
      count_above: probes of int[rows, PROBES] -> how many keys of each row are above each, a Count of that shape.
      rows: how rows make up segments.
      kept: how many entries each segment keeps, a Count of [segments].
      start: brackets that hold the answers.
      first_probes: int[segments, PROBES], ascending; better than interpolation where a sample is at hand.

    Returns:
      Brackets with A(low) = kept, so that just the keys above `low` are kept; or else with high = low + 1, where
      keys equal to `high` tie at the threshold and some of them are kept.
    """
    # With nothing to keep the upper end is the answer already.
    nothing = counts.equal(kept, Count(jnp.int32(0), jnp.int32(0)))
    start = start._replace(
        low=jnp.where(nothing, start.high, start.low),
        above_low=_where(rows.spread(nothing), start.above_high, start.above_low),
    )

    def unsettled(state: tuple[Bracket, jax.Array]) -> jax.Array:
        return ~jnp.all(_settled(state[0], rows, kept))

    def narrow(state: tuple[Bracket, jax.Array]) -> tuple[Bracket, jax.Array]:
        bracket, probes = state
        probes = jnp.clip(probes, bracket.low[:, None], bracket.high[:, None])
        bracket = _tighten(bracket, probes, count_above(rows.spread(probes)), rows, kept)
        return bracket, _interpolate(bracket, rows, kept)

    # The probes travel with the state, so that the first pass is no code of its own: compiling it is what costs.
    probes = _interpolate(start, rows, kept) if first_probes is None else first_probes
    return lax.while_loop(unsettled, narrow, (start, probes))[0]


def probes_from_sample(sample: jax.Array, sizes: jax.Array, fraction: jax.Array) -> jax.Array:
    """Probes around the key that a fraction of a sample lies above.

    Args:
      sample: int[segments, m], in any order; padding is the largest integer.
      sizes: int32[segments], how many of the m are not padding.
      fraction: float32[segments], in [0, 1].

    Returns:
      int[segments, PROBES], strictly ascending as far as the integers go: where one value fills the sample, a probe
      on it and one beside it settle a heavy tie in one pass.
    """
    size = sizes.astype(jnp.float32)
    deviation = jnp.sqrt(fraction * (1 - fraction) * size) + 0.5
    place = ((1 - fraction) * size)[:, None] + jnp.array(_FIRST, jnp.float32) * deviation[:, None]
    place = jnp.clip(place.astype(jnp.int32), 0, sizes[:, None] - 1)
    probes = jnp.take_along_axis(jnp.sort(sample, axis=1), place, axis=1)
    # Strictly ascending: p_i >= p_(i-1) + 1, that is p_i - i is a running maximum (wide of the largest integer).
    steps = jnp.arange(PROBES, dtype=sample.dtype)
    largest = jnp.iinfo(sample.dtype).max - PROBES
    return lax.cummax(jnp.minimum(probes, largest) - steps, axis=1) + steps


def _settled(bracket: Bracket, rows: Rows, kept: Count) -> jax.Array:
    exact = counts.equal(rows.total(bracket.above_low), kept)
    return exact | (_distance(bracket.low, bracket.high) <= 1)


def _tighten(bracket: Bracket, probes: jax.Array, above: Count, rows: Rows, kept: Count) -> Bracket:
    total = rows.total(above)
    enough = ~counts.less(total, Count(kept.high[:, None], kept.low[:, None]))
    # Counts fall as probes rise, so `enough` is True for a first few: the bracket is where it turns.
    turn = enough.sum(1, dtype=jnp.int32)
    marks = jnp.concatenate([bracket.low[:, None], probes, bracket.high[:, None]], axis=1)
    row_turn = rows.spread(turn)

    def counts_at(low: jax.Array, at: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = jnp.concatenate([low[:, None], at, high[:, None]], axis=1)
        return _pick(table, row_turn), _pick(table, row_turn + 1)

    highs = counts_at(bracket.above_low.high, above.high, bracket.above_high.high)
    lows = counts_at(bracket.above_low.low, above.low, bracket.above_high.low)
    return Bracket(_pick(marks, turn), _pick(marks, turn + 1), Count(highs[0], lows[0]), Count(highs[1], lows[1]))


def _interpolate(bracket: Bracket, rows: Rows, kept: Count) -> jax.Array:
    above_low, above_high = rows.total(bracket.above_low), rows.total(bracket.above_high)
    inside = jnp.maximum(counts.as_float(counts.subtract(above_low, above_high)), 1.0)
    place = jnp.clip(counts.as_float(counts.subtract(above_low, kept)) / inside, 0.0, 1.0)
    deviation = jnp.sqrt(place * (1 - place) / inside) + 0.5 / inside
    around = place[:, None] + jnp.array(_LATER, jnp.float32) * deviation[:, None]
    # The middle bounds the number of passes whatever the data; low + 1 settles a tie just above low.
    parts = jnp.concatenate([jnp.zeros_like(around[:, :1]), around, jnp.full_like(around[:, :1], 0.5)], axis=1)
    span = _distance(bracket.low, bracket.high)[:, None]
    width = span.astype(jnp.float32)
    # float32 rounds a wide span up, maybe past the integers: stay below it.
    offset = (jnp.clip(parts, 0.0, 0.999999) * width).astype(span.dtype)
    offset = jnp.clip(offset, 1, span)
    offset = jnp.where(span <= PROBES + 1, jnp.arange(1, PROBES + 1, dtype=span.dtype), offset)
    return _advance(bracket.low[:, None], jnp.sort(jnp.minimum(offset, span), axis=1))


def _distance(low: jax.Array, high: jax.Array) -> jax.Array:
    # The span of two signed integers may exceed them: it is exact in the unsigned type, by wrapping.
    unsigned = jnp.uint64 if low.dtype.itemsize == 8 else jnp.uint32
    return lax.bitcast_convert_type(high, unsigned) - lax.bitcast_convert_type(low, unsigned)


def _advance(low: jax.Array, offset: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(lax.bitcast_convert_type(low, offset.dtype) + offset, low.dtype)


def _pick(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]


def _where(condition: jax.Array, a: Count, b: Count) -> Count:
    return Count(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))
