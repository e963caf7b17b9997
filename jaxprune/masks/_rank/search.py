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
import numpy as np
from jax import lax

from jaxprune.masks._exact import counts
from jaxprune.masks._exact.counts import Count

PROBES = 8  # more of them break the fusion into one pass, fewer cost more passes

# Where probes fall around the expected place, in standard deviations of a rank's error. The outer two catch
# what the inner ones miss; the inner ones, where all went well, leave a bracket a fifteenth as wide.
_FIRST = (-3.0, -1.2, -0.6, -0.2, 0.2, 0.6, 1.2, 3.0)
_LATER = (-4.0, -1.5, -0.75, -0.25, 0.25, 0.75, 1.5, 4.0)
# Evenly spread probes cut a bracket to a ninth whatever the data: best where few keys are left, and after a pass in
# which keys lay so unevenly that the guesses left most of them in.
_EVEN = np.arange(1, PROBES + 1, dtype=np.float32) / (PROBES + 1)
_FEW = PROBES + 1
_MOST = 0.5


class Bracket(NamedTuple):
    """What is known of each row's threshold, and how many entries of the row lie above its ends.

    With A(x) the number of keys above x, in the row or in all rows of its segment: A(low) >= kept, and A(high) < kept
    unless low = high. The rows of a segment have the same ends.
    """

    low: jax.Array  # int[rows]
    high: jax.Array  # int[rows]
    above_low: Count  # int32[rows]
    above_high: Count  # int32[rows]


class Rows(NamedTuple):
    """How rows make up segments: a row of each array, row r belonging to segment r modulo `segments`.

    Attributes:
      segments: how many.
      order: if arrays are searched together, the place in which each was given; among equals it decides.
    """

    segments: int
    order: tuple[int, ...] = (0,)

    def total(self, parts: Count, together: jax.Array) -> Count:
        """For each row the sum over its segment if `together`, else its own: [rows, ...] -> [rows, ...]."""
        if len(self.order) == 1:
            return parts
        shape = (len(self.order), self.segments, *parts.high.shape[1:])
        summed = counts.sum_counts(Count(parts.high.reshape(shape), parts.low.reshape(shape)))
        return counts.where(together, Count(self.spread(summed.high), self.spread(summed.low)), parts)

    def spread(self, values: jax.Array) -> jax.Array:
        """Gives each row its segment's value: [segments, ...] -> [rows, ...]."""
        return values if len(self.order) == 1 else jnp.tile(values, (len(self.order), *[1] * (values.ndim - 1)))


def search(
    count_above: Callable[[jax.Array], Count],
    rows: Rows,
    kept: Count,
    start: Bracket,
    probes: jax.Array,
    together: jax.Array,
) -> Bracket:
    """Narrows the brackets until each is settled.

    Args:
      count_above: probes of int[rows, PROBES] -> how many keys of each row are above each, a Count of that shape.
      rows: how rows make up segments.
      kept: how many entries each row keeps, or all rows of its segment: a Count of [rows].
      start: brackets that hold the answers.
      probes: int[rows, PROBES], ascending: where to look first.
      together: a bool, whether the rows of a segment have one threshold, or each its own.

    Returns:
      Brackets with A(low) = kept, so that just the keys above `low` are kept; or else with high = low + 1, where
      keys equal to `high` tie at the threshold and some of them are kept.
    """
    # With nothing to keep the upper end is the answer already.
    nothing = counts.equal(kept, counts.zeros(kept))
    start = start._replace(
        low=jnp.where(nothing, start.high, start.low),
        above_low=counts.where(nothing, start.above_high, start.above_low),
    )

    def unsettled(state: tuple[Bracket, jax.Array]) -> jax.Array:
        bracket = state[0]
        exact = settled_exactly(bracket, rows, kept, together)
        return ~jnp.all(exact | (_distance(bracket.low, bracket.high) <= 1))

    def narrow(state: tuple[Bracket, jax.Array]) -> tuple[Bracket, jax.Array]:
        before, probes = state
        probes = jnp.clip(probes, before.low[:, None], before.high[:, None])
        bracket = _tighten(before, probes, count_above(probes), rows, kept, together)
        stuck = _inside(bracket, rows, together) > _MOST * _inside(before, rows, together)
        return bracket, probes_between(bracket, rows, kept, together, stuck)

    # The probes travel with the state, so that the first pass is no code of its own: compiling it is what costs.
    return lax.while_loop(unsettled, narrow, (start, probes))[0]


def settled_exactly(bracket: Bracket, rows: Rows, kept: Count, together: jax.Array) -> jax.Array:
    """Whether just as many as wanted lie above `low`: bool[rows]."""
    return counts.equal(rows.total(bracket.above_low, together), kept)


def probes_from_sample(sample: jax.Array, sizes: np.ndarray, kept: Count, entries: Count) -> jax.Array:
    """Probes around the key that so many of the entries lie above, by a sample.

    Args:
      sample: int[rows, m], in any order; padding is the largest integer.
      sizes: int[rows], how many of the m are not padding.
      kept: how many are kept, a Count of [rows].
      entries: of how many.

    Returns:
      int[rows, PROBES], strictly ascending as far as the integers go: where one value fills the sample, a probe
      just below it and one on it settle a heavy tie in one pass.
    """
    fraction = counts.as_float(kept) / counts.as_float(entries)
    size = np.asarray(sizes, np.float32)
    deviation = jnp.sqrt(fraction * (1 - fraction) * size) + 0.5
    place = ((1 - fraction) * size)[:, None] + np.array(_FIRST, np.float32) * deviation[:, None]
    place = jnp.clip(place.astype(jnp.int32), 0, np.asarray(sizes, np.int32)[:, None] - 1)
    # Just below those left of the middle; no key is the least integer, so none wraps round.
    left = np.array(_FIRST) < 0
    probes = jnp.take_along_axis(jnp.sort(sample, axis=1), place, axis=1) - left.astype(sample.dtype)
    # Strictly ascending: p_i >= p_(i-1) + 1, that is p_i - i is a running maximum (wide of the largest integer).
    steps = jnp.arange(PROBES, dtype=sample.dtype)
    largest = jnp.iinfo(sample.dtype).max - PROBES
    return lax.cummax(jnp.minimum(probes, largest) - steps, axis=1) + steps


def probes_between(
    bracket: Bracket, rows: Rows, kept: Count, together: jax.Array, stuck: bool | jax.Array = False
) -> jax.Array:
    """Probes around the wanted rank, as if keys lay evenly between the ends: int[rows, PROBES], ascending.

    Where the last such guess got `stuck`, or few keys are left, they are spread evenly; few integers are all probed.
    """
    above_low, inside = rows.total(bracket.above_low, together), _inside(bracket, rows, together)
    place = jnp.clip(counts.as_float(counts.subtract(above_low, kept)) / inside, 0.0, 1.0)
    deviation = jnp.sqrt(place * (1 - place) / inside) + 0.5 / inside
    around = place[:, None] + np.array(_LATER, np.float32) * deviation[:, None]
    span = _distance(bracket.low, bracket.high)
    evenly = stuck | (inside <= _FEW)
    # float32 rounds a wide span up, maybe past the integers: stay below it.
    parts = jnp.where(evenly[:, None], _EVEN, jnp.clip(around, 0.0, 0.999999))
    span = span[:, None]
    offset = jnp.clip((parts * span.astype(jnp.float32)).astype(span.dtype), 1, span)
    offset = jnp.where(span <= PROBES + 1, jnp.arange(1, PROBES + 1, dtype=span.dtype), offset)
    return _advance(bracket.low[:, None], jnp.minimum(offset, span))


def _inside(bracket: Bracket, rows: Rows, together: jax.Array) -> jax.Array:
    """How many keys lie between the ends, in the row or in all rows of its segment: float[rows], at least 1."""
    above_low, above_high = rows.total(bracket.above_low, together), rows.total(bracket.above_high, together)
    return jnp.maximum(counts.as_float(counts.subtract(above_low, above_high)), 1.0)


def _tighten(
    bracket: Bracket, probes: jax.Array, above: Count, rows: Rows, kept: Count, together: jax.Array
) -> Bracket:
    enough = ~counts.less(rows.total(above, together), Count(kept.high[:, None], kept.low[:, None]))
    # Counts fall as probes rise, so `enough` is True for a first few: the bracket is where it turns.
    turn = enough.sum(1, dtype=jnp.int32)

    def at_turn(low: jax.Array, between: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = jnp.concatenate([low[:, None], between, high[:, None]], axis=1)
        return _pick(table, turn), _pick(table, turn + 1)

    low, high = at_turn(bracket.low, probes, bracket.high)
    limbs = [at_turn(*three) for three in zip(bracket.above_low, above, bracket.above_high, strict=True)]
    return Bracket(low, high, *(Count(*ends) for ends in zip(*limbs, strict=True)))


def _distance(low: jax.Array, high: jax.Array) -> jax.Array:
    # The span of two signed integers may exceed them: it is exact in the unsigned type, by wrapping.
    unsigned = jnp.uint64 if low.dtype.itemsize == 8 else jnp.uint32
    return lax.bitcast_convert_type(high, unsigned) - lax.bitcast_convert_type(low, unsigned)


def _advance(low: jax.Array, offset: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(lax.bitcast_convert_type(low, offset.dtype) + offset, low.dtype)


def _pick(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]
