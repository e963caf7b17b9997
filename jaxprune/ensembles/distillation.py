"""`distillation_loss`: teaches a student the predictions of one teacher or of an ensemble."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.ensembles.predictions import mean_probability

Array = jax.Array


def distillation_loss(
    student: Array, teacher: Array, labels: Any = None, *, temperature: float = 2.0, weight: float = 1.0
) -> Array:
    r"""The loss of a student that learns the distribution of a teacher, or of the members of an ensemble.

        weight T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - weight) cross-entropy(labels, student)

    Hinton et al. 2015, arXiv 1503.02531, section 2; the mean over all axes except the classes. The factor T^2 keeps the
    size of the gradient when T changes. The teacher receives no gradient. Use it for a slim or pruned student: with
    `jaxprune.sparsify(optimizer, training.gradual(...))` the student is pruned while it learns. The logits of a fixed
    teacher do not change during training, so compute them once.

    Args:
      student: logits (..., classes).
      teacher: logits (..., classes), or (members, ..., classes) of an ensemble, combined by `softened`.
      labels: integers (...), required if `weight` is below 1; default None.
      temperature: T > 0 of both softmaxes; default 2.
      weight: the weight of the teacher, in [0, 1]; default 1. The labels have the weight 1 - `weight`.

    Returns:
      A scalar, computed in float32 at least.

    Raises:
      ValueError: shapes do not fit, a number is out of range, or labels are missing.

    Example:
      >>> x = jnp.asarray([[1.0, 2.0]])
      >>> float(distillation_loss(x, x)), float(distillation_loss(x, jnp.stack([x, x])))
      (0.0, 0.0)
    """
    if teacher.shape != student.shape and teacher.shape[1:] != student.shape:
        raise ValueError(
            f"student and teacher must have the same shape, except for a leading axis of members of the teacher; got "
            f"{student.shape} and {teacher.shape}"
        )
    if not temperature > 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature must be positive and weight in [0, 1]; got {temperature}, {weight}")
    if weight < 1 and labels is None:
        raise ValueError("a weight below 1 needs labels")
    if labels is not None and not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
        raise TypeError(f"labels must be integers, one class index a sample; got {jnp.asarray(labels).dtype}")
    dtype = jnp.promote_types(student.dtype, jnp.float32)
    teacher = jax.lax.stop_gradient(teacher)
    if teacher.ndim > student.ndim:
        teacher = softened(teacher, temperature)
    soft = jax.nn.log_softmax(teacher.astype(dtype) / temperature)
    own = jax.nn.log_softmax(student.astype(dtype) / temperature)
    loss = weight * temperature**2 * jnp.mean(jnp.sum(jnp.exp(soft) * (soft - own), -1))
    if labels is not None and weight < 1:
        picked = jnp.take_along_axis(jax.nn.log_softmax(student.astype(dtype)), labels[..., None], -1)
        loss = loss - (1 - weight) * jnp.mean(picked)
    return loss


def softened(logits: Array, temperature: float = 2.0) -> Array:
    """Logits whose softmax at the temperature T is the mean of the members' softmaxes at T: T log 1/M sum_m p_m(T).

    Averaging probabilities at T = 1 and softening the mean would lose what single members know about the other classes.

    Args:
      logits: (members, ..., classes).
      temperature: T > 0.

    Returns:
      Logits (..., classes).

    Raises:
      ValueError: the temperature is not positive.

    Example:
      >>> x = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]]])
      >>> [round(float(p), 4) for p in jax.nn.softmax(softened(x) / 2)[0]]  # the mean of sigmoid(0.5) and sigmoid(1.5)
      [0.72, 0.28]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}")
    return temperature * mean_probability(logits / temperature)
