"""Distillation: one network, pruned if the optimizer prunes, learns what an ensemble says."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.ensembles.combining import mean_probability
from jaxprune.slimming import distillation_loss

Array = jax.Array
PyTree = Any


def softened(logits: Array, temperature: float = 2.0) -> Array:
    """Teacher logits whose softmax at the temperature T is the mean of the members' at T: T log 1/M sum_m p_m(T).

    Softening the mean of hard probabilities would lose what single members know about the other classes.

    Args:
      logits: (members, ..., classes).
      temperature: T > 0.

    Returns:
      (..., classes): the `teacher` of `slimming.distillation_loss` with the same temperature.

    Raises:
      ValueError: a temperature that is not positive.

    Example:
      >>> x = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]]])
      >>> [round(float(p), 4) for p in jax.nn.softmax(softened(x) / 2)[0]]  # the mean of sigmoid(0.5) and sigmoid(1.5)
      [0.72, 0.28]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    return temperature * mean_probability(logits / temperature)


def distillation(
    fn: Callable[..., Array], *, temperature: float = 2.0, weight: float = 0.9
) -> Callable[[PyTree, Any, Array, Any], Array]:
    """The loss of a student of an ensemble (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Differentiate it and give the gradients to `jaxprune.sparsify(optimizer, training.gradual(...))`: the student is
    pruned while it learns. Teacher logits do not change in training: compute them once, with `logits_of`.

    Args:
      fn: the student, `(params, inputs) -> logits (n, classes)`.
      temperature: T of both softmaxes, positive.
      weight: the share of the teacher in [0, 1]; the rest is the cross-entropy of the labels.

    Returns:
      `(params, inputs, teacher, labels) -> scalar`, with the members' logits `teacher` (members, n, classes).

    Raises:
      ValueError: see `slimming.distillation_loss`; teacher logits without an axis of members.
    """

    def loss(params: PyTree, inputs: Any, teacher: Array, labels: Any) -> Array:
        if teacher.ndim != 3:
            raise ValueError(f"teacher must be the logits of members, (members, n, classes); got {teacher.shape}")
        soft = softened(jnp.asarray(teacher), temperature)
        return distillation_loss(fn(params, inputs), soft, labels, temperature=temperature, weight=weight)

    return loss
