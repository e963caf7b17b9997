"""Distillation: the smaller function learns from the whole one."""

from typing import Any

import jax
import jax.numpy as jnp


def distillation_loss(
    student: jax.Array,
    teacher: jax.Array,
    labels: Any = None,
    *,
    temperature: float = 2.0,
    weight: float = 1.0,
) -> jax.Array:
    """The loss of a student that learns a teacher's distribution (Hinton et al., 2015, arXiv:1503.02531).

    weight T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - weight) cross-entropy(labels, student), the
    mean over all but the last axis. T^2 keeps the gradient's size when T changes. No gradient goes to the teacher.

    Args:
      student: (..., classes) logits.
      teacher: (..., classes) logits.
      labels: (...) integers; needed if weight < 1.
      temperature: T > 0.
      weight: the share of the teacher, in [0, 1].

    Returns:
      A scalar, computed in float32 at least.

    Raises:
      ValueError: shapes differ, a number is out of range, or labels are missing.

    Example:
      >>> x = jnp.asarray([[1.0, 2.0]])
      >>> float(distillation_loss(x, x))
      0.0
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher must have one shape; got {student.shape} and {teacher.shape}")
    if not temperature > 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature must be positive and weight in [0, 1]; got {temperature}, {weight}")
    if weight < 1 and labels is None:
        raise ValueError("a weight below 1 needs labels")
    dtype = jnp.promote_types(student.dtype, jnp.float32)
    soft = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(dtype) / temperature)
    own = jax.nn.log_softmax(student.astype(dtype) / temperature)
    loss = weight * temperature**2 * jnp.mean(jnp.sum(jnp.exp(soft) * (soft - own), -1))
    if labels is not None and weight < 1:
        picked = jnp.take_along_axis(jax.nn.log_softmax(student.astype(dtype)), labels[..., None], -1)
        loss = loss - (1 - weight) * jnp.mean(picked)
    return loss
