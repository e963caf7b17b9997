r"""`alps`: finds the mask by the alternating direction method of multipliers (ADMM), the weights by least squares.

`affordable` uses it where its cost is within a budget, and SparseGPT elsewhere.

Meng, Behdin, Wang and Mazumder 2024 (arXiv 2406.07831) minimise $\|X W - X W_0\|^2$ over matrices $W$ with a given
number of entries (or n of m in each output). They split the problem: $W$ minimises the error, a copy $D$ has the zeros,
and multipliers $V$ with a penalty $\rho$ pull $W$ and $D$ together:

    W <- (H + rho I)^-1 (H W_0 - V + rho D)
    D <- the entries of W + V / rho of largest magnitude
    V <- V + rho (W - D)

The penalty grows with the number of zeros of $D$ that still change: the first rounds explore masks, the last rounds
settle on one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.reconstruction import gram, removal
from jaxprune.reconstruction.least_squares import least_squares
from jaxprune.reconstruction.sparsegpt import sparsegpt

_ROUND = 3  # steps between two comparisons of the mask
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

    ALPS takes ten to a hundred times as long as SparseGPT. Its output error is smaller, most of all at high sparsity.
    The inputs are first scaled to equal norms. At the end the kept weights are the least squares optimum for the mask;
    the paper runs ten steps of conjugate gradients instead.

    Args:
      weight: float[inputs, outputs]; computed in float32 at least.
      gram_matrix: float[inputs, inputs], $X^T X$ of the inputs, in any scale.
      target: what to remove: `Entries`, `Grouped` or `Given`. With `Given` the function equals `least_squares`.
      damping: added to the diagonal of the Gram matrix, relative to the diagonal's mean; 0 or more; default 0.01.
      steps: the largest number of ADMM steps; static; default 300. The loop stops when the mask no longer changes.

    Returns:
      `(weights, mask)`: weights in the dtype of `weight`, exact zeros where the bool mask is False. Kept weights are
      NaN if the damped Gram matrix is not positive definite.

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


def affordable(
    weight: jax.Array, gram_matrix: jax.Array, target: removal.Target, *, operations: float = 1e12
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes one weight matrix by ALPS if its size allows it, and by SparseGPT otherwise.

    ALPS takes at most 300 steps of $\text{inputs}^2 \cdot \text{outputs}$ multiplications each. If these are at most
    `operations`, ALPS is used. A budget of s seconds for each matrix on a machine with f multiplications a second is
    `operations = s * f`. The choice depends on shapes alone, so that a network is always pruned alike. Exact OBS is not
    chosen: it takes inputs^3 multiplications for each output, in small steps, and is seldom better than ALPS.

    Args:
      weight: float[inputs, outputs].
      gram_matrix: float[inputs, inputs], $X^T X$, in any scale.
      target: what to remove: `Entries`, `Grouped` or `Given`.
      operations: the largest number of multiplications; static; default 1e12: ALPS up to 1,493 inputs and outputs, for
        about half a minute on two CPU cores.

    Returns:
      `(weights, mask)`, as the chosen method returns them.

    Raises:
      ValueError: `operations` is not positive, or an error of the chosen method.

    Example:
      >>> w, x = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.normal(jax.random.key(1), (50, 6))
      >>> new, mask = affordable(w, x.T @ x, removal.Entries(4), operations=1000)  # SparseGPT
      >>> int(mask.sum())
      8
    """
    if not operations > 0:
        raise ValueError(f"operations must be positive, got {operations}")
    inputs, outputs = weight.shape
    chosen = alps if 300 * inputs**2 * outputs <= operations else sparsegpt
    return chosen(weight, gram_matrix, target)


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
    # Dead inputs reach no output, so their weights are removed first.
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
        # If the first penalty is so large that hardly any entry changes, start again with a smaller penalty.
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
    # The mask is chosen by rank and not as `sparse != 0`: a kept weight may be zero, and counts must be exact.
    return removal.keep(jnp.abs(state.sparse), target)
