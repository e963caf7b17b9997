"""What allocations share: the leaves that are pruned, with their sizes, and the total that comes out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import masks
from jaxprune.masks import Leaf, counts

PyTree = Any
_LARGEST = float(np.nextafter(1.0, 0.0))  # the largest sparsity short of 1


class Allocation(NamedTuple):
    """How a total sparsity is shared.

    Attributes:
      sparsities: for `masks.select`: a tree with a sparsity, or a `masks.Count` of removed entries, for each leaf (0.0
        for those that are not pruned), or `masks.Global`.
      achieved: the fraction removed of all entries of the pruned leaves, once every leaf's count is rounded; a Python
        float if the sparsity was a Python number, else a float array of shape ().
    """

    sparsities: Any
    achieved: Any


# `(scores, sparsity, **units: Unpack[masks.Units]) -> Allocation`, with `sparsity` a number in [0, 1) or a traced
# scalar. Options of an allocation's own may stand before `**units`, which no protocol can say.
Allocate = Callable[..., Allocation]


def allocation(scores: PyTree, pruned: Sequence[Leaf], values: Sequence[Any]) -> Allocation:
    """The allocation with these values for the pruned leaves, and 0.0 for the others."""
    filled: list[Any] = [0.0] * len(jax.tree.leaves(scores))
    for leaf, value in zip(pruned, values, strict=True):
        filled[leaf.place] = value
    return Allocation(jax.tree.unflatten(jax.tree.structure(scores), filled), achieved(pruned, values))


def achieved(pruned: Sequence[Leaf], values: Sequence[Any]) -> Any:
    """The fraction of all entries that so many sparsities or counts remove.

    Returns:
      A Python float, exact but for its rounding, if every value is a Python number or a Count of integers; else float32
      (or the dtype of the sparsities).
    """
    entries = sum(leaf.entries for leaf in pruned)
    removed = [removed_entries(leaf, value) for leaf, value in zip(pruned, values, strict=True)]
    if not entries:
        return 0.0
    if all(isinstance(k, int) for k in removed):
        return sum(removed) / entries
    return sum((jnp.asarray(k) for k in removed), jnp.zeros(())) / float(entries)  # entries may exceed an int32


def removed_entries(leaf: Leaf, value: Any) -> Any:
    """How many entries of a leaf a sparsity or a count removes: an int if the value is static, else a float array."""
    count = value if isinstance(value, masks.Count) else masks.removed(value, leaf.units)
    if group := leaf.pattern.group(leaf):
        # The pattern, not the sparsity, has the last word on how many of a group stay.
        most = group.size - group.kept
        count = masks.count(most) if isinstance(count.low, int) else masks.Count(0, jnp.minimum(count.low, most))
    each = leaf.entries // (leaf.slices * leaf.units)
    if isinstance(count.low, int):
        return masks.as_int(count) * leaf.slices * each
    total = counts.as_float(count)
    return (total.sum() if total.ndim else total * leaf.slices) * each


def share(value: Any) -> Any:
    """A sparsity computed by an allocation, kept in [0, 1): rounding may have carried it out."""
    if isinstance(value, jax.Array):
        top = np.nextafter(np.ones((), value.dtype), np.zeros((), value.dtype))
        return jnp.clip(value, 0.0, top)
    return min(max(float(value), 0.0), _LARGEST)


def as_sparsity(sparsity: Any) -> Any:
    """The sparsity given by the user: a checked Python float, or a floating array of 32 bits at least.

    Raises:
      ValueError: a number outside [0, 1).
      TypeError: not a number, or an array that is not a floating scalar.
    """
    masks.check_sparsity(sparsity)
    if isinstance(sparsity, jax.Array):
        return sparsity.astype(jnp.promote_types(sparsity.dtype, jnp.float32))
    return float(sparsity)
