"""Patterns: what is removed together. Single entries, n of m, blocks, channels.

A pattern turns scores into scores of units and a mask of units into a mask of entries; ranking knows of units only.
All of them leave leading batch axes (layers stacked by a scan, members of an ensemble) to themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxprune.masks import axes, sums
from jaxprune.masks.shards import WHOLE, Layout

Shape = tuple[int, ...]


class Pattern(Protocol):
    """What ranking asks of a pattern. Any hashable object with these three is a pattern."""

    def check(self, shape: Shape, batch_axes: int) -> str | None:
        """What is wrong with an array of this shape, and what to do; None if nothing is."""
        ...

    def units(self, scores: jax.Array, batch_axes: int) -> jax.Array:
        """The scores of the units. The leading batch axes stay."""
        ...

    def expand(self, units: jax.Array, shape: Shape, batch_axes: int) -> jax.Array:
        """The mask of the entries, which broadcasts to `shape`, from a bool for each unit."""
        ...


Patterns = Pattern | Mapping[str, Pattern]
BatchAxes = int | Mapping[str, int]


@dataclass(frozen=True)
class Unstructured:
    """Single entries, ranked over the whole leaf, or within parts of it.

    Attributes:
      axes: the axes that are ranked together, each position along the other axes on its own. `axes=-2` keeps the same
        number of inputs for every output of a (in, out) kernel. None: all axes together.
    """

    axes: int | tuple[int, ...] | None = None

    def check(self, shape: Shape, batch_axes: int) -> str | None:
        """What is wrong with an array of this shape; None if nothing is."""
        return None if self.axes is None else _check_axes(self.axes, shape, batch_axes)

    def units(self, scores: jax.Array, batch_axes: int) -> jax.Array:
        """The scores of the units."""
        if self.axes is None:
            return scores
        order = self.order(scores.ndim)
        return scores.transpose(order)

    def expand(self, units: jax.Array, shape: Shape, batch_axes: int) -> jax.Array:
        """The mask of the entries."""
        if self.axes is None:
            return units
        order = self.order(len(shape))
        return units.transpose(sorted(range(len(order)), key=order.__getitem__))

    def along(self, inputs: tuple[int, ...], within_outputs: bool) -> "Unstructured":
        """The pattern for a leaf whose inputs lie along these axes: each output on its own, if that is asked for."""
        return Unstructured(inputs) if self.axes is None and within_outputs else self

    def batch_axes(self, shape: Shape, batch_axes: int) -> int:
        """How many leading axes of `units` are ranked apart."""
        return batch_axes if self.axes is None else len(shape) - len(_positive(self.axes, len(shape)))

    def order(self, ndim: int) -> tuple[int, ...]:
        """Which axis of the array each axis of the units is."""
        together = () if self.axes is None else _positive(self.axes, ndim)
        return tuple(a for a in range(ndim) if a not in together) + together


UNSTRUCTURED = Unstructured()


@dataclass(frozen=True)
class Block:
    """Blocks of neighbouring entries, each kept or removed as a whole; its score is the sum of its entries'.

    Attributes:
      shape: the size of a block along each of `axes`, which it must divide.
      axes: the axes the blocks lie along; along all others a block has size 1.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = (-2, -1)

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes) or any(size < 1 for size in self.shape):
            raise ValueError(f"Block: needs one positive size for each axis, got shape={self.shape}, axes={self.axes}")

    def check(self, shape: Shape, batch_axes: int) -> str | None:
        """What is wrong with an array of this shape; None if nothing is."""
        wrong = _check_axes(self.axes, shape, batch_axes)
        if wrong:
            return wrong
        sizes = self.sizes(len(shape))
        if any(n % size for n, size in zip(shape, sizes, strict=True)):
            return f"shape {shape} is not divided by blocks of {sizes}; choose sizes that divide it, or leave it out"
        return None

    def units(self, scores: jax.Array, batch_axes: int) -> jax.Array:
        """The scores of the units."""
        within = tuple(range(1, 2 * scores.ndim, 2))
        return sums.exact_sum(axes.split(scores, self.sizes(scores.ndim)), within).squeeze(within)

    def expand(self, units: jax.Array, shape: Shape, batch_axes: int) -> jax.Array:
        """The mask of the entries."""
        within = tuple(range(1, 2 * units.ndim, 2))
        sizes = self.sizes(units.ndim)
        blocks = jnp.expand_dims(units, within)
        return axes.join(
            jnp.broadcast_to(blocks, [part for n, size in zip(units.shape, sizes, strict=True) for part in (n, size)])
        )

    def sizes(self, ndim: int) -> tuple[int, ...]:
        """The size of a block along each axis."""
        sizes = [1] * ndim
        for axis, size in zip(self.axes, self.shape, strict=True):
            sizes[axis] = size
        return tuple(sizes)


@dataclass(frozen=True)
class Channel:
    """Whole slices at a position along one axis; a channel's score is the sum of its entries'.

    With scores |w| that ranks by the L1 norm, with w^2 by the L2 norm.

    Attributes:
      axis: the axis whose positions are channels: -1, the outputs of a Flax kernel; -2, its inputs.
    """

    axis: int = -1

    def check(self, shape: Shape, batch_axes: int) -> str | None:
        """What is wrong with an array of this shape; None if nothing is."""
        return _check_axes(self.axis, shape, batch_axes)

    def units(self, scores: jax.Array, batch_axes: int, layout: Layout = WHOLE) -> jax.Array:
        """The scores of the units, with what other devices hold of them where the array is cut."""
        axis = self.axis % scores.ndim
        return sums.exact_sum(scores, tuple(a for a in range(batch_axes, scores.ndim) if a != axis), layout)

    def expand(self, units: jax.Array, shape: Shape, batch_axes: int) -> jax.Array:
        """The mask of the entries."""
        return units


@dataclass(frozen=True)
class NM:
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
        if not 1 <= self.n <= self.m:
            raise ValueError(f"NM(n, m) keeps n of m and needs 1 <= n <= m, got n={self.n}, m={self.m}")

    def check(self, shape: Shape, batch_axes: int) -> str | None:
        """What is wrong with an array of this shape; None if nothing is."""
        if self.axis is not None:
            wrong = _check_axes(self.axis, shape, batch_axes)
            if wrong:
                return wrong
        length = math.prod(shape[a] for a in self.reduction_axes(len(shape), batch_axes))
        if length % self.m:
            return (
                f"its length {length} along the reduction axes of {shape} is not divided by m={self.m}; "
                "leave it out by `where`, or give it another pattern or axis by path"
            )
        return None

    def units(self, scores: jax.Array, batch_axes: int) -> jax.Array:
        """The scores with an axis more, at `member_axis`, along which lie the m members of a group."""
        together = self.reduction_axes(scores.ndim, batch_axes)
        last = together[-1]
        if self._splits(scores.shape, together):
            sizes = [1] * scores.ndim
            sizes[last] = self.m
            return axes.split(scores, tuple(sizes)).squeeze(tuple(2 * a + 1 for a in range(scores.ndim) if a != last))
        order = self._order(scores.ndim, together)
        moved = axes.replicate(scores).transpose(order)
        first = scores.ndim - len(together)
        return moved.reshape(*moved.shape[:first], -1, self.m)

    def expand(self, units: jax.Array, shape: Shape, batch_axes: int) -> jax.Array:
        """The mask of the entries."""
        together = self.reduction_axes(len(shape), batch_axes)
        if self._splits(shape, together):
            last = together[-1]
            return axes.join(jnp.expand_dims(units, tuple(2 * a + 1 for a in range(len(shape)) if a != last)))
        order = self._order(len(shape), together)
        return units.reshape([shape[a] for a in order]).transpose(sorted(range(len(order)), key=order.__getitem__))

    def member_axis(self, shape: Shape, batch_axes: int) -> int:
        """The axis of the units along which the members of a group lie."""
        together = self.reduction_axes(len(shape), batch_axes)
        return together[-1] + 1 if self._splits(shape, together) else len(shape) - len(together) + 1

    def _splits(self, shape: Shape, together: tuple[int, ...]) -> bool:
        # Then every group lies along the last of the axes, which is cut where it is: nothing is moved or gathered.
        return shape[together[-1]] % self.m == 0

    def along(self, inputs: tuple[int, ...], within_outputs: bool) -> "NM":
        """The pattern for a leaf whose inputs lie along these axes: its groups do, unless `axis` says otherwise."""
        return NM(self.n, self.m, inputs) if self.axis is None else self

    @property
    def sparsity(self) -> float:
        """The fraction that the pattern removes."""
        return 1 - self.n / self.m

    def reduction_axes(self, ndim: int, batch_axes: int) -> tuple[int, ...]:
        """The axes along which neighbours lie, the last of them fastest."""
        if self.axis is not None:
            return _positive(self.axis, ndim)
        return tuple(range(batch_axes, max(batch_axes + 1, ndim - 1)))

    def _order(self, ndim: int, together: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a for a in range(ndim) if a not in together) + together


def _positive(axes: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return tuple(a % ndim for a in ((axes,) if isinstance(axes, int) else axes))


def _check_axes(axes: int | tuple[int, ...], shape: Shape, batch_axes: int) -> str | None:
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    outside = [a for a in given if not -len(shape) <= a < len(shape) or a % len(shape) < batch_axes]
    if outside or len(set(_positive(given, len(shape)))) != len(given):
        batched = f" after {batch_axes} batch axes" if batch_axes else ""
        return f"axes {given} are not distinct axes of {shape}{batched}; give it its own pattern by path"
    return None
