"""`drop_and_grow`: moves an exact number of kept weights of each leaf to other positions.

`gradient_growth` is RigL's criterion for growing.
"""

import dataclasses
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.masks import Count, Leaf, Units, Unstructured, leaves, select, unpack
from jaxprune.masks._exact import counts, shards
from jaxprune.masks.select import keep_in_leaf

PyTree = Any
_LEAF = Unstructured()


def drop_and_grow(
    masks: PyTree,
    drop: PyTree,
    grow: PyTree,
    fraction: Any,
    *,
    whole_leaf: bool = False,
    **units: Unpack[Units],
) -> PyTree:
    r"""Removes the k kept weights with the lowest scores of each leaf, and restores k removed weights.

        k = min(floor(f n + 1/2), N - n)        n kept of N entries

    If the pattern has parts (the inputs of an output, the groups of N:M), n and N are counted in each part. With
    `whole_leaf`, the k kept weights with the lowest scores in the whole leaf are dropped, and each part grows as many
    weights as it lost, so that every part keeps its number of weights.

    k is computed in float32, from a rounded n above 2^24. The numbers of dropped and grown weights are always equal, so
    n never changes. A weight that is dropped is not grown in the same call.

    Args:
      masks: bool masks in the structure of the scores.
      drop: scores of the kept weights; the lowest scores are dropped. NaN ranks lowest.
      grow: scores of the removed weights; the weights with the highest scores are grown. NaN ranks lowest.
      fraction: f in [0, 1], a number or a traced scalar.
      whole_leaf: whether the lowest scores of the whole leaf are dropped; default False. No part loses more weights
        than it can grow: its best weights beyond that number stay.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. The pattern is
        `masks.Unstructured`; with `axes=-2` the number is conserved for every output (constant fan-in); with
        `whole_leaf` it may also be `masks.NM`, which `masks` must have. Each slice along `batch_axes` conserves its own
        number.

    Returns:
      New masks. If scores are equal, the lowest index is kept, and the lowest index is grown.

    Raises:
      ValueError: the pattern is not supported, trees differ in structure, or `fraction` is outside [0, 1]; the message
        names the leaves.
      TypeError: masks are not bool.

    Example:
      >>> masks = {'w': jnp.array([[True, True, False, False]])}
      >>> drop, grow = {'w': jnp.array([[3.0, 1.0, 0.0, 0.0]])}, {'w': jnp.array([[0.0, 9.0, 1.0, 2.0]])}
      >>> drop_and_grow(masks, drop, grow, 0.5)['w'].tolist()
      [[True, False, False, True]]
    """
    if isinstance(fraction, int | float) and not 0 <= fraction <= 1:
        raise ValueError(
            f"fraction must be in [0, 1], the fraction of the kept weights that is dropped; got {fraction}"
        )
    if jax.tree.structure(grow) != jax.tree.structure(drop):
        _tree.check_same(drop, grow, what="grow", of="drop")
    check_pattern(drop, whole_leaf=whole_leaf, **units)
    chosen = _by_place(drop, **units)
    try:
        old = jax.tree.map(lambda _, mask: unpack(mask), drop, masks)
    except (ValueError, TypeError):
        _tree.check_same(drop, masks, what="masks", of="drop")
        raise
    _tree.check_bool(old)
    worst = jax.tree.map(_drop_scores, drop, old)

    def of_leaves(fn: Any, otherwise: PyTree, *trees: PyTree) -> PyTree:
        return jax.tree.map(lambda x, leaf, *xs: x if leaf is None else fn(leaf, *xs), otherwise, chosen, *trees)

    zeros = jax.tree.map(lambda _: 0.0, drop)
    drop_units: Units = units
    droppable, after_grow = old, of_leaves(_removed, zeros, old)
    if whole_leaf:
        safe = of_leaves(_not_to_replace, zeros, worst, old)
        worst = of_leaves(lambda _, s, kept: _last_where(kept, s), worst, worst, safe)
        droppable = of_leaves(lambda _, mask, kept: mask & ~kept, old, old, safe)
        drop_units = {**units, "pattern": _LEAF}
        chosen = _by_place(drop, **drop_units)
    after_drop = of_leaves(partial(_removed_and_dropped, fraction), zeros, old, droppable)
    stay = select(worst, after_drop, **drop_units)
    return select(jax.tree.map(_grow_scores, grow, old, stay), after_grow, **units)


def check_pattern(params: PyTree, *, whole_leaf: bool, **units: Unpack[Units]) -> None:
    """Raises unless the units of every pruned leaf are single entries."""
    wrong = [
        f"  {leaf.name}: {leaf.pattern}"
        for leaf in leaves(params, **units)
        if not leaf.has_single_units or (leaf.group is not None and not whole_leaf)
    ]
    if wrong:
        raise ValueError(
            "drop and grow supports Unstructured; for the same number of inputs of every output use "
            "Unstructured(axes=-2), for N:M training.srigl or sr_ste:\n" + "\n".join(wrong)
        )


def gradient_growth(params: PyTree, *, grads: PyTree = None, **signals: Any) -> PyTree:
    """Computes the absolute gradient |g| of all weights, also removed weights: RigL's criterion for growing.

    Evci et al. 2020 (RigL), arXiv 1911.11134, eq. 1. Do not use it as a criterion for dropping.

    Args:
      params: any tree.
      grads: dense gradients in the structure of `params`.
      **signals: ignored.

    Returns:
      A tree of scores, in the dtypes of the gradients; a scalar zero for leaves that are not floating.

    Raises:
      ValueError: grads are missing.

    Example:
      >>> gradient_growth({'w': jnp.zeros(2)}, grads={'w': jnp.array([-2.0, 1.0])})['w'].tolist()
      [2.0, 1.0]
    """
    del signals
    if grads is None:
        raise ValueError("training.gradient_growth needs grads: pass grads=jax.grad(loss)(params, batch)")
    _tree.check_same(params, grads, what="grads")
    return jax.tree.map(lambda p, g: jnp.abs(g) if _tree.is_floating(p) else jnp.zeros(()), params, grads)


def _by_place(params: PyTree, **units: Unpack[Units]) -> PyTree:
    """Returns a tree of `masks.Leaf`, with None at the leaves that are not pruned."""
    structure, own = jax.tree.structure(params), {leaf.place: leaf for leaf in leaves(params, **units)}
    return structure.unflatten([own.get(i) for i in range(structure.num_leaves)])


def _removed(leaf: Leaf, mask: jax.Array) -> Any:
    """Counts the removed units of each part, for selection."""
    fixed = leaf.pattern.fixed_sparsity
    return _count(~mask, leaf) if fixed is None else fixed


def _removed_and_dropped(fraction: Any, leaf: Leaf, mask: jax.Array, droppable: jax.Array) -> Count:
    """Counts the units that are removed after the drop step, including units that were removed before."""
    kept, removed, most = (_count(x, leaf) for x in (mask, ~mask, droppable))
    wished = jnp.floor(jnp.float32(fraction) * counts.as_float(kept) + 0.5)
    high = jnp.floor(wished / (1 << 16))
    number = Count(high.astype(jnp.int32), (wished - high * (1 << 16)).astype(jnp.int32))
    number = _least(_least(number, most), removed)
    return counts.normalise(Count(removed.high + number.high, removed.low + number.low))


def _not_to_replace(leaf: Leaf, scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Marks the best weights of each part, which stay so that no part drops more weights than it can grow."""
    if group := leaf.group:
        least = 2 * group.kept - group.size
        return keep_in_leaf(dataclasses.replace(leaf, array=scores), least) if least > 0 else jnp.zeros_like(mask)
    removed, every = _removed_and_dropped(1.0, leaf, mask, mask), lambda *_: True
    return select(scores, removed, leaf.pattern, where=every, batch_axes=leaf.batch_axes, specs=leaf.shards)


def _least(a: Count, b: Count) -> Count:
    smaller = counts.less(a, b)
    return Count(jnp.where(smaller, a.high, b.high), jnp.where(smaller, a.low, b.low))


def _count(mask: jax.Array, leaf: Leaf) -> Count:
    """Counts the True entries, in total or in each part; no axes are merged before they are counted."""
    units, axes = leaf.pattern.units(mask, leaf), leaf.pattern.slice_axes(leaf)
    rows = units.sum(-1, dtype=jnp.int32)
    total = counts.normalise(Count(jnp.zeros_like(rows), rows))
    while total.low.ndim > axes:
        total = counts.sum_counts(total, total.low.ndim - 1)
    total = shards.total_slices(total, leaf.unit_shards, units.shape[:axes])
    return jax.tree.map(lambda limb: limb.reshape(() if limb.size == 1 else -1), total)


def _drop_scores(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Sets scores to NaN, the lowest rank, at removed weights; no other score is NaN."""
    return jnp.where(mask, jnp.where(jnp.isnan(scores), -jnp.inf, scores), jnp.nan) if mask.ndim else scores


def _last_where(kept: jax.Array, scores: jax.Array) -> jax.Array:
    """Sets scores to infinity where a weight must not be dropped; the others are finite or NaN."""
    return jnp.where(kept, jnp.inf, jnp.minimum(scores, jnp.finfo(scores.dtype).max))


def _grow_scores(scores: jax.Array, mask: jax.Array, stay: jax.Array) -> jax.Array:
    """Sets scores to infinity where a weight stays and to NaN where it was just dropped; the others are finite."""
    if not mask.ndim:
        return scores
    finite = jnp.where(jnp.isnan(scores), -jnp.inf, jnp.minimum(scores, jnp.finfo(scores.dtype).max))
    return jnp.where(stay, jnp.inf, jnp.where(mask, jnp.nan, finite))
