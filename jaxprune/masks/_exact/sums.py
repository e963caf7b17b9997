"""`exact_sum`: sums whose bits do not depend on the order: the same on one device and on a thousand.

The last bits of a float sum change with the layout of the data, and a last bit may decide which of two channels is
kept. Here each number becomes an integer multiple of a power of two near the largest number, and integers add up
exactly.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.masks._exact import axes
from jaxprune.masks._exact.shards import WHOLE, Shards

_BITS = 29  # bits of the largest number; parts below 2^-29 of it are rounded off
_STRETCH = 16  # entries that are added first
_APART = 64  # the least number of partial sums that are left, so that devices can share them


def exact_sum(x: jax.Array, along: tuple[int, ...], layout: Shards = WHOLE) -> jax.Array:
    r"""The sum over some axes, with the same bits for every layout.

    $s = 2^{e} \sum_i \lfloor 2^{-e} x_i \rceil$ with $e$ the exponent of $\max_i |x_i|$ less 29: each number is
    rounded to 2^-29 of the largest, and the sum is exact before it is rounded to float32.

    Args:
      x: floating, any shape; float64 is summed with the precision of float32.
      along: the axes to sum over; they keep size 1.
      layout: how devices of a shard_map share the array; all shards are summed.

    Returns:
      float32, summed axes with size 1. NaN if an entry is NaN or both infinities occur, else an infinity if one occurs.

    Example:
      >>> exact_sum(jnp.array([[1.0, 2.0], [3.0, 4.5]]), (0,)).tolist()
      [[4.0, 6.5]]
    """
    x = x.astype(jnp.float32)
    # If all entries are finite, these two give the largest magnitude; otherwise their sum is the result.
    largest, smallest = x.max(along, keepdims=True), x.min(along, keepdims=True)
    if layout.along(along):
        largest, smallest = lax.pmax(largest, layout.along(along)), lax.pmin(smallest, layout.along(along))
    exponent = jnp.maximum(jnp.frexp(jnp.maximum(jnp.abs(largest), jnp.abs(smallest)))[1], -90)
    # Powers of two from ldexp are exact, and so is the product, so fusion cannot change the bits.
    multiple = jnp.round(x * jnp.ldexp(jnp.float32(1), _BITS - exponent)).astype(jnp.int32)
    added = _add(multiple, along, layout) * jnp.ldexp(jnp.float32(1), exponent - _BITS)
    return jnp.where(jnp.isfinite(largest) & jnp.isfinite(smallest), added, largest + smallest)


def _add(multiple: jax.Array, along: tuple[int, ...], layout: Shards) -> jax.Array:
    # Limbs are so narrow that their sum fits 31 bits; the top limb has the sign.
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
    # After carrying, all limbs but the top are below 2^width, so there are few roundings, and always the same ones.
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
    """Sums all limbs over short runs of the last axis to sum over.

    On a CPU XLA does this in one pass, without temporary arrays of the input's size. A sum over a whole leading axis
    would read memory with long strides, which is far slower, or copy all limbs.
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
