r"""Gram matrices of a layer's inputs: `damped`, `inverse_factor`, `output_errors`, `no_worse`, `better`.

A layer computes $Y = X W$ with inputs $X$ [samples, inputs] and weights $W$ [inputs, outputs]. Changing the weights
by $\Delta$ changes the outputs by $\|X \Delta\|^2 = \mathrm{tr}(\Delta^T H \Delta)$ with $H = X^T X$. Outputs do not
interact, and only the proportions of $H$ matter, not its scale.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

HIGHEST = lax.Precision.HIGHEST


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the matrix product in full precision; a GPU or TPU would use fewer bits by default."""
    return jnp.matmul(a, b, precision=HIGHEST)


def damped(gram: jax.Array, damping: float | jax.Array) -> jax.Array:
    r"""Returns $H + \lambda \bar d I$, scaled so that the mean $\bar d$ of the diagonal over live inputs is 1.

    A dead input has zeros in its row and column. It gets 1 on the diagonal, so it is independent of the other inputs,
    and its weights are neither changed nor used.

    Args:
      gram: float[inputs, inputs], symmetric, positive semidefinite.
      damping: $\lambda$, at least 0; 0 needs a Gram matrix that is not singular.

    Returns:
      float of the same shape, at least float32.

    Raises:
      ValueError: the damping is negative.

    Example:
      >>> damped(jnp.diag(jnp.array([3.0, 1.0, 0.0])), 0.5).diagonal().tolist()
      [2.0, 1.0, 1.0]
    """
    if isinstance(damping, (int, float)) and damping < 0:
        raise ValueError(f"damping must not be negative, got {damping}")
    gram = at_least_float32(gram)
    diagonal = gram.diagonal()
    dead = diagonal <= 0
    alive = jnp.maximum((~dead).sum(), 1)
    mean = jnp.where(dead, 0.0, diagonal).sum() / alive
    mean = jnp.where(mean > 0, mean, 1.0)
    new = jnp.where(dead, 1.0, diagonal / mean + damping)
    index = jnp.arange(gram.shape[0])
    return (gram / mean).at[index, index].set(new)


def inverse_factor(matrix: jax.Array) -> jax.Array:
    r"""Returns the upper triangular $U$ with $H^{-1} = U^T U$; NaN where $H$ is not positive definite.

    With the order of the inputs reversed, Cholesky gives $H = R R^T$ for an upper $R$, so $U = R^{-1}$: one
    factorisation and one triangular solve, and $H^{-1}$ itself is never formed.

    Example:
      >>> u = inverse_factor(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
      >>> bool(jnp.allclose(u.T @ u, jnp.linalg.inv(jnp.array([[2.0, 1.0], [1.0, 2.0]])), atol=1e-6))
      True
    """
    upper = jnp.linalg.cholesky(matrix[::-1, ::-1], symmetrize_input=False)[::-1, ::-1]
    return solve_triangular(upper, jnp.eye(matrix.shape[0], dtype=matrix.dtype), lower=False)


def output_errors(change: jax.Array, gram: jax.Array) -> jax.Array:
    r"""Returns $\delta^T H \delta$ for each column $\delta$ of a change of the weights.

    Args:
      change: float[inputs, outputs].
      gram: float[inputs, inputs], undamped.

    Returns:
      float[outputs]: how far each output moves, squared and summed over the samples.
    """
    change = change.astype(gram.dtype)
    return (change * matmul(gram, change)).sum(0)


def no_worse(weight: jax.Array, repaired: jax.Array, mask: jax.Array, gram: jax.Array) -> jax.Array:
    """Returns the repaired weights; outputs with a smaller error under the plain mask keep their masked weights.

    Damping, rounding to a short dtype and early stops can make a repair worse than none. NaN in the repaired weights
    stays, so that it is noticed.

    Args:
      weight: float[inputs, outputs], before pruning.
      repaired: float of the same shape, any float dtype.
      mask: bool of the same shape, True = kept.
      gram: float[inputs, inputs], undamped.

    Returns:
      Weights in the dtype of `weight`, exactly zero where the mask is False.
    """
    gram = at_least_float32(gram)
    plain = jnp.where(mask, weight, 0)
    repaired = jnp.where(mask, repaired.astype(weight.dtype), 0)
    wide = weight.astype(gram.dtype)
    worse = output_errors(wide - repaired, gram) > output_errors(wide - plain, gram)
    return jnp.where(worse, plain, repaired)


def better(weight: jax.Array, gram: jax.Array, one: Any, other: Any, *, whole: bool = False) -> Any:
    """Returns the result with the smaller output error, for each output or the whole matrix; the first if equal.

    Args:
      weight: float[inputs, outputs], before pruning.
      gram: float[inputs, inputs], undamped.
      one: a tree of arrays [..., outputs], whose first leaf is the new weights.
      other: another of the same structure.
      whole: whether the outputs must come from the same result.

    Returns:
      A tree of the same structure.
    """
    gram = at_least_float32(gram)
    wide = weight.astype(gram.dtype)
    errors = [output_errors(wide - jax.tree.leaves(x)[0].astype(gram.dtype), gram) for x in (one, other)]
    mine, others = (e.sum() for e in errors) if whole else errors
    return jax.tree.map(lambda a, b: jnp.where(others < mine, b, a), one, other)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts to float32, but keeps float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
