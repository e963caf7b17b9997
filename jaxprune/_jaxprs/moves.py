"""Moves: what primitives that only move entries do (`Transpose`, `Reshape`, `Slice`, ...), as values for every client.

`primitives` describes each such primitive by one move for each result. Each client implements each move once for its
own values: `weights` applies moves to arrays, `views` to factors, `slimming` to labels. Calling a move with arrays (of
NumPy or JAX) performs it.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Shape = tuple[int, ...]


class Same(NamedTuple):
    """Every entry keeps its position."""

    def __call__(self, x: Any) -> Any:
        """The array itself."""
        return x


class Transpose(NamedTuple):
    """Axis i of the result is axis `permutation[i]`."""

    permutation: Shape

    def __call__(self, x: Any) -> Any:
        """The array with its axes in another order."""
        return x.transpose(self.permutation)


class Reshape(NamedTuple):
    """The entries in the same order in another shape; with `order`, the axes are first transposed by it."""

    shape: Shape
    order: Shape | None = None

    def __call__(self, x: Any) -> Any:
        """The array in the new shape."""
        return (x if self.order is None else x.transpose(self.order)).reshape(self.shape)


class Squeeze(NamedTuple):
    """Drops the axes `dimensions`, each of one position."""

    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """The array without these axes."""
        return x.reshape([n for a, n in enumerate(x.shape) if a not in self.dimensions])


class Broadcast(NamedTuple):
    """Axis i becomes axis `dimensions[i]` of a result of shape `shape`; entries repeat along all others."""

    shape: Shape
    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """The broadcast array."""
        kept = [1] * len(self.shape)
        for axis, n in zip(self.dimensions, x.shape, strict=True):
            kept[axis] = n
        return np.broadcast_to(x.reshape(kept), self.shape)


class Slice(NamedTuple):
    """On each axis the positions from `starts` to `limits` in steps of `strides`."""

    starts: Shape
    limits: Shape
    strides: Shape

    def __call__(self, x: Any) -> Any:
        """A part of the array."""
        return x[tuple(slice(*bounds) for bounds in zip(*self, strict=True))]


class Reverse(NamedTuple):
    """Reverses the axes `dimensions`."""

    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """The array with these axes reversed."""
        return np.flip(x, self.dimensions)


class Tile(NamedTuple):
    """Axis i is repeated `reps[i]` times, one copy after the other."""

    reps: Shape

    def __call__(self, x: Any) -> Any:
        """The array repeated."""
        return np.tile(x, self.reps)


class Pad(NamedTuple):
    """Puts (low, high, inside) entries of a second operand before, after and between the entries of each axis."""

    config: tuple[tuple[int, int, int], ...]


class Concatenate(NamedTuple):
    """Concatenates all operands along an axis."""

    axis: int

    def __call__(self, *parts: Any) -> Any:
        """The concatenated arrays."""
        return np.concatenate(parts, self.axis)


class Stack(NamedTuple):
    """Stacks all operands along a new axis."""

    axis: int

    def __call__(self, *parts: Any) -> Any:
        """The stacked arrays."""
        return np.stack(parts, self.axis)


Move: TypeAlias = Same | Transpose | Reshape | Squeeze | Broadcast | Slice | Reverse | Tile | Pad | Concatenate | Stack
