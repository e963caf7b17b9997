"""Patterns of entries that are removed together: `Unstructured`, `NM`, `Block`, `Channel`.

If a pattern does not name its axes, it uses the role of each leaf: the inputs and outputs that `find_roles` or a
convention gives. No unit extends over positions of a stacked axis (layers of a scan, experts, members of an ensemble).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.masks._exact import shards
from jaxprune.masks._exact.shards import Shards
from jaxprune.masks.pattern import Group, Leaf, Pattern, Shape

Patterns = Pattern | Mapping[str, Pattern]


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Removes single entries, ranked over the whole leaf or within parts of it.

    Attributes:
      axes: the axes that are ranked together; each position along the other axes is ranked separately. "inputs" ranks
        the inputs of each output, so that every output keeps the same number of inputs (constant fan-in). None ranks
        all axes together, except stacked axes.
    """

    axes: int | tuple[int, ...] | Literal["inputs"] | None = None

    def check(self, leaf: Leaf) -> str | None:
        """Returns why the pattern does not fit the leaf; None if it fits."""
        return None if self.axes is None else _check_axes(self.axes, leaf)

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the scores of the units."""
        return scores.transpose(self._order(leaf))

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the mask of the entries."""
        return kept.transpose(_inverse(self._order(leaf)))

    def slice_axes(self, leaf: Leaf) -> int:
        """Returns the number of leading axes of the units whose positions are ranked separately."""
        return len(leaf.batch_axes) if self.axes is None else leaf.ndim - len(self._together(leaf))

    @property
    def takes_any_stack(self) -> bool:
        """True: `units` handles stacked axes at any position."""
        return True

    def along(self, role: _tree.LeafRole) -> "Unstructured | None":
        """Returns the pattern that ranks entries within each output, if `axes` is "inputs"; else itself."""
        if self.axes != "inputs":
            return self
        return None if role.unclear_axes else Unstructured(_inputs(role))

    def unit_shards(self, leaf: Leaf) -> Shards:
        """Returns how devices share the units: in the same way as the entries."""
        return leaf.shards.take(self._order(leaf))

    def _together(self, leaf: Leaf) -> Shape:
        return () if isinstance(self.axes, str | None) else _positive(self.axes, leaf.ndim)

    def _order(self, leaf: Leaf) -> Shape:
        return leaf.batch_first if self.axes is None else _last(self._together(leaf), leaf.ndim)


UNSTRUCTURED = Unstructured()
PER_OUTPUT = Unstructured("inputs")


@dataclass(frozen=True)
class Block(Pattern):
    """Removes blocks of neighbouring entries; the score of a block is the sum of the scores of its entries.

    Attributes:
      shape: the size of a block along each of `axes`, which it must divide.
      axes: the axes along which blocks have these sizes; along all other axes a block has size 1. None: `shape` is
        (inputs, outputs), along the last axis of inputs that is not a window, and the last axis of outputs.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("shape", self.shape), ("axes", (-2, -1) if self.axes is None else self.axes)):
            if not isinstance(value, tuple) or not all(isinstance(x, Integral) for x in value):
                raise TypeError(f"Block: {name} must be a tuple of integers, such as Block((4, 4)); got {value!r}")
        if len(self.shape) != (2 if self.axes is None else len(self.axes)) or any(size < 1 for size in self.shape):
            raise ValueError(f"Block needs one positive size for each axis; got shape={self.shape}, axes={self.axes}")

    def check(self, leaf: Leaf) -> str | None:
        """Returns why the pattern does not fit the leaf; None if it fits."""
        if wrong := _check_axes(_given(self, self.axes, leaf), leaf):
            return wrong
        sizes = self._sizes(leaf)
        if any(n % size for n, size in zip(leaf.shape, sizes, strict=True)):
            return (
                f"shape {leaf.shape} is not divided by blocks of {sizes}; choose sizes that divide it, or leave it out"
            )
        if any(n % size for n, size in zip(leaf.part, sizes, strict=True)):
            return f"blocks of {sizes} do not divide the parts {leaf.part} that devices hold; shard it along other axes"
        return None

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the scores of the units."""
        within = tuple(range(1, 2 * leaf.ndim, 2))
        found = shards.exact_sum(shards.split(scores, self._sizes(leaf)), within).squeeze(within)
        return found.transpose(leaf.batch_first)

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the mask of the entries."""
        within, kept = tuple(range(1, 2 * leaf.ndim, 2)), kept.transpose(_inverse(leaf.batch_first))
        pairs = zip(kept.shape, self._sizes(leaf), strict=True)
        blocks = jnp.expand_dims(kept, within)
        return shards.join(jnp.broadcast_to(blocks, [part for n, size in pairs for part in (n, size)]))

    @property
    def takes_any_stack(self) -> bool:
        """True: `units` handles stacked axes at any position."""
        return True

    def along(self, role: _tree.LeafRole) -> "Block | None":
        """Returns the pattern with blocks of (inputs, outputs), unless `axes` are given."""
        if self.axes is not None:
            return self
        channels = [a for a in _inputs(role) if a not in role.windows]
        return None if role.unclear_axes or not channels else Block(self.shape, (channels[-1], _outputs(role)[-1]))

    def unit_shards(self, leaf: Leaf) -> Shards:
        """Returns how devices share the units: in the same way as the entries."""
        return leaf.shards.take(leaf.batch_first)

    def _sizes(self, leaf: Leaf) -> Shape:
        sizes = [1] * leaf.ndim
        for axis, size in zip(_given(self, self.axes, leaf), self.shape, strict=True):
            sizes[axis] = size
        return tuple(sizes)


@dataclass(frozen=True)
class Channel(Pattern):
    """Removes channels: all entries at one position along an axis. A channel's score is the sum of the entries' scores.

    With scores |w| channels are ranked by their L1 norm, with scores w^2 by their L2 norm.

    Attributes:
      axis: the axis whose positions are channels; or a tuple of axes, where each combination of positions is a channel.
        None (default): the axes of the outputs of each leaf, so an attention kernel (inputs, heads, head size) has a
        channel for every position of every head.
    """

    axis: int | tuple[int, ...] | None = None

    def check(self, leaf: Leaf) -> str | None:
        """Returns why the pattern does not fit the leaf; None if it fits."""
        return _check_axes(_given(self, self.axis, leaf), leaf)

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the scores of the units, summed over all devices that share the array."""
        apart = {*leaf.stacked, *self._channels(leaf)}
        return leaf.sum(scores, [a for a in range(leaf.ndim) if a not in apart]).transpose(self._order(leaf))

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the mask of the entries."""
        return kept.transpose(_inverse(self._order(leaf)))

    def slice_axes(self, leaf: Leaf) -> int:
        """Returns the number of leading axes of the units that are ranked separately: batch axes without channels."""
        return len(self._slices(leaf))

    @property
    def takes_any_stack(self) -> bool:
        """True: `units` handles stacked axes at any position."""
        return True

    def along(self, role: _tree.LeafRole) -> "Channel | None":
        """Returns the pattern with channels of the outputs, unless `axis` is given."""
        if self.axis is not None:
            return self
        return None if role.unclear_axes else Channel(_outputs(role))

    def unit_shards(self, leaf: Leaf) -> Shards:
        """Returns how devices share the units: along the stacked axes and the axis of the channels."""
        stay = {*leaf.stacked, *self._channels(leaf)}
        return leaf.shards.take([axis if axis in stay else None for axis in self._order(leaf)])

    def _channels(self, leaf: Leaf) -> Shape:
        return _positive(_given(self, self.axis, leaf), leaf.ndim)

    def _slices(self, leaf: Leaf) -> Shape:
        return tuple(a for a in leaf.batch_axes if a not in self._channels(leaf))

    def _order(self, leaf: Leaf) -> Shape:
        first = self._slices(leaf)
        return (*first, *(a for a in range(leaf.ndim) if a not in first))


@dataclass(frozen=True)
class NM(Pattern):
    """n kept of every m neighbours along the reduction axis: 2 of 4 is what sparse tensor cores read.

    Attributes:
      n: how many are kept, 1 to m.
      m: how many neighbours make a group.
      axis: the axis, or axes flattened in the order given, along which neighbours are counted. None: the inputs of each
        leaf; for a convolution, the window and then the input channels, so that neighbours are channels where m divides
        their number.
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
        """Returns why the pattern does not fit the leaf; None if it fits."""
        if wrong := _check_axes(_given(self, self.axis, leaf), leaf):
            return wrong
        length = math.prod(leaf.shape[a] for a in self.reduction_axes(leaf))
        if length % self.m:
            return (
                f"its length {length} along the reduction axes of {leaf.shape} is not divided by m={self.m}; "
                "leave it out by `where`, or give it another pattern or axis by path"
            )
        if leaf.shards.is_cut and not self._groups_are_whole(leaf):
            return (
                f"groups of m={self.m} along the reduction axes extend over several devices, whose parts are "
                f"{leaf.part}; shard it along other axes, or give it another axis by path"
            )
        return None

    def units(self, scores: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the scores with one more axis, `group(leaf).axis`: the m members of a group."""
        together = self.reduction_axes(leaf)
        last = together[-1]
        if self._splits(leaf):
            sizes = tuple(self.m if a == last else 1 for a in range(leaf.ndim))
            return shards.split(scores, sizes).squeeze(tuple(2 * a + 1 for a in range(leaf.ndim) if a != last))
        moved = shards.replicate(scores).transpose(_last(together, leaf.ndim))
        return moved.reshape(*moved.shape[: leaf.ndim - len(together)], -1, self.m)

    def expand(self, kept: jax.Array, leaf: Leaf) -> jax.Array:
        """Returns the mask of the entries."""
        together = self.reduction_axes(leaf)
        if self._splits(leaf):
            return shards.join(jnp.expand_dims(kept, tuple(2 * a + 1 for a in range(leaf.ndim) if a != together[-1])))
        order = _last(together, leaf.ndim)
        return kept.reshape([leaf.part[a] for a in order]).transpose(_inverse(order))

    @property
    def fixed_sparsity(self) -> float:
        """The only possible sparsity, 1 - n / m."""
        return 1 - self.n / self.m

    def group(self, leaf: Leaf) -> Group:
        """Returns the group: n of m units are kept along the axis that `units` adds."""
        together = self.reduction_axes(leaf)
        axis = together[-1] + 1 if self._splits(leaf) else leaf.ndim - len(together) + 1
        return Group(self.n, self.m, axis, together)

    @property
    def takes_any_stack(self) -> bool:
        """True: `units` handles stacked axes at any position."""
        return True

    def along(self, role: _tree.LeafRole) -> "NM | None":
        """Returns the pattern with groups along the inputs, unless `axis` is given."""
        if self.axis is not None:
            return self
        return None if role.unclear_axes else NM(self.n, self.m, _inputs(role))

    def unit_shards(self, leaf: Leaf) -> Shards:
        """Returns how devices share the groups: in the same way as the entries."""
        return leaf.shards

    def reduction_axes(self, leaf: Leaf) -> Shape:
        """Returns the axes along which a group extends; the last axis varies fastest."""
        return _positive(_given(self, self.axis, leaf), leaf.ndim)

    def _splits(self, leaf: Leaf) -> bool:
        # True: every group is within the last axis. The axis is split in place, and no data are moved or gathered.
        return leaf.part[self.reduction_axes(leaf)[-1]] % self.m == 0

    def _groups_are_whole(self, leaf: Leaf) -> bool:
        """Returns whether every group is on one device."""
        together = self.reduction_axes(leaf)
        if leaf.shape[together[-1]] % self.m == 0:
            return leaf.part[together[-1]] % self.m == 0
        # Groups extend over all of the axes: a shard holds whole groups only if no axis but the first is cut.
        return not leaf.shards.along(together[1:]) and math.prod(leaf.part[a] for a in together) % self.m == 0


def _inputs(role: _tree.LeafRole) -> Shape:
    """Returns the axes that are summed over, channels of a convolution last; for a single input, the axis of size 1."""
    inputs = (*role.windows, *(a for a in role.inputs if a not in role.windows))
    return inputs or tuple(a for a, kind in enumerate(role.axes) if kind == "single")[:1]


def _outputs(role: _tree.LeafRole) -> Shape:
    return role.outputs or tuple(a for a, kind in enumerate(role.axes) if kind == "single")[-1:]


def _given(pattern: Pattern, axes: Any, leaf: Leaf) -> Any:
    """Returns the axes of a pattern; raises if the role of the leaf has not put any in place of None."""
    if axes is None:
        raise ValueError(
            f"{_tree.label(leaf.name)}: {pattern!r} has no axes; name the axes, or take the leaf from "
            "masks.leaves(params, pattern=..., roles=...), which finds them"
        )
    return axes


def _positive(axes: Any, ndim: int) -> Shape:
    return tuple(a % ndim for a in ((axes,) if isinstance(axes, int) else axes))


def _last(together: Shape, ndim: int) -> Shape:
    """Returns the order of axes with `together` last."""
    return tuple(a for a in range(ndim) if a not in together) + together


def _inverse(order: Shape) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _check_axes(axes: Any, leaf: Leaf) -> str | None:
    given = axes if isinstance(axes, tuple | list) else (axes,)
    if not all(isinstance(a, Integral) for a in given):
        return f"axes must be an integer or a tuple of integers, got {axes!r}"
    given = tuple(map(int, given))
    outside = [a for a in given if not -leaf.ndim <= a < leaf.ndim or a % leaf.ndim in leaf.batch_axes]
    if outside or len(set(_positive(given, leaf.ndim))) != len(given):
        batched = f" apart from batch_axes {leaf.batch_axes}" if leaf.batch_axes else ""
        return f"axes {given} are not distinct axes of {leaf.shape}{batched}; give it its own pattern by path"
    return None
