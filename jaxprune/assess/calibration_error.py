"""Calibration of probabilities: `calibration_error`, `reliability` and `calibration_test`."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxprune.assess import metrics
from jaxprune.assess.intervals import Interval, generator

Array = jax.Array
Binning = Literal["equal_width", "equal_mass"]
LEAST_SAMPLES = 10
"""A bin with fewer samples is marked as a bin of few samples, and is not named as over- or underconfident."""


class Reliability(NamedTuple):
    """The bins of a reliability diagram.

    Attributes:
      samples: the number of samples in each bin, (bins,); JAX or NumPy arrays.
      confidence: the mean confidence in each bin; NaN in an empty bin.
      accuracy: the fraction of right answers in each bin; NaN in an empty bin.
    """

    samples: Any
    confidence: Any
    accuracy: Any


def calibration_error(
    logits: Any,
    labels: Any,
    *,
    bins: int = 15,
    binning: Binning = "equal_width",
    classwise: bool = False,
    probabilities: bool = False,
) -> Array:
    """Computes the expected calibration error sum_m n_m/n |accuracy in bin m - mean confidence in bin m|.

    By default the result is the error of the largest probability (Guo et al. 2017, arXiv:1706.04599, eq. 3). The
    classwise error compares p_k with [y = k] and averages over all classes k, including classes without samples (Kull
    et al. 2019, arXiv:1910.12656). Bins are equally wide, or contain equally many samples (Nixon et al. 2019,
    arXiv:1904.01685); equal probabilities stay in one bin. The fewer the samples, the more this figure exceeds the true
    error: `calibration_test` compares it with chance.

    Args:
      logits: floating (n, classes); lower precisions are computed in float32.
      labels: integers (n,), in [0, classes).
      bins: the number of bins, an int of 1 or more, static; default 15.
      binning: "equal_width" (default) or "equal_mass", static.
      classwise: whether to average over the probabilities of all classes, static; default False.
      probabilities: whether `logits` are probabilities, in [0, 1] with a sum of 1 for each sample; default False.

    Returns:
      A floating scalar in [0, 1].

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: the logits or labels do not fit (see `evaluate`), `bins` is below 1, or `binning` has another value.

    Example:
      >>> probabilities = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> round(float(calibration_error(probabilities, jnp.array([0, 1]), probabilities=True)), 4)
      0.25
    """
    logits, labels = _checked(logits, labels, bins, binning, probabilities)
    return _calibration_error(logits, labels, bins, binning, classwise)


def reliability(
    logits: Any, labels: Any, *, bins: int = 15, binning: Binning = "equal_width", probabilities: bool = False
) -> Reliability:
    """Computes the accuracy of the samples in each bin of confidence, for a reliability diagram.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      bins: the number of bins, static; default 15.
      binning: "equal_width" (default) or "equal_mass", static.
      probabilities: whether `logits` are probabilities; default False.

    Returns:
      The bins, from the lowest confidence to the highest.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: see `calibration_error`.

    Example:
      >>> found = reliability(jnp.array([[0.9, 0.1]] * 4), jnp.array([0, 0, 0, 1]), bins=2, probabilities=True)
      >>> found.samples.tolist(), float(found.accuracy[1])
      ([0.0, 4.0], 0.75)
    """
    logits, labels = _checked(logits, labels, bins, binning, probabilities)
    count, promised, came = top_table(metrics.confidences(logits), metrics.correct(logits, labels), bins, binning)
    return Reliability(count, promised / count, came / count)


def equal_mass(values: Array, bins: int) -> Array:
    """Returns the bin of each value, for bins of equal size: bin m ends at the ceil(m n / M)-th smallest value.

    Equal values share a bin, so the order of samples does not matter; a bin may then be empty.

    Returns:
      int32 (n,) in [0, bins).

    Example:
      >>> equal_mass(jnp.array([0.9, 0.1, 0.5, 0.7]), 2).tolist()
      [1, 0, 0, 1]
    """
    n = values.shape[0]
    last = jnp.array([-(-m * n // bins) - 1 for m in range(1, bins)], jnp.int32)
    return jnp.searchsorted(jnp.sort(values)[last], values, side="left").astype(jnp.int32)


BINNINGS = {"equal_width": metrics.equal_width, "equal_mass": equal_mass}


def _checked(logits: Any, labels: Any, bins: int, binning: str, probabilities: bool) -> tuple[Array, Array]:
    metrics.check_bins(bins)
    if binning not in BINNINGS:
        raise ValueError(f"binning must be one of {', '.join(BINNINGS)}; got {binning!r}")
    return metrics.check(metrics.logits_from_probabilities(logits) if probabilities else logits, labels)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _calibration_error(logits: Array, labels: Array, bins: int, binning: str, classwise: bool) -> Array:
    def error(values: Array, outcomes: Array) -> Array:
        return metrics.binned_error(values, outcomes.astype(values.dtype), BINNINGS[binning](values, bins), bins)

    if not classwise:
        return error(metrics.confidences(logits), metrics.correct(logits, labels))
    targets = labels[:, None] == jnp.arange(logits.shape[1])
    return jax.vmap(error, 1)(jax.nn.softmax(logits, axis=1), targets).mean()


@partial(jax.jit, static_argnums=(2, 3))
def top_table(confidence: Array, correct: Array, bins: int, binning: Binning) -> Array:
    """Returns for each bin the number of samples, the sum of confidences and the number of right answers; (3, bins)."""
    index = BINNINGS[binning](confidence, bins)
    rows = jnp.stack([jnp.ones_like(confidence), confidence, correct.astype(confidence.dtype)])
    return jax.vmap(lambda row: jax.ops.segment_sum(row, index, bins))(rows)


@partial(jax.jit, static_argnums=(2, 3))
def class_table(logits: Array, labels: Array, bins: int, binning: Binning) -> Array:
    """Returns the bins of the probability of each class against whether it is the label, (3, classes * bins)."""
    targets = labels[:, None] == jnp.arange(logits.shape[1])
    of_class = lambda values, outcomes: top_table(values, outcomes, bins, binning)
    return jax.vmap(of_class, (1, 1), 1)(jax.nn.softmax(logits, axis=1), targets).reshape(3, -1)


class Region(NamedTuple):
    """Neighbouring bins in which the confidence is too high, or too low, beyond chance.

    Attributes:
      low: the lowest confidence of the region.
      high: the highest confidence of the region.
      samples: the number of samples in the region.
      confidence: the mean confidence of the samples.
      accuracy: the fraction of right answers among the samples.
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
      measured: the expected calibration error as papers report it. It exceeds the true error, by more if there are
        fewer samples.
      by_chance: the mean error that a calibrated model with these confidences would measure.
      at_most_by_chance: the quantile of this null distribution at the confidence of the interval.
      error: the calibration error without this bias (median-unbiased), with its interval. If the interval contains 0,
        the samples do not distinguish the model from a calibrated model.
      p_value: the probability that a calibrated model shows an error as large as measured, or as large a difference
        between mean confidence and accuracy (max-T of the two). The interval of the error excludes 0 exactly if the
        p-value is at most 1 - confidence.
      mean_is_off: whether the mean confidence differs significantly from the accuracy.
      regions: where the confidence is too high or too low, by a max-T test of all bins; empty if `p_value` exceeds
        1 - confidence.
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
    """Compares the calibration error with the error of a calibrated model on the same number of samples.

    The null distribution draws labels from the model's own probabilities ("consistency resampling", Broecker and Smith
    2007, Weather and Forecasting 22; Widmann et al. 2019, arXiv:1910.11385). The interval inverts the same comparison
    along a line of models from the calibrated model through the observed model. A logistic recalibration smooths the
    direction of this line.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      key: a JAX key.
      bins: the number of bins, static; default 15.
      binning: "equal_width" (default) or "equal_mass", static.
      classwise: whether to test the probabilities of all classes instead of only the largest; default False. If True,
        most bins contain so few samples that the error has no interval.
      draws: the number of sets of labels drawn; default 1000.
      confidence: the confidence of the interval and the regions, in (0, 1); default 0.95.

    Returns:
      The test, on the host.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: see `calibration_error`; fewer than 2 draws, or a confidence outside (0, 1).

    Example:
      >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 100))  # 90 % sure, and right in 60 %
      >>> found = calibration_test(logits, jnp.array([0] * 60 + [1] * 40), key=jax.random.key(0))
      >>> round(found.measured, 3), round(found.by_chance, 2), found.p_value < 0.01, found.regions[0].samples
      (0.3, 0.02, True, 100)
    """
    logits, labels = _checked(logits, labels, bins, binning, False)
    if draws < 2 or not 0 < confidence < 1:
        raise ValueError(f"draws must be 2 or more and confidence in (0, 1); got {draws} and {confidence}")
    table = (
        class_table(logits, labels, bins, binning)
        if classwise
        else top_table(metrics.confidences(logits), metrics.correct(logits, labels), bins, binning)
    )
    width = 1 / bins if binning == "equal_width" and not classwise else None
    return judge_table(np.asarray(table, np.float64), width, classwise, key, draws, confidence)


def judge_table(
    table: np.ndarray, width: float | None, classwise: bool, key: Array, draws: int, confidence: float
) -> CalibrationTest:
    """Computes `calibration_test` from a table of bins; `width` is the width of a bin, None for no regions."""
    filled = table[0] > 0
    cells, rng = table[:, filled], generator(key)
    ends = None if width is None else np.flatnonzero(filled) * width
    count, promised, came = cells
    total, mean = count.sum(), promised / count
    null = rng.binomial(count.astype(int), np.clip(mean, 0, 1), (draws, count.size)) - promised
    gaps = came - promised
    chance, measured = np.abs(null).sum(1) / total, np.abs(gaps).sum() / total
    # Only a large error contradicts calibration. The mean over all classes together is always 0 and is not tested.
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
    """Returns max-T p-values of deviations, each over its standard deviation by chance; 1 if it never varies."""
    if not seen.size:
        return np.ones(0)
    scale = np.sqrt((null**2).mean(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn, found = (np.nan_to_num(x / scale, nan=0.0, posinf=np.inf, neginf=-np.inf) for x in (null, seen))
    largest = drawn.max(1)
    return (1 + (largest[:, None] >= found * (1 - 1e-9)).sum(0)) / (1 + len(null))


def _regions(cells: np.ndarray, ends: np.ndarray, width: float, significant: np.ndarray) -> tuple[Region, ...]:
    """Joins neighbouring bins that deviate in the same direction; empty bins between them do not separate them."""
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
    """Returns the range of errors along the line of models that the measured error does not reject."""
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
    """Returns the gap of each bin: from logistic recalibration, plus the part beyond noise (James-Stein)."""
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
