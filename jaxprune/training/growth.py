"""Drop and grow: as many weights leave as come back, so that a leaf keeps its exact number."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import masks, tree
from jaxprune.masks import counts

PyTree = Any


def drop_and_grow(
    held: PyTree,
    drop: PyTree,
    grow: PyTree,
    fraction: Any,
    *,
    pattern: masks.Patterns = masks.Unstructured(),
    where: tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
) -> PyTree:
    r"""Removes the k worst of the kept weights of each leaf, and keeps k that were removed before instead.

        k = min(floor(f n + 1/2), N - n)        n kept of N entries

    k comes from float32, so for n above 2^24 it is that of n rounded; but exactly as many are dropped as grown, and n
    is conserved exactly. No weight that is dropped is grown in the same call.

    Args:
      held: the masks, in the structure of the scores.
      drop: scores of the kept weights: of these the lowest are dropped. A NaN among them goes first.
      grow: scores of the removed weights: of these the highest are grown. A NaN among them comes last.
      fraction: f in [0, 1], a number or a traced scalar.
      pattern: `masks.Unstructured`; with `axes=-2` the number is conserved for every output (constant fan-in). A
        mapping from globs gives each leaf its own.
      where: the leaves that are pruned.
      batch_axes: leading axes of a leaf, each slice of which conserves its own number.

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
    check_unstructured(drop, pattern, where)
    chosen = tree.prunable(drop, where)
    patterns = jax.tree.unflatten(
        jax.tree.structure(drop), tree.resolve(pattern, drop, default=masks.Unstructured(), what="pattern")
    )
    axes = jax.tree.unflatten(jax.tree.structure(drop), tree.resolve(batch_axes, drop, default=0, what="batch_axes"))
    held = jax.tree.map(lambda _, mask: masks.as_bool(mask), drop, held)
    removals = jax.tree.map(
        lambda yes, mask, p, a: _removals(mask, fraction, p, a) if yes else (0.0, 0.0), chosen, held, patterns, axes
    )
    after_drop, after_grow = (jax.tree.map(lambda _, pair, i=i: pair[i], chosen, removals) for i in (0, 1))

    def select(scores: PyTree, removed: PyTree) -> PyTree:
        return masks.select(scores, removed, pattern, where=where, batch_axes=batch_axes)

    stay = select(jax.tree.map(_drop_scores, drop, held), after_drop)
    return select(jax.tree.map(_grow_scores, grow, held, stay), after_grow)


def check_unstructured(params: PyTree, pattern: masks.Patterns, where: tree.Where) -> None:
    """Raises unless every pruned leaf has single entries for units."""
    patterns = tree.resolve(pattern, params, default=masks.Unstructured(), what="pattern")
    chosen = jax.tree.leaves(tree.prunable(params, where))
    wrong = [
        f"  {name}: {p}"
        for (name, _), p, yes in zip(tree.named_leaves(params), patterns, chosen, strict=True)
        if yes and not isinstance(p, masks.Unstructured)
    ]
    if wrong:
        raise ValueError(
            "drop and grow is for masks.Unstructured; for as many inputs of every output use "
            "Unstructured(axes=-2), for N:M training.sr_ste:\n" + "\n".join(wrong)
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
    """
    del signals
    if grads is None:
        raise ValueError("training.gradient_growth needs grads: pass grads=jax.grad(loss)(params, batch)")
    tree.check_same(params, grads, what="grads")
    return jax.tree.map(lambda p, g: jnp.abs(g) if tree.is_floating(p) else jnp.zeros(()), params, grads)


def _removals(
    mask: jax.Array, fraction: Any, pattern: masks.Unstructured, batch_axes: int
) -> tuple[masks.Count, masks.Count]:
    """What selection removes of each slice: to drop, and after growing."""
    axes = pattern.batch_axes(mask.shape, batch_axes)
    units = pattern.units(mask, batch_axes)
    removed, kept = _count(~units, axes), _count(units, axes)
    wished = jnp.floor(jnp.float32(fraction) * counts.as_float(kept) + 0.5)
    high = jnp.floor(wished / (1 << 16))
    number = masks.Count(high.astype(jnp.int32), (wished - high * (1 << 16)).astype(jnp.int32))
    number = _least(_least(number, kept), removed)
    return counts.normalise(masks.Count(removed.high + number.high, removed.low + number.low)), removed


def _least(a: masks.Count, b: masks.Count) -> masks.Count:
    smaller = counts.less(a, b)
    return masks.Count(jnp.where(smaller, a.high, b.high), jnp.where(smaller, a.low, b.low))


def _count(units: jax.Array, axes: int) -> masks.Count:
    """The number of True, or of each slice if there are many; no axis is merged with another before it is counted."""
    rows = units.sum(-1, dtype=jnp.int32)
    total = counts.normalise(masks.Count(jnp.zeros_like(rows), rows))
    while total.low.ndim > axes:
        total = counts.sum_counts(total, total.low.ndim - 1)
    return jax.tree.map(lambda limb: limb.reshape(-1 if limb.size > 1 else ()), total)


def _drop_scores(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """NaN, the lowest rank, where removed; and no NaN elsewhere."""
    return jnp.where(mask, jnp.where(jnp.isnan(scores), -jnp.inf, scores), jnp.nan) if mask.ndim else scores


def _grow_scores(scores: jax.Array, mask: jax.Array, stay: jax.Array) -> jax.Array:
    """Infinite where a weight stays, NaN where it was just dropped, finite elsewhere."""
    if not mask.ndim:
        return scores
    finite = jnp.where(jnp.isnan(scores), -jnp.inf, jnp.minimum(scores, jnp.finfo(scores.dtype).max))
    return jnp.where(stay, jnp.inf, jnp.where(mask, jnp.nan, finite))
