"""The optimizers that are compared. The two that prune differ from the dense one in ONE line each: the last.

Every function takes what differs between its runs (a sparsity, masks) as an argument that may be traced. So the step
that uses it is compiled once and serves all sparsities.
"""

from typing import Any

import jax
import optax

import jaxprune
from jaxprune import allocation, criteria, schedules, training

RATE = 3e-3
"""Adam's; chosen on digits held out of the training images, by `benchmarks/demo_rate.py`."""
REVISIONS = 20
"""How often gradual pruning chooses its masks anew on its way."""


def adam(steps: int) -> optax.GradientTransformation:
    """The optimizer of all runs, dense or pruned: Adam, its rate constant and then falling to zero along a cosine."""
    half = max(steps // 2, 1)
    falling = optax.cosine_decay_schedule(RATE, max(steps - half, 1))
    return optax.adam(optax.join_schedules([optax.constant_schedule(RATE), falling], [half]))


def dense(steps: int, choice: None = None) -> optax.GradientTransformation:
    """No pruning."""
    del choice
    return adam(steps)


def gradual(steps: int, sparsity: jax.Array) -> optax.GradientTransformation:
    """Gradual magnitude pruning (Zhu and Gupta 2017): from dense to `sparsity` while the rate is high."""
    end = max(steps // 2, 1)
    schedule = schedules.cubic(begin=0, end=end, final=sparsity)
    when = schedules.every(max(end // REVISIONS, 1), begin=0, end=end)
    return jaxprune.sparsify(adam(steps), training.gradual(schedule, when=when, allocation=allocation.erk))


def fine_tune(steps: int, masks: Any) -> optax.GradientTransformation:
    """Training on under masks that stay as they are."""
    return jaxprune.sparsify(adam(steps), training.fixed(masks))


def one_shot(params: Any, sparsity: jax.Array) -> jaxprune.Pruned:
    """Remove the smallest weights at once."""
    return jaxprune.prune(params, sparsity, criterion=criteria.magnitude, allocation=allocation.erk)


def random(params: Any, sparsity: jax.Array, key: jax.Array) -> jaxprune.Pruned:
    """Remove any weights at once, as many of each layer as `one_shot` does: the control."""
    return jaxprune.prune(params, sparsity, criterion=criteria.random, allocation=allocation.erk, key=key)
