"""What pruning changed: two models on the same samples, with intervals, tests, and the samples that it forgot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.assess import forgetting, intervals, paired, predictions, scores
from jaxprune.assess.forgetting import Exemplars
from jaxprune.assess.intervals import Interval

Array = jax.Array


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
    a, checked = predictions.check(reference, labels)
    b, _ = predictions.check(model, labels)
    test = paired.mcnemar(a, b, checked)
    forgetting.recall_by_class(a, checked)  # says which class has no sample
    options: dict[str, Any] = {"key": key, "resamples": resamples, "batch": batch}
    found = intervals.bootstrap(_differences, a, b, checked, confidence=confidence, **options)
    figures = {name: Interval(*(float(part[name]) for part in found)) for name in found.estimate}
    recall = intervals.bootstrap(
        _recalls, a, b, checked, confidence=1 - (1 - confidence) / a.shape[1], strata=np.asarray(checked), **options
    )
    losses = {"nll": paired.log_losses, "brier": paired.brier_losses}
    p_values = {
        name: float(paired.sign_flip_test(loss(a, checked), loss(b, checked), key=key, flips=flips))
        for name, loss in losses.items()
        if np.isfinite([np.asarray(loss(x, checked)).sum() for x in (a, b)]).all()
    }
    exemplars = forgetting.exemplars(a, b)
    right = [np.asarray(scores.correct(x, checked)) for x in (a, b)]
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
    hits = [scores.correct(x, labels).astype(jnp.float32) for x in (a, b)]
    return {
        "accuracy": (hits[1] - hits[0]).mean(),
        "nll": (scores.log_losses(b, labels) - scores.log_losses(a, labels)).mean(),
        "brier": (scores.brier_losses(b, labels) - scores.brier_losses(a, labels)).mean(),
        "agreement": (a.argmax(1) == b.argmax(1)).mean(),
    }


@jax.jit
def _recalls(a: Array, b: Array, labels: Array) -> Array:
    return forgetting.recall_by_class(b, labels) - forgetting.recall_by_class(a, labels)
