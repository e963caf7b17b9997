"""Sums whose bits do not depend on the order: the same on one device and on a thousand.

A float sum changes in its last bits with the layout of the data, and a last bit decides which of two channels is
kept. Here each number becomes an integer multiple of a power of two that the largest of them sets, and integers add
up exactly.
"""

import math

import jax
import jax.numpy as jnp

_BITS = 29  # of the largest number; what is below 2^-29 of it is rounded off


def exact_sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    r"""The sum over some axes, the same bits whatever the layout.

    $s = 2^{e} \sum_i \lfloor 2^{-e} x_i \rceil$ with $e$ the exponent of $\max_i |x_i|$ less 29: each number is
    rounded to 2^-29 of the largest, and the sum is exact before it is rounded to float32.

    Args:
      x: floating, any shape; float64 is summed with the precision of float32.
      axes: the axes to sum over, which stay with size 1.

    Returns:
      float32 with the summed axes of size 1. NaN where a NaN or both infinities take part, else an infinity where one
      takes part.

    Example:
      >>> exact_sum(jnp.array([[1.0, 2.0], [3.0, 4.5]]), (0,)).tolist()
      [[4.0, 6.5]]
    """
    x = x.astype(jnp.float32)
    largest, smallest = x.max(axes, keepdims=True), x.min(axes, keepdims=True)
    finite = jnp.where(jnp.isfinite(x), x, 0)
    magnitude = jnp.abs(finite).max(axes, keepdims=True)
    exponent = jnp.maximum(jnp.frexp(magnitude)[1], -90)
    # Powers of two by ldexp are exact, as is the product, so nothing depends on how they are fused.
    multiple = jnp.round(finite * jnp.ldexp(jnp.float32(1), _BITS - exponent)).astype(jnp.int32)
    added = _add(multiple, axes, math.prod(x.shape[a] for a in axes)) * jnp.ldexp(jnp.float32(1), exponent - _BITS)
    # An infinity plus a finite number is itself; NaN and opposite infinities make NaN.
    return jnp.where(jnp.isfinite(largest) & jnp.isfinite(smallest), added, largest + smallest)


def _add(multiple: jax.Array, axes: tuple[int, ...], size: int) -> jax.Array:
    # Limbs so narrow that `size` of them fit 31 bits; the top one carries the sign.
    width = 30 - max(1, math.ceil(math.log2(max(2, size))))
    if width < 1:
        raise ValueError(f"cannot sum {size} entries exactly; at most 2^29")
    limbs, rest = [], multiple
    for _ in range(_BITS // width):
        limbs.append((rest & ((1 << width) - 1)).sum(axes, keepdims=True))
        rest = rest >> width
    top = rest.sum(axes, keepdims=True)
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
