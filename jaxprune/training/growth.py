"""Drop and grow: as many weights leave as come back, so that a leaf keeps its exact number."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, masks
from jaxprune.masks import counts, shards
from jaxprune.masks.cutting import unit_layout
from jaxprune.masks.shards import Layout

PyTree = Any
_LEAF = masks.Unstructured()


def drop_and_grow(
    held: PyTree,
    drop: PyTree,
    grow: PyTree,
    fraction: Any,
    *,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    whole_leaf: bool = False,
) -> PyTree:
    r"""Removes the k worst of the kept weights of each leaf, and keeps k that were removed before instead.

        k = min(floor(f n + 1/2), N - n)        n kept of N entries

    Where the pattern has parts (the inputs of an output, the groups of N:M) these are n and N of each part; or, with
    `whole_leaf`, the k worst of the whole leaf go and each part grows as many as it lost, so that the weights move to
    where they matter and the parts stay alike.

    k comes from float32, so for n above 2^24 it is that of n rounded; but exactly as many are dropped as grown, and n
    is conserved exactly. No weight that is dropped is grown in the same call.

    Args:
      held: the masks, in the structure of the scores.
      drop: scores of the kept weights: of these the lowest are dropped. A NaN among them goes first.
      grow: scores of the removed weights: of these the highest are grown. A NaN among them comes last.
      fraction: f in [0, 1], a number or a traced scalar.
      pattern: `masks.Unstructured`; with `axes=-2` the number is conserved for every output (constant fan-in); with
        `whole_leaf` also `masks.NM`, which `held` must have. A mapping from globs gives each leaf its own.
      where: the leaves that are pruned.
      batch_axes: leading axes of a leaf, each slice of which conserves its own number.
      whole_leaf: whether the worst are those of the whole leaf. No part loses more than it can grow: of those beyond
        that the best stay.

    Returns:
      New masks. Ties fall to the lowest index: of equal scores it is the one kept, and the one grown.

    Raises:
      ValueError: another pattern; the message names the leaves.

    Example:
      >>> held = {'w': jnp.array([[True, True, False, False]])}
      >>> drop, grow = {'w': jnp.array([[3.0, 1.0, 0.0, 0.0]])}, {'w': jnp.array([[0.0, 9.0, 1.0, 2.0]])}
      >>> drop_and_grow(held, drop, grow, 0.5)['w'].tolist()
      [[True, False, False, True]]
    """
    check_pattern(drop, pattern, where, whole_leaf=whole_leaf)
    chosen = _tree.prunable(drop, where)
    patterns = jax.tree.unflatten(
        jax.tree.structure(drop), _tree.resolve(pattern, drop, default=masks.Unstructured(), what="pattern")
    )
    axes = jax.tree.unflatten(jax.tree.structure(drop), _tree.resolve(batch_axes, drop, default=0, what="batch_axes"))
    layouts = jax.tree.unflatten(jax.tree.structure(drop), shards.layouts(drop))
    held = jax.tree.map(lambda _, mask: masks.as_bool(mask), drop, held)
    worst = jax.tree.map(_drop_scores, drop, held)

    def of_chosen(fn: Any, *trees: PyTree) -> PyTree:
        return jax.tree.map(lambda yes, *leaf: fn(*leaf) if yes else 0.0, chosen, *trees)

    def select(scores: PyTree, removed: PyTree, pattern: masks.Patterns) -> PyTree:
        return masks.select(scores, removed, pattern, where=where, batch_axes=batch_axes)

    drop_pattern, droppable, after_grow = pattern, held, of_chosen(_removed, held, patterns, axes, layouts)
    if whole_leaf:
        safe = of_chosen(_not_to_replace, worst, held, patterns, axes, layouts)
        worst = jax.tree.map(lambda yes, s, kept: _last_where(kept, s) if yes else s, chosen, worst, safe)
        droppable = jax.tree.map(lambda yes, mask, kept: mask & ~kept if yes else mask, chosen, held, safe)
        drop_pattern, patterns = _LEAF, jax.tree.map(lambda _: _LEAF, chosen)
    after_drop = of_chosen(partial(_removed_and_dropped, fraction), held, droppable, patterns, axes, layouts)
    stay = select(worst, after_drop, drop_pattern)
    return select(jax.tree.map(_grow_scores, grow, held, stay), after_grow, pattern)


def check_pattern(params: PyTree, pattern: masks.Patterns, where: _tree.Where, *, whole_leaf: bool) -> None:
    """Raises unless the units of every pruned leaf are single entries."""
    patterns = _tree.resolve(pattern, params, default=masks.Unstructured(), what="pattern")
    chosen = jax.tree.leaves(_tree.prunable(params, where))
    covered = (masks.Unstructured, masks.NM) if whole_leaf else masks.Unstructured
    wrong = [
        f"  {name}: {p}"
        for (name, _), p, yes in zip(_tree.named_leaves(params), patterns, chosen, strict=True)
        if yes and not isinstance(p, covered)
    ]
    if wrong:
        raise ValueError(
            "drop and grow is for masks.Unstructured; for as many inputs of every output use "
            "Unstructured(axes=-2), for N:M training.srigl or sr_ste:\n" + "\n".join(wrong)
        )


def gradient_growth(params: PyTree, *, grads: PyTree = None, **signals: Any) -> PyTree:
    """The size of the gradient, |g|, also where the weight is removed.

    Evci et al. 2020 (RigL), arXiv 1911.11134, eq. 1. It is the criterion by which RigL grows, and no criterion to drop
    by.

    Args:
      params: any tree.
      grads: dense gradients in its structure.
      **signals: ignored.

    Returns:
      A tree of scores, in the dtypes of the gradients; a scalar zero for leaves that are not floating.

    Raises:
      ValueError: there are no gradients.

    Example:
      >>> gradient_growth({'w': jnp.zeros(2)}, grads={'w': jnp.array([-2.0, 1.0])})['w'].tolist()
      [2.0, 1.0]
    """
    del signals
    if grads is None:
        raise ValueError("training.gradient_growth needs grads: pass grads=jax.grad(loss)(params, batch)")
    _tree.check_same(params, grads, what="grads")
    return jax.tree.map(lambda p, g: jnp.abs(g) if _tree.is_floating(p) else jnp.zeros(()), params, grads)


def _removed(mask: jax.Array, pattern: Any, batch_axes: int, layout: Layout) -> Any:
    """How many units of each part are removed, for selection."""
    if isinstance(pattern, masks.NM):
        return 1 - pattern.n / pattern.m
    return _count(~mask, pattern, batch_axes, layout)


def _removed_and_dropped(
    fraction: Any,
    mask: jax.Array,
    droppable: jax.Array,
    pattern: masks.Unstructured,
    batch_axes: int,
    layout: Layout,
) -> masks.Count:
    """And with those that are to drop."""
    kept, removed, most = (_count(x, pattern, batch_axes, layout) for x in (mask, ~mask, droppable))
    wished = jnp.floor(jnp.float32(fraction) * counts.as_float(kept) + 0.5)
    high = jnp.floor(wished / (1 << 16))
    number = masks.Count(high.astype(jnp.int32), (wished - high * (1 << 16)).astype(jnp.int32))
    number = _least(_least(number, most), removed)
    return counts.normalise(masks.Count(removed.high + number.high, removed.low + number.low))


def _not_to_replace(scores: jax.Array, mask: jax.Array, pattern: Any, batch_axes: int, layout: Layout) -> jax.Array:
    """What stays even where each part drops all that it can grow again: its best, beyond its removed ones."""
    if isinstance(pattern, masks.NM):
        least = 2 * pattern.n - pattern.m
        if least < 1:
            return jnp.zeros_like(mask)
        removed, pattern = 1 - least / pattern.m, dataclasses.replace(pattern, n=least)
    else:
        removed = _removed_and_dropped(1.0, mask, mask, pattern, batch_axes, layout)
    every = lambda *_: True
    return masks.select(scores, removed, pattern, where=every, batch_axes=batch_axes, specs=layout)


def _least(a: masks.Count, b: masks.Count) -> masks.Count:
    smaller = counts.less(a, b)
    return masks.Count(jnp.where(smaller, a.high, b.high), jnp.where(smaller, a.low, b.low))


def _count(mask: jax.Array, pattern: masks.Unstructured, batch_axes: int, layout: Layout) -> masks.Count:
    """The number of True, or of each part if there are many; no axis is merged with another before it is counted."""
    units, axes = pattern.units(mask, batch_axes), pattern.batch_axes(mask.shape, batch_axes)
    rows = units.sum(-1, dtype=jnp.int32)
    total = counts.normalise(masks.Count(jnp.zeros_like(rows), rows))
    while total.low.ndim > axes:
        total = counts.sum_counts(total, total.low.ndim - 1)
    total = shards.total_slices(total, unit_layout(pattern, mask.ndim, batch_axes, layout), units.shape[:axes])
    return jax.tree.map(lambda limb: limb.reshape(-1 if limb.size > 1 else ()), total)


def _drop_scores(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """NaN, the lowest rank, where removed; and no NaN elsewhere."""
    return jnp.where(mask, jnp.where(jnp.isnan(scores), -jnp.inf, scores), jnp.nan) if mask.ndim else scores


def _last_where(kept: jax.Array, scores: jax.Array) -> jax.Array:
    """Infinite where a weight is not to be dropped, finite or NaN elsewhere."""
    return jnp.where(kept, jnp.inf, jnp.minimum(scores, jnp.finfo(scores.dtype).max))


def _grow_scores(scores: jax.Array, mask: jax.Array, stay: jax.Array) -> jax.Array:
    """Infinite where a weight stays, NaN where it was just dropped, finite elsewhere."""
    if not mask.ndim:
        return scores
    finite = jnp.where(jnp.isnan(scores), -jnp.inf, jnp.minimum(scores, jnp.finfo(scores.dtype).max))
    return jnp.where(stay, jnp.inf, jnp.where(mask, jnp.nan, finite))
