"""Movement pruning: what to keep is learned, by scores that follow the weights' way from zero or towards it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune import _tree, masks, schedules
from jaxprune import allocation as allocations
from jaxprune.prune import Selector
from jaxprune.training import dense
from jaxprune.training.choosing import as_schedule, check_plan
from jaxprune.training.method import Dense, Method, Signals

PyTree = Any
_SUM = optax.sgd(1.0)


def movement(
    sparsity: float | schedules.Schedule,
    *,
    learn: optax.GradientTransformation = _SUM,
    when: schedules.Update = schedules.every(1),
    allocation: allocations.Allocate = allocations.uniform,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
) -> Method:
    """Keeps the weights of the highest learned scores: those that moved away from zero.

        forward: W' = w where S is among the highest, else 0        dL/dS = dL/dW' w        dL/dw = dL/dW' where kept

    Sanh et al. 2020, arXiv 2005.07683, section 4 and eq. 3 to 5 (hard movement pruning; the soft one keeps no exact
    number). The gradient of a score goes straight through the ranking, so a removed weight, which rests, may come back.
    With plain gradient descent `S = -sum dL/dW' w`, and its rate changes no ranking; the paper learns scores with Adam
    at 1e-2 and follows a cubic schedule from 0. The loss must take
    `training.sparse_params(params, get_masks(opt_state))`; at the end `masks.apply` makes the zeros.

    Args:
      sparsity: the fraction removed, in [0, 1); or a schedule step -> sparsity. It should start from 0, for all scores
        are 0 before the first step, and ties fall to the lowest index.
      learn: the optimizer of the scores.
      when: step -> whether the masks for this step are made anew. The scores learn at every step.
      allocation: as in `jaxprune.prune`, of the scores.
      pattern: as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`, which keeps dense weights; its state is the scores, in float32 at least, and
      the state of `learn`. The optimizer gets zero gradients for removed weights; what moments it has still move them,
      as in the authors' code.

    Raises:
      ValueError: a sparsity outside [0, 1).

    Example:
      >>> method = movement(schedules.cubic(100, 900, 0.9), learn=optax.adam(1e-2))
    """
    schedule = as_schedule(sparsity)
    check_plan(when)
    choose = Selector(allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs).masks

    def init(params: PyTree) -> tuple[PyTree, Any]:
        scores = jax.tree.map(_no_score, params)
        return choose(scores, schedule(0)), (scores, learn.init(scores))

    def revise(held: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        scores, learned = state
        slopes = jax.tree.map(_slope, scores, signals.grads, signals.before)
        updates, learned = learn.update(slopes, learned, scores)
        scores = optax.apply_updates(scores, updates)
        new = jax.lax.cond(when(signals.step), lambda _: choose(scores, schedule(signals.step)), lambda m: m, held)
        return new, (scores, learned)

    def gradients(grads: PyTree, params: PyTree, held: PyTree, state: Any) -> PyTree:
        del params, state
        return dense.of_pruned(lambda g, m: jnp.where(m, g, jnp.zeros((), g.dtype)), grads, held)

    return Method(init, lambda _: True, revise, Dense(gradients, dense.unchanged), specs)


def _no_score(leaf: Any) -> jax.Array:
    if not _tree.is_floating(leaf):
        return jnp.zeros(())
    return jnp.zeros(jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _slope(score: jax.Array, grad: Any, weight: Any) -> jax.Array:
    if not _tree.is_floating(weight) or not _tree.is_floating(grad):
        return jnp.zeros_like(score)
    return grad.astype(score.dtype) * weight.astype(score.dtype)
