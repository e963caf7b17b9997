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
_BLOCK = 512


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
    return jnp.where(jnp.eye(gram.shape[0], dtype=bool), new, gram / mean)


def inverse_factor(matrix: jax.Array) -> jax.Array:
    r"""Returns the upper triangular $V$ with $H^{-1} = J V V^T J$, where $J$ reverses the order of the inputs.

    So $H^{-1} = U^T U$ with the upper triangular $U_{ij} = V_{n-1-j, n-1-i}$. Cholesky gives $J H J = R^T R$, and
    $V = R^{-1}$. Both are computed block by block in the place of $J H J$, because LAPACK's functions, called through
    XLA, would copy the matrix. (With jax 0.12 XLA makes one copy all the same.) V is NaN where H is not positive
    definite.

    Example:
      >>> v = inverse_factor(jnp.array([[2.0, 1.0], [1.0, 2.0]]))
      >>> bool(jnp.allclose((v @ v.T)[::-1, ::-1], jnp.linalg.inv(jnp.array([[2.0, 1.0], [1.0, 2.0]])), atol=1e-6))
      True
    """
    n = matrix.shape[0]
    size = next((d for d in range(_BLOCK, _BLOCK // 4, -1) if n % d == 0), min(n, _BLOCK))
    blocks = -(-n // size)
    system = matrix[::-1, ::-1]
    if n % size:  # an identity beside it
        system = jnp.eye(blocks * size, dtype=matrix.dtype).at[:n, :n].set(system)
    block = lambda x, i, j: lax.dynamic_slice(x, (i * size, j * size), (size, size))
    put = lambda x, new, i, j: lax.dynamic_update_slice(x, new, (i * size, j * size))

    def row_of_r(i: jax.Array, x: jax.Array) -> jax.Array:
        # Above block row i, x is R. R_ii^T R_ii = S_ii - sum of R_ki^T R_ki, R_ii^T R_ij = S_ij - sum of R_ki^T R_kj.
        left = lambda j, x: lax.fori_loop(
            0, i, lambda k, total: total - matmul(block(x, k, i).T, block(x, k, j)), block(x, i, j)
        )
        row = lax.dynamic_slice_in_dim(x, i * size, size)
        x = put(x, jnp.where(jnp.arange(x.shape[1]) < i * size, 0.0, row), i, 0)
        own = jnp.linalg.cholesky(left(i, x), symmetrize_input=False)
        column = lambda j, x: put(x, solve_triangular(own, left(j, x), lower=True), i, j)
        return lax.fori_loop(i + 1, blocks, column, put(x, own.T, i, i))

    def row_of_v(turn: jax.Array, x: jax.Array) -> jax.Array:
        # Below block row i, x is V. V_ii = R_ii^-1, and V_ij = -V_ii times the sum of R_ik V_kj over i < k <= j. The
        # last column comes first, because the columns before it need R up to their own.
        i = blocks - 1 - turn
        own = solve_triangular(block(x, i, i), jnp.eye(size, dtype=x.dtype))

        def column(turn: jax.Array, x: jax.Array) -> jax.Array:
            j = blocks - 1 - turn
            add = lambda k, total: total + matmul(block(x, i, k), block(x, k, j))
            return put(x, -matmul(own, lax.fori_loop(i + 1, j + 1, add, jnp.zeros_like(own))), i, j)

        return lax.fori_loop(0, turn, column, put(x, own, i, i))

    return lax.fori_loop(0, blocks, row_of_v, lax.fori_loop(0, blocks, row_of_r, system))[:n, :n]


def output_errors(change: jax.Array, gram: jax.Array) -> jax.Array:
    r"""Returns $\delta^T H \delta$ for each column $\delta$ of a change of the weights.

    Args:
      change: float[inputs, outputs].
      gram: float[inputs, inputs], undamped.

    Returns:
      float[outputs]: how far each output moves, squared and summed over the samples.
    """
    change = change.astype(gram.dtype)
    return _sum_of_products(change, matmul(gram, change))


def _sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the sum of `a * b` over the rows: float[inputs, outputs] twice to float[outputs]."""
    # As a product, because XLA for CPUs moves a plain sum into the matrix product that gives b, which then takes twice
    # as long.
    return matmul(jnp.ones(len(a), a.dtype), a * b)


def _more_error(weight: jax.Array, one: jax.Array, other: jax.Array, gram: jax.Array) -> jax.Array:
    r"""Returns the output error of the new weights `one` minus that of the new weights `other`: float[outputs].

    With the changes $\delta$ and $\epsilon$, $\delta^T H \delta - \epsilon^T H \epsilon = (\delta - \epsilon)^T H
    (\delta + \epsilon)$, which takes one product in place of two.
    """
    wide, one, other = (x.astype(gram.dtype) for x in (weight, one, other))
    return _sum_of_products(other - one, matmul(gram, (wide - one) + (wide - other)))


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
    return jnp.where(_more_error(weight, repaired, plain, gram) > 0, plain, repaired)


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
    more = _more_error(weight, jax.tree.leaves(one)[0], jax.tree.leaves(other)[0], gram)
    worse = (more.sum() if whole else more) > 0
    return jax.tree.map(lambda a, b: jnp.where(worse, b, a), one, other)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts to float32, but keeps float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
