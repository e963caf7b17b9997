"""One array of scores, seen as slices of entries: what selection asks of it, in the array's own shape.

Nothing here reshapes or slices the scores but for a sample: a reshape of a sharded array gathers it.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks import counts, keys
from jaxprune.masks.counts import Count

_INT32 = 1 << 31
_SMALL = 1 << 17  # entries that are counted in one go
_PARALLEL = 16  # partial sums, at least: what a back end may work on at the same time
_PARTIAL = 1 << 15  # partial sums that `counts.total` adds up, at most


@dataclass(frozen=True)
class Leaf:
    """An array whose leading axes are independent slices.

    Attributes:
      scores: floating, any shape.
      batch_axes: how many leading axes are slices.
    """

    scores: jax.Array
    batch_axes: int

    def on(self, scores: jax.Array) -> "Leaf":
        """The same view of another array."""
        return Leaf(scores, self.batch_axes)

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return math.prod(self.scores.shape[: self.batch_axes])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a slice."""
        return self.scores.shape[self.batch_axes :]

    @property
    def entries(self) -> int:
        """How many entries a slice has."""
        return math.prod(self.shape)

    @cached_property
    def key_dtype(self) -> np.dtype:
        """The integer type of the keys."""
        return jax.eval_shape(keys.ordered, self.scores).dtype

    @property
    def key_bounds(self) -> tuple[int, int]:
        """Integers `(low, high)` with `low < key <= high`."""
        return keys.bounds(self.scores.dtype)

    def count_above(self, probes: jax.Array) -> Count:
        """How many keys of each slice exceed each probe: int[slices, p] -> Count of [slices, p], not normalised."""
        key = keys.ordered(self.scores)
        return self._count([key > probe.astype(key.dtype) for probe in self._columns(probes)])

    def count_ties(self, probes: jax.Array, tie: jax.Array, zero: jax.Array) -> Count:
        """How many entries of each slice have the key `tie` and `-index - 1` above each probe.

        `zero` is a 0 that the compiler cannot see through.
        """
        key, index = keys.ordered(self.scores), -1 - self._index(zero)
        (tie,) = self._columns(tie[:, None])
        tied = key == tie.astype(key.dtype)
        return self._count([tied & (index > probe) for probe in self._columns(probes)])

    def mask(self, above: jax.Array, tie: jax.Array, cut: jax.Array) -> jax.Array:
        """True where the key is above `above`, or is `tie` at an index before `cut`: each int[slices]."""
        key = keys.ordered(self.scores)
        above, tie, cut = (self._columns(x[:, None])[0] for x in (above, tie, cut))
        return (key > above.astype(key.dtype)) | ((key == tie.astype(key.dtype)) & (self._index(jnp.int32(0)) < cut))

    def sample(self, wanted: int) -> jax.Array:
        """Keys of at most `wanted` entries of each slice, spread over it: int[slices, m]."""
        places = tuple(slice(None, None, stride) for stride in strides(self.shape, wanted))
        taken = self.scores[(slice(None),) * self.batch_axes + places]
        taken = taken.reshape(self.slices, -1)
        return keys.ordered(taken[:, :: -(-taken.shape[1] // wanted)])

    def _columns(self, values: jax.Array) -> list[jax.Array]:
        """int[slices, p] -> p arrays that broadcast against the scores."""
        shape = self.scores.shape[: self.batch_axes] + (1,) * len(self.shape)
        return [values[:, i].reshape(shape) for i in range(values.shape[1])]

    def _index(self, zero: jax.Array) -> jax.Array:
        """The flat index of each entry within its slice."""
        index = zero
        for axis, size in enumerate(self.shape):
            position = lax.broadcasted_iota(jnp.int32, self.scores.shape, self.batch_axes + axis)
            index = index * size + position
        return index

    def _count(self, hits: list[jax.Array]) -> Count:
        # One reduction for all probes: a single pass over the scores. That of a large slice leaves some leading axes,
        # so that there are parts to work on at the same time, which are then summed.
        part_axes = partial_axes(self.shape)
        first = tuple(self.batch_axes + a for a in range(len(self.shape)) if a not in part_axes)
        numbers = [hit.astype(jnp.int32) for hit in hits]
        if first:
            zeros = [np.int32(0)] * len(numbers)
            numbers = lax.reduce(numbers, zeros, lambda a, b: [x + y for x, y in zip(a, b, strict=True)], first)
        parts = jnp.stack(numbers, -1)
        rest = tuple(range(self.batch_axes, parts.ndim - 1))
        if self.entries >= _INT32:
            return Count(*(limb.reshape(self.slices, len(hits)) for limb in counts.total(parts, rest)))
        total = (parts.sum(rest) if rest else parts).reshape(self.slices, len(hits))
        return Count(jnp.zeros_like(total), total)


def partial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a slice over which counts stay apart in the first sum.

    None for a small slice, of which one thread makes short work. Below 2^31 entries: leading axes, but not the last,
    until there are enough parts to share out. Beyond: one axis short enough to be summed in limbs, and long enough
    that no part holds 2^31.

    Raises:
      ValueError: there is no such axis.
    """
    entries = math.prod(shape)
    if entries < _SMALL:
        return ()
    if entries < _INT32:
        leading = 0
        while leading < len(shape) - 1 and math.prod(shape[:leading]) < _PARALLEL:
            leading += 1
        return tuple(range(leading))
    fitting = [a for a, size in enumerate(shape) if size <= _PARTIAL and entries // size < _INT32]
    if not fitting:
        raise ValueError(f"cannot count {entries} entries in the shape {shape}: no axis has between 2 and 32768 parts")
    return (fitting[0],)


def strides(shape: tuple[int, ...], wanted: int) -> tuple[int, ...]:
    """Strides that take about `wanted` entries of an array, dividing its axes evenly where they can.

    What remains of an axis keeps as many factors of two as possible, so that a slice of an axis sharded over a power
    of two of devices needs no other device's entries.
    """
    chosen = [1] * len(shape)
    order = sorted(range(len(shape)), key=lambda a: shape[a])
    left = float(wanted)
    for i, axis in enumerate(order):
        share = max(1, min(shape[axis], round(left ** (1 / (len(order) - i)))))
        chosen[axis] = _stride(shape[axis], share)
        left = max(1.0, left / -(-shape[axis] // chosen[axis]))
    return tuple(chosen)


def _stride(size: int, share: int) -> int:
    most = max(1, size // share)
    divisors = [d for d in range(1, most + 1) if size % d == 0 and size // d <= 4 * share]
    if not divisors:
        return most
    return max(divisors, key=lambda d: ((size // d) & -(size // d), d))
