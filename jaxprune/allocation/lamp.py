"""`lamp`: one ranking over all leaves by magnitudes that are comparable across leaves."""

import math
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import masks
from jaxprune.allocation import _levels
from jaxprune.allocation.shares import Allocation, allocation, as_sparsity
from jaxprune.masks import Leaf
from jaxprune.masks._exact import counts, shards
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import WHOLE, Shards
from jaxprune.masks.patterns import UNSTRUCTURED

PyTree = Any
_ROWS = 1 << 15  # the largest number of counts that counts.sum_counts adds


def lamp(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    r"""Ranks the weights of all leaves together, each relative to the weights of its leaf that are at least as large.

        lamp_u = w_u^2 / sum_{v: |w_v| >= |w_u|} w_v^2

    Lee et al. 2021 (LAMP), arXiv 2010.07611. Within a leaf the LAMP score ranks as |w| does, so the allocation only
    decides how many entries each leaf keeps. The largest weight of each leaf has a score near 1, so no leaf is emptied
    before the others. Equal weights have equal scores. Nothing is sorted: counting passes narrow a bracket for each
    leaf, with the same bits on any number of devices.

    How the score is computed: a weight is rounded to float32, and denormal, NaN and negative numbers count as 0. It is
    divided by the power of two above the largest weight of its leaf, squared in float32 and rounded to 2^-36. The
    squares are summed exactly, and the quotient is a float32. If quotients are equal, the larger weight is kept, then
    the weight of the earlier leaf.

    Args:
      scores: floating arrays, 0 or more: |w|, the scores of `criteria.magnitude`. Do not pass squares: LAMP squares the
        scores.
      sparsity: the total fraction to remove, in [0, 1): a Python number or a traced scalar.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. Every pattern must be
        `masks.Unstructured()`, because LAMP scores single weights. Each stacked layer counts as a leaf.

    Returns:
      A `masks.Count` for each pruned leaf (of [slices] for stacked layers) and 0.0 for the others; and the achieved
      total, exactly floor(s N + 1/2) of all N entries.

    Raises:
      ValueError: the sparsity is outside [0, 1); a pattern is not `masks.Unstructured()`.

    Example:
      >>> scores = {'a': jnp.array([[4.0, 1.0, 1.0, 1.0]]), 'b': jnp.array([[0.2, 0.2, 0.1, 0.1]])}
      >>> counts, achieved = lamp(scores, 0.5)
      >>> {name: int(count) for name, count in counts.items()}, achieved
      ({'a': 3, 'b': 1}, 0.5)
    """
    sparsity = as_sparsity(sparsity)
    pruned = [leaf for leaf in masks.leaves(scores, **units) if leaf.entries]
    _check(pruned)
    entries = sum(leaf.entries for leaf in pruned)
    removed = counts.removed(sparsity, entries)
    if not pruned:
        return allocation(scores, [], [])
    kept = Count(*(jnp.asarray(limb, jnp.int32) for limb in counts.subtract(masks.Count.of(entries), removed)))
    arrays, layouts = zip(*(leaf.with_batch_first() for leaf in pruned), strict=True)
    axes = tuple(len(leaf.batch_axes) for leaf in pruned)
    held, _ = keep(list(arrays), kept, batch_axes=axes, layouts=layouts)
    gone = [counts.subtract(masks.Count.of(leaf.units), count) for leaf, count in zip(pruned, held, strict=True)]
    gone = [
        count if leaf.batch_axes else Count(*(x[0] for x in count)) for leaf, count in zip(pruned, gone, strict=True)
    ]
    total = int(removed) if isinstance(removed.low, int) else counts.as_float(removed)
    return Allocation(allocation(scores, pruned, gone).sparsities, total / entries)


@partial(jax.jit, static_argnames=("batch_axes", "layouts"))
def keep(
    arrays: list[jax.Array], kept: Count, *, batch_axes: tuple[int, ...], layouts: tuple[Shards, ...] | None = None
) -> tuple[list[Count], jax.Array]:
    """Returns how many entries of each slice LAMP keeps.

    Args:
      arrays: floating arrays, none of them empty.
      kept: the number of kept entries of all arrays together, a Count of scalars.
      batch_axes: for each array, the number of leading axes that are slices.
      layouts: how devices of a shard_map share each array. `arrays` are shards; all other values are of whole arrays.

    Returns:
      A Count of [slices] for each array; and the number of passes over the data.
    """
    layouts = layouts or (WHOLE,) * len(arrays)
    given = list(zip(arrays, batch_axes, layouts, strict=True))
    slices = [math.prod(layout.whole(x.shape)[:axes]) for x, axes, layout in given]
    bounds = [sum(slices[:i]) for i in range(1, len(slices))]
    largest = [_levels.largest(x, axes, layout) for x, axes, layout in given]
    exponents = [_levels.exponents(x) for x in largest]
    rows = jnp.concatenate([x.ravel() for x in exponents])[:, None]

    def look(probes: jax.Array, turn: jax.Array) -> tuple[Count, jax.Array]:
        # The barrier ties the scores to this pass. Without it squares are computed once and stored in large buffers.
        held = [x for x, _ in shards.tie(arrays, turn, layouts)]
        parts = zip(held, exponents, jnp.split(probes, bounds), layouts, strict=True)
        found = [_levels.tails(array, exponent, part, layout) for array, exponent, part, layout in parts]
        count = Count(*(jnp.concatenate(limbs) for limbs in zip(*(x.entries for x in found), strict=True)))
        square = _levels.scaled_square(lax.bitcast_convert_type(probes, jnp.float32), rows)
        return count, jnp.where(square > 0, square / jnp.concatenate([x.squares for x in found]), 0.0)

    sizes = [masks.Count.of(math.prod(cut.whole(x.shape)[axes:])) for x, axes, cut in given]
    sizes = [size for size, n in zip(sizes, slices, strict=True) for _ in range(n)]
    entries = Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*sizes, strict=True)))
    taken, passes = _levels.keep_first(look, entries, jnp.concatenate([x.ravel() for x in largest]), kept)
    return [Count(*limbs) for limbs in zip(*(jnp.split(limb, bounds) for limb in taken), strict=True)], passes


def _check(pruned: list[Leaf]) -> None:
    wrong = [f"  {leaf.name}: {leaf.pattern}" for leaf in pruned if leaf.pattern != UNSTRUCTURED]
    if wrong:
        raise ValueError(
            "lamp ranks single weights, so every pattern must be Unstructured(); use erk, or rank blocks and channels "
            "by one_ranking:\n" + "\n".join(wrong)
        )
    rows = sum(leaf.slices for leaf in pruned)
    if rows > _ROWS:
        raise ValueError(f"lamp can rank at most {_ROWS} slices together, got {rows}; use fewer batch axes")
