"""`Leaf`, a leaf that is pruned, and `Pattern`, the protocol of all patterns.

A pattern turns the scores of a leaf into scores of units, and a mask of units into a mask of entries. Selection ranks
units only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.masks._exact.shards import WHOLE, Shards, exact_sum, place_like

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf that is pruned. All sizes are sizes of the whole array, also if devices hold parts of the array.

    Attributes:
      name: its name, `encoder/layer_0/kernel`.
      place: its index among all leaves of the tree.
      array: an array or a `jax.ShapeDtypeStruct`; inside `jax.shard_map` the part that this device holds.
      pattern: how it is pruned, with axes.
      batch_axes: the axes whose positions are slices; each slice is ranked separately.
      stacked: the axes that hold one matrix for each position, ranked separately or not; includes `batch_axes`.
      shards: how the devices of a `jax.shard_map` share the array.
      role: the role of the leaf; None inside of jitted kernels.
    """

    name: str
    place: int
    array: Any
    pattern: "Pattern"
    batch_axes: Shape = ()
    stacked: Shape = ()
    shards: Shards = WHOLE
    role: _tree.LeafRole | None = None

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.array.shape)

    @property
    def part(self) -> Shape:
        """The shape of the part that this device holds: the shape of the array outside of `jax.shard_map`."""
        return tuple(self.array.shape)

    @property
    def shape(self) -> Shape:
        """The shape of the whole array."""
        return self.shards.whole(self.part)

    @property
    def entries(self) -> int:
        """The number of entries of the whole array."""
        return math.prod(self.shape)

    @property
    def slices(self) -> int:
        """The number of slices. Each slice is ranked separately and loses the same number of units."""
        return self._sizes[0]

    @property
    def units(self) -> int:
        """The number of units in each slice."""
        return self._sizes[1]

    @property
    def has_single_units(self) -> bool:
        """Whether every unit is a single entry."""
        return self.slices * self.units == self.entries

    @property
    def matrix(self) -> Shape:
        """The shape without the stacked axes: the shape of one layer."""
        return tuple(n for a, n in enumerate(self.shape) if a not in self.stacked)

    @property
    def batch_first(self) -> Shape:
        """The order of axes in which the batch axes are first."""
        return (*self.batch_axes, *(a for a in range(self.ndim) if a not in self.batch_axes))

    def with_batch_first(self) -> tuple[jax.Array, Shards]:
        """Returns the array with the batch axes first, and how devices share it."""
        shards = self.shards.take(self.batch_first) if self.shards.is_cut else WHOLE
        return jnp.asarray(self.array).transpose(self.batch_first), shards

    @property
    def group(self) -> "Group | None":
        """The small groups that units are ranked within; None if they are ranked within slices."""
        return self.pattern.group(self)

    @property
    def unit_shards(self) -> Shards:
        """How the devices of a `jax.shard_map` share the array of units."""
        shards = self.pattern.unit_shards(self) if self.shards.is_cut else WHOLE
        return WHOLE if shards is None else shards

    def sum(self, scores: jax.Array, along: Sequence[int]) -> jax.Array:
        """Returns the sums of scores over some axes, the scores of units. The axes stay, with size 1.

        The sum is exact before it is rounded to float32, so it has the same bits on any number of devices, and covers
        the whole array inside `jax.shard_map`.

        Args:
          scores: the scores of the leaf, or the reshaped scores if no devices share the leaf.
          along: the axes of `scores` to sum over.

        Returns:
          float32. NaN if a NaN or both infinities take part, else an infinity if one takes part.
        """
        return exact_sum(scores, tuple(along), self.shards)

    def placed(self, mask: jax.Array) -> jax.Array:
        """Returns a mask in the shape of the leaf, on the leaf's devices if the leaf's type names them."""
        return place_like(mask, self.array)

    @property
    def _sizes(self) -> tuple[int, int]:
        return _sizes(self.pattern, self.batch_axes, self.stacked, self.shape, self.array.dtype)


@lru_cache(maxsize=4096)
def _sizes(pattern: "Pattern", batch_axes: Shape, stacked: Shape, shape: Shape, dtype: Any) -> tuple[int, int]:
    """Returns the numbers of slices and of units in a slice. Cached: evaluating shapes is slower than a selection."""
    whole = Leaf("", 0, jax.ShapeDtypeStruct(shape, dtype), pattern, batch_axes, stacked)
    units = jax.eval_shape(lambda scores: pattern.units(scores, whole), whole.array).shape
    if group := whole.group:
        return math.prod(units) // group.size, group.size
    first = pattern.slice_axes(whole)
    return math.prod(units[:first]), math.prod(units[first:])


class Group(NamedTuple):
    """Small groups of units; every group keeps the same number of units.

    Attributes:
      kept: how many units of each group are kept.
      size: how many units a group has.
      axis: the axis of the array of units whose positions are the members of a group.
      along: the axes of the leaf along which a group extends; the last axis varies fastest. None if there are no axes.
    """

    kept: int
    size: int
    axis: int
    along: Shape | None = None


class Pattern(Protocol):
    """What is removed together. Selection, allocations and training call these methods for one leaf at a time.

    Your own pattern is a hashable object whose class derives from `masks.Pattern` and defines `units` and `expand`. The
    defaults of the other methods suit most patterns. Every `pattern=` argument takes such an object.

    Example:
      >>> @dataclass(frozen=True)
      ... class Head(Pattern):  # one unit per head of an (inputs, heads, head size) kernel
      ...     def units(self, scores, leaf):
      ...         return leaf.sum(scores, (0, 2))
      ...     def expand(self, kept, leaf):
      ...         return kept
      >>> from jaxprune import masks
      >>> kernel = jnp.arange(24.0).reshape(2, 3, 4)
      >>> masks.select({'query': kernel}, 0.34, Head())['query'].ravel().tolist()
      [False, True, True]
    """

    def check(self, leaf: Leaf) -> str | None:
        """Returns why the pattern does not fit the leaf, and what to do; None if it fits. Returns None by default."""
        del leaf
        return None

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the scores of the units: an array of any shape whose first axes are the batch axes of the leaf.

        Args:
          scores: floating, or a bool mask to count, in the shape of `leaf.array`.
          leaf: the leaf.
        """
        ...

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the mask of the entries, which has the shape of `leaf.array` or broadcasts to it.

        Args:
          kept: a bool for each unit, in the shape that `units` returns.
          leaf: the leaf.
        """
        ...

    def slice_axes(self, leaf: Leaf) -> int:
        """Returns the number of leading axes of the units that are ranked separately; the batch axes by default."""
        return len(leaf.batch_axes)

    @property
    def takes_any_stack(self) -> bool:
        """Whether `units` handles stacked axes that are not the first axes of a leaf; False by default.

        If True, `units` must keep `leaf.stacked` apart and move `leaf.batch_axes` to the front. If False, a leaf with a
        stacked axis that is not a leading axis, such as axis 1 of MaxText, raises an error.
        """
        return False

    @property
    def fixed_sparsity(self) -> float | None:
        """The only sparsity that the pattern can have; None, the default, if it can have any."""
        return None

    def group(self, leaf: Leaf) -> Group | None:
        """Returns the small groups within which units are ranked; None, the default, ranks units within slices."""
        del leaf
        return None

    def along(self, role: _tree.LeafRole) -> "Pattern | None":
        """Returns the pattern with the axes of a leaf in place of axes that are not given; itself by default.

        Args:
          role: which axes of the leaf are inputs, outputs, windows and stacked.

        Returns:
          A pattern; None if it needs axes that are not known (`role.unclear_axes` gives the reason).
        """
        del role
        return self

    def unit_shards(self, leaf: Leaf) -> Shards | None:
        """Returns how devices share the units of a sharded leaf; None, the default, if it is not known.

        If it returns None, a leaf that devices share inside `jax.shard_map` raises an error.
        """
        del leaf
        return None
