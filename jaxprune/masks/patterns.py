"""Patterns, what is removed together: `Unstructured`, `NM`, `Block`, `Channel`, and the protocol `Pattern`.

A pattern turns the scores of a leaf into scores of units, and a mask of units into a mask of entries. Selection ranks
units only. Every pattern leaves leading batch axes (layers stacked by a scan, members of an ensemble) to themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxprune.masks._exact import axes, sums
from jaxprune.masks._exact.shards import WHOLE, Shards

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf that is pruned. All sizes are those of the whole array, also where devices hold parts of it.

    Attributes:
      name: its name, `encoder/layer_0/kernel`.
      place: its index among all leaves of the tree.
      array: an array or a `jax.ShapeDtypeStruct`; inside `jax.shard_map` the part that this device holds.
      pattern: how it is pruned.
      batch_axes: how many leading axes are slices of their own.
      shards: how the devices of a `jax.shard_map` share the array.
    """

    name: str
    place: int
    array: Any
    pattern: "Pattern"
    batch_axes: int
    shards: Shards = WHOLE

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
        """The number of slices, each of which is ranked on its own and loses the same number of units."""
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
    def group(self) -> "Group | None":
        """The small groups that units are ranked within; None if they are ranked within slices."""
        return self.pattern.group(self)

    @property
    def unit_shards(self) -> Shards:
        """How the devices of a `jax.shard_map` share the array of units."""
        shards = self.pattern.unit_shards(self) if self.shards.is_cut else WHOLE
        return WHOLE if shards is None else shards

    def sum(self, scores: jax.Array, along: Sequence[int]) -> jax.Array:
        """The sum of scores over some axes, which stay with size 1: the scores of units.

        The sum is exact before it is rounded to float32, so it has the same bits on any number of devices, and covers
        the whole array inside `jax.shard_map`.

        Args:
          scores: the scores of the leaf, or a reshaped array of them where no devices share the leaf.
          along: the axes of `scores` to sum over.

        Returns:
          float32. NaN if a NaN or both infinities take part, else an infinity if one takes part.
        """
        return sums.exact_sum(scores, tuple(along), self.shards)

    def placed(self, mask: jax.Array) -> jax.Array:
        """A mask in the shape of the leaf, on the devices of the leaf where its type names them."""
        return axes.place_like(mask, self.array)

    @property
    def _sizes(self) -> tuple[int, int]:
        return _sizes(self.pattern, self.batch_axes, self.shape, self.array.dtype)


@lru_cache(maxsize=4096)
def _sizes(pattern: "Pattern", batch_axes: int, shape: Shape, dtype: Any) -> tuple[int, int]:
    """The number of slices, and of units in each slice. Cached: evaluating shapes takes longer than a selection."""
    whole = Leaf("", 0, jax.ShapeDtypeStruct(shape, dtype), pattern, batch_axes)
    units = jax.eval_shape(lambda scores: pattern.units(scores, whole), whole.array).shape
    if group := whole.group:
        return math.prod(units) // group.size, group.size
    first = pattern.slice_axes(whole)
    return math.prod(units[:first]), math.prod(units[first:])


class Group(NamedTuple):
    """Small groups of units, in each of which the same number is kept.

    Attributes:
      kept: how many units of each group are kept.
      size: how many units a group has.
      axis: the axis of the array of units that the members of a group lie along.
      along: the axes of the leaf that a group lies along, the last of them fastest; None if it follows no axes.
    """

    kept: int
    size: int
    axis: int
    along: Shape | None = None


class Pattern(Protocol):
    """What is removed together. Selection, allocations and training ask a pattern these questions, about one leaf.

    A pattern of your own is a hashable object that derives from `masks.Pattern` and answers `units` and `expand`; the
    other questions have answers that suit most patterns. It then works wherever `pattern=` is an argument.

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
        """What is wrong with a leaf of this shape, and what to do; None if the pattern fits. Fits by default."""
        del leaf
        return None

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """The scores of the units, in an array of any shape whose leading axes are the batch axes of the leaf.

        Args:
          scores: floating, or a bool mask to count, in the shape of `leaf.array`.
          leaf: the leaf.
        """
        ...

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """The mask of the entries, which has the shape of `leaf.array` or broadcasts to it.

        Args:
          kept: a bool for each unit, in the shape that `units` returns.
          leaf: the leaf.
        """
        ...

    def slice_axes(self, leaf: Leaf) -> int:
        """How many leading axes of the units are slices that are ranked on their own; the batch axes by default."""
        return leaf.batch_axes

    @property
    def fixed_sparsity(self) -> float | None:
        """The only sparsity that the pattern can have; None, the default, if it can have any."""
        return None

    def group(self, leaf: Leaf) -> Group | None:
        """The small groups that units are ranked within; None, the default, if they are ranked within slices."""
        del leaf
        return None

    def along(self, inputs: Shape, within_outputs: bool) -> "Pattern":
        """The pattern for a leaf of which a caller knows the axes of the inputs; the pattern itself by default.

        Args:
          inputs: the axes of the leaf that a weight's inputs lie along.
          within_outputs: whether the scores can be compared among the inputs of one output only.
        """
        del inputs, within_outputs
        return self

    def unit_shards(self, leaf: Leaf) -> Shards | None:
        """How devices share the units of a leaf that they share; None, the default, if the pattern cannot say.

        Without an answer the pattern is refused inside `jax.shard_map` for leaves that devices share.
        """
        del leaf
        return None


Patterns = Pattern | Mapping[str, Pattern]
BatchAxes = int | Mapping[str, int]


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Single entries, ranked over the whole leaf, or within parts of it.

    Attributes:
      axes: the axes that are ranked together, each position along the other axes on its own. `axes=-2` keeps the same
        number of inputs for every output of a (in, out) kernel. None: all axes together.
    """

    axes: int | tuple[int, ...] | None = None

    def check(self, leaf: Leaf) -> str | None:
        """What is wrong with a leaf of this shape; None if the pattern fits."""
        return None if self.axes is None else _check_axes(self.axes, leaf)

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """The scores of the units."""
        return scores if self.axes is None else scores.transpose(self._order(leaf))

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """The mask of the entries."""
        return kept if self.axes is None else kept.transpose(_inverse(self._order(leaf)))

    def slice_axes(self, leaf: Leaf) -> int:
        """How many leading axes of the units are ranked on their own."""
        return leaf.batch_axes if self.axes is None else leaf.ndim - len(_positive(self.axes, leaf.ndim))

    def along(self, inputs: Shape, within_outputs: bool) -> "Unstructured":
        """Entries ranked within each output where scores can be compared there only, unless `axes` says otherwise."""
        return Unstructured(inputs) if within_outputs and self.axes is None else self

    def unit_shards(self, leaf: Leaf) -> Shards:
        """How devices share the units: as the entries."""
        return leaf.shards.take(self._order(leaf))

    def _order(self, leaf: Leaf) -> Shape:
        return _last(() if self.axes is None else _positive(self.axes, leaf.ndim), leaf.ndim)


UNSTRUCTURED = Unstructured()


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of neighbouring entries, each kept or removed as a whole; its score is the sum of its entries'.

    Attributes:
      shape: the size of a block along each of `axes`, which it must divide.
      axes: the axes the blocks lie along; along all others a block has size 1.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = (-2, -1)

    def __post_init__(self) -> None:
        for name, value in (("shape", self.shape), ("axes", self.axes)):
            if not isinstance(value, tuple) or not all(isinstance(x, Integral) for x in value):
                raise TypeError(f"Block: {name} must be a tuple of integers, such as Block((4, 4)); got {value!r}")
        if len(self.shape) != len(self.axes) or any(size < 1 for size in self.shape):
            raise ValueError(f"Block: needs one positive size for each axis, got shape={self.shape}, axes={self.axes}")

    def check(self, leaf: Leaf) -> str | None:
        """What is wrong with a leaf of this shape; None if the pattern fits."""
        wrong = _check_axes(self.axes, leaf)
        if wrong:
            return wrong
        sizes = self._sizes(leaf.ndim)
        if any(n % size for n, size in zip(leaf.shape, sizes, strict=True)):
            return (
                f"shape {leaf.shape} is not divided by blocks of {sizes}; choose sizes that divide it, or leave it out"
            )
        if any(n % size for n, size in zip(leaf.part, sizes, strict=True)):
            return f"blocks of {sizes} do not divide the parts {leaf.part} that devices hold; shard it along other axes"
        return None

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """The scores of the units."""
        within = tuple(range(1, 2 * leaf.ndim, 2))
        return sums.exact_sum(axes.split(scores, self._sizes(leaf.ndim)), within).squeeze(within)

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """The mask of the entries."""
        within = tuple(range(1, 2 * leaf.ndim, 2))
        pairs = zip(kept.shape, self._sizes(leaf.ndim), strict=True)
        blocks = jnp.expand_dims(kept, within)
        return axes.join(jnp.broadcast_to(blocks, [part for n, size in pairs for part in (n, size)]))

    def unit_shards(self, leaf: Leaf) -> Shards:
        """How devices share the units: as the entries."""
        return leaf.shards

    def _sizes(self, ndim: int) -> Shape:
        sizes = [1] * ndim
        for axis, size in zip(self.axes, self.shape, strict=True):
            sizes[axis] = size
        return tuple(sizes)


@dataclass(frozen=True)
class Channel(Pattern):
    """Whole slices at a position along one axis; a channel's score is the sum of its entries'.

    With scores |w| that ranks by the L1 norm, with w^2 by the L2 norm.

    Attributes:
      axis: the axis whose positions are channels: -1, the outputs of a Flax kernel; -2, its inputs.
    """

    axis: int = -1

    def check(self, leaf: Leaf) -> str | None:
        """What is wrong with a leaf of this shape; None if the pattern fits."""
        return _check_axes(self.axis, leaf)

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """The scores of the units, with what other devices hold of them where the array is cut."""
        return leaf.sum(scores, [a for a in range(leaf.batch_axes, leaf.ndim) if a != self.axis % leaf.ndim])

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """The mask of the entries."""
        return kept

    def unit_shards(self, leaf: Leaf) -> Shards:
        """How devices share the units: along the batch axes and the axis of the channels."""
        stay = [*range(leaf.batch_axes), self.axis % leaf.ndim]
        return leaf.shards.take([axis if axis in stay else None for axis in range(leaf.ndim)])


@dataclass(frozen=True)
class NM(Pattern):
    """n kept of every m neighbours along the reduction axis: 2 of 4 is what sparse tensor cores read.

    Attributes:
      n: how many are kept, 1 to m.
      m: how many neighbours make a group.
      axis: the axis, or axes flattened in the order given, along which neighbours lie. None: the reduction axes of a
        Flax kernel, which are all but the last: the inputs of a (in, out) kernel, and height, width and inputs of a
        (h, w, in, out) one.
    """

    n: int
    m: int
    axis: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.n, Integral) or not isinstance(self.m, Integral):
            raise TypeError(f"NM(n, m) takes integers, such as NM(2, 4); got n={self.n!r}, m={self.m!r}")
        if not 1 <= self.n <= self.m:
            raise ValueError(f"NM(n, m) keeps n of m and needs 1 <= n <= m, got n={self.n}, m={self.m}")

    def check(self, leaf: Leaf) -> str | None:
        """What is wrong with a leaf of this shape; None if the pattern fits."""
        if self.axis is not None and (wrong := _check_axes(self.axis, leaf)):
            return wrong
        length = math.prod(leaf.shape[a] for a in self.reduction_axes(leaf))
        if length % self.m:
            return (
                f"its length {length} along the reduction axes of {leaf.shape} is not divided by m={self.m}; "
                "leave it out by `where`, or give it another pattern or axis by path"
            )
        if leaf.shards.is_cut and not self._groups_are_whole(leaf):
            return (
                f"groups of m={self.m} along the reduction axes lie on several devices, whose parts are {leaf.part}; "
                "shard it along other axes, or give it another axis by path"
            )
        return None

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """The scores with an axis more, `group(leaf).axis`, along which lie the m members of a group."""
        together = self.reduction_axes(leaf)
        last = together[-1]
        if self._splits(leaf):
            sizes = tuple(self.m if a == last else 1 for a in range(leaf.ndim))
            return axes.split(scores, sizes).squeeze(tuple(2 * a + 1 for a in range(leaf.ndim) if a != last))
        moved = axes.replicate(scores).transpose(_last(together, leaf.ndim))
        return moved.reshape(*moved.shape[: leaf.ndim - len(together)], -1, self.m)

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """The mask of the entries."""
        together = self.reduction_axes(leaf)
        if self._splits(leaf):
            return axes.join(jnp.expand_dims(kept, tuple(2 * a + 1 for a in range(leaf.ndim) if a != together[-1])))
        order = _last(together, leaf.ndim)
        return kept.reshape([leaf.part[a] for a in order]).transpose(_inverse(order))

    @property
    def fixed_sparsity(self) -> float:
        """1 - n / m."""
        return 1 - self.n / self.m

    def group(self, leaf: Leaf) -> Group:
        """N kept of m along the axis that `units` adds."""
        together = self.reduction_axes(leaf)
        axis = together[-1] + 1 if self._splits(leaf) else leaf.ndim - len(together) + 1
        return Group(self.n, self.m, axis, together)

    def along(self, inputs: Shape, within_outputs: bool) -> "NM":
        """Groups along the inputs, unless `axis` says otherwise."""
        del within_outputs
        return NM(self.n, self.m, inputs) if self.axis is None else self

    def unit_shards(self, leaf: Leaf) -> Shards:
        """How devices share the groups: as the entries."""
        return leaf.shards

    def reduction_axes(self, leaf: Leaf) -> Shape:
        """The axes along which neighbours lie, the last of them fastest."""
        if self.axis is not None:
            return _positive(self.axis, leaf.ndim)
        return tuple(range(leaf.batch_axes, max(leaf.batch_axes + 1, leaf.ndim - 1)))

    def _splits(self, leaf: Leaf) -> bool:
        # Then every group lies along the last of the axes, which is cut where it is: nothing is moved or gathered.
        return leaf.part[self.reduction_axes(leaf)[-1]] % self.m == 0

    def _groups_are_whole(self, leaf: Leaf) -> bool:
        """Whether every group is on one device."""
        together = self.reduction_axes(leaf)
        if leaf.shape[together[-1]] % self.m == 0:
            return leaf.part[together[-1]] % self.m == 0
        # Groups run through all of the axes: a part holds a stretch of them only if just the first axis is cut.
        return not leaf.shards.along(together[1:]) and math.prod(leaf.part[a] for a in together) % self.m == 0


def _positive(axes: int | tuple[int, ...], ndim: int) -> Shape:
    return tuple(a % ndim for a in ((axes,) if isinstance(axes, int) else axes))


def _last(together: Shape, ndim: int) -> Shape:
    """The order of axes in which `together` come last."""
    return tuple(a for a in range(ndim) if a not in together) + together


def _inverse(order: Shape) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _check_axes(axes: int | tuple[int, ...], leaf: Leaf) -> str | None:
    given = axes if isinstance(axes, tuple | list) else (axes,)
    if not all(isinstance(a, Integral) for a in given):
        return f"axes must be an integer or a tuple of integers, got {axes!r}"
    given = tuple(map(int, given))
    outside = [a for a in given if not -leaf.ndim <= a < leaf.ndim or a % leaf.ndim < leaf.batch_axes]
    if outside or len(set(_positive(given, leaf.ndim))) != len(given):
        batched = f" after {leaf.batch_axes} batch axes" if leaf.batch_axes else ""
        return f"axes {given} are not distinct axes of {leaf.shape}{batched}; give it its own pattern by path"
    return None
