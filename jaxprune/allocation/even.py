"""The same sparsity everywhere, or one ranking over everything."""

from typing import Any, Unpack

from jaxprune import masks
from jaxprune.allocation.leaves import Allocation, allocation, as_sparsity
from jaxprune.masks import counts

PyTree = Any


def uniform(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """Every leaf gets the total sparsity.

    Args:
      scores: a tree of scores, or of ShapeDtypeStructs: only shapes are read.
      sparsity: the fraction to remove, in [0, 1): a Python number or a traced scalar.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`.

    Returns:
      The sparsity for each pruned leaf and 0.0 for the others, and the total achieved, which differs from the one
      asked for by at most half a unit in each leaf.

    Raises:
      ValueError: a sparsity outside [0, 1), or a pattern that does not fit a leaf.

    Example:
      >>> uniform({'bias': jnp.ones(3), 'kernel': jnp.ones((2, 5))}, 0.25)
      Allocation(sparsities={'bias': 0.0, 'kernel': 0.25}, achieved=0.3)
    """
    sparsity = as_sparsity(sparsity)
    pruned = masks.leaves(scores, **units)
    return allocation(scores, pruned, [sparsity] * len(pruned))


def one_ranking(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """One ranking over all leaves; what each leaf loses comes out of the scores.

    Args:
      scores: a tree of scores, or of ShapeDtypeStructs: only shapes are read.
      sparsity: the fraction of all units to remove, in [0, 1): a Python number or a traced scalar.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`. The pattern must not be NM. Each
        slice along `batch_axes` is ranked on its own, over all leaves.

    Returns:
      `masks.Global(sparsity)`, and the fraction of units removed. Where leaves have units of different size (blocks and
      channels), that is not the fraction of entries, which depends on the scores.

    Raises:
      ValueError: a sparsity outside [0, 1), or a pattern that does not fit a leaf.

    Example:
      >>> one_ranking({'a': jnp.ones((2, 5)), 'b': jnp.ones((1, 5))}, 0.5)
      Allocation(sparsities=Global(sparsity=0.5), achieved=0.5333333333333333)
    """
    sparsity = as_sparsity(sparsity)
    pruned = masks.leaves(scores, **units)
    total = sum(leaf.units for leaf in pruned)
    count = masks.removed(sparsity, total)
    if isinstance(count.low, int):
        return Allocation(masks.Global(sparsity), masks.as_int(count) / total if total else 0.0)
    return Allocation(masks.Global(sparsity), counts.as_float(count) / max(total, 1))
