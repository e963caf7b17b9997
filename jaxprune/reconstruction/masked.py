"""The plain ends: masks by magnitude or by Wanda's scores, the kept weights as they were."""

import jax
import jax.numpy as jnp

from jaxprune.reconstruction import counting, sweep, targets


def magnitude(weight: jax.Array, target: targets.Target) -> tuple[jax.Array, jax.Array]:
    """Removes the smallest weights of the matrix; n of m in groups along the inputs.

    Args:
      weight: float[inputs, outputs].
      target: what to remove; with `Given`, the mask is applied.

    Returns:
      `(weights, mask)`; of equal magnitudes the lowest index is kept.

    Example:
      >>> magnitude(jnp.array([[1.0, -3.0], [2.0, 0.5]]), targets.Entries(2))[0].tolist()
      [[0.0, -3.0], [2.0, 0.0]]
    """
    sweep.check(weight, jnp.broadcast_to(0.0, (weight.shape[0],) * 2), target)
    mask = _mask(jnp.abs(weight), target)
    return jnp.where(mask, weight, 0), mask


def wanda(weight: jax.Array, square: jax.Array, target: targets.Target) -> tuple[jax.Array, jax.Array]:
    r"""Removes the weights of least $|w_{ij}| \cdot \|x_i\|$ (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    With `Entries` the same number is removed from every output, $\lfloor k / \text{outputs} + 1/2 \rfloor$: scores
    are compared per output, which the paper's ablation finds matters, so the total may differ from $k$ by rounding.

    Args:
      weight: float[inputs, outputs].
      square: float[inputs], the sum of squares of each input, in any scale: the Gram matrix's diagonal.
      target: what to remove; with `Given`, the mask is applied.

    Returns:
      `(weights, mask)`; of equal scores the lowest index is kept.

    Example:
      >>> wanda(jnp.array([[1.0], [-2.0]]), jnp.array([9.0, 1.0]), targets.Entries(1))[1].tolist()
      [[True], [False]]
    """
    sweep.check(weight, jnp.broadcast_to(0.0, (weight.shape[0],) * 2), target)
    scores = jnp.abs(weight.astype(square.dtype)) * jnp.sqrt(square)[:, None]
    if isinstance(target, targets.Entries):
        outputs = weight.shape[1]
        mask = counting.keep_per_output(scores, (jnp.asarray(target.removed) * 2 + outputs) // (2 * outputs))
    else:
        mask = _mask(scores, target)
    return jnp.where(mask, weight, 0), mask


def _mask(scores: jax.Array, target: targets.Target) -> jax.Array:
    if isinstance(target, targets.Given):
        return target.mask
    if isinstance(target, targets.Grouped):
        return counting.n_of_m(scores, target.n, target.m)
    return counting.keep_largest(scores, scores.size - jnp.asarray(target.removed))
