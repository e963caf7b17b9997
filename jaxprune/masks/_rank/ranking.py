"""Exactly k of n kept, for arrays: by rank of the scores, the lowest index first among equals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import counts, keys, shards
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import WHOLE, Shards
from jaxprune.masks._rank.rows import Leaf, Seen
from jaxprune.masks._rank.search import Bracket, Rows, probes_between, probes_from_sample, search, settled_exactly

# A threshold is first guessed from a sample: of so many entries in all rows, but of each row at least so many, and
# one of so many. It is sorted, so a larger one costs more than the pass it saves.
_SAMPLE = 8192
_SAMPLE_SPREAD = 1024  # with several devices, between which it moves
_LEAST = 64
_RARE = 1024
_LARGE = 1 << 16  # entries from which an array is not stacked with others of its shape


class _State(NamedTuple):
    """Where the ranking stands: the parts of the places (key, digits of the index) are searched one by one."""

    part: jax.Array  # int32, the part to search next
    found: jax.Array  # int[parts, rows], the thresholds of the parts before
    wanted: Count  # [rows], how many of the places equal to them are still to be kept
    equal: Count  # [rows], of so many


def keep_largest(
    scores: Sequence[jax.Array],
    kept: Count,
    *,
    batch_axes: Sequence[int],
    shared: bool,
    layouts: Sequence[Shards] | None = None,
) -> list[jax.Array]:
    """Masks that keep exactly so many of the largest scores.

    Args:
      scores: floating arrays. The leading `batch_axes[i]` axes of array i are independent slices.
      kept: how many entries to keep, at most as many as there are. If not shared, a Count of [slices of all
        arrays, in order]; if shared, of [slices], of which all arrays then have the same number.
      batch_axes: for each array, how many leading axes it is sliced along.
      shared: whether the arrays' scores are ranked together.
      layouts: how devices of a shard_map share each array, of which `scores` then are parts; all else is of the whole.

    Returns:
      bool masks in the shapes of the scores. NaN ranks lowest, -0.0 equals 0.0, and of equal scores those with the
      lowest index are kept (of the earliest array first).
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
    first = _unknown([end - leaf.slices for end, leaf in zip(ends, leaves, strict=True)])
    found = _find(stacks.arrays, leaves, first, rows, kept)
    return stacks.unstack([leaf.mask(x, found, i) for leaf, x, i in zip(leaves, stacks.arrays, first, strict=True)])


def _unknown(numbers: list[int]) -> list[jax.Array]:
    """Integers of which the compiler does not know what they are.

    XLA compiles a kernel once, however often it occurs. What a leaf asks of a table by its row is the same kernel for
    all leaves of one shape, unless the row's number is written into it.
    """
    known = lax.optimization_barrier(jnp.asarray(True))
    return lax.cond(known, lambda: [jnp.int32(n) for n in numbers], lambda: [jnp.int32(n + 1) for n in numbers])


def _find(arrays: list[jax.Array], leaves: list[Leaf], first: list[jax.Array], rows: Rows, kept: Count) -> jax.Array:
    """The place, int[parts, rows], above which each row's entries are kept; `first` is the first row of each leaf."""
    integer = jnp.result_type(*(keys.integer(leaf.dtype) for leaf in leaves), jnp.int32)
    lows, highs = _bounds(leaves, integer)
    entries = _per_row(leaves)
    guess = probes_from_sample(*_sample(arrays, leaves, rows, integer), kept, rows.total(entries, jnp.array(True)))

    # One loop in another, so that each leaf is counted by one kernel, whichever part is searched: it is the number of
    # kernels that makes compiling slow. Only where keys tie at a threshold is there a second part to search.
    def unfinished(state: _State) -> jax.Array:
        return (state.part == 0) | ((state.part < len(lows)) & jnp.any(counts.less(counts.zeros(), state.wanted)))

    def search_part(state: _State) -> _State:
        part, found, wanted, equal = state
        together = part == 0

        def count_above(probes: jax.Array) -> Count:
            # Without this barrier the compiler takes the keys and indices out of the loop, into buffers as large as
            # the scores. All of its outputs must be used, or it ties nothing.
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

    # Nothing is above the highs: what is not searched keeps nothing.
    state = _State(jnp.int32(0), highs, Count(*(jnp.asarray(limb) for limb in kept)), entries)
    return lax.while_loop(unfinished, search_part, state).found


def _share(wanted: Count, equal: Count, exact: jax.Array, rows: Rows, together: jax.Array) -> Count:
    """How many of its entries equal to the threshold each row keeps: none where the count came out exact.

    Rows that were searched together keep those of the earliest array first.
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


def _total(leaves: list[Leaf], parts: list[Count]) -> Count:
    """For each leaf a Count of [probes, slices] -> a Count of [rows, probes], of all that devices of a shard_map hold.

    That takes one collective for all leaves shared along the same axes of the mesh.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.layout.all_names, []).append(i)
    found = []
    for names, group in groups.items():
        limbs = zip(*(parts[i] for i in group), strict=True)
        found.append(shards.total(counts.normalise(Count(*(lax.concatenate(limb, 1).T for limb in limbs))), names))
    if len(found) == 1:
        return found[0]
    rows = np.split(np.arange(sum(leaf.slices for leaf in leaves)), np.cumsum([leaf.slices for leaf in leaves])[:-1])
    order = np.argsort(np.concatenate([rows[i] for group in groups.values() for i in group]))
    return Count(*(jnp.concatenate(limbs)[order] for limbs in zip(*found, strict=True)))


def _bounds(leaves: list[Leaf], integer: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The ends of the search, int[parts, rows]; a leaf that has fewer parts than others has a dummy last."""
    parts = max(len(leaf.bounds) for leaf in leaves)
    ends = [leaf.bounds + [(-2, -1)] * (parts - len(leaf.bounds)) for leaf in leaves for _ in range(leaf.slices)]
    table = np.array(ends, integer).transpose(2, 1, 0)
    return jnp.asarray(table[0]), jnp.asarray(table[1])


def _per_row(leaves: list[Leaf]) -> Count:
    sizes = [Count.of(leaf.entries) for leaf in leaves for _ in range(leaf.slices)]
    return Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*sizes, strict=True)))


def _sample(arrays: list[jax.Array], leaves: list[Leaf], rows: Rows, integer: np.dtype) -> tuple[jax.Array, np.ndarray]:
    """A few keys for each row, int[rows, m], padded with the largest integer; and how many there are."""
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


# Many layers alike are ranked by the kernels of one: it is the number of kernels that makes a mask update slow to
# compile. A large array is not worth the copy.


class Stacks(NamedTuple):
    """Arrays of which some are stacks.

    Attributes:
      arrays: the arrays; a stack has a new leading axis.
      batch_axes: how many leading axes of each are slices, that of a stack among them.
      layouts: how devices of a shard_map share each.
      members: for each, which of the arrays given it is made of, in order.
    """

    arrays: list[jax.Array]
    batch_axes: list[int]
    layouts: list[Shards]
    members: list[list[int]]

    @property
    def order(self) -> list[int]:
        """The number of each member, in the order of the stacks."""
        return [i for members in self.members for i in members]

    def unstack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The inverse of stacking, for other arrays in the shapes of `self.arrays`."""
        found: dict[int, jax.Array] = {}
        for array, members in zip(arrays, self.members, strict=True):
            found |= {members[0]: array} if len(members) == 1 else dict(zip(members, array, strict=True))
        return [found[i] for i in range(len(found))]


def stack(arrays: Sequence[jax.Array], batch_axes: Sequence[int], layouts: Sequence[Shards] | None = None) -> Stacks:
    """Stacks arrays of one shape, dtype, number of batch axes, and sharding as far as types tell, if they are small."""
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
