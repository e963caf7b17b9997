"""`keep_largest`: keeps exactly k of n entries of arrays; if scores are equal, the lowest index is kept.

`search` finds the k-th largest entry by counting. It keeps an integer bracket for each row, and each pass narrows the
bracket by a few probes. Selection never sorts and never gathers. It only counts the keys above given integers. A count
costs one pass over the data and is exact for any layout of the data. Three or four passes settle a leaf of any size.

Words of this file: a row is a leaf, or one slice of it along its batch axes; a segment is a row, or several rows that
are ranked together and share one threshold.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import counts, shards
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.rows import Leaf, Seen
from jaxprune.masks._exact.shards import WHOLE, Shards

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
        """Returns each row's value, or the sum over its segment if `together`: [rows, ...] -> [rows, ...]."""
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
    """Returns whether exactly the wanted number of keys is above `low`: bool[rows]."""
    return counts.equal(rows.total(bracket.above_low, together), kept)


def probes_from_sample(sample: jax.Array, sizes: np.ndarray, kept: Count, entries: Count) -> jax.Array:
    """Returns probes around the key that has `kept` entries above it, estimated from a sample.

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
    """Returns probes around the wanted rank, as if keys were evenly distributed: int[rows, PROBES], ascending.

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
    """Returns the number of keys in each bracket, of the row or of all rows of its segment: float[rows], at least 1."""
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


# A sample gives the first guess of a threshold: a number of entries in all rows, at least a number in each row, and at
# most one entry of so many. The sample is sorted, so a larger one costs more than the pass that it saves.
_SAMPLE = 8192
_SAMPLE_SPREAD = 1024  # for several devices, which exchange the sample
_LEAST = 64
_RARE = 1024
_LARGE = 1 << 16  # arrays of so many entries are not stacked with others of their shape


class _State(NamedTuple):
    """The state of the ranking: the parts of the places (key, digits of the index) are searched one by one."""

    part: jax.Array  # int32, the part to search next
    found: jax.Array  # int[parts, rows], the thresholds of the earlier parts
    wanted: Count  # [rows], how many of the places equal to these thresholds are still to be kept
    equal: Count  # [rows], how many places are equal to them


def keep_largest(
    scores: Sequence[jax.Array],
    kept: Count,
    *,
    batch_axes: Sequence[int],
    shared: bool,
    layouts: Sequence[Shards] | None = None,
) -> list[jax.Array]:
    """Returns masks that keep exactly a given number of the largest scores.

    Args:
      scores: floating arrays. The leading `batch_axes[i]` axes of array i are independent slices.
      kept: the number of entries to keep, at most the number of entries. If not shared, a Count of [slices of all
        arrays, in order]; if shared, of [slices], and all arrays have the same number of slices.
      batch_axes: for each array, the number of leading axes that are slices.
      shared: whether the scores of all arrays are ranked together.
      layouts: how devices of a shard_map share each array. `scores` are shards; all other values are of whole arrays.

    Returns:
      bool masks in the shapes of the scores. NaN ranks lowest, -0.0 equals 0.0, and if scores are equal, the lowest
      index of the earliest array is kept.
    """
    if not scores:
        return []
    common = jnp.result_type(*scores)
    layouts = [WHOLE] * len(scores) if layouts is None else layouts
    given = zip(scores, batch_axes, layouts, strict=True)
    slices = [math.prod(layout.whole(x.shape)[:axes]) for x, axes, layout in given]
    stacks = stack([x.astype(common) if shared else x for x in scores], batch_axes, layouts)
    stacked = zip(stacks.arrays, stacks.batch_axes, stacks.layouts, strict=True)
    leaves = [Leaf(x.shape, axes, x.dtype, layout) for x, axes, layout in stacked]
    if shared:
        rows = Rows(slices[0], tuple(stacks.order))
        kept = Count(*(rows.spread(limb) for limb in kept))
    else:
        rows = Rows(sum(slices))
        first = np.cumsum([0, *slices])
        moved = np.concatenate([np.arange(first[i], first[i + 1]) for i in stacks.order])
        kept = Count(kept.high[moved], kept.low[moved])
    ends = np.cumsum([leaf.slices for leaf in leaves]).tolist()
    # The compiler does not know that this is True. First, so the number of a leaf's first row is no constant in the
    # leaf's kernels: XLA compiles equal kernels once, however often they occur. Second, the masks are made in a branch,
    # and a branch reads its arguments from memory, as the loop that counts does. Outside of a branch XLA may compute
    # the scores again, add sums in another order, and keep another number of entries than the loop counted.
    true = lax.optimization_barrier(jnp.asarray(True))
    numbers = [end - leaf.slices for end, leaf in zip(ends, leaves, strict=True)]
    numbers += range(max(map(len, stacks.members)))
    hidden = lax.cond(true, lambda: [jnp.int32(n) for n in numbers], lambda: [jnp.int32(n + 1) for n in numbers])
    first, place = hidden[: len(leaves)], hidden[len(leaves) :]
    found = _find(stacks.arrays, leaves, first, rows, kept)
    masks = lax.cond(
        true,
        lambda arrays: [leaf.mask(x, found, i) for leaf, x, i in zip(leaves, arrays, first, strict=True)],
        lambda arrays: [x < x for x in arrays],
        stacks.arrays,
    )
    return stacks.unstack(masks, place)


def _find(arrays: list[jax.Array], leaves: list[Leaf], first: list[jax.Array], rows: Rows, kept: Count) -> jax.Array:
    """Returns each row's threshold, int[parts, rows]; entries above it stay. `first`: the first row of each leaf."""
    integer = jnp.result_type(*(counts.integer(leaf.dtype) for leaf in leaves), jnp.int32)
    lows, highs = _bounds(leaves, integer)
    entries = _per_row(leaves)
    guess = probes_from_sample(*_sample(arrays, leaves, rows, integer), kept, rows.total(entries, jnp.array(True)))

    # One loop inside another, so that one kernel counts each leaf for every part: the number of kernels determines the
    # compile time. A second part is searched only if keys tie at a threshold.
    def unfinished(state: _State) -> jax.Array:
        return (state.part == 0) | ((state.part < len(lows)) & jnp.any(counts.less(counts.zeros(), state.wanted)))

    def search_part(state: _State) -> _State:
        part, found, wanted, equal = state
        together = part == 0

        def count_above(probes: jax.Array) -> Count:
            # Without this barrier the compiler moves the keys and indices out of the loop, into buffers as large as the
            # scores. All outputs of the barrier must be used, otherwise it has no effect.
            tied = shards.tie(arrays, (probes, jnp.int32(0)), [leaf.layout for leaf in leaves])
            each = zip(leaves, tied, first, strict=True)
            return _total(
                leaves, [leaf.count_above(x, p, Seen(part, found, zero), i) for leaf, (x, (p, zero)), i in each]
            )

        start = Bracket(lows[part], highs[part], equal, counts.zeros(equal))
        probes = jnp.where(together, guess, probes_between(start, rows, wanted, together))
        bracket = search(count_above, rows, wanted, start, probes, together)
        exact = settled_exactly(bracket, rows, wanted, together)
        equal = counts.subtract(bracket.above_low, bracket.above_high)
        return _State(
            part + 1,
            found.at[part].set(jnp.where(exact, bracket.low, bracket.high)),
            _share(counts.subtract(wanted, rows.total(bracket.above_high, together)), equal, exact, rows, together),
            equal,
        )

    # No place is above the highs, so rows that are not searched keep nothing.
    state = _State(jnp.int32(0), highs, Count(*(jnp.asarray(limb) for limb in kept)), entries)
    return lax.while_loop(unfinished, search_part, state).found


def _share(wanted: Count, equal: Count, exact: jax.Array, rows: Rows, together: jax.Array) -> Count:
    """Returns how many entries equal to the threshold each row keeps: zero if the count was exact.

    If rows were searched together, the earliest arrays keep their entries first.
    """
    own = counts.where(exact, counts.zeros(wanted), wanted)
    if len(rows.order) == 1:
        return own
    given, back = np.argsort(rows.order), np.asarray(rows.order)
    in_order = Count(*(limb.reshape(-1, rows.segments)[given] for limb in equal))

    def take(left: Count, row: Count) -> tuple[Count, Count]:
        taken = counts.where(counts.less(row, left), row, left)
        return counts.subtract(left, taken), taken

    first = Count(own.high[: rows.segments], own.low[: rows.segments])
    taken = lax.scan(take, first, in_order)[1]
    return counts.where(together, Count(*(limb[back].reshape(-1) for limb in taken)), own)


def _total(leaves: list[Leaf], parts: list[list[Count]]) -> Count:
    """Adds up the counts of all devices: for each leaf and probe a Count of [slices] -> a Count of [rows, probes].

    All leaves that are sharded along the same mesh axes share one collective.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.layout.all_names, []).append(i)
    found = []
    for names, group in groups.items():
        probes = [zip(*of_leaves, strict=True) for of_leaves in zip(*(parts[i] for i in group), strict=True)]
        joined = [Count(*(lax.concatenate(limb, 0) for limb in limbs)) for limbs in probes]
        limbs = (jnp.stack(limb, axis=1) for limb in zip(*joined, strict=True))
        found.append(shards.total(counts.normalise(Count(*limbs)), names))
    if len(found) == 1:
        return found[0]
    rows = np.split(np.arange(sum(leaf.slices for leaf in leaves)), np.cumsum([leaf.slices for leaf in leaves])[:-1])
    order = np.argsort(np.concatenate([rows[i] for group in groups.values() for i in group]))
    return Count(*(jnp.concatenate(limbs)[order] for limbs in zip(*found, strict=True)))


def _bounds(leaves: list[Leaf], integer: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Returns the ends of the search, int[parts, rows]; a leaf with fewer parts gets a dummy part at the end."""
    parts = max(len(leaf.bounds) for leaf in leaves)
    ends = [leaf.bounds + [(-2, -1)] * (parts - len(leaf.bounds)) for leaf in leaves for _ in range(leaf.slices)]
    table = np.array(ends, integer).transpose(2, 1, 0)
    return jnp.asarray(table[0]), jnp.asarray(table[1])


def _per_row(leaves: list[Leaf]) -> Count:
    sizes = [Count.of(leaf.entries) for leaf in leaves for _ in range(leaf.slices)]
    return Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*sizes, strict=True)))


def _sample(arrays: list[jax.Array], leaves: list[Leaf], rows: Rows, integer: np.dtype) -> tuple[jax.Array, np.ndarray]:
    """Returns a few keys of each row, int[rows, m], padded with the largest integer; and the number of keys."""
    total = sum(leaf.entries for leaf in leaves)
    size = _SAMPLE if jax.device_count() == 1 else _SAMPLE_SPREAD
    if len(rows.order) > 1:
        most = max(_LEAST, min(size // rows.segments, total // _RARE))
        wanted = [max(1, round(most * leaf.entries / total)) for leaf in leaves]
    else:
        wanted = [max(_LEAST, min(size // rows.segments, leaf.entries // _RARE)) for leaf in leaves]
    samples = [leaf.sample(x, n).astype(integer) for leaf, x, n in zip(leaves, arrays, wanted, strict=True)]
    sizes = [x.shape[1] for x in samples for _ in range(len(x))]
    if len(rows.order) > 1:
        parts = [x.reshape(-1, rows.segments, x.shape[1]).swapaxes(0, 1).reshape(rows.segments, -1) for x in samples]
        found = jnp.concatenate(parts, axis=1)
        return rows.spread(found), np.full(len(sizes), found.shape[1])
    most, largest = max(sizes), np.iinfo(integer).max
    return jnp.concatenate([jnp.pad(x, ((0, 0), (0, most - x.shape[1])), constant_values=largest) for x in samples]), (
        np.array(sizes)
    )


# Equal layers share the kernels of one layer, because the number of kernels determines the compile time of a mask
# update. For a large array this is not worth the copy.


class Stacks(NamedTuple):
    """The given arrays, with small arrays of the same shape stacked into one.

    Attributes:
      arrays: the arrays; a stack has a new leading axis.
      batch_axes: the number of leading axes of each array that are slices, including the axis of a stack.
      layouts: how devices of a shard_map share each array.
      members: for each array, the numbers of the given arrays that it consists of, in order.
    """

    arrays: list[jax.Array]
    batch_axes: list[int]
    layouts: list[Shards]
    members: list[list[int]]

    @property
    def order(self) -> list[int]:
        """The number of each given array, in the order of the stacks."""
        return [i for members in self.members for i in members]

    def unstack(self, arrays: Sequence[jax.Array], place: Sequence[jax.Array]) -> list[jax.Array]:
        """Takes arrays in the shapes of `self.arrays` apart: the inverse of `stack`.

        `place[i]` is i, as a number that the compiler does not know: then all members share one kernel.
        """
        found: dict[int, jax.Array] = {}
        for array, members in zip(arrays, self.members, strict=True):
            apart = [array]
            if len(members) > 1:
                apart = [lax.dynamic_index_in_dim(array, i, keepdims=False) for i in place[: len(members)]]
            found |= dict(zip(members, apart, strict=True))
        return [found[i] for i in range(len(found))]


def stack(arrays: Sequence[jax.Array], batch_axes: Sequence[int], layouts: Sequence[Shards] | None = None) -> Stacks:
    """Stacks small arrays of the same shape, dtype, number of batch axes, and sharding (as far as types tell)."""
    layouts = [WHOLE] * len(arrays) if layouts is None else layouts
    groups: dict[object, list[int]] = {}
    for i, (x, axes, layout) in enumerate(zip(arrays, batch_axes, layouts, strict=True)):
        alike = (x.shape, x.dtype, axes, layout, jax.typeof(x).sharding) if math.prod(x.shape) < _LARGE else i
        groups.setdefault(alike, []).append(i)
    members = list(groups.values())
    return Stacks(
        [arrays[m[0]] if len(m) == 1 else jnp.stack([arrays[i] for i in m]) for m in members],
        [batch_axes[m[0]] + (len(m) > 1) for m in members],
        [layouts[m[0]].take([None, *range(arrays[m[0]].ndim)]) if len(m) > 1 else layouts[m[0]] for m in members],
        members,
    )
