"""`Leaf`: one array of scores as slices of entries, with the kernels of the selection; `keep_in_groups` for n of m.

Apart from the sample, no kernel reshapes or slices the scores, because reshaping a sharded array gathers it.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxprune.masks._exact import counts
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import WHOLE, Shards, named_sharding, replicate, split

_INT32 = 1 << 31  # entries whose count and index exceed 31 bits
_SMALL = 1 << 18  # entries that are counted in one step
_PARALLEL = 16  # the least number of partial sums, for back ends that work in parallel
_PARTIAL = 1 << 15  # the largest number of partial sums that `counts.total` adds
_GATHERED = 8  # the largest number of devices whose counts may be gathered
_DIGITS = 1 << 23  # the largest number of 8-bit digits whose sum fits 31 bits
_APART = 64  # the least number of devices that can share an axis in whole runs


@dataclass(frozen=True)
class Leaf:
    """The shape of an array of scores whose leading axes are independent slices.

    The place of an entry in the ranking is its key and then, if keys tie, minus its index minus one, so that the lowest
    index ranks first among equal keys. The index has one digit, or two digits in a slice of 2^31 entries or more.

    Attributes:
      full: the shape of the array, or of the shard of a device of a shard_map.
      batch_axes: the number of leading axes that are slices.
      dtype: the dtype of the scores.
      layout: how devices of a shard_map share the array. `slices`, `shape` and `entries` describe the whole array.
    """

    full: tuple[int, ...]
    batch_axes: int
    dtype: np.dtype
    layout: Shards = WHOLE

    @property
    def part(self) -> "Leaf":
        """The shard of this device, as an array of its own."""
        return Leaf(self.full, self.batch_axes, self.dtype)

    @property
    def slices(self) -> int:
        """The number of slices."""
        return math.prod(self.layout.whole(self.full)[: self.batch_axes])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a slice."""
        return self.layout.whole(self.full)[self.batch_axes :]

    @property
    def entries(self) -> int:
        """The number of entries of a slice."""
        return math.prod(self.shape)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Integers `(low, high)` for each part of a place, with `low < part <= high`."""
        return [counts.bounds(self.dtype)] + [(-math.prod(digit) - 1, -1) for digit in digits(self.shape)]

    def count_above(self, scores: jax.Array, probes: jax.Array, seen: "Seen", first: jax.Array) -> list[Count]:
        """Counts how many places of each slice exceed each probe, in the current part of the places.

        Args:
          scores: the array.
          probes: int[rows, p], for the slices of this array and of others.
          seen: the state of the search.
          first: int32, the row of the first slice of this array.

        Returns:
          For each probe a Count of [slices] that is not normalised; for the shard of this device, if there are several
          shards.
        """
        return _count_above(self, scores, probes, seen, first)

    def mask(self, scores: jax.Array, found: jax.Array, first: jax.Array) -> jax.Array:
        """Marks places above `found`, int[parts, rows]: places that are larger in the first part that differs."""
        return _mask(self, scores, found, first)

    def sample(self, scores: jax.Array, wanted: int) -> jax.Array:
        """Returns keys of at most `wanted` entries of each slice, spread over the slice: [slices, m]."""
        return _sample(self, scores, wanted)


@dataclass(frozen=True)
class Seen:
    """The state of the search while it counts one part of the places.

    Attributes:
      part: int32, the current part; part 0 is the keys.
      found: int[parts, rows], the thresholds of the earlier parts; only entries equal to them count.
      zero: a 0 that the compiler does not know; otherwise it stores the indices in a buffer as large as the scores.
    """

    part: jax.Array
    found: jax.Array
    zero: jax.Array


jax.tree_util.register_dataclass(Seen, data_fields=["part", "found", "zero"], meta_fields=[])


def digits(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Cuts a shape if needed, so that the indices within each run of axes fit 31 bits.

    Raises:
      ValueError: two runs are not enough, or a single axis is too long.
    """
    if math.prod(shape) < _INT32:
        return [shape]
    for cut in range(1, len(shape)):
        if math.prod(shape[:cut]) < _INT32 and math.prod(shape[cut:]) < _INT32:
            return [shape[:cut], shape[cut:]]
    raise ValueError(f"the axes of {shape} do not divide into two runs of fewer than 2^31 entries each")


# The kernels are jitted so that leaves of one shape are traced and lowered once.


@partial(jax.jit, static_argnums=0)
def _count_above(leaf: Leaf, scores: jax.Array, probes: jax.Array, seen: Seen, first: jax.Array) -> list[Count]:
    integer, probes, found = probes.dtype, _own(leaf, probes.T, first), _own(leaf, seen.found, first)
    least = np.asarray(np.iinfo(integer).min, integer)
    places = _places(leaf, scores, integer, seen.zero)
    value, earlier = places[0], None
    for number in range(1, len(places)):
        equal = lax.eq(places[number - 1], _column(leaf, found, number - 1))
        earlier = equal if earlier is None else earlier & equal
        value = jnp.where(seen.part >= number, jnp.where(earlier, places[number], least), value)
    found = _count(leaf.part, [lax.gt(value, _column(leaf, probes, i)) for i in range(len(probes))])
    return [Count(*(_spread(leaf, limb) for limb in count)) for count in found]


@partial(jax.jit, static_argnums=0)
def _mask(leaf: Leaf, scores: jax.Array, found: jax.Array, first: jax.Array) -> jax.Array:
    mask: Any = None
    found = _own(leaf, found, first)
    places = list(_places(leaf, scores, found.dtype, jnp.int32(0)))
    for number in reversed(range(len(places))):
        bound = _column(leaf, found, number)
        above = lax.gt(places[number], bound)
        mask = above if mask is None else above | (lax.eq(places[number], bound) & mask)
    return mask


@partial(jax.jit, static_argnums=(0, 2))
def _sample(leaf: Leaf, scores: jax.Array, wanted: int) -> jax.Array:
    if leaf.layout.is_cut:
        return _sample_parts(leaf, scores, wanted)
    if jax.device_count() > 1:
        return counts.ordered(_at_points(leaf, scores, wanted))
    places = tuple(slice(None, None, stride) for stride in strides(leaf.shape, wanted))
    taken = scores[(slice(None),) * leaf.batch_axes + places].reshape(leaf.slices, -1)
    return counts.ordered(taken[:, :: -(-taken.shape[1] // wanted)])


def _sample_parts(leaf: Leaf, scores: jax.Array, wanted: int) -> jax.Array:
    """Takes equally many keys from each shard, at separate positions; a sum over devices gives the whole sample.

    If there are more shards than wanted keys, some of the shards give one key each.
    """
    within = range(leaf.batch_axes, len(leaf.full))
    parts, part = leaf.layout.number(within), leaf.layout.position(within)
    each = max(1, wanted // parts)
    found = counts.ordered(_at_points(leaf.part, scores, each))
    found = found.astype(jnp.promote_types(found.dtype, jnp.int32))
    places = min(wanted, parts)
    place = part * places // parts
    gives = (part * places) % parts < places
    table = jnp.where(gives & (jnp.arange(places) == place)[:, None], found[:, None], 0)
    table = _spread(leaf, table.reshape(len(found), -1))
    return lax.psum(table, leaf.layout.all_names)


def _spread(leaf: Leaf, values: jax.Array) -> jax.Array:
    """Spreads values for this device's slices, [slices, ...], to all slices; other devices' slices get zeros."""
    if not leaf.layout.along(range(leaf.batch_axes)):
        return values
    batch, rest = leaf.full[: leaf.batch_axes], values.shape[1:]
    return leaf.layout.spread(values.reshape(*batch, *rest), batch).reshape(-1, *rest)


def _at_points(leaf: Leaf, scores: jax.Array, wanted: int) -> jax.Array:
    """Takes entries of each slice that are evenly spread: [slices, wanted].

    The entries are indexed one by one, so the compiler moves only them between devices. A strided slice would move
    whole runs of the array first.
    """
    index = (slice(None),) * leaf.batch_axes + points(leaf.shape, wanted)
    if named_sharding(scores) is None:
        return scores[index].reshape(leaf.slices, -1)
    return replicate(scores.at[index].get(out_sharding=P())).reshape(leaf.slices, -1)


def points(shape: tuple[int, ...], number: int) -> tuple[np.ndarray, ...]:
    r"""Returns indices that are spread evenly over an array, without a stride that could match its structure.

    Along axis j the positions are the fractional parts of $i \phi^{-j}$ for $i = 1, 2, \dots$, with $\phi$ the root of
    $\phi^{d + 1} = \phi + 1$ (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").

    Returns:
      For each axis int32[number].
    """
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (len(shape) + 1))
    step = np.arange(1, number + 1)
    fractions = [step * root ** -(axis + 1.0) % 1.0 for axis in range(len(shape))]
    return tuple(np.minimum(part * n, n - 1).astype(np.int32) for part, n in zip(fractions, shape, strict=True))


def _places(leaf: Leaf, scores: jax.Array, integer: Any, zero: jax.Array) -> list[jax.Array]:
    places = [counts.ordered(scores).astype(integer)]
    # If types name the devices, an index is made on the device of its entry; otherwise every device has all indices.
    place = named_sharding(scores)
    axis = leaf.batch_axes
    for digit in digits(leaf.shape):
        index: Any = zero
        for size in digit:
            position = lax.broadcasted_iota(jnp.int32, leaf.full, axis, out_sharding=place)
            if leaf.layout.along([axis]):
                position = position + leaf.layout.start(axis, leaf.full[axis])
            index = index * np.int32(size) + position
            axis += 1
        places.append((np.int32(-1) - index).astype(integer))
    return places


def _own(leaf: Leaf, table: jax.Array, first: jax.Array) -> jax.Array:
    """Returns the table columns of the slices on this device: [n, rows] -> [n, slices]."""
    own = lax.dynamic_slice(table, (np.int32(0), first), (len(table), leaf.slices), allow_negative_indices=False)
    if not leaf.layout.along(range(leaf.batch_axes)):
        return own
    batch = leaf.full[: leaf.batch_axes]
    return leaf.layout.own(own.T.reshape(*leaf.layout.whole(batch), -1), batch).reshape(-1, len(table)).T


def _column(leaf: Leaf, table: jax.Array, row: int) -> jax.Array:
    """Returns one value for each slice, broadcast to the size of the scores."""
    batch = leaf.full[: leaf.batch_axes]
    values = lax.slice_in_dim(table, row, row + 1).reshape(batch)
    return lax.broadcast_in_dim(values, leaf.full, tuple(range(leaf.batch_axes)))


def _count(leaf: Leaf, hits: list[jax.Array]) -> list[Count]:
    """Counts the hits of each kind in each slice: for each kind a Count of [slices].

    The kinds stay apart until the counts of all leaves are joined, because every operation for each leaf takes long to
    compile.
    """
    # One reduction for all kinds, so there is a single pass over the scores. For a large slice the reduction may leave
    # some leading axes, which are summed afterwards, so that back ends can work in parallel.
    numbers = [lax.convert_element_type(hit, jnp.int32) for hit in hits]
    within = tuple(range(leaf.batch_axes, len(leaf.full)))
    if leaf.entries < _INT32 and jax.device_count() > _GATHERED:
        found = [_small(lax.reduce(part, np.int32(0), lax.add, within)) for part in _in_stretches(numbers)]
    elif leaf.entries >= _INT32 and jax.device_count() > 1:
        stretches = _shared_out(leaf)
        numbers = _add([split(number, stretches) for number in numbers], tuple(range(1, 2 * len(leaf.full), 2)))
        found = [_add_digits(number, within) for number in numbers]
    else:
        kept = tuple(leaf.batch_axes + a for a in partial_axes(leaf.shape))
        parts = _add(numbers, tuple(a for a in within if a not in kept))
        left = tuple(range(leaf.batch_axes, parts[0].ndim))
        if leaf.entries < _INT32:
            found = list(map(_small, _add(parts, left)))
        else:
            found = [counts.total(part, left) for part in parts]
    return [Count(*(replicate(limb).reshape(leaf.slices) for limb in count)) for count in found]


def _small(number: jax.Array) -> Count:
    return Count(jnp.zeros_like(number), number)


def _in_stretches(numbers: list[jax.Array]) -> list[jax.Array]:
    """Sums over short runs of the last axis; each run is on one device.

    A partitioned reduction of several operands gathers the counts of all devices. A reduction of a single operand adds
    them up, but reads the scores once for each probe. So there are several operands within a run, and one beyond it.
    """
    size = next(d for d in (16, 8, 4, 2, 1) if numbers[0].shape[-1] % (_APART * d) == 0 or d == 1)
    if size == 1:
        return numbers
    stretch = (1,) * (numbers[0].ndim - 1) + (size,)
    return _add([split(number, stretch) for number in numbers], tuple(range(1, 2 * numbers[0].ndim, 2)))


def _shared_out(leaf: Leaf) -> tuple[int, ...]:
    """Returns the lengths of the runs along each axis, for a slice whose count exceeds 31 bits.

    There are as many runs along each axis as devices may share it, and at most as many in total as `_add_digits` adds.
    """
    most = 4 * _APART
    while True:
        number = [math.gcd(size, most) for size in leaf.shape]
        if math.prod(number) <= _DIGITS or most == 1:
            return (1,) * leaf.batch_axes + tuple(n // k for n, k in zip(leaf.shape, number, strict=True))
        most //= 2


def _add_digits(number: jax.Array, axes: tuple[int, ...]) -> Count:
    """Sums at most 2^23 numbers beyond 31 bits: sums each of their digits, by reductions of a single operand.

    A partitioned program adds up such reductions over devices. With a carry it would gather the counts of all devices.
    """
    digits = [((number >> shift) & 0xFF).sum(axes, dtype=jnp.int32) for shift in (0, 8, 16, 24)]
    ones, second, third, fourth = digits
    high = (ones >> 16) + (second >> 8) + third + (fourth << 8)
    return counts.normalise(Count(high, (ones & 0xFFFF) + ((second & 0xFF) << 8)))


def _add(numbers: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    if not axes:
        return numbers
    zeros = [np.int32(0)] * len(numbers)
    return lax.reduce(numbers, zeros, lambda a, b: [lax.add(x, y) for x, y in zip(a, b, strict=True)], axes)


def partial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the axes of a slice over which counts are not yet summed in the first sum.

    A small slice has no such axes. Below 2^31 entries they are leading axes, but not the last, until there are enough
    partial sums to work in parallel. Several devices need no such axes: they work in parallel anyway and would have to
    exchange the partial sums: a partitioned reduction of several operands gathers them. From 2^31 entries on, on one
    device, there is one axis, short enough to be summed in limbs and long enough that no partial sum reaches 2^31.

    Raises:
      ValueError: there is no such axis.
    """
    entries = math.prod(shape)
    if entries < _SMALL or (entries < _INT32 and jax.device_count() > 1):
        return ()
    if entries < _INT32:
        leading = 0
        while leading < len(shape) - 1 and math.prod(shape[:leading]) < _PARALLEL:
            leading += 1
        return tuple(range(leading))
    fitting = [a for a, size in enumerate(shape) if size <= _PARTIAL and entries // size < _INT32]
    if not fitting:
        raise ValueError(f"{shape} has no axis of at most {_PARTIAL} positions with fewer than 2^31 entries each")
    return (fitting[0],)


def strides(shape: tuple[int, ...], wanted: int) -> tuple[int, ...]:
    """Returns strides that take about `wanted` entries of an array, and divide its axes evenly if possible.

    The size that remains of an axis keeps as many factors of two as possible. If a power of two of devices share the
    axis, no entries have to move between devices.
    """
    chosen = [1] * len(shape)
    order = sorted(range(len(shape)), key=lambda a: shape[a])
    left = float(wanted)
    for i, axis in enumerate(order):
        share = max(1, min(shape[axis], round(left ** (1 / (len(order) - i)))))
        chosen[axis] = _stride(shape[axis], share)
        left = max(1.0, left / -(-shape[axis] // chosen[axis]))
    return tuple(chosen)


def _stride(size: int, share: int) -> int:
    most = max(1, size // share)
    divisors = [d for d in range(1, most + 1) if size % d == 0 and size // d <= 4 * share]
    if not divisors:
        return most
    return max(divisors, key=lambda d: ((size // d) & -(size // d), d))


def keep_in_groups(scores: jax.Array, kept: int | jax.Array, *, axis: int) -> jax.Array:
    """Keeps the same number of largest scores in each group.

    The rank of a member is the number of members with a larger score, or with an equal score and a lower index. A
    member is kept if its rank is below `kept`. So NaN ranks lowest, and if scores are equal, the lowest index is kept.

    Args:
      scores: floating, any shape.
      kept: the number to keep in each group; another traced int32 does not recompile.
      axis: the axis of the m members of a group.

    Returns:
      bool, in the shape of `scores`.
    """
    key = counts.ordered(scores)
    if isinstance(kept, int) and kept == 1:
        position = lax.broadcasted_iota(jnp.int32, key.shape, axis)
        return position == jnp.argmax(key, axis=axis, keepdims=True)
    rank = _rank_one_by_one(key, axis) if axis == key.ndim - 1 else _rank_by_pairs(key, axis)
    return rank < kept


# In both functions an earlier member wins a tie, because 1 is subtracted from the key of the other member. No key is
# the least integer, so no key wraps round. Comparing by pairs is slow if groups are along the last axis; one by one is
# slower for larger groups.


def _rank_by_pairs(key: jax.Array, axis: int) -> jax.Array:
    # The broadcast comparison fuses into the sum, so no array of pairs is stored.
    members = key.shape[axis]
    earlier = np.arange(members)[:, None] < np.arange(members)
    shape = [1] * (key.ndim + 1)
    shape[axis : axis + 2] = [members, members]
    behind = jnp.expand_dims(key, axis) - earlier.reshape(shape).astype(key.dtype)
    return (jnp.expand_dims(key, axis + 1) > behind).sum(axis, dtype=jnp.int32)


def _rank_one_by_one(key: jax.Array, axis: int) -> jax.Array:
    position = lax.broadcasted_iota(jnp.int32, key.shape, axis)
    rank = jnp.zeros(key.shape, jnp.int32)
    for j in range(key.shape[axis]):
        other = lax.slice_in_dim(key, j, j + 1, axis=axis)
        rank += (other > key - (j < position).astype(key.dtype)).astype(jnp.int32)
    return rank
