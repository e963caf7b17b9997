"""Two models on the same samples: do they differ beyond chance, where, and on what."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from scipy import special

from jaxprune.assess import forgetting, intervals, metrics
from jaxprune.assess.forgetting import Exemplars
from jaxprune.assess.intervals import Interval

Array = jax.Array


class McNemar(NamedTuple):
    """McNemar's exact test.

    Attributes:
      only_first: samples that only the first model gets right.
      only_second: samples that only the second model gets right.
      p_value: the probability of counts at least as unequal if both models are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Any, second: Any, labels: Any) -> McNemar:
    """Whether two models differ in accuracy: McNemar's test (1947) in its exact, binomial form, two-sided.

    Args:
      first: logits (n, classes) of one model.
      second: logits (n, classes) of the other.
      labels: integers, (n,).

    Returns:
      The counts and the p-value, on the host.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; and logits of different shapes.

    Example:
      >>> right, wrong = jnp.array([[1.0, 0.0]] * 6), jnp.array([[0.0, 1.0]] * 6)
      >>> mcnemar(right, wrong, jnp.zeros(6, int))  # p = 2 / 2**6
      McNemar(only_first=6, only_second=0, p_value=0.03125)
    """
    first, second, labels = _pair(first, second, labels)
    a, b = (np.asarray(metrics.correct(logits, labels)) for logits in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_first + only_second
    return McNemar(only_first, only_second, min(1.0, 2 * float(special.bdtr(min(only_first, only_second), n, 0.5))))


def sign_flip_test(first_losses: Any, second_losses: Any, *, key: Array, flips: int = 9999) -> Array:
    """Whether two models differ in the mean of any loss: the paired randomisation test (Fisher 1935), two-sided.

    If the models are equally good, each sample's difference could as well have the other sign. The p-value is
    (1 + how many random flips give a mean difference at least as large) / (1 + flips).

    Args:
      first_losses: a loss of each sample, (n,), such as `log_losses(logits, labels)`.
      second_losses: that of the other model, (n,).
      key: a JAX key.
      flips: how many random flips, static.

    Returns:
      The p-value, a scalar.

    Raises:
      ValueError: shapes differ or hold no sample; where values are concrete, NaN or inf.

    Example:
      >>> import jax
      >>> losses = jnp.arange(20.0)
      >>> round(float(sign_flip_test(losses, losses + 1.0, key=jax.random.key(0), flips=999)), 4)
      0.001
    """
    first, second = jnp.asarray(first_losses), jnp.asarray(second_losses)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"losses must have one shape (n,) with a sample; got {first.shape} and {second.shape}")
    difference = first - second
    if not isinstance(difference, Tracer) and not np.isfinite(np.asarray(difference, np.float64)).all():
        raise ValueError("losses hold NaN or inf: no mean to compare")
    return _sign_flip(difference.astype(jnp.promote_types(difference.dtype, jnp.float32)), key, flips)


def _pair(first: Any, second: Any, labels: Any) -> tuple[Array, Array, Array]:
    first, checked = metrics.check(first, labels)
    second, _ = metrics.check(second, labels)
    if first.shape != second.shape:
        raise ValueError(f"both models need logits of one shape; got {first.shape} and {second.shape}")
    return first, second, checked


@partial(jax.jit, static_argnums=2)
def _sign_flip(difference: Array, key: Array, flips: int) -> Array:
    size = jnp.abs(difference.sum())

    def larger(key: Array) -> Array:
        signs = jax.random.rademacher(key, difference.shape, difference.dtype)
        # A flip of all signs gives the same sum but for rounding, and must count as at least as large.
        return jnp.abs((signs * difference).sum()) >= size * (1 - 1e-6)

    return (1 + lax.map(larger, jax.random.split(key, flips), batch_size=64).sum()) / (1 + flips)


@dataclass(frozen=True)
class Changes:
    """A model less its reference, on the same samples.

    Attributes:
      figures: the differences of accuracy, nll and brier, each with its interval.
      p_values: of McNemar's exact test of the accuracy, of sign flips of the other two.
      recall: by class the difference of the accuracy within it; the intervals hold for all classes together
        (Bonferroni), so that one that excludes 0 is a change beyond noise.
      agreement: the fraction answered alike.
      exemplars: the samples on which the two, or the majorities of two populations, answer differently.
      regressions: of these, how many the reference has right.
      gains: of these, how many the model has right.
    """

    figures: Mapping[str, Interval]
    p_values: Mapping[str, float]
    recall: tuple[Interval, ...]
    agreement: Interval
    exemplars: Exemplars
    regressions: int
    gains: int


def changes(
    reference: Any,
    model: Any,
    labels: Any,
    *,
    key: Array,
    resamples: int = 1000,
    confidence: float = 0.95,
    flips: int = 1999,
    batch: int = 16,
) -> Changes:
    """Compares a model with its reference, such as a pruned network with the dense one.

    Args:
      reference: logits (n, classes).
      model: logits (n, classes) of the same samples.
      labels: integers, (n,); each class must have a sample.
      key: a JAX key.
      resamples: of the intervals; samples are drawn together, and within classes for the recall.
      confidence: of the intervals.
      flips: of the tests of losses; the least p-value is 1 / (1 + flips).
      batch: resamples computed at once.

    Returns:
      The changes, on the host.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; logits of different shapes; a class without samples.

    Example:
      >>> dense, pruned = jnp.array([[1.0, 0.0], [0.0, 1.0]] * 3), jnp.array([[1.0, 0.0], [1.0, 0.0]] * 3)
      >>> found = changes(dense, pruned, jnp.array([0, 1] * 3), key=jax.random.key(0), resamples=99)
      >>> float(found.figures['accuracy'].estimate), found.regressions, [round(r.estimate, 2) for r in found.recall]
      (-0.5, 3, [0.0, -1.0])
    """
    a, checked = metrics.check(reference, labels)
    b, _ = metrics.check(model, labels)
    test = mcnemar(a, b, checked)
    forgetting.recall_by_class(a, checked)  # says which class has no sample
    options: dict[str, Any] = {"key": key, "resamples": resamples, "batch": batch}
    found = intervals.bootstrap(_differences, a, b, checked, confidence=confidence, **options)
    figures = {name: Interval(*(float(part[name]) for part in found)) for name in found.estimate}
    recall = intervals.bootstrap(
        _recalls, a, b, checked, confidence=1 - (1 - confidence) / a.shape[1], strata=np.asarray(checked), **options
    )
    losses = {"nll": metrics.log_losses, "brier": metrics.brier_losses}
    p_values = {
        name: float(sign_flip_test(loss(a, checked), loss(b, checked), key=key, flips=flips))
        for name, loss in losses.items()
        if np.isfinite([np.asarray(loss(x, checked)).sum() for x in (a, b)]).all()
    }
    exemplars = forgetting.exemplars(a, b)
    right = [np.asarray(metrics.correct(x, checked)) for x in (a, b)]
    return Changes(
        figures={name: figures[name] for name in ("accuracy", "nll", "brier")},
        p_values={"accuracy": test.p_value, **p_values},
        recall=tuple(Interval(*map(float, ends)) for ends in zip(*map(np.asarray, recall), strict=True)),
        agreement=figures["agreement"],
        exemplars=exemplars,
        regressions=int((right[0] & ~right[1]).sum()),
        gains=int((right[1] & ~right[0]).sum()),
    )


@jax.jit
def _differences(a: Array, b: Array, labels: Array) -> dict[str, Array]:
    hits = [metrics.correct(x, labels).astype(jnp.float32) for x in (a, b)]
    return {
        "accuracy": (hits[1] - hits[0]).mean(),
        "nll": (metrics.log_losses(b, labels) - metrics.log_losses(a, labels)).mean(),
        "brier": (metrics.brier_losses(b, labels) - metrics.brier_losses(a, labels)).mean(),
        "agreement": (a.argmax(1) == b.argmax(1)).mean(),
    }


@jax.jit
def _recalls(a: Array, b: Array, labels: Array) -> Array:
    return forgetting.recall_by_class(b, labels) - forgetting.recall_by_class(a, labels)
