"""`search`: the k-th largest by counting, with integer brackets that are narrowed by a few probes at a time.

Selection never sorts and never gathers. It only asks how many keys are above given integers. One question costs one
pass over the data, its answer is a few exact integers for any layout of the data, and three or four questions settle a
leaf of any size.

Words of this file: a row is a leaf, or one slice of it along its batch axes; a segment is a row, or several rows that
are ranked together and share one threshold.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import counts
from jaxprune.masks._exact.counts import Count

PROBES = 8  # more probes do not fuse into one pass, fewer probes need more passes

# Positions of probes around the expected position, in standard deviations of a rank's error. The two outer probes catch
# what the inner probes miss; the inner probes usually leave a much narrower bracket.
_FIRST = (-3.0, -1.2, -0.6, -0.2, 0.2, 0.6, 1.2, 3.0)
_LATER = (-4.0, -1.5, -0.75, -0.25, 0.25, 0.75, 1.5, 4.0)
# Evenly spaced probes cut a bracket to a ninth for any data: best if few keys are left, or if the last guesses left
# most of the keys in the bracket.
_EVEN = np.arange(1, PROBES + 1, dtype=np.float32) / (PROBES + 1)
_FEW = PROBES + 1
_MOST = 0.5


class Bracket(NamedTuple):
    """Bounds on each row's threshold, and the number of entries of the row above these bounds.

    Let A(x) be the number of keys above x, in the row or in all rows of its segment. Then A(low) >= kept, and A(high) <
    kept unless low = high. The rows of a segment have the same bounds.
    """

    low: jax.Array  # int[rows]
    high: jax.Array  # int[rows]
    above_low: Count  # int32[rows]
    above_high: Count  # int32[rows]


class Rows(NamedTuple):
    """How rows form segments: there is a row of each array, and row r belongs to segment r modulo `segments`.

    Attributes:
      segments: the number of segments.
      order: if arrays are searched together, the position of each array in the caller's list, which decides ties.
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
      count_above: from probes, int[rows, PROBES], to the number of keys of each row above each probe, a Count.
      rows: how rows form segments.
      kept: the number of entries to keep in each row, or in all rows of its segment: a Count of [rows].
      start: brackets that contain the thresholds.
      probes: int[rows, PROBES], ascending: the first probes.
      together: a bool, whether the rows of a segment share one threshold.

    Returns:
      Brackets with A(low) = kept, so that exactly the keys above `low` are kept; or with high = low + 1, if keys equal
      to `high` tie at the threshold and only some of them are kept.
    """
    # If nothing is kept, the upper end is the threshold.
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

    # The probes are part of the state, so that the first pass needs no code of its own, which would be compiled too.
    return lax.while_loop(unsettled, narrow, (start, probes))[0]


def settled_exactly(bracket: Bracket, rows: Rows, kept: Count, together: jax.Array) -> jax.Array:
    """Whether exactly the wanted number of keys is above `low`: bool[rows]."""
    return counts.equal(rows.total(bracket.above_low, together), kept)


def probes_from_sample(sample: jax.Array, sizes: np.ndarray, kept: Count, entries: Count) -> jax.Array:
    """Probes around the key with `kept` of the entries above it, estimated from a sample.

    Args:
      sample: int[rows, m], in any order; padding is the largest integer.
      sizes: int[rows], the number of keys in the sample without padding.
      kept: the number of kept entries, a Count of [rows].
      entries: the number of all entries, a Count of [rows].

    Returns:
      int[rows, PROBES], strictly ascending within the range of integers. If one value fills the sample, a probe just
      below it and a probe on it settle a heavy tie in one pass.
    """
    fraction = counts.as_float(kept) / counts.as_float(entries)
    size = np.asarray(sizes, np.float32)
    deviation = jnp.sqrt(fraction * (1 - fraction) * size) + 0.5
    place = ((1 - fraction) * size)[:, None] + np.array(_FIRST, np.float32) * deviation[:, None]
    place = jnp.clip(place.astype(jnp.int32), 0, np.asarray(sizes, np.int32)[:, None] - 1)
    # Left of the middle, probes are just below the keys; no key is the least integer, so no probe wraps round.
    left = np.array(_FIRST) < 0
    probes = jnp.take_along_axis(jnp.sort(sample, axis=1), place, axis=1) - left.astype(sample.dtype)
    # Strictly ascending: p_i >= p_(i-1) + 1, so p_i - i is a running maximum (far from the largest integer).
    steps = jnp.arange(PROBES, dtype=sample.dtype)
    largest = jnp.iinfo(sample.dtype).max - PROBES
    return lax.cummax(jnp.minimum(probes, largest) - steps, axis=1) + steps


def probes_between(
    bracket: Bracket, rows: Rows, kept: Count, together: jax.Array, stuck: bool | jax.Array = False
) -> jax.Array:
    """Probes around the wanted rank, as if keys were evenly distributed: int[rows, PROBES], ascending.

    If the last guess got `stuck`, or if few keys are left, probes are evenly spaced; few integers are all probed.
    """
    above_low, inside = rows.total(bracket.above_low, together), _inside(bracket, rows, together)
    place = jnp.clip(counts.as_float(counts.subtract(above_low, kept)) / inside, 0.0, 1.0)
    deviation = jnp.sqrt(place * (1 - place) / inside) + 0.5 / inside
    around = place[:, None] + np.array(_LATER, np.float32) * deviation[:, None]
    span = _distance(bracket.low, bracket.high)
    evenly = stuck | (inside <= _FEW)
    # float32 may round a wide span up beyond the integers, so stay below it.
    parts = jnp.where(evenly[:, None], _EVEN, jnp.clip(around, 0.0, 0.999999))
    span = span[:, None]
    offset = jnp.clip((parts * span.astype(jnp.float32)).astype(span.dtype), 1, span)
    offset = jnp.where(span <= PROBES + 1, jnp.arange(1, PROBES + 1, dtype=span.dtype), offset)
    return _advance(bracket.low[:, None], jnp.minimum(offset, span))


def _inside(bracket: Bracket, rows: Rows, together: jax.Array) -> jax.Array:
    """The number of keys between the ends, in the row or in all rows of its segment: float[rows], at least 1."""
    above_low, above_high = rows.total(bracket.above_low, together), rows.total(bracket.above_high, together)
    return jnp.maximum(counts.as_float(counts.subtract(above_low, above_high)), 1.0)


def _tighten(
    bracket: Bracket, probes: jax.Array, above: Count, rows: Rows, kept: Count, together: jax.Array
) -> Bracket:
    enough = ~counts.less(rows.total(above, together), Count(kept.high[:, None], kept.low[:, None]))
    # Counts fall as probes rise, so `enough` is True for the first probes; the bracket is where it becomes False.
    turn = enough.sum(1, dtype=jnp.int32)

    def at_turn(low: jax.Array, between: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
        table = jnp.concatenate([low[:, None], between, high[:, None]], axis=1)
        return _pick(table, turn), _pick(table, turn + 1)

    low, high = at_turn(bracket.low, probes, bracket.high)
    limbs = [at_turn(*three) for three in zip(bracket.above_low, above, bracket.above_high, strict=True)]
    return Bracket(low, high, *(Count(*ends) for ends in zip(*limbs, strict=True)))


def _distance(low: jax.Array, high: jax.Array) -> jax.Array:
    # The span of two signed integers may overflow; in the unsigned type it is exact, by wrapping.
    unsigned = jnp.uint64 if low.dtype.itemsize == 8 else jnp.uint32
    return lax.bitcast_convert_type(high, unsigned) - lax.bitcast_convert_type(low, unsigned)


def _advance(low: jax.Array, offset: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(lax.bitcast_convert_type(low, offset.dtype) + offset, low.dtype)


def _pick(table: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0]
