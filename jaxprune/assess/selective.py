"""Uncertainty of single predictions: risk-coverage curves, and telling foreign data (`auroc`, `entropy`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.assess import intervals, metrics
from jaxprune.assess.intervals import Interval

Array = jax.Array


class RiskCoverage(NamedTuple):
    """The risk-coverage curve: the error of a model that answers only the samples it is surest of.

    Attributes:
      coverage: 1/n, 2/n ... 1: the fraction answered.
      risk: the fraction wrong among these.
      aurc: the area under the curve, the mean of the risks.
      excess: `aurc` less the least possible for this accuracy (E-AURC).
    """

    coverage: Array
    risk: Array
    aurc: Array
    excess: Array


def risk_coverage(logits: Any, labels: Any, *, uncertainty: Any = None) -> RiskCoverage:
    """Computes the risk-coverage curve and the area under it.

    Geifman, Uziel and El-Yaniv 2019 (arXiv:1805.08206). Samples are answered in the order of their uncertainty;
    among equal ones the mean over all orders is taken, so that the order of samples does not matter.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      uncertainty: (n,), larger = less sure; by default one minus the largest probability.

    Returns:
      The curve from the lowest coverage to 1.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; and an uncertainty of another shape or with NaN.

    Example:
      >>> logits = jnp.array([[9.0, 0.0], [2.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
      >>> curve = risk_coverage(logits, jnp.array([0, 1, 0, 0]))
      >>> curve.risk.round(2).tolist() == jnp.array([0, 0, 1 / 3, 1 / 4]).round(2).tolist()
      True
    """
    logits, labels = metrics.check(logits, labels)
    given = max_probability(logits) if uncertainty is None else jnp.asarray(uncertainty)
    if given.shape != labels.shape:
        raise ValueError(f"uncertainty must have one value a sample, {labels.shape}; got {given.shape}")
    _check_values(given, "uncertainty")
    return risk_coverage_curve(given, ~metrics.correct(logits, labels))


def auroc(known: Any, foreign: Any) -> Array:
    """Computes the area under the ROC curve of telling foreign samples from known ones by a score.

    It is the probability that a foreign sample has the larger score, equal ones counting half (Mann and Whitney
    1947): 1 is perfect, 0.5 chance.

    Args:
      known: scores of data like the training data, (n,); larger = less sure.
      foreign: scores of other data, (m,).

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: no sample on one side, another number of axes, NaN.

    Example:
      >>> float(auroc(jnp.array([0.1, 0.2]), jnp.array([0.2, 0.9])))
      0.875
    """
    known, foreign = jnp.asarray(known), jnp.asarray(foreign)
    if known.ndim != 1 or foreign.ndim != 1 or not known.size or not foreign.size:
        raise ValueError(f"scores must have shape (n,), with a sample each; got {known.shape} and {foreign.shape}")
    _check_values(known, "known scores")
    _check_values(foreign, "foreign scores")
    return _auroc(known, foreign)


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray, level: float = 0.95) -> Interval:
    """The area under the risk-coverage curve (AURC) with its interval.

    To first order the area is the mean of what each sample adds to it, its influence; the interval is that of this
    mean, skewness removed (see `intervals.mean`).

    Args:
      confidence: (n,), larger = surer.
      correct: bool (n,).
      level: the confidence of the interval, in (0, 1).

    Returns:
      The area; without ends where fewer than `intervals.FEW` samples are wrong.

    Example:
      >>> area = area_under_risk_coverage(np.arange(100.0), np.arange(100) >= 10)
      >>> [round(end, 4) for end in area]
      [0.0057, 0.0004, 0.0138]
    """
    n, wrong = len(correct), ~np.asarray(correct, bool)
    order = np.argsort(-np.asarray(confidence), kind="stable")
    rank, errors = np.arange(1, n + 1), wrong[order].astype(np.float64)
    _, run = np.unique(-np.asarray(confidence)[order], return_inverse=True)
    errors = (np.bincount(run, errors) / np.bincount(run))[run]  # equally sure: the mean over their orders
    area = float((np.cumsum(errors) / rank).mean())
    if wrong.sum() < intervals.FEW:
        return Interval(area, np.nan, np.nan)
    later = lambda x: np.cumsum(x[::-1])[::-1]
    influence = errors * later(1 / rank) - later(errors / rank) + errors.mean()
    found = intervals.mean(influence - influence.mean() + area, level)
    return Interval(area, max(0.0, found.low), min(1.0, found.high))


def max_probability(logits: Array) -> Array:
    """One minus the largest probability: larger where the model is less sure.

    Hendrycks and Gimpel 2017, arXiv:1610.02136.

    Args:
      logits: (n, classes).

    Returns:
      (n,), in [0, 1 - 1 / classes].

    Example:
      >>> max_probability(jnp.zeros((1, 4))).tolist()
      [0.75]
    """
    return 1 - metrics.confidences(logits)


def entropy(logits: Array) -> Array:
    """The entropy of each prediction, H = -sum_k p_k log p_k, in nats: larger where the model is less sure.

    Args:
      logits: (n, classes).

    Returns:
      (n,), in [0, log classes].

    Example:
      >>> round(float(entropy(jnp.zeros((1, 4)))[0]), 3)
      1.386
    """
    p = jax.nn.softmax(logits, axis=-1)
    return -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum(-1)


def epistemic_uncertainty(members: Array) -> Array:
    """Computes how much members disagree: the entropy of their mean prediction less their mean entropy, in nats.

    This is the mutual information of the prediction and the member, which measures epistemic uncertainty (Depeweg et
    al. 2018, arXiv:1710.07283).

    Args:
      members: logits (members, n, classes).

    Returns:
      (n,), 0 where all members say the same.

    Example:
      >>> epistemic_uncertainty(jnp.zeros((3, 2, 4))).tolist()
      [0.0, 0.0]
    """
    mean = jnp.log(jax.nn.softmax(members, axis=-1).mean(0))
    return jnp.maximum(entropy(mean) - entropy(members).mean(0), 0)


@jax.jit
def risk_coverage_curve(uncertainty: Array, wrong: Array) -> RiskCoverage:
    """The curve of `risk_coverage` from the uncertainty of each sample and whether its answer is wrong, (n,) each."""
    n = wrong.shape[0]
    order = jnp.argsort(uncertainty)
    ordered, errors = uncertainty[order], wrong[order].astype(jnp.float32)
    # Each sample of a run of equal ones counts as the mean of the run: the expectation over its orders.
    run = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(ordered[1:] != ordered[:-1], dtype=jnp.int32)])
    total, size = (jax.ops.segment_sum(x, run, n) for x in (errors, jnp.ones_like(errors)))
    answered = jnp.arange(1, n + 1, dtype=jnp.float32)
    risk = jnp.cumsum((total / size)[run]) / answered
    best = jnp.maximum(answered - (n - errors.sum()), 0) / answered
    return RiskCoverage(answered / n, risk, risk.mean(), risk.mean() - best.mean())


@jax.jit
def _auroc(known: Array, foreign: Array) -> Array:
    ordered = jnp.sort(known)
    below = jnp.searchsorted(ordered, foreign, side="left")
    upto = jnp.searchsorted(ordered, foreign, side="right")
    return ((below + upto) / (2 * known.size)).mean()


def _check_values(values: Array, what: str) -> None:
    if not isinstance(values, Tracer) and np.isnan(np.asarray(values, np.float64)).any():
        raise ValueError(f"{what} hold NaN in {int(np.isnan(np.asarray(values, np.float64)).sum())} places")
