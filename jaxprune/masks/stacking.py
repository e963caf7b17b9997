"""Small arrays of one shape as one array: many layers alike are then ranked by the kernels of one.

It is the number of kernels that makes a mask update slow to compile. A large array is not worth the copy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.masks.shards import WHOLE, Layout

_LARGE = 1 << 16  # entries from which an array stays alone


class Stacks(NamedTuple):
    """Arrays of which some are stacks.

    Attributes:
      arrays: the arrays; a stack has a new leading axis.
      batch_axes: how many leading axes of each are slices, that of a stack among them.
      layouts: how devices of a shard_map share each.
      members: for each, which of the arrays given it is made of, in order.
    """

    arrays: list[jax.Array]
    batch_axes: list[int]
    layouts: list[Layout]
    members: list[list[int]]

    @property
    def order(self) -> list[int]:
        """The number of each member, in the order of the stacks."""
        return [i for members in self.members for i in members]

    def unstack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The inverse of stacking, for other arrays in the shapes of `self.arrays`."""
        found: dict[int, jax.Array] = {}
        for array, members in zip(arrays, self.members, strict=True):
            found |= {members[0]: array} if len(members) == 1 else dict(zip(members, array, strict=True))
        return [found[i] for i in range(len(found))]


def stack(arrays: Sequence[jax.Array], batch_axes: Sequence[int], layouts: Sequence[Layout] | None = None) -> Stacks:
    """Stacks arrays of one shape, dtype, number of batch axes, and sharding as far as types tell, if they are small."""
    layouts = [WHOLE] * len(arrays) if layouts is None else layouts
    groups: dict[object, list[int]] = {}
    for i, (x, axes, layout) in enumerate(zip(arrays, batch_axes, layouts, strict=True)):
        alike = (x.shape, x.dtype, axes, layout, jax.typeof(x).sharding) if math.prod(x.shape) < _LARGE else i
        groups.setdefault(alike, []).append(i)
    members = list(groups.values())
    return Stacks(
        [arrays[m[0]] if len(m) == 1 else jnp.stack([arrays[i] for i in m]) for m in members],
        [batch_axes[m[0]] + (len(m) > 1) for m in members],
        [layouts[m[0]].take([None, *range(arrays[m[0]].ndim)]) if len(m) > 1 else layouts[m[0]] for m in members],
        members,
    )
