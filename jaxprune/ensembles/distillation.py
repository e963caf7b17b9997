"""Distillation: `distillation_loss` on predictions, `TopLogits` to store them, and `hidden_loss` on hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.ensembles.predictions import mean_probability

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopLogits:
    """A teacher's largest logits, to be stored once in place of all logits; a pytree.

    With a vocabulary of 50,000 and k = 64, the stored arrays are about 400 times smaller than the logits.

    Attributes:
      values: float (..., k), the k largest logits, in descending order.
      indices: int32 (..., k), their classes.
      rest: float (...), the logit of "any other class" at the temperature T: T logsumexp(other logits / T).
      temperature: T, static.
    """

    values: Array
    indices: Array
    rest: Array
    temperature: float = field(metadata={"static": True})

    @classmethod
    def of(cls, logits: Array, k: int, *, temperature: float = 2.0) -> "TopLogits":
        """Takes the k largest logits of a teacher.

        Args:
          logits: (..., classes).
          k: how many logits of each position are stored, 1 to classes.
          temperature: the temperature T > 0 of the loss in which they will be used; default 2.

        Returns:
          `TopLogits`, in the dtype of the logits.

        Raises:
          ValueError: k or the temperature is out of range.

        Example:
          >>> TopLogits.of(jnp.array([1.0, 5.0, 3.0]), 2).indices.tolist()
          [1, 2]
        """
        if not 1 <= k <= logits.shape[-1] or not temperature > 0:
            raise ValueError(
                f"k must be 1 to the number of classes, {logits.shape[-1]}, and temperature must be positive; got "
                f"{k}, {temperature}"
            )
        values, indices = jax.lax.top_k(logits, k)
        rest = temperature * _rest(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature, indices)
        return cls(values, indices, rest.astype(logits.dtype), float(temperature))


def distillation_loss(
    student: Array, teacher: Array | TopLogits, labels: Any = None, *, temperature: float = 2.0, weight: float = 1.0
) -> Array:
    r"""Returns the loss of a student that learns the distribution of a teacher, or of the members of an ensemble.

        weight T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - weight) cross-entropy(labels, student)

    Hinton et al. 2015, arXiv 1503.02531, section 2; the mean over all axes except the classes. The factor T^2 keeps the
    size of the gradient when T changes. The teacher receives no gradient. Use it for a slim or pruned student: with
    `jaxprune.sparsify(optimizer, training.gradual(...))` the student is pruned while it learns. The logits of a fixed
    teacher do not change during training, so compute them once, and store the largest if there are many classes.

    With `TopLogits` the divergence is between distributions over the k stored classes and "any other class". This is
    never larger than the divergence over all classes, and equal to it for k = classes - 1.

    Args:
      student: logits (..., classes).
      teacher: logits (..., classes); or (members, ..., classes) of an ensemble, for the mean of the members'
        softened probabilities; or `TopLogits`.
      labels: integers (...), required if `weight` is below 1; default None.
      temperature: T > 0 of both softmaxes; default 2.
      weight: the weight of the teacher, in [0, 1]; default 1. The labels have the weight 1 - `weight`.

    Returns:
      A scalar, computed in float32 at least.

    Raises:
      ValueError: shapes do not fit, a number is out of range, labels are missing, or the `TopLogits` were stored for
        another temperature.

    Example:
      >>> x = jnp.asarray([[1.0, 2.0]])
      >>> float(distillation_loss(x, x)), float(distillation_loss(x, jnp.stack([x, x])))
      (0.0, 0.0)
    """
    if not temperature > 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature must be positive and weight in [0, 1]; got {temperature}, {weight}")
    if weight < 1 and labels is None:
        raise ValueError("a weight below 1 needs labels")
    if labels is not None and not jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer):
        raise TypeError(f"labels must be integers, one class index a sample; got {jnp.asarray(labels).dtype}")
    wide = student.astype(jnp.promote_types(student.dtype, jnp.float32))
    own = jax.nn.log_softmax(wide / temperature)
    soft, own = _distributions(jax.lax.stop_gradient(teacher), own, temperature)
    # A class of probability 0 adds nothing to the loss, for any logit of the student.
    terms = jnp.where(jnp.isneginf(soft), 0.0, jnp.exp(soft) * (soft - own))
    loss = weight * temperature**2 * jnp.mean(jnp.sum(terms, -1))
    if labels is not None and weight < 1:
        picked = jnp.take_along_axis(jax.nn.log_softmax(wide), labels[..., None], -1)
        loss = loss - (1 - weight) * jnp.mean(picked)
    return loss


def hidden_loss(
    student: Sequence[Array], teacher: Sequence[Array], layers: Sequence[int | None], *, projections: Any = None
) -> Array:
    r"""Returns the distance between a student's hidden states and the teacher's states that a map assigns to them.

        mean over layers i of  ||H_i P_i - T_f(i)||^2 / ||T_f(i)||^2

    Jiao et al. 2020 (TinyBERT), arXiv 1909.10351, eqs. 6 and 8, with each layer's distance relative to the teacher's
    state: in residual networks later states are much larger than earlier states. The teacher receives no gradient. Add
    it to `distillation_loss` with your own weight.

    For a student that has lost blocks, number the states so that state 0 is the input of the first block and the last
    state is the output of the last block. The input of a kept block then learns the input of the same block of the
    teacher: `layers = [*np.flatnonzero(keep), len(keep)]` with `keep` from `slimming.keep_influential`.

    Args:
      student: hidden states (..., width), one for each entry of `layers`.
      teacher: hidden states (..., teacher's width) of all the teacher's layers, or one array of the stacked states.
      layers: f(i): for each state of the student the index of the teacher's state that it learns, or None if it has no
        target. Static.
      projections: matrices P_i (width, teacher's width), one for each entry of `layers` (None where the entry is None),
        or one matrix for all; needed if the widths differ. Train them with the student. If the student's channels are
        known channels of the teacher, pass rows of the identity. Default None: no projection.

    Returns:
      A scalar, in float32 at least.

    Raises:
      ValueError: `layers` does not fit the states, or shapes differ; the message names the layer.

    Example:
      >>> teacher = [jnp.ones((2, 3)), 2 * jnp.ones((2, 3)), 3 * jnp.ones((2, 3))]
      >>> float(hidden_loss([jnp.ones((2, 3)), jnp.zeros((2, 3))], teacher, [0, 2]))
      0.5
    """
    if len(layers) != len(student):
        raise ValueError(
            f"layers must name a teacher's layer, or None, for each of the {len(student)} states of the student; got "
            f"{len(layers)} entries"
        )
    each = projections if isinstance(projections, list | tuple) else [projections] * len(layers)
    if len(each) != len(layers):
        raise ValueError(
            f"projections must be one matrix, or one for each of the {len(layers)} layers; got {len(each)}"
        )
    distances = [_distance(i, student[i], teacher, int(f), each[i]) for i, f in enumerate(layers) if f is not None]
    if not distances:
        raise ValueError("layers is None for each state of the student, so there is nothing to learn")
    return jnp.stack(distances).mean()


def softened(logits: Array, temperature: float = 2.0) -> Array:
    """Returns logits whose softmax at T is the mean of the members' softmaxes at T: T log 1/M sum_m p_m(T).

    Averaging probabilities at T = 1 and softening the mean would lose what single members know about the other classes.

    Args:
      logits: (members, ..., classes).
      temperature: T > 0; default 2.0.

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


def _distributions(teacher: Array | TopLogits, own: Array, temperature: float) -> tuple[Array, Array]:
    """Returns log-probabilities of the teacher and the student at the temperature, over the same classes."""
    if isinstance(teacher, TopLogits):
        if teacher.indices.shape[:-1] != own.shape[:-1]:
            raise ValueError(
                f"student and teacher must have the same shape except for the classes; got {own.shape} and "
                f"TopLogits of {teacher.indices.shape}"
            )
        if teacher.temperature != temperature:
            raise ValueError(
                f"the TopLogits were stored for temperature {teacher.temperature}, but the loss has temperature "
                f"{temperature}; pass the same to both"
            )
        stored = jnp.append(teacher.values, teacher.rest[..., None], -1).astype(own.dtype)
        found = jnp.take_along_axis(own, teacher.indices, -1)
        return jax.nn.log_softmax(stored / temperature), jnp.append(found, _rest(own, teacher.indices)[..., None], -1)
    if teacher.shape != own.shape and teacher.shape[1:] != own.shape:
        raise ValueError(
            "student and teacher must have the same shape, except for a leading axis of members of the teacher; got "
            f"{own.shape} and {teacher.shape}"
        )
    if teacher.ndim > own.ndim:
        teacher = softened(teacher, temperature)
    return jax.nn.log_softmax(teacher.astype(own.dtype) / temperature), own


def _rest(logits: Array, indices: Array) -> Array:
    """Returns the logsumexp of all classes that are not among the indices; -inf if there are none."""
    others = jnp.put_along_axis(logits, indices, -jnp.inf, -1, inplace=False)
    largest = jax.lax.stop_gradient(others.max(-1, keepdims=True))
    largest = jnp.where(jnp.isneginf(largest), 0.0, largest)
    total = jnp.exp(others - largest).sum(-1)
    # The logarithm of an empty sum has no finite gradient.
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)) + largest[..., 0], -jnp.inf)


def _distance(i: int, own: Array, teacher: Sequence[Array], place: int, projection: Array | None) -> Array:
    if not 0 <= place < len(teacher):
        raise ValueError(f"layers[{i}] is {place}, but the teacher has {len(teacher)} states")
    goal = jax.lax.stop_gradient(jnp.asarray(teacher[place]))
    dtype = jnp.promote_types(own.dtype, jnp.float32)
    moved = own.astype(dtype)
    if projection is not None:
        if projection.shape != (own.shape[-1], goal.shape[-1]):
            raise ValueError(
                f"the projection of layer {i} must be (width, teacher's width) = {(own.shape[-1], goal.shape[-1])}; "
                f"got {projection.shape}"
            )
        moved = moved @ projection.astype(dtype)
    if moved.shape != goal.shape:
        way_out = "" if own.shape[:-1] != goal.shape[:-1] else "; for another width pass projections"
        raise ValueError(
            f"state {i} of the student, {own.shape}, cannot learn state {place} of the teacher, {goal.shape}{way_out}"
        )
    goal = goal.astype(dtype)
    size = jnp.square(goal).sum()
    return jnp.square(moved - goal).sum() / jnp.where(size > 0, size, 1.0)
