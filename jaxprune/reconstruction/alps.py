r"""ALPS: the alternating direction method of multipliers finds the mask, least squares the weights.

Meng, Behdin, Wang and Mazumder 2024 (arXiv 2406.07831). The problem $\min \|X W - X W_0\|^2$ over matrices $W$ with a
given number of entries (or n of m in each output) is split in two: $W$ minimises the error, a copy $D$ has the zeros,
and multipliers $V$ with a penalty $\rho$ draw them together:

    W <- (H + rho I)^-1 (H W_0 - V + rho D)
    D <- the entries of W + V / rho of largest magnitude
    V <- V + rho (W - D)

The penalty grows with the number of entries in which $D$'s zeros still change, so that the first rounds explore and the
last ones settle.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.reconstruction import gram, removal
from jaxprune.reconstruction.least_squares import least_squares

_ROUND = 3  # steps between two looks at the zeros
_FIRST_PENALTY = 0.1
_LEAST_PENALTY, _LARGEST_PENALTY = 1e-5, 1e6


def alps(
    weight: jax.Array,
    gram_matrix: jax.Array,
    target: removal.Target,
    *,
    damping: float | jax.Array = 0.01,
    steps: int = 300,
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes one weight matrix by ALPS (Meng et al. 2024, arXiv 2406.07831, Algorithms 1 and 2).

    Slower than SparseGPT by some ten to a hundred times, and with a smaller output error, most of all at high
    sparsity. The inputs are scaled to equal norms first. The kept weights are then the least squares optimum for the
    mask, in place of the paper's ten steps of conjugate gradients.

    Args:
      weight: float[inputs, outputs]; computed in float32 at least.
      gram_matrix: float[inputs, inputs], $X^T X$ of the inputs, in any scale.
      target: what to remove: `Entries`, `Grouped` or `Given`; with `Given` this is `least_squares`.
      damping: what is added to the diagonal, in units of its mean.
      steps: the largest number of ADMM steps; static. They end earlier once the mask no longer changes.

    Returns:
      `(weights, mask)` as `sparsegpt` returns them.

    Raises:
      ValueError: shapes do not fit, m does not divide the inputs, or `steps` is not positive.

    Example:
      >>> w, x = jax.random.normal(jax.random.key(0), (8, 3)), jax.random.normal(jax.random.key(1), (50, 8))
      >>> new, mask = alps(w, x.T @ x, removal.Entries(12))
      >>> int(mask.sum()), bool(jnp.linalg.norm(x @ new - x @ w) < jnp.linalg.norm(x @ jnp.where(mask, w, 0) - x @ w))
      (12, True)
    """
    removal.check(weight, gram_matrix, target)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    mask = _mask(weight, gram_matrix, target, damping, steps)
    return least_squares(weight, gram_matrix, removal.Given(mask), damping=damping)


class _State(NamedTuple):
    round: jax.Array
    penalty: jax.Array
    sparse: jax.Array  # D of the paper
    multipliers: jax.Array  # V
    mask: jax.Array
    exploring: jax.Array  # whether the penalty has ever been small enough for the mask to change
    changed: jax.Array  # how many entries the mask changed in the last round


def _mask(
    weight: jax.Array, gram_matrix: jax.Array, target: removal.Target, damping: float | jax.Array, steps: int
) -> jax.Array:
    if isinstance(target, removal.Given):
        return target.mask
    system = gram.damped(gram_matrix, damping)
    norms = jnp.sqrt(system.diagonal())[:, None]
    system = system / (norms * norms.T)
    values, vectors = jnp.linalg.eigh(system)
    # Dead inputs serve no output: their weights are removed first.
    dense = jnp.where((gram_matrix.diagonal() <= 0)[:, None], 0.0, weight.astype(system.dtype) * norms)
    goal = gram.matmul(system, dense)
    start = removal.keep(jnp.abs(dense), target)
    kept = jnp.maximum(start.sum(), 1)

    def advance(state: _State) -> _State:
        inverse = gram.matmul(vectors / (jnp.maximum(values, 0) + state.penalty), vectors.T)

        def step(_: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            sparse, multipliers = pair
            free = gram.matmul(inverse, goal - multipliers + state.penalty * sparse)
            moved = free + multipliers / state.penalty
            sparse = jnp.where(removal.keep(jnp.abs(moved), target), moved, 0)
            return sparse, multipliers + state.penalty * (free - sparse)

        sparse, multipliers = lax.fori_loop(0, _ROUND, step, (state.sparse, state.multipliers))
        mask = sparse != 0
        changed = (mask != state.mask).sum()
        fraction = changed / kept
        exploring = state.exploring | (fraction > 0.005)
        factor = jnp.where(fraction > 0.1, 1.3, jnp.where(fraction > 0.005, 1.2, 1.1))
        penalty = jnp.clip(jnp.where(exploring, state.penalty * factor, state.penalty / 5), None, _LARGEST_PENALTY)
        # A first penalty so large that hardly anything changed: start again with a smaller one.
        sparse = jnp.where(exploring, sparse, jnp.where(start, dense, 0))
        multipliers = jnp.where(exploring, multipliers, 0)
        mask = jnp.where(exploring, mask, start)
        return _State(state.round + 1, penalty, sparse, multipliers, mask, exploring, changed)

    def going(state: _State) -> jax.Array:
        settled = state.exploring & ((state.changed == 0) | ((state.round >= 10) & (state.changed < 3e-4 * kept)))
        return (state.round * _ROUND < steps) & (state.penalty > _LEAST_PENALTY) & ~settled

    first = jnp.asarray(_FIRST_PENALTY, system.dtype)
    never = jnp.zeros((), bool)
    state = _State(jnp.int32(0), first, jnp.where(start, dense, 0), jnp.zeros_like(dense), start, never, jnp.int32(0))
    state = lax.while_loop(going, advance, state)
    # By rank rather than by `sparse != 0`: a kept weight may happen to be zero, and counts are exact.
    return removal.keep(jnp.abs(state.sparse), target)
