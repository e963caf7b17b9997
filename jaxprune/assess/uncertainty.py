"""Uncertainty of predictions: temperature scaling, risk-coverage curves, telling foreign data (`auroc`, `entropy`)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jax.core import Tracer

from jaxprune.assess import intervals, metrics
from jaxprune.assess.intervals import Interval

Array = jax.Array
LEAST, MOST = 1e-3, 1e3
"""The bounds of a fitted temperature."""
_STEPS, _CLOSE = 60, 1e-6


class RiskCoverage(NamedTuple):
    """The risk-coverage curve: the error of a model that predicts only the samples with the highest confidence.

    Attributes:
      coverage: the fraction of predicted samples, 1/n, 2/n ... 1.
      risk: the fraction of wrong predictions at each coverage.
      aurc: the area under the curve, the mean of the risks.
      excess: `aurc` less the smallest possible area for this accuracy (E-AURC).
    """

    coverage: Array
    risk: Array
    aurc: Array
    excess: Array


def risk_coverage(logits: Any, labels: Any, *, uncertainty: Any = None) -> RiskCoverage:
    """Computes the risk-coverage curve and the area under it.

    Geifman, Uziel and El-Yaniv 2019 (arXiv:1805.08206). The model predicts the samples in the order of their
    uncertainty. If several samples are equally uncertain, the curve is the mean over all their orders, so the order
    in which samples are passed does not matter.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      uncertainty: (n,), larger = less sure; default one minus the largest probability.

    Returns:
      The curve from the lowest coverage to 1.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: the logits or labels do not fit (see `evaluate`), or the uncertainty has another shape or NaN.

    Example:
      >>> logits = jnp.array([[9.0, 0.0], [2.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
      >>> curve = risk_coverage(logits, jnp.array([0, 1, 0, 0]))
      >>> curve.risk.round(2).tolist() == jnp.array([0, 0, 1 / 3, 1 / 4]).round(2).tolist()
      True
    """
    logits, labels = metrics.check(logits, labels)
    given = max_probability(logits) if uncertainty is None else jnp.asarray(uncertainty)
    if given.shape != labels.shape:
        raise ValueError(
            f"uncertainty must have one value for each sample, shape {labels.shape}; got shape {given.shape}"
        )
    _check_values(given, "uncertainty")
    return risk_coverage_curve(given, ~metrics.correct(logits, labels))


@jax.jit
def risk_coverage_curve(uncertainty: Array, wrong: Array) -> RiskCoverage:
    """Computes the curve of `risk_coverage` from the uncertainty of each sample and whether its answer is wrong."""
    n = wrong.shape[0]
    order = jnp.argsort(uncertainty)
    ordered, errors = uncertainty[order], wrong[order].astype(jnp.float32)
    # Equally uncertain samples all count as their mean, which is the expectation over their orders.
    run = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(ordered[1:] != ordered[:-1], dtype=jnp.int32)])
    total, size = (jax.ops.segment_sum(x, run, n) for x in (errors, jnp.ones_like(errors)))
    answered = jnp.arange(1, n + 1, dtype=jnp.float32)
    risk = jnp.cumsum((total / size)[run]) / answered
    best = jnp.maximum(answered - (n - errors.sum()), 0) / answered
    return RiskCoverage(answered / n, risk, risk.mean(), risk.mean() - best.mean())


def area_under_risk_coverage(confidence: np.ndarray, correct: np.ndarray, level: float = 0.95) -> Interval:
    """Computes the area under the risk-coverage curve (AURC) with its interval.

    To first order the area is the mean of the samples' influences on it. The interval is the interval of this mean,
    corrected for skewness; see `intervals.mean`.

    Args:
      confidence: (n,), larger = surer.
      correct: bool (n,).
      level: the confidence of the interval, in (0, 1); default 0.95.

    Returns:
      The area; its ends are NaN where fewer than `intervals.FEW` samples are wrong.

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


def auroc(known: Any, foreign: Any) -> Array:
    """Computes the area under the ROC curve for foreign against known samples by a score.

    The area is the probability that a foreign sample has the larger score; equal scores count half (Mann and Whitney
    1947). 1 is perfect, 0.5 is chance.

    Args:
      known: scores of data like the training data, (n,); larger = less sure.
      foreign: scores of other data, (m,).

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: an array is empty, has another number of axes, or has NaN.
      TypeError: an array is bool: split one array of scores by it, `auroc(scores[~wrong], scores[wrong])`.

    Example:
      >>> float(auroc(jnp.array([0.1, 0.2]), jnp.array([0.2, 0.9])))
      0.875
    """
    known, foreign = jnp.asarray(known), jnp.asarray(foreign)
    if bool in (known.dtype, foreign.dtype):
        raise TypeError(
            "auroc takes the scores of two sets of samples, got a bool array; if it says which samples are foreign or "
            "wrong, split the scores by it: auroc(scores[~wrong], scores[wrong])"
        )
    if known.ndim != 1 or foreign.ndim != 1 or not known.size or not foreign.size:
        raise ValueError(f"scores must have shape (n,), with a sample each; got {known.shape} and {foreign.shape}")
    _check_values(known, "known scores")
    _check_values(foreign, "foreign scores")
    ordered = jnp.sort(known)
    below, upto = (jnp.searchsorted(ordered, foreign, side=side) for side in ("left", "right"))
    return ((below + upto) / (2 * known.size)).mean()


def max_probability(logits: Array) -> Array:
    """Returns one minus the largest probability of each sample (Hendrycks and Gimpel 2017, arXiv:1610.02136).

    Args:
      logits: floating (n, classes).

    Returns:
      Floating (n,), in [0, 1 - 1 / classes]; larger where the model is less sure.

    Example:
      >>> max_probability(jnp.zeros((1, 4))).tolist()
      [0.75]
    """
    return 1 - metrics.confidences(logits)


def entropy(logits: Array) -> Array:
    """Computes the entropy of each prediction, H = -sum_k p_k log p_k, in nats: larger where the model is less sure.

    Args:
      logits: floating (..., classes).

    Returns:
      Floating, in the shape of `logits` without the last axis; in [0, log classes].

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
      members: floating logits (members, n, classes).

    Returns:
      Floating (n,), 0 or more; 0 where all members predict the same probabilities.

    Example:
      >>> epistemic_uncertainty(jnp.zeros((3, 2, 4))).tolist()
      [0.0, 0.0]
    """
    mean = jnp.log(jax.nn.softmax(members, axis=-1).mean(0))
    return jnp.maximum(entropy(mean) - entropy(members).mean(0), 0)


def _check_values(values: Array, what: str) -> None:
    if not isinstance(values, Tracer) and np.isnan(np.asarray(values, np.float64)).any():
        raise ValueError(f"{what} hold NaN in {int(np.isnan(np.asarray(values, np.float64)).sum())} places")


def fit_temperature(logits: Any, labels: Any) -> Array:
    """Finds the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    Guo et al. 2017 (arXiv:1706.04599, section 4.2). In b = 1/T the mean loss is convex, with derivative
    mean(E_p[z] - z_y). Newton's method finds its root in log b with a relative error of 1e-6, and halves the bracket if
    a step is more than half the last step (Press et al. 2007, Numerical Recipes, section 9.4, rtsafe). Accuracy does
    not change. The search takes a few steps, so `bootstrap(fit_temperature, logits, labels, key=key)` is cheap.

    Args:
      logits: (n, classes) of data that are used neither for training nor for testing the model.
      labels: integers, (n,).

    Returns:
      A scalar in [0.001, 1000]. The likelihood has no maximum if every sample is right (the result is 0.001) or if the
      logits contradict the labels (the result is 1000): use more held-out data.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: see `evaluate`.

    Example:
      >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
      >>> round(float(fit_temperature(logits, jnp.array([0, 0, 0, 1]))), 3)  # 4 / log(3)
      3.641
    """
    return _fit(*metrics.check(logits, labels))


def temperature_interval(logits: Any, labels: Any, confidence: float = 0.95) -> Interval:
    """Computes the temperature of `fit_temperature` with its interval.

    The interval is symmetric in the logarithm of the temperature. It uses the standard error of an M-estimator (Huber
    1967), so it is valid even if no temperature makes the model calibrated.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      confidence: in (0, 1); default 0.95.

    Returns:
      The temperature; the ends are NaN where the temperature is at one of its bounds.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: see `evaluate`.

    Example:
      >>> logits = jnp.array([[4.0, 0.0]] * 40)
      >>> [round(end, 2) for end in temperature_interval(logits, jnp.array([0] * 30 + [1] * 10))]
      [3.64, 1.84, 7.19]
    """
    logits, labels = metrics.check(logits, labels)
    fitted = float(_fit(logits, labels))
    if not 1.01 * LEAST < fitted < 0.99 * MOST:
        return Interval(fitted, np.nan, np.nan)
    slopes, curve = (np.asarray(x, np.float64) for x in _slopes(*_shifted(logits, labels), 1 / fitted))
    error = np.sqrt((slopes**2).sum() / (slopes.size - 1) / slopes.size) / curve.mean()
    reach = float(scipy.special.stdtrit(max(slopes.size - 1, 1), (1 + confidence) / 2)) * error
    return Interval(fitted, float(fitted * np.exp(-reach)), float(fitted * np.exp(reach)))


def _shifted(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns the logits shifted so that the largest is 0, and the shifted logit of each label."""
    logits = logits - logits.max(1, keepdims=True)
    return logits, jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


@jax.jit
def _slopes(logits: Array, label: Array, b: Any) -> tuple[Array, Array]:
    """Returns for each sample the derivative of the loss in b = 1/T, and the derivative of this slope in log b."""
    p = jax.nn.softmax(b * logits, axis=1)
    weighted = jnp.where(p > 0, p * logits, 0)  # an excluded class: p = 0 of -inf
    mean = weighted.sum(1)
    return mean - label, b * (jnp.where(p > 0, weighted * logits, 0).sum(1) - mean**2)


class _Search(NamedTuple):
    low: Array  # in log b, where the loss still falls
    high: Array  # where the loss rises
    at: Array
    step: Array  # the last step, to `at`
    done: Array


@jax.jit
def _fit(logits: Array, labels: Array) -> Array:
    logits, label = _shifted(logits, labels)

    def narrow(search: _Search) -> _Search:
        slope, curve = (x.mean() for x in _slopes(logits, label, jnp.exp(search.at)))
        low = jnp.where(slope > 0, search.low, search.at)
        high = jnp.where(slope > 0, search.at, search.high)
        newton = search.at - slope / curve  # 0 / 0 where all is saturated: NaN, which no comparison accepts
        fast = (low <= newton) & (newton <= high) & (jnp.abs(2 * slope) <= jnp.abs(search.step * curve))
        following = jnp.where(fast, newton, (low + high) / 2)
        return _Search(low, high, following, following - search.at, search.done + 1)

    far = lambda search: (jnp.abs(search.step) > _CLOSE) & (search.done < _STEPS)
    low, high = (-jnp.log(jnp.asarray(end, logits.dtype)) for end in (MOST, LEAST))
    start = _Search(low, high, jnp.zeros_like(low), high - low, jnp.zeros((), jnp.int32))
    return jnp.exp(-lax.while_loop(far, narrow, start).at)
