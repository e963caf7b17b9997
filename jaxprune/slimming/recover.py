"""Recovering after slimming: distillation from the whole net, and new batch statistics."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


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


def recalibrate_statistics(
    update: Callable[[PyTree, Any], PyTree], statistics: PyTree, batches: Iterable[Any]
) -> PyTree:
    """Estimates batch statistics anew: the plain mean over batches of what each batch has.

    Running statistics are moved towards a batch's, new = m old + (1 - m) batch. Asking `update` for its answer at old
    = 0 and old = 1 tells m and the batch's own statistics, so that neither m nor the old values matter. Means over
    batches of variances leave out how much the batches' means differ: take batches as large as in training. After
    removing channels inexactly, or many of them, the activations have moved (Li et al., EagleEye, 2020,
    arXiv:2007.02491).

    Args:
      update: a function from statistics and a batch to new statistics, such as one that applies a model in training
        mode and returns its new `batch_stats`; linear in its statistics, as running means are.
      statistics: the statistics, for their shapes; leaves that are not floating stay.
      batches: the batches.

    Returns:
      New statistics, of the structure and dtypes of the old.

    Raises:
      ValueError: there is no batch, or `update` does not change a leaf (m = 1), which then cannot be estimated.
    """

    @jax.jit
    def of_batch(batch: Any) -> tuple[PyTree, PyTree]:
        at_zero = update(jax.tree.map(lambda s: _filled(s, 0), statistics), batch)
        at_one = update(jax.tree.map(lambda s: _filled(s, 1), statistics), batch)
        rate = jax.tree.map(lambda zero, one: 1 - (one - zero), at_zero, at_one)
        return jax.tree.map(lambda zero, r: zero / r, at_zero, rate), rate

    total, count = None, 0
    for batch in batches:
        own, rates = of_batch(batch)
        if count == 0:
            _check_rates(rates)
        total = own if total is None else jax.tree.map(jnp.add, total, own)
        count += 1
    if total is None:
        raise ValueError("recalibrate_statistics needs at least one batch")
    return jax.tree.map(lambda s, t: jnp.asarray(t / count, s.dtype) if _floats(s) else s, statistics, total)


def _filled(leaf: Any, value: float) -> Any:
    return jnp.full_like(leaf, value) if _floats(leaf) else leaf


def _floats(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_rates(rates: PyTree) -> None:
    stuck = [
        jax.tree_util.keystr(path)
        for path, rate in jax.tree_util.tree_flatten_with_path(rates)[0]
        if _floats(rate) and float(jnp.max(jnp.abs(rate))) < 1e-6
    ]
    if stuck:
        raise ValueError(f"update does not change {', '.join(stuck)}: is the function in training mode?")
