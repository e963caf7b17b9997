"""`owl`: layers with more outliers among their scores stay denser."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree, masks
from jaxprune.allocation.shares import Allocation, allocation, as_sparsity
from jaxprune.masks import Leaf
from jaxprune.masks._exact import counts, shards
from jaxprune.masks.patterns import UNSTRUCTURED

PyTree = Any


def owl(
    scores: PyTree,
    sparsity: Any,
    *,
    threshold: float = 5.0,
    spread: float = 0.08,
    layer_of: Callable[[str], Hashable] | None = None,
    **units: Unpack[masks.Units],
) -> Allocation:
    r"""Gives layers with more outliers among their scores a higher density (outlier-weighed layerwise sparsity, OWL).

        D_l = fraction of the scores of layer l above `threshold` times their mean
        s_l = s + \bar d - d_l,  d_l = 2 spread (D_l - min D) / (max D - min D)

    Yin et al. 2024 (OWL), arXiv 2310.05175, section 3.2, for scores of `criteria.wanda`. $\bar d$ is the mean over all
    entries, so that the total is reached for layers of any size; in the paper all layers have one size. If the sparsity
    of a layer would leave [0, 1), all deviations are reduced by the same factor. If all layers have equally many
    outliers, the sparsity is uniform.

    Args:
      scores: floating arrays, 0 or more.
      sparsity: the total fraction to remove, in [0, 1): a Python number or a traced scalar.
      threshold: M in the paper, above 0; the paper uses 3 to 10. Default 5.0.
      spread: $\lambda$ in the paper, in [0, 0.5): the sparsities of two layers differ by at most twice this number;
        default 0.08.
      layer_of: a function from the name of a leaf to its layer. All leaves of a layer count together and get one
        sparsity, as the matrices of a transformer block do in the paper. None: every leaf is a layer. Each slice of
        stacked layers counts separately.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. Every pattern must be
        `masks.Unstructured()`. Each stacked layer is a layer with its own sparsity.

    Returns:
      A `masks.Count` for each pruned leaf (of [slices] for stacked layers) and 0.0 for the others; and the achieved
      total. Each layer's count is rounded separately.

    Raises:
      ValueError: the sparsity, `threshold` or `spread` is out of its range; a pattern is not `masks.Unstructured()`.

    Example:
      >>> flat, peaked = jnp.ones((4, 10)), jnp.ones((4, 10)).at[0, 0].set(100.0)
      >>> counts, achieved = owl({'flat': flat, 'peaked': peaked}, 0.5)
      >>> {name: int(n) for name, n in counts.items()}, achieved
      ({'flat': 23, 'peaked': 17}, 0.5)
    """
    if not threshold > 0 or not 0 <= spread < 0.5:
        raise ValueError(f"owl needs threshold > 0 and 0 <= spread < 0.5, got {threshold} and {spread}")
    if layer_of is not None:
        _tree.check_function(layer_of, "layer_of", "lambda name: name.split('/')[0]")
    sparsity = as_sparsity(sparsity)
    pruned = [leaf for leaf in masks.leaves(scores, **units) if leaf.entries]
    wrong = [f"  {leaf.name}: {leaf.pattern}" for leaf in pruned if leaf.pattern != UNSTRUCTURED]
    if wrong:
        raise ValueError("owl ranks single weights, so every pattern must be Unstructured():\n" + "\n".join(wrong))
    if not pruned:
        return allocation(scores, pruned, [])
    rows, sizes = _layers(pruned, layer_of)
    shares = _outliers(pruned, rows, len(sizes), threshold)
    each = _sparsities(shares, np.array(sizes, float), sparsity, spread)
    return allocation(scores, pruned, [_count(leaf, each[row]) for leaf, row in zip(pruned, rows, strict=True)])


def _layers(pruned: Sequence[Leaf], layer_of: Callable[[str], Hashable] | None) -> tuple[list[np.ndarray], list[int]]:
    """Returns the layers of each leaf's slices, and the number of entries of each layer."""
    index: dict[Hashable, int] = {}
    sizes: list[int] = []
    rows = []
    for leaf in pruned:
        layer = leaf.place if layer_of is None else layer_of(leaf.name)
        mine = [index.setdefault((layer, i), len(index)) for i in range(leaf.slices)]
        sizes += [0] * (len(index) - len(sizes))
        for row in mine:
            sizes[row] += leaf.units
        rows.append(np.array(mine))
    return rows, sizes


def _outliers(pruned: Sequence[Leaf], rows: Sequence[np.ndarray], n: int, threshold: float) -> jax.Array:
    """Returns the fraction of outliers in each layer."""
    entries = np.zeros(n)
    totals, above = jnp.zeros(n), jnp.zeros(n)
    for leaf, row in zip(pruned, rows, strict=True):
        totals = totals.at[row].add(_sums(leaf))
        np.add.at(entries, row, leaf.units)
    limit = threshold * totals / entries
    for leaf, row in zip(pruned, rows, strict=True):
        above = above.at[row].add(_number_above(leaf, limit[row]))
    return above / entries


def _sums(leaf: Leaf) -> jax.Array:
    """Returns the exact sum of each slice, in the leaf's shape: the same bits for every sharding."""
    scores, layout = leaf.with_batch_first()
    axes = len(leaf.batch_axes)
    found = shards.exact_sum(scores, tuple(range(axes, scores.ndim)), layout).reshape(scores.shape[:axes])
    if layout.along(range(axes)):
        found = jax.lax.psum(layout.spread(found, scores.shape[:axes]), layout.along(range(axes)))
    return found.reshape(-1)


def _number_above(leaf: Leaf, limit: jax.Array) -> jax.Array:
    scores, layout = leaf.with_batch_first()
    axes = len(leaf.batch_axes)
    batch = scores.shape[:axes]
    own = layout.own(limit.reshape(layout.whole(batch)), batch)
    hits = scores.astype(jnp.float32) > own.reshape(*batch, *[1] * (scores.ndim - axes))
    number = hits.sum(-1, dtype=jnp.int32)
    found = counts.normalise(masks.Count(jnp.zeros_like(number), number))
    while found.low.ndim > axes:
        found = counts.sum_counts(found, found.low.ndim - 1)
    return counts.as_float(shards.total_slices(found, layout, batch))


def _sparsities(shares: jax.Array, sizes: np.ndarray, sparsity: Any, spread: float) -> jax.Array:
    low, high = shares.min(), shares.max()
    relative = (shares - low) / jnp.where(high > low, high - low, 1.0)
    deviation = 2 * spread * ((relative * sizes).sum() / sizes.sum() - relative)
    top = 1 - jnp.finfo(jnp.float32).epsneg
    room = jnp.where(deviation > 0, top - sparsity, sparsity) / jnp.where(deviation == 0, 1.0, jnp.abs(deviation))
    factor = jnp.minimum(1.0, jnp.where(deviation == 0, 1.0, room).min())
    return jnp.clip(sparsity + factor * deviation, 0.0, top)


def _count(leaf: Leaf, sparsities: jax.Array) -> masks.Count:
    count = counts.removed(sparsities, leaf.units)
    if leaf.batch_axes:
        return count
    count = masks.Count(count.high[0], count.low[0])
    return count if isinstance(count.low, Tracer) else masks.Count.of(int(count))
