"""Two models on the same samples: `mcnemar` and `sign_flip_test` test one figure, `changes` compares all."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jax.core import Tracer

from jaxprune import _tree
from jaxprune.assess import intervals, metrics
from jaxprune.assess.forgetting import Exemplars
from jaxprune.assess.intervals import Interval
from jaxprune.assess.metrics import Samples

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
    """Tests whether two models differ in accuracy: McNemar's test (1947) in its exact, binomial form, two-sided.

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
    return McNemar(
        only_first, only_second, min(1.0, 2 * float(scipy.special.bdtr(min(only_first, only_second), n, 0.5)))
    )


def sign_flip_test(first_losses: Any, second_losses: Any, *, key: Array, flips: int = 9999) -> Array:
    """Tests whether two models differ in the mean of a loss: the paired randomisation test (Fisher 1935), two-sided.

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
    _tree.check_key(key, needed_by="sign_flip_test")
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
    """A model compared with its reference on the same samples.

    The figures, NLL, Brier score and accuracy, and the accuracies within the classes are one family of questions:
    `adjusted` p-values are those of the largest deviation of all of them (max-T) when the two answers to each sample
    are dealt to the models by a coin. If the models are equally good, at most 5 % of comparisons have any adjusted
    p-value of 0.05 or less.

    Attributes:
      figures: the differences, model less reference, of accuracy, nll and brier, each with an interval of its own.
      p_values: of each figure alone, from the same test as its interval; NaN where a loss is infinite.
      adjusted: of each figure among all questions.
      recall: the difference of the accuracy within each class, each with an interval of its own; NaN for a class
        without test samples.
      recall_adjusted: the p-value of each class among all questions; NaN for a class without test samples.
      agreement: the fraction answered alike.
      exemplars: the samples on which the two, or the majorities of two populations, answer differently.
      regressions: how many of these the reference has right.
      gains: how many of these the model has right.
      detectable: the smallest change of the accuracy that these samples would show 4 times in 5.
      confidence: of the intervals.
    """

    figures: Mapping[str, Interval]
    p_values: Mapping[str, float]
    adjusted: Mapping[str, float]
    recall: tuple[Interval, ...]
    recall_adjusted: tuple[float, ...]
    agreement: Interval
    exemplars: Exemplars
    regressions: int
    gains: int
    detectable: float
    confidence: float

    def beyond_noise(self, which: str | int) -> bool:
        """Whether a figure, by name, or the accuracy within a class, by number, changed beyond noise.

        It did where both its own interval excludes 0 and its p-value among all questions is small enough.
        """
        interval, p = (
            (self.figures[which], self.adjusted[which])
            if isinstance(which, str)
            else (self.recall[which], self.recall_adjusted[which])
        )
        return bool(p <= 1 - self.confidence + 1e-12 and (interval.low > 0 or interval.high < 0))


def changes(
    reference: Any, model: Any, labels: Any, *, key: Array, flips: int = 1999, confidence: float = 0.95
) -> Changes:
    """Compares a model with its reference, such as a pruned network with the dense one.

    Args:
      reference: logits (n, classes).
      model: logits (n, classes) of the same samples.
      labels: integers, (n,). A class without a sample has no recall; the rest is compared.
      key: a JAX key for the flips.
      flips: how often the answers are dealt anew; the least adjusted p-value is 1 / (1 + flips).
      confidence: of the intervals and of `beyond_noise`, in (0, 1).

    Returns:
      The changes, on the host.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; logits of different shapes.

    Example:
      >>> dense, pruned = jnp.array([[1.0, 0.0], [0.0, 1.0]] * 9), jnp.array([[1.0, 0.0], [1.0, 0.0]] * 9)
      >>> found = changes(dense, pruned, jnp.array([0, 1] * 9), key=jax.random.key(0))
      >>> found.figures['accuracy'].estimate, found.regressions, [r.estimate for r in found.recall]
      (-0.5, 9, [0.0, -1.0])
      >>> found.beyond_noise('accuracy'), found.beyond_noise(0), found.beyond_noise(1)
      (True, False, True)
    """
    if jnp.shape(reference) != jnp.shape(model):
        raise ValueError(f"both models need logits of one shape; got {jnp.shape(reference)} and {jnp.shape(model)}")
    a, b = metrics.samples(reference, labels), metrics.samples(model, labels)
    return compare(a, b, jnp.shape(model)[1], key, flips, confidence)


def compare(a: Samples, b: Samples, classes: int, key: Array, flips: int, confidence: float) -> Changes:
    """`changes` of samples that are judged already."""
    n = a.labels.size
    lost, won = a.correct & ~b.correct, b.correct & ~a.correct
    found = {
        "accuracy": intervals.paired_difference(int(won.sum()), int(lost.sum()), n, confidence),
        "nll": intervals.mean_difference(a.nll, b.nll, confidence),
        "brier": intervals.mean_difference(a.brier, b.brier, confidence),
    }
    counts, losses, gains = (np.bincount(x, minlength=classes) for x in (a.labels, a.labels[lost], a.labels[won]))
    recall = tuple(
        intervals.paired_difference(int(gain), int(loss), int(count), confidence).interval
        if count
        else Interval(np.nan, np.nan, np.nan)
        for gain, loss, count in zip(gains, losses, counts, strict=True)
    )
    adjusted, of_classes, critical = _adjusted(a, b, classes, key, flips, confidence)
    return Changes(
        figures={name: each.interval for name, each in found.items()},
        p_values={name: each.p_value for name, each in found.items()},
        adjusted=adjusted,
        recall=recall,
        recall_adjusted=tuple(np.where(counts > 0, of_classes, np.nan).tolist()),
        agreement=intervals.proportion(float((a.answers == b.answers).mean()), n, confidence),
        exemplars=Exemplars(a.answers != b.answers, a.answers, b.answers),
        regressions=int(lost.sum()),
        gains=int(won.sum()),
        detectable=float((critical + scipy.special.ndtri(0.8)) * np.sqrt(max(1, (lost | won).sum())) / n),
        confidence=confidence,
    )


def _adjusted(
    a: Samples, b: Samples, classes: int, key: Array, flips: int, confidence: float
) -> tuple[dict[str, float], np.ndarray, float]:
    """Max-T p-values of the figures and the classes under random signs, and the critical value of the maximum.

    Each question's sum of differences is divided by the root of its sum of squares, which no sign changes.
    """
    rng, n = intervals.generator(key), a.labels.size
    hits = b.correct.astype(np.float32) - a.correct
    with np.errstate(invalid="ignore"):
        differences = np.stack([hits, b.nll - a.nll, b.brier - a.brier], 1)
    finite = np.isfinite(differences).all(0)
    columns = np.where(finite, differences, 0)
    columns = (columns / np.maximum(np.sqrt((columns**2).sum(0)), 1e-30)).astype(np.float32)
    unequal = np.flatnonzero(hits)
    unequal = unequal[np.argsort(a.labels[unequal], kind="stable")]  # class by class
    present, starts, sizes = np.unique(a.labels[unequal], return_index=True, return_counts=True)
    signed = hits[unequal] / np.repeat(np.sqrt(sizes), sizes).astype(np.float32)

    def deviations(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_classes = np.add.reduceat(signs[:, unequal] * signed, starts, axis=1) if unequal.size else signs[:, :0]
        return np.abs(signs @ columns), np.abs(of_classes)

    figures, of_present = deviations(np.ones((1, n), np.float32))
    rows = max(1, min(flips, 4_000_000 // n))
    largest = []
    for start in range(0, flips, rows):
        bits = rng.integers(0, 2, (min(rows, flips - start), n), dtype=np.int8)
        drawn = np.concatenate(deviations(2 * bits.astype(np.float32) - 1), axis=1)
        largest.append(drawn.max(1))
    maxima = np.concatenate(largest)
    p = lambda seen: (1 + (maxima[:, None] >= seen * (1 - 1e-5)).sum(0)) / (1 + flips)
    of_classes = np.ones(classes)
    of_classes[present] = p(of_present[0])
    names: tuple[str, ...] = ("accuracy", "nll", "brier")
    by_name = {name: float(x) for name, x in zip(names, np.where(finite, p(figures[0]), np.nan), strict=True)}
    return by_name, of_classes, float(np.quantile(maxima, confidence))
