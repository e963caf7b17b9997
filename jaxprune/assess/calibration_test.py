"""Whether a model is calibrated, judged by what a calibrated model would show by chance: `calibration_test`."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxprune.assess import metrics
from jaxprune.assess.intervals import Interval, generator
from jaxprune.assess.reliability import BINNINGS, Binning

Array = jax.Array
LEAST_SAMPLES = 10
"""A bin with fewer samples is not named as over- or underconfident."""


class Region(NamedTuple):
    """Neighbouring bins in which the confidence is beyond chance too high, or too low.

    Attributes:
      low: the lower end of their confidences.
      high: the upper end.
      samples: how many samples they hold.
      confidence: the mean confidence of the samples.
      accuracy: the fraction of the samples that is right.
    """

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationTest:
    """A calibration error beside its null distribution.

    Attributes:
      measured: the expected calibration error as it is published; larger than the true one, the more so the fewer
        samples there are.
      by_chance: what a calibrated model with these confidences would measure: mean of the draws.
      at_most_by_chance: the quantile of the draws at the confidence of the interval.
      error: the calibration error without that bias (median-unbiased), with its interval; 0 in the interval means that
        the samples do not tell the model from a calibrated one.
      p_value: how probable it is that a calibrated model shows as large an error, or as large a difference of mean
        confidence and accuracy (max-T of the two). The interval of the error excludes 0 exactly where this is
        1 - confidence or less.
      mean_is_off: whether the mean confidence differs from the accuracy by this test.
      regions: where the confidence is too high or too low, by a max-T test of all bins; none where `p_value` is larger.
    """

    measured: float
    by_chance: float
    at_most_by_chance: float
    error: Interval
    p_value: float
    mean_is_off: bool
    regions: tuple[Region, ...]


def calibration_test(
    logits: Any,
    labels: Any,
    *,
    key: Array,
    bins: int = 15,
    binning: Binning = "equal_width",
    classwise: bool = False,
    draws: int = 1000,
    confidence: float = 0.95,
) -> CalibrationTest:
    """Compares the calibration error with that of a calibrated model on the same number of samples.

    The null distribution draws labels from the model's own probabilities ("consistency resampling", Broecker and Smith
    2007, Weather and Forecasting 22; Widmann et al. 2019, arXiv:1910.11385). The interval inverts the same comparison
    along a line of models from the calibrated one through the observed one, whose direction a logistic recalibration
    smooths.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      key: a JAX key.
      bins: how many bins, static.
      binning: "equal_width" or "equal_mass", static.
      classwise: whether the probabilities of all classes count, and not the largest alone. Most bins then hold so few
        samples that the error has no interval.
      draws: how many sets of labels are drawn.
      confidence: of the interval and the regions, in (0, 1).

    Returns:
      The test, on the host.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `calibration_error`.

    Example:
      >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 100))  # 90 % sure, and right in 60 %
      >>> found = calibration_test(logits, jnp.array([0] * 60 + [1] * 40), key=jax.random.key(0))
      >>> round(found.measured, 3), round(found.by_chance, 2), found.p_value < 0.01, found.regions[0].samples
      (0.3, 0.02, True, 100)
    """
    logits, labels = metrics.check(logits, labels)
    if binning not in BINNINGS:
        raise ValueError(f"binning must be one of {', '.join(BINNINGS)}; got {binning!r}")
    if draws < 2 or not 0 < confidence < 1:
        raise ValueError(f"draws must be 2 or more and confidence in (0, 1); got {draws} and {confidence}")
    table = (
        class_table(logits, labels, bins, binning)
        if classwise
        else top_table(metrics.confidences(logits), metrics.correct(logits, labels), bins, binning)
    )
    width = 1 / bins if binning == "equal_width" and not classwise else None
    return judge_table(np.asarray(table, np.float64), width, classwise, key, draws, confidence)


@partial(jax.jit, static_argnums=(2, 3))
def top_table(confidence: Array, correct: Array, bins: int, binning: Binning) -> Array:
    """Of each bin the number of samples, and the sums of their confidences and of their right answers, (3, bins)."""
    index = BINNINGS[binning](confidence, bins)
    rows = jnp.stack([jnp.ones_like(confidence), confidence, correct.astype(confidence.dtype)])
    return jax.vmap(lambda row: jax.ops.segment_sum(row, index, bins))(rows)


@partial(jax.jit, static_argnums=(2, 3))
def class_table(logits: Array, labels: Array, bins: int, binning: Binning) -> Array:
    """The same of the probability of each class against whether it is the label, (3, classes * bins)."""
    targets = labels[:, None] == jnp.arange(logits.shape[1])
    of_class = lambda values, outcomes: top_table(values, outcomes, bins, binning)
    return jax.vmap(of_class, (1, 1), 1)(jax.nn.softmax(logits, axis=1), targets).reshape(3, -1)


def judge_table(
    table: np.ndarray, width: float | None, classwise: bool, key: Array, draws: int, confidence: float
) -> CalibrationTest:
    """`calibration_test` of the bins that `top_table` or `class_table` gave; regions where their width is given."""
    filled = table[0] > 0
    cells, rng = table[:, filled], generator(key)
    ends = None if width is None else np.flatnonzero(filled) * width
    count, promised, came = cells
    total, mean = count.sum(), promised / count
    null = rng.binomial(count.astype(int), np.clip(mean, 0, 1), (draws, count.size)) - promised
    gaps = came - promised
    chance, measured = np.abs(null).sum(1) / total, np.abs(gaps).sum() / total
    # The error, which only a large value speaks against, and the mean; of all classes together the mean is 0 always.
    looked_at = np.stack([chance - chance.mean(), np.zeros(draws) if classwise else np.abs(null.sum(1))], 1)
    seen = np.array([measured - chance.mean(), 0 if classwise else abs(gaps.sum())])
    of_whole = _adjusted(looked_at, seen)
    p_value, alpha = float(of_whole.min()), 1 - confidence + 1e-12
    significant = np.zeros(count.size, bool)
    if ends is not None and p_value <= alpha:
        large = count >= LEAST_SAMPLES
        significant[large] = _adjusted(np.abs(null[:, large]), np.abs(gaps[large])) <= alpha
    error = Interval(float(measured), np.nan, np.nan)
    if not classwise:
        error = _interval(count, mean, came / count, p_value <= alpha, rng, min(draws, 400), confidence)
    return CalibrationTest(
        measured=float(measured),
        by_chance=float(chance.mean()),
        at_most_by_chance=float(np.quantile(chance, confidence)),
        error=error,
        p_value=p_value,
        mean_is_off=bool(of_whole[1] <= alpha),
        regions=() if ends is None or width is None else _regions(cells, ends, width, significant),
    )


def _adjusted(null: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Max-T p-values of several deviations, each over its standard deviation by chance; what never varies is 1."""
    if not seen.size:
        return np.ones(0)
    scale = np.sqrt((null**2).mean(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn, found = (np.nan_to_num(x / scale, nan=0.0, posinf=np.inf, neginf=-np.inf) for x in (null, seen))
    largest = drawn.max(1)
    return (1 + (largest[:, None] >= found * (1 - 1e-9)).sum(0)) / (1 + len(null))


def _regions(cells: np.ndarray, ends: np.ndarray, width: float, significant: np.ndarray) -> tuple[Region, ...]:
    """Joins neighbouring bins that deviate in the same direction; a bin in between that is not full may be missing."""
    signs = np.where(significant, np.sign(cells[2] - cells[1]), 0)
    found, start = [], 0
    for k in range(1, len(signs) + 1):
        if k == len(signs) or signs[k] != signs[start]:
            if signs[start]:
                count, promised, came = cells[:, start:k].sum(1)
                low, high = float(ends[start]), float(ends[k - 1] + width)
                found.append(Region(low, high, int(count), float(promised / count), float(came / count)))
            start = k
    return tuple(found)


def _interval(
    count: np.ndarray,
    mean: np.ndarray,
    accuracy: np.ndarray,
    excludes_zero: bool,
    rng: np.random.Generator,
    draws: int,
    confidence: float,
) -> Interval:
    """The errors along the line of models from which the measured error is not an unusual draw."""
    weight, total = count / count.sum(), count.sum()
    measured = float((weight * np.abs(accuracy - mean)).sum())
    direction = _smoothed(count, mean, accuracy)
    if not np.any(direction):
        direction = accuracy - mean
    noise, of_counts = rng.standard_normal((draws, count.size)), rng.standard_normal(draws)
    # The direction is estimated too: ends at 0.8 of the nominal tail cover as they should in simulation.
    tail, reach = 0.4 * (1 - confidence), 2.0
    while True:
        steps = np.linspace(0, reach, 25)
        at = np.clip(mean + steps[:, None] * direction, 0, 1)
        errors = (weight * np.abs(at - mean)).sum(1)
        p = np.clip(at, 2 / (total + 4), 1 - 2 / (total + 4))
        spread = np.sqrt(p * (1 - p) / count)
        between = np.sqrt(np.maximum((weight * (at - mean) ** 2).sum(1) - errors**2, 0) / total)
        drawn = np.stack(
            [np.abs(a - mean + s * noise) @ weight + b * of_counts for a, s, b in zip(at, spread, between, strict=True)]
        )
        low, middle, high = np.maximum.accumulate(np.quantile(drawn, [tail, 0.5, 1 - tail], axis=1), axis=1)
        if low[-1] > measured or reach > 100:
            break
        reach *= 2
    ends = [float(np.interp(measured, quantile, errors)) for quantile in (high, middle, low)]
    least = max(ends[0], 1e-9) if excludes_zero else 0.0
    return Interval(min(max(ends[1], least), ends[2]), least, max(ends[2], least))


def _smoothed(count: np.ndarray, mean: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """The gap of each bin: that of a logistic recalibration, and what is left of it beyond noise (James and Stein)."""
    x = scipy.special.logit(np.clip(mean, 1e-6, 1 - 1e-6))
    design, weights = np.stack([np.ones_like(x), x], 1), np.array([0.0, 1.0])
    prior = 1e-2 * np.eye(2)
    for _ in range(15):
        p = scipy.special.expit(design @ weights)
        slope = design.T @ (count * (accuracy - p)) - prior @ (weights - [0.0, 1.0])
        curve = design.T @ (design * (count * p * (1 - p))[:, None]) + prior
        weights = weights + np.clip(np.linalg.solve(curve, slope), -2, 2)
    fitted = scipy.special.expit(design @ weights)
    left = accuracy - fitted
    safe = np.clip(fitted, 0.5 / count.sum(), 1 - 0.5 / count.sum())
    beyond = (left**2 * count / (safe * (1 - safe))).sum()
    kept = max(0.0, 1 - (count.size - 2) / beyond) if count.size > 2 and beyond > 0 else 0.0
    return fitted - mean + kept * left
