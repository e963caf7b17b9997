"""Drop and grow: as many weights leave as come back, so that a leaf keeps its exact number."""

import dataclasses
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree, masks
from jaxprune.masks import counts, shards
from jaxprune.masks.select import keep_in_leaf

PyTree = Any
_LEAF = masks.Unstructured()


def drop_and_grow(
    held: PyTree,
    drop: PyTree,
    grow: PyTree,
    fraction: Any,
    *,
    whole_leaf: bool = False,
    **units: Unpack[masks.Units],
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
      whole_leaf: whether the worst are those of the whole leaf. No part loses more than it can grow: of those beyond
        that the best stay.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`. The pattern is
        `masks.Unstructured`; with `axes=-2` the number is conserved for every output (constant fan-in); with
        `whole_leaf` also `masks.NM`, which `held` must have. Each slice along `batch_axes` conserves its own number.

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
    check_pattern(drop, whole_leaf=whole_leaf, **units)
    chosen = _by_place(drop, **units)
    held = jax.tree.map(lambda _, mask: masks.as_bool(mask), drop, held)
    worst = jax.tree.map(_drop_scores, drop, held)

    def of_leaves(fn: Any, otherwise: PyTree, *trees: PyTree) -> PyTree:
        return jax.tree.map(lambda x, leaf, *xs: x if leaf is None else fn(leaf, *xs), otherwise, chosen, *trees)

    zeros = jax.tree.map(lambda _: 0.0, drop)
    drop_units: masks.Units = units
    droppable, after_grow = held, of_leaves(_removed, zeros, held)
    if whole_leaf:
        safe = of_leaves(_not_to_replace, zeros, worst, held)
        worst = of_leaves(lambda _, s, kept: _last_where(kept, s), worst, worst, safe)
        droppable = of_leaves(lambda _, mask, kept: mask & ~kept, held, held, safe)
        drop_units = {**units, "pattern": _LEAF}
        chosen = _by_place(drop, **drop_units)
    after_drop = of_leaves(partial(_removed_and_dropped, fraction), zeros, held, droppable)
    stay = masks.select(worst, after_drop, **drop_units)
    return masks.select(jax.tree.map(_grow_scores, grow, held, stay), after_grow, **units)


def check_pattern(params: PyTree, *, whole_leaf: bool, **units: Unpack[masks.Units]) -> None:
    """Raises unless the units of every pruned leaf are single entries."""
    wrong = [
        f"  {leaf.name}: {leaf.pattern}"
        for leaf in masks.leaves(params, **units)
        if not leaf.has_single_units or (leaf.pattern.group(leaf) is not None and not whole_leaf)
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


def _by_place(params: PyTree, **units: Unpack[masks.Units]) -> PyTree:
    """A tree of `masks.Leaf`, and None at the leaves that are not pruned."""
    structure, leaves = jax.tree.structure(params), {leaf.place: leaf for leaf in masks.leaves(params, **units)}
    return structure.unflatten([leaves.get(i) for i in range(structure.num_leaves)])


def _removed(leaf: masks.Leaf, mask: jax.Array) -> Any:
    """How many units of each part are removed, for selection."""
    fixed = leaf.pattern.fixed_sparsity
    return _count(~mask, leaf) if fixed is None else fixed


def _removed_and_dropped(fraction: Any, leaf: masks.Leaf, mask: jax.Array, droppable: jax.Array) -> masks.Count:
    """The number of units removed after the drop step, including those already removed."""
    kept, removed, most = (_count(x, leaf) for x in (mask, ~mask, droppable))
    wished = jnp.floor(jnp.float32(fraction) * counts.as_float(kept) + 0.5)
    high = jnp.floor(wished / (1 << 16))
    number = masks.Count(high.astype(jnp.int32), (wished - high * (1 << 16)).astype(jnp.int32))
    number = _least(_least(number, most), removed)
    return counts.normalise(masks.Count(removed.high + number.high, removed.low + number.low))


def _not_to_replace(leaf: masks.Leaf, scores: jax.Array, mask: jax.Array) -> jax.Array:
    """What stays even where each part drops all that it can grow again: its best, beyond its removed ones."""
    if group := leaf.pattern.group(leaf):
        least = 2 * group.kept - group.size
        return keep_in_leaf(dataclasses.replace(leaf, array=scores), least) if least > 0 else jnp.zeros_like(mask)
    removed, every = _removed_and_dropped(1.0, leaf, mask, mask), lambda *_: True
    return masks.select(scores, removed, leaf.pattern, where=every, batch_axes=leaf.batch_axes, specs=leaf.shards)


def _least(a: masks.Count, b: masks.Count) -> masks.Count:
    smaller = counts.less(a, b)
    return masks.Count(jnp.where(smaller, a.high, b.high), jnp.where(smaller, a.low, b.low))


def _count(mask: jax.Array, leaf: masks.Leaf) -> masks.Count:
    """The number of True, or of each part if there are many; no axis is merged with another before it is counted."""
    units, axes = leaf.pattern.units(mask, leaf), leaf.pattern.slice_axes(leaf)
    rows = units.sum(-1, dtype=jnp.int32)
    total = counts.normalise(masks.Count(jnp.zeros_like(rows), rows))
    while total.low.ndim > axes:
        total = counts.sum_counts(total, total.low.ndim - 1)
    total = shards.total_slices(total, leaf.unit_shards, units.shape[:axes])
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
