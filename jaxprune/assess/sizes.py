"""How many parameters there are and are kept, and what they take in memory, leaf by leaf."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxprune import _tree
from jaxprune.masks import unpack

PyTree = Any


class LeafSize(NamedTuple):
    """One parameter leaf and its mask.

    Attributes:
      name: its path.
      shape: its shape.
      dtype: its dtype, as a string.
      pruned: whether it has a mask; a scalar mask says that it is not pruned.
      total: its entries.
      kept: those that the mask keeps.
      dense_bytes: what all entries take.
      mask_bytes: what the mask takes at one bit an entry; a mask of channels has one entry a channel.
      kept_bytes: what the kept entries take, without their positions.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pruned: bool
    total: int
    kept: int
    dense_bytes: int
    mask_bytes: int
    kept_bytes: int

    @property
    def density(self) -> float:
        """The fraction kept; 1 for a leaf without entries."""
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """The fraction removed."""
        return 1.0 - self.density


def leaf_sizes(params: PyTree, masks: PyTree | None = None) -> tuple[LeafSize, ...]:
    """The sizes of the floating leaves of `params`; integers, keys and static leaves are no parameters.

    Args:
      params: arrays or ShapeDtypeStructs.
      masks: bool, True = kept, each broadcasting to its parameter, packed or not; None for a dense network.

    Returns:
      One entry for each floating leaf, in the order of the leaves.

    Raises:
      TypeError: masks are traced; counts are Python integers, and need concrete masks.

    Example:
      >>> [leaf] = leaf_sizes({'w': jnp.ones((2, 3))}, {'w': jnp.array([[True, False, True]])})
      >>> leaf.kept, leaf.dense_bytes, leaf.kept_bytes, leaf.mask_bytes
      (4, 24, 16, 1)
    """
    named = _tree.named_leaves(params)
    found = zip(named, concrete(params, masks), strict=True)
    return tuple(_size(name, leaf, mask) for (name, leaf), mask in found if _tree.is_floating(leaf))


def concrete(params: PyTree, masks: PyTree | None) -> list[np.ndarray]:
    """The masks as NumPy arrays, one for each leaf of params, checked.

    Args:
      params: the parameters.
      masks: their masks, or None for a scalar True everywhere.

    Returns:
      Bool arrays that broadcast to the leaves.

    Raises:
      TypeError: a mask is traced.
    """
    if masks is None:
        return [np.array(True)] * len(jax.tree.leaves(params))
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(masks)):
        raise TypeError("masks are traced, but are counted on the host; call this outside jit, vmap and grad")
    aligned = _tree.align(params, unpack(masks), what="masks")
    _tree.check_masks(params, aligned)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(aligned)]


def _size(name: str, leaf: Any, mask: np.ndarray) -> LeafSize:
    total, itemsize = math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize
    # Each entry of a mask that broadcasts stands for equally many entries.
    kept = int(np.count_nonzero(mask)) * total // mask.size if mask.size else total
    pruned = mask.ndim > 0
    mask_bytes = -(-mask.size // 8) if pruned else 0
    return LeafSize(
        name, tuple(leaf.shape), str(leaf.dtype), pruned, total, kept, total * itemsize, mask_bytes, kept * itemsize
    )
