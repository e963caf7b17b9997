"""The optimizers that are compared. The two that prune differ from the dense one in ONE line each: the last.

Every function takes what differs between its runs (a sparsity, masks) as an argument that may be traced. So the step
that uses it is compiled once and serves all sparsities.
"""

from typing import Any

import jax
import optax

import jaxprune
from jaxprune import allocation, criteria, schedules, training

RATE = 1e-3
UPDATES = 20
"""How often gradual pruning recomputes the masks on its way."""


def adam(steps: int) -> optax.GradientTransformation:
    """The optimizer of all runs, dense or pruned: Adam whose rate falls to zero along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


def dense(steps: int, choice: None = None) -> optax.GradientTransformation:
    """No pruning."""
    del choice
    return adam(steps)


def gradual(steps: int, sparsity: jax.Array) -> optax.GradientTransformation:
    """Gradual magnitude pruning (Zhu and Gupta 2017): from dense to `sparsity` in two thirds of the steps."""
    end = max(2 * steps // 3, 1)
    schedule = schedules.cubic(begin=0, end=end, final=sparsity)
    update = schedules.every(max(end // UPDATES, 1), end=end)
    return jaxprune.sparsify(adam(steps), training.gradual(schedule, update=update, allocation=allocation.erk))


def fine_tune(steps: int, masks: Any) -> optax.GradientTransformation:
    """Training on under masks that stay as they are."""
    return jaxprune.sparsify(adam(steps), training.fixed(masks))


def one_shot(params: Any, sparsity: float) -> jaxprune.Pruned:
    """Remove the smallest weights at once."""
    return jaxprune.prune(params, sparsity, criterion=criteria.magnitude, allocation=allocation.erk)


def random(params: Any, sparsity: float, key: jax.Array) -> jaxprune.Pruned:
    """Remove any weights at once, as many of each layer as `one_shot` does: the control."""
    return jaxprune.prune(params, sparsity, criterion=criteria.random, allocation=allocation.erk, key=key)
