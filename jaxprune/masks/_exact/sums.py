"""Sums whose bits do not depend on the order: the same on one device and on a thousand.

A float sum changes in its last bits with the layout of the data, and a last bit decides which of two channels is
kept. Here each number becomes an integer multiple of a power of two that the largest of them sets, and integers add
up exactly.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import axes
from jaxprune.masks._exact.shards import WHOLE, Shards

_BITS = 29  # of the largest number; what is below 2^-29 of it is rounded off
_STRETCH = 16  # entries that are added first
_APART = 64  # stretches that are left at least, so that devices can share them


def exact_sum(x: jax.Array, along: tuple[int, ...], layout: Shards = WHOLE) -> jax.Array:
    r"""The sum over some axes, the same bits whatever the layout.

    $s = 2^{e} \sum_i \lfloor 2^{-e} x_i \rceil$ with $e$ the exponent of $\max_i |x_i|$ less 29: each number is
    rounded to 2^-29 of the largest, and the sum is exact before it is rounded to float32.

    Args:
      x: floating, any shape; float64 is summed with the precision of float32.
      along: the axes to sum over, which stay with size 1.
      layout: how devices of a shard_map share the array, whose parts are then summed too.

    Returns:
      float32 with the summed axes of size 1. NaN where a NaN or both infinities take part, else an infinity where one
      takes part.

    Example:
      >>> exact_sum(jnp.array([[1.0, 2.0], [3.0, 4.5]]), (0,)).tolist()
      [[4.0, 6.5]]
    """
    x = x.astype(jnp.float32)
    # Where all is finite these two give the largest magnitude, else their sum is the result.
    largest, smallest = x.max(along, keepdims=True), x.min(along, keepdims=True)
    if layout.along(along):
        largest, smallest = lax.pmax(largest, layout.along(along)), lax.pmin(smallest, layout.along(along))
    exponent = jnp.maximum(jnp.frexp(jnp.maximum(jnp.abs(largest), jnp.abs(smallest)))[1], -90)
    # Powers of two by ldexp are exact, as is the product, so nothing depends on how they are fused.
    multiple = jnp.round(x * jnp.ldexp(jnp.float32(1), _BITS - exponent)).astype(jnp.int32)
    added = _add(multiple, along, layout) * jnp.ldexp(jnp.float32(1), exponent - _BITS)
    return jnp.where(jnp.isfinite(largest) & jnp.isfinite(smallest), added, largest + smallest)


def _add(multiple: jax.Array, along: tuple[int, ...], layout: Shards) -> jax.Array:
    # Limbs so narrow that a sum of them fits 31 bits; the top one carries the sign.
    size = math.prod(layout.whole(multiple.shape)[a] for a in along)
    width = 30 - max(1, math.ceil(math.log2(max(2, size))))
    if width < 1:
        raise ValueError(f"cannot sum {size} entries exactly; at most 2^29")
    parts, rest = [], multiple
    for _ in range(_BITS // width):
        parts.append(rest & ((1 << width) - 1))
        rest = rest >> width
    summed = [part.sum(along, keepdims=True) for part in _in_stretches([*parts, rest], along)]
    *limbs, top = lax.psum(summed, layout.along(along)) if layout.along(along) else summed
    # Carried so that all limbs but the top are short of 2^width: then few roundings, and always the same.
    carried = []
    carry = jnp.zeros_like(top)
    for limb in limbs:
        whole = limb + carry
        carried.append(whole & ((1 << width) - 1))
        carry = whole >> width
    value = (top + carry).astype(jnp.float32)
    for limb in reversed(carried):
        value = value * (1 << width) + limb.astype(jnp.float32)
    return value


def _in_stretches(limbs: list[jax.Array], along: tuple[int, ...]) -> list[jax.Array]:
    """Sums all limbs over short stretches of the last axis to sum over.

    XLA makes that one pass on a CPU, without temporary arrays as large as the input. Of a sum over a whole leading axis
    it makes a walk in long strides, 30 times slower, or copies of all limbs.
    """
    axis, ndim = along[-1], limbs[0].ndim
    size = limbs[0].shape[axis]
    stretch = max(d for d in range(1, _STRETCH + 1) if size % d == 0 and (d == 1 or size // d >= _APART))
    sizes = tuple(stretch if a == axis else 1 for a in range(ndim))
    zeros = [np.int32(0)] * len(limbs)
    return jax.lax.reduce(
        [axes.split(limb, sizes) for limb in limbs],
        zeros,
        lambda a, b: [jax.lax.add(x, y) for x, y in zip(a, b, strict=True)],
        tuple(range(1, 2 * ndim, 2)),
    )
