"""The moves: what primitives that only move entries do, as values that every client can apply in its own terms.

`primitives` writes each such primitive as one move for each result, and a client says once what each move does to the
values that it follows: `weights` applies them to arrays, `views` to factors, `slimming` to labels. A move is called
with arrays (NumPy's or JAX's) to do what it says.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Shape = tuple[int, ...]


class Same(NamedTuple):
    """Every entry stays where it is."""

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
    """The entries in the same order in another shape; with `order`, after a transpose by it."""

    shape: Shape
    order: Shape | None = None

    def __call__(self, x: Any) -> Any:
        """The array in the shape."""
        return (x if self.order is None else x.transpose(self.order)).reshape(self.shape)


class Squeeze(NamedTuple):
    """The axes `dimensions`, of one position each, are dropped."""

    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """The array without these axes."""
        return x.reshape([n for a, n in enumerate(x.shape) if a not in self.dimensions])


class Broadcast(NamedTuple):
    """Axis i becomes axis `dimensions[i]` of a result of shape `shape`; entries repeat along all others."""

    shape: Shape
    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """The array repeated."""
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
    """The axes `dimensions` run backwards."""

    dimensions: Shape

    def __call__(self, x: Any) -> Any:
        """The array turned."""
        return np.flip(x, self.dimensions)


class Tile(NamedTuple):
    """Axis i is repeated `reps[i]` times, one copy after the other."""

    reps: Shape

    def __call__(self, x: Any) -> Any:
        """The array repeated."""
        return np.tile(x, self.reps)


class Pad(NamedTuple):
    """On each axis (low, high, inside) entries of a second operand come before, after and between the entries."""

    config: tuple[tuple[int, int, int], ...]


class Concatenate(NamedTuple):
    """All operands one after another along an axis."""

    axis: int

    def __call__(self, *parts: Any) -> Any:
        """The arrays in one."""
        return np.concatenate(parts, self.axis)


class Stack(NamedTuple):
    """All operands one after another along a new axis."""

    axis: int

    def __call__(self, *parts: Any) -> Any:
        """The arrays in one."""
        return np.stack(parts, self.axis)


Move: TypeAlias = Same | Transpose | Reshape | Squeeze | Broadcast | Slice | Reverse | Tile | Pad | Concatenate | Stack
