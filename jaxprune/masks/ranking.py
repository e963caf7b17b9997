"""Exactly k of n kept, for arrays: by rank of the scores, the lowest index first among equals."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxprune.masks import counts
from jaxprune.masks.counts import Count
from jaxprune.masks.rows import Leaf
from jaxprune.masks.search import Bracket, Rows, probes_from_sample, search

_SAMPLE = 512  # entries a threshold is first guessed from


def keep_largest(
    scores: Sequence[jax.Array], kept: Count, *, batch_axes: Sequence[int], shared: bool
) -> list[jax.Array]:
    """Masks that keep exactly so many of the largest scores.

    Args:
      scores: floating arrays. The leading `batch_axes[i]` axes of array i are independent slices.
      kept: how many entries to keep, at most as many as there are. If not shared, a Count of [slices of all
        arrays, in order]; if shared, of [slices], of which all arrays then have the same number.
      batch_axes: for each array, how many leading axes it is sliced along.
      shared: whether the arrays' scores are ranked together.

    Returns:
      bool masks in the shapes of the scores. NaN ranks lowest, -0.0 equals 0.0, and of equal scores those with the
      lowest index are kept (of the earliest array first).
    """
    if not scores:
        return []
    common = jnp.result_type(*scores)
    leaves = [Leaf(x.astype(common) if shared else x, axes) for x, axes in zip(scores, batch_axes, strict=True)]
    slices = [leaf.slices for leaf in leaves]
    rows = Rows(slices[0], len(slices)) if shared else Rows(sum(slices))
    bracket = _threshold(leaves, rows, kept)
    cuts = _cut_ties(leaves, rows, kept, bracket)
    exact = counts.equal(rows.total(bracket.above_low), kept)
    above = rows.spread(jnp.where(exact, bracket.low, bracket.high))
    per_leaf = zip(leaves, *(split(x, slices) for x in (above, rows.spread(bracket.high), cuts)), strict=True)
    return [leaf.mask(above, tie, cut) for leaf, above, tie, cut in per_leaf]


def split(values: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts the leading axis into stretches of the given sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [values[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _join(parts: list[Count]) -> Count:
    return counts.normalise(Count(*(jnp.concatenate(limbs) for limbs in zip(*parts, strict=True))))


# In both searches a barrier ties the scores to the pass. Without it the compiler takes their keys (and the indices)
# out of the loop, into buffers as large as the scores. Both of its outputs must be used, or it ties nothing.


def _threshold(leaves: list[Leaf], rows: Rows, kept: Count) -> Bracket:
    sizes = [leaf.slices for leaf in leaves]
    integer = jnp.result_type(*(leaf.key_dtype for leaf in leaves), jnp.int32)
    segments = leaves[:1] if rows.shared > 1 else leaves
    low, high = (
        jnp.concatenate([jnp.full(leaf.slices, leaf.key_bounds[end], integer) for leaf in segments]) for end in (0, 1)
    )
    entries = _per_row(leaves)

    def count_above(probes: jax.Array) -> Count:
        arrays, probes = jax.lax.optimization_barrier(([leaf.scores for leaf in leaves], probes))
        parts = zip(leaves, arrays, split(probes, sizes), strict=True)
        return _join([leaf.on(array).count_above(part) for leaf, array, part in parts])

    start = Bracket(low, high, entries, Count(*(jnp.zeros_like(x) for x in entries)))
    fraction = counts.as_float(kept) / counts.as_float(rows.total(entries))
    return search(count_above, rows, kept, start, probes_from_sample(*_sample(leaves, rows, integer), fraction))


def _cut_ties(leaves: list[Leaf], rows: Rows, kept: Count, bracket: Bracket) -> jax.Array:
    """The flat index, in each row, below which entries that tie at the threshold are kept."""
    sizes = [leaf.slices for leaf in leaves]
    tie = rows.spread(bracket.high)
    tied = counts.subtract(bracket.above_low, bracket.above_high)
    wanted = _share_ties(tied, rows, kept, bracket)

    def count_before(probes: jax.Array) -> Count:
        arrays, probes, zero = jax.lax.optimization_barrier(([leaf.scores for leaf in leaves], probes, jnp.int32(0)))
        parts = zip(leaves, arrays, split(probes, sizes), split(tie, sizes), strict=True)
        return _join([leaf.on(array).count_ties(part, value, zero) for leaf, array, part, value in parts])

    # The same search: among entries that tie, the one with the lowest index has the largest key, -index - 1.
    lows = jnp.concatenate([jnp.full(leaf.slices, -leaf.entries - 1, jnp.int32) for leaf in leaves])
    start = Bracket(lows, jnp.full_like(lows, -1), tied, Count(*(jnp.zeros_like(x) for x in tied)))
    every_row = Rows(len(lows))
    return -1 - search(count_before, every_row, wanted, start).low


def _share_ties(tied: Count, rows: Rows, kept: Count, bracket: Bracket) -> Count:
    """How many tied entries each row keeps: none where the count came out exact, else the earliest rows' first."""
    exact = counts.equal(rows.total(bracket.above_low), kept)
    wanted = counts.subtract(kept, rows.total(bracket.above_high))
    wanted = Count(*(rows.spread(jnp.where(exact, 0, limb)) for limb in wanted))
    if rows.shared == 1:
        return wanted
    before = [Count(*(jnp.zeros(rows.segments, jnp.int32) for _ in range(2)))]
    parts = zip(*(split(limb, [rows.segments] * rows.shared) for limb in tied), strict=True)
    for high, low in parts:
        before.append(counts.normalise(Count(before[-1].high + high, before[-1].low + low)))
    before = Count(*(jnp.concatenate(limbs) for limbs in zip(*before[:-1], strict=True)))
    left = counts.subtract(wanted, before)
    some = ~counts.less(left, Count(0, 1))
    all_of_them = counts.less(tied, left)
    return Count(*(jnp.where(some, jnp.where(all_of_them, t, x), 0) for t, x in zip(tied, left, strict=True)))


def _per_row(leaves: list[Leaf]) -> Count:
    sizes = [counts.count(leaf.entries) for leaf in leaves for _ in range(leaf.slices)]
    return Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*sizes, strict=True)))


def _sample(leaves: list[Leaf], rows: Rows, integer: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """A few keys of each segment, int[segments, m], padded with the largest integer; and how many there are."""
    wanted = [max(_SAMPLE // 8, _SAMPLE // max(1, rows.segments // 8))] * len(leaves)
    if rows.shared > 1:
        total = sum(leaf.entries for leaf in leaves)
        wanted = [max(1, round(_SAMPLE * leaf.entries / total)) for leaf in leaves]
    samples = [leaf.sample(n).astype(integer) for leaf, n in zip(leaves, wanted, strict=True)]
    if rows.shared > 1:
        keys = jnp.concatenate(samples, axis=1)
        return keys, jnp.full(rows.segments, keys.shape[1])
    width = max(sample.shape[1] for sample in samples)
    largest = jnp.iinfo(integer).max
    padded = [jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=largest) for x in samples]
    return jnp.concatenate(padded), jnp.array([x.shape[1] for x in samples for _ in range(len(x))])
