r"""`least_squares`, the optimal values of the weights that a mask keeps; `obs`, exact optimal brain surgeon.

For each output with kept inputs $S$, the minimum of $\|X (w - w_0)\|^2$ over $w$ that is zero outside $S$ solves
$H_{SS}\, \delta_S = (H w_0^{\text{removed}})_S$, $w = w_0^{\text{kept}} + \delta$. Every output has its own linear
system. Small systems are solved by Cholesky, larger ones by conjugate gradients on all outputs at once.

`obs` removes one weight at a time; it is the reference for small layers. Frantar, Singh and Alistarh 2022, Optimal
Brain Compression (arXiv 2208.11580), Algorithms 1 and 2. Each step removes the weight of an output with the least
$w_j^2 / [H^{-1}]_{jj}$, updates the other weights by $w \leftarrow w - \frac{w_j}{[H^{-1}]_{jj}} H^{-1}_{:j}$, and
eliminates $j$ from the inverse by one step of Gaussian elimination. The sizes of the losses then decide how many
weights each output loses.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from jaxprune.reconstruction import gram, removal
from jaxprune.reconstruction.sparsegpt import sparsegpt

_DIRECT_INPUTS = 256
_CHUNK = 1 << 24  # entries of all the systems that are solved at once


def least_squares(
    weight: jax.Array,
    gram_matrix: jax.Array,
    target: removal.Target,
    *,
    damping: float | jax.Array = 1e-4,
    direct: bool | None = None,
    steps: int = 200,
) -> tuple[jax.Array, jax.Array]:
    r"""Sets the kept weights of each output to the values that change the output least.

    Args:
      weight: float[inputs, outputs]; computed in float32 at least.
      gram_matrix: float[inputs, inputs], $X^T X$, in any scale.
      target: `Given(mask)` with any mask bool[inputs, outputs], True = kept. The method does not choose masks.
      damping: added to the diagonal of the Gram matrix, relative to the diagonal's mean; 0 or more; default 1e-4. A
        larger value keeps weights nearer to their old values.
      direct: True factorises one system for each output (inputs^3 / 3 operations each); False runs conjugate gradients
        (2 inputs^2 operations a step each); None (default) is True up to 256 inputs. Static.
      steps: the largest number of steps of conjugate gradients; default 200. The loop stops when every residual is at
        most 1e-6.

    Returns:
      `(weights, mask)`: weights in the dtype of `weight`, exact zeros where the mask is False. No output has a larger
      error than with the mask alone. With `direct`, kept weights are NaN if a damped system is not positive definite.

    Raises:
      ValueError: shapes do not fit, or the target is not a mask.

    Example:
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0], [0.0, 1.0]])
      >>> mask = jnp.array([[True], [False]])
      >>> least_squares(jnp.ones((2, 1)), x.T @ x, removal.Given(mask), damping=0.0)[0].round(4).tolist()
      [[2.0], [0.0]]
    """
    if not isinstance(target, removal.Given):
        raise ValueError(
            "least_squares repairs the weights that a mask keeps: pass criterion= or masks=; got a target "
            f"{type(target).__name__}"
        )
    removal.check(weight, gram_matrix, target)
    mask = target.mask
    system = gram.damped(gram_matrix, damping)
    wide = weight.astype(system.dtype)
    right = jnp.where(mask, gram.matmul(system, jnp.where(mask, 0.0, wide)), 0.0)
    direct = weight.shape[0] <= _DIRECT_INPUTS if direct is None else direct
    change = solve(system, right, mask) if direct else conjugate_gradients(system, right, mask, steps=steps)
    return gram.no_worse(weight, wide + change, mask, gram_matrix), mask


def solve(system: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Solves `system[S, S] x[S] = target[S]` for each output's kept inputs S, by Cholesky.

    Args:
      system: float[inputs, inputs], positive definite.
      target: float[inputs, outputs], zero where the mask is False.
      mask: bool[inputs, outputs].

    Returns:
      float[inputs, outputs], zero where the mask is False.
    """

    def one(columns: tuple[jax.Array, jax.Array]) -> jax.Array:
        right, kept = columns
        # Removed inputs get rows of the identity, so that every system has the same shape.
        own = jnp.where(kept[:, None] & kept[None, :], system, 0.0) + jnp.diag(jnp.where(kept, 0.0, 1.0))
        return cho_solve((jnp.linalg.cholesky(own, symmetrize_input=False), True), right)

    chunk = max(1, min(target.shape[1], _CHUNK // max(1, system.size)))
    return lax.map(one, (target.T, mask.T), batch_size=chunk).T


def conjugate_gradients(
    system: jax.Array, target: jax.Array, mask: jax.Array, *, steps: int, tolerance: float = 1e-6
) -> jax.Array:
    """Approximates `solve` by conjugate gradients with the diagonal as preconditioner, all outputs at once.

    Args:
      system: float[inputs, inputs], positive definite.
      target: float[inputs, outputs], zero where the mask is False.
      mask: bool[inputs, outputs].
      steps: the largest number of steps; each multiplies the system by a matrix of the weights' shape.
      tolerance: an output stops when its preconditioned residual is at most this fraction of the first residual.

    Returns:
      float[inputs, outputs], zero where the mask is False.
    """
    scale = 1.0 / system.diagonal()[:, None]
    first = (target * scale * target).sum(0)
    goal = first * tolerance**2

    def going(state: tuple[jax.Array, ...]) -> jax.Array:
        return (state[0] < steps) & (state[-1] > goal).any()

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, solution, residual, direction, energy = state
        active = energy > goal
        product = jnp.where(mask, gram.matmul(system, direction), 0.0)
        curvature = (direction * product).sum(0)
        length = jnp.where(active, energy / jnp.where(active, curvature, 1.0), 0.0)
        solution, residual = solution + length * direction, residual - length * product
        after = (residual * scale * residual).sum(0)
        turn = jnp.where(active, after / jnp.where(active, energy, 1.0), 0.0)
        direction = residual * scale + turn * direction
        return i + 1, solution, residual, direction, jnp.where(active, after, energy)

    start = (jnp.int32(0), jnp.zeros_like(target), target, target * scale, first)
    return lax.while_loop(going, step, start)[1]


def obs(
    weight: jax.Array,
    gram_matrix: jax.Array,
    target: removal.Target,
    *,
    damping: float | jax.Array = 1e-4,
    guard: bool = True,
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes one small weight matrix by exact OBS (Frantar, Singh and Alistarh 2022, arXiv 2208.11580).

    The cost is inputs^3 operations for each output, so use it for layers of up to a few hundred inputs. `alps` is
    usually no worse and costs less for larger layers. The order of removal is greedy. The kept weights are then the
    least squares solution for the mask, which equals the sum of the updates. If losses within an output are equal, the
    lower index is removed first; between outputs the lowest index is kept.

    A greedy mask need not be the best mask. With `guard`, the function also computes SparseGPT, and SparseGPT's mask
    with least squares weights, and returns the result of the smallest total output error (for each output separately
    with `Grouped` and `Given`, where outputs are independent).

    Args:
      weight: float[inputs, outputs]; computed in float32 at least.
      gram_matrix: float[inputs, inputs], $X^T X$, in any scale.
      target: what to remove: `Entries`, `Grouped` or `Given`.
      damping: added to the diagonal of the Gram matrix, relative to the diagonal's mean; 0 or more; default 1e-4.
      guard: whether the result must be no worse than SparseGPT's; static; default True.

    Returns:
      `(weights, mask)`: weights in the dtype of `weight`, exact zeros where the bool mask is False. Kept weights are
      NaN if the damped Gram matrix is not positive definite.

    Raises:
      ValueError: shapes do not fit, or m does not divide the inputs.

    Example:
      >>> w, x = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.normal(jax.random.key(1), (50, 6))
      >>> new, mask = obs(w, x.T @ x, removal.Entries(4))
      >>> int(mask.sum())
      8
    """
    removal.check(weight, gram_matrix, target)
    mask = greedy_mask(weight, gram_matrix, target, damping=damping)
    refit = partial(least_squares, weight, gram_matrix, damping=damping, direct=True)
    best = refit(removal.Given(mask))
    if not guard:
        return best
    swept, other = sparsegpt(weight, gram_matrix, target, damping=damping)
    whole = isinstance(target, removal.Entries)
    for candidate in (refit(removal.Given(other)), (swept, other)):
        best = gram.better(weight, gram_matrix, best, candidate, whole=whole)
    return best


def greedy_mask(
    weight: jax.Array, gram_matrix: jax.Array, target: removal.Target, *, damping: float | jax.Array = 1e-4
) -> jax.Array:
    """Returns the mask from removing one weight at a time; see `obs`."""
    if isinstance(target, removal.Given):
        return target.mask
    factor = gram.inverse_factor(gram.damped(gram_matrix, damping))
    inverse = gram.matmul(factor, factor.T)[::-1, ::-1]
    dead = gram_matrix.diagonal() <= 0
    columns = jnp.where(dead[:, None], 0.0, weight.astype(inverse.dtype)).T
    chunk = max(1, min(len(columns), _CHUNK // max(1, inverse.size)))
    grouped = target if isinstance(target, removal.Grouped) else None
    losses, turns = lax.map(lambda w: _eliminate(w, inverse, grouped), columns, batch_size=chunk)
    if grouped is not None:
        return (turns >= weight.shape[0] // grouped.m * (grouped.m - grouped.n)).T
    assert isinstance(target, removal.Entries)  # for the type checker
    # The losses of all outputs are ranked together. An output loses as many weights as it has removed losses, in its
    # own order.
    stays = removal.keep_largest(losses.T, weight.size - jnp.asarray(target.removed))
    mask = (~stays).sum(0) <= turns.T
    return jnp.where(jnp.isnan(inverse).any(), stays, mask)


def _eliminate(weight: jax.Array, inverse: jax.Array, grouped: removal.Grouped | None) -> tuple[jax.Array, jax.Array]:
    """Returns for one output the loss of each step, and the step that removes each weight (never: number of inputs)."""
    n = weight.shape[0]
    steps = n if grouped is None else n // grouped.m * (grouped.m - grouped.n)

    def step(state: tuple[jax.Array, ...], turn: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        w, inv, turns = state
        gone = turns < n
        barred = gone if grouped is None else gone | _full(gone, grouped)
        loss = jnp.where(barred, jnp.inf, w**2 / jnp.where(gone, 1.0, inv.diagonal()))
        j = jnp.argmin(loss)
        row, pivot = inv[j], inv[j, j]
        w = (w - row * (w[j] / pivot)).at[j].set(0.0)
        inv = inv - jnp.outer(row, row / pivot)
        inv = inv.at[j].set(0.0).at[:, j].set(0.0)
        return (w, inv, turns.at[j].set(turn)), loss[j]

    start = (weight, inverse, jnp.full(n, n, jnp.int32))
    (_, _, turns), losses = lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
    return losses, turns


def _full(gone: jax.Array, grouped: removal.Grouped) -> jax.Array:
    removed = gone.reshape(-1, grouped.m).sum(1)
    return jnp.repeat(removed >= grouped.m - grouped.n, grouped.m)
