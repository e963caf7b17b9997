"""Whether probabilities mean what they say: `calibration_error`, `reliability` and `fit_temperature`."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax

from jaxprune.assess import metrics
from jaxprune.assess.intervals import Interval

Array = jax.Array
Binning = Literal["equal_width", "equal_mass"]
LEAST, MOST = 1e-3, 1e3
_STEPS, _CLOSE = 60, 1e-6


class Reliability(NamedTuple):
    """The bins of a reliability diagram.

    Attributes:
      samples: how many samples fall in each bin, (bins,); JAX or NumPy arrays.
      confidence: their mean confidence; NaN in an empty bin.
      accuracy: the fraction of them that is right; NaN in an empty bin.
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

    The error is that of the largest probability (Guo et al. 2017, arXiv:1706.04599, eq. 3), or classwise that of p_k
    against [y = k], averaged over all classes k, with or without samples (Kull et al. 2019, arXiv:1910.12656). Bins
    are equally wide, or hold equally many samples (Nixon et al. 2019, arXiv:1904.01685); equal probabilities stay in
    one bin. Few samples make the error larger than it is: `calibration_test` compares it with chance.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      bins: how many bins, static.
      binning: "equal_width" or "equal_mass", static.
      classwise: whether every class counts, static.
      probabilities: whether `logits` are probabilities.

    Returns:
      A scalar in [0, 1].

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; and a binning of another name.

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
      bins: how many bins, static.
      binning: "equal_width" or "equal_mass", static.
      probabilities: whether `logits` are probabilities.

    Returns:
      The bins, from the least confidence to the most.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `calibration_error`.

    Example:
      >>> found = reliability(jnp.array([[0.9, 0.1]] * 4), jnp.array([0, 0, 0, 1]), bins=2, probabilities=True)
      >>> found.samples.tolist(), float(found.accuracy[1])
      ([0.0, 4.0], 0.75)
    """
    logits, labels = _checked(logits, labels, bins, binning, probabilities)
    return _reliability(logits, labels, bins, binning)


def equal_mass(values: Array, bins: int) -> Array:
    """The bin of each value among bins of equally many: bin m ends at the ceil(m n / M)-th smallest value.

    Equal values share a bin, so that the order of samples does not matter; a bin may then be empty.

    Returns:
      int32 (n,) in [0, bins).

    Example:
      >>> equal_mass(jnp.array([0.9, 0.1, 0.5, 0.7]), 2).tolist()
      [1, 0, 0, 1]
    """
    n = values.shape[0]
    last = jnp.array([-(-m * n // bins) - 1 for m in range(1, bins)], jnp.int32)
    return jnp.searchsorted(jnp.sort(values)[last], values, side="left").astype(jnp.int32)


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
def _reliability(logits: Array, labels: Array, bins: int, binning: str) -> Reliability:
    top = metrics.confidences(logits)
    index = BINNINGS[binning](top, bins)
    in_bins = lambda values: jax.ops.segment_sum(values.astype(top.dtype), index, bins)
    count = in_bins(jnp.ones_like(top))
    return Reliability(count, in_bins(top) / count, in_bins(metrics.correct(logits, labels)) / count)


BINNINGS = {"equal_width": metrics.equal_width, "equal_mass": equal_mass}


def fit_temperature(logits: Any, labels: Any) -> Array:
    """Finds the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    Guo et al. 2017 (arXiv:1706.04599, section 4.2). In b = 1/T the mean loss is convex, with derivative
    mean(E_p[z] - z_y); its root is found in log b by Newton's method, halving the bracket where a step is not at most
    half the last one (Press et al. 2007, Numerical Recipes, section 9.4, rtsafe), to a part in a million. Accuracy does
    not change. The search takes a few steps, so that `bootstrap(fit_temperature, logits, labels, key=key)` is cheap.

    Args:
      logits: (n, classes) of data that neither trained the model nor will judge it.
      labels: integers, (n,).

    Returns:
      A scalar in [0.001, 1000]. The likelihood has no maximum where every sample is right (0.001 is returned) or where
      the logits speak against the labels (1000): then more held-out data are needed.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`.

    Example:
      >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
      >>> round(float(fit_temperature(logits, jnp.array([0, 0, 0, 1]))), 3)  # 4 / log(3)
      3.641
    """
    return _fit(*metrics.check(logits, labels))


def temperature_interval(logits: Any, labels: Any, confidence: float = 0.95) -> Interval:
    """The temperature that `fit_temperature` finds, with its interval.

    The interval is symmetric in the logarithm of the temperature; its standard error is that of an M-estimator
    (Huber 1967), so that it holds whether or not some temperature makes the model calibrated.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      confidence: in (0, 1).

    Returns:
      The temperature; without ends where it lies at one of its bounds.

    Raises:
      TypeError: see `evaluate`.
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
    slopes, curve = (np.asarray(x, np.float64) for x in _slopes(logits, labels, 1 / fitted))
    error = np.sqrt((slopes**2).sum() / (slopes.size - 1) / slopes.size) / curve.mean()
    reach = float(scipy.special.stdtrit(max(slopes.size - 1, 1), (1 + confidence) / 2)) * error
    return Interval(fitted, float(fitted * np.exp(-reach)), float(fitted * np.exp(reach)))


@jax.jit
def _slopes(logits: Array, labels: Array, b: Any) -> tuple[Array, Array]:
    """Of each sample the derivative of the loss in b = 1/T, and that derivative's own in log b."""
    logits = logits - logits.max(1, keepdims=True)
    label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    p = jax.nn.softmax(b * logits, axis=1)
    weighted = jnp.where(p > 0, p * logits, 0)
    mean = weighted.sum(1)
    return mean - label, b * (jnp.where(p > 0, weighted * logits, 0).sum(1) - mean**2)


class _Search(NamedTuple):
    low: Array  # where the loss still falls, in log b
    high: Array  # where it rises
    at: Array
    step: Array  # the last one, to `at`
    done: Array


@jax.jit
def _fit(logits: Array, labels: Array) -> Array:
    logits = logits - logits.max(1, keepdims=True)
    label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def derivatives(log_b: Array) -> tuple[Array, Array]:
        """The slope in b, and its own slope in log b: b times the mean variance of the logits."""
        p = jax.nn.softmax(jnp.exp(log_b) * logits, axis=1)
        weighted = jnp.where(p > 0, p * logits, 0)  # an excluded class: p = 0 of -inf
        mean = weighted.sum(1)
        variance = jnp.where(p > 0, weighted * logits, 0).sum(1) - mean**2
        return (mean - label).mean(), jnp.exp(log_b) * variance.mean()

    def narrow(search: _Search) -> _Search:
        slope, curve = derivatives(search.at)
        low = jnp.where(slope > 0, search.low, search.at)
        high = jnp.where(slope > 0, search.at, search.high)
        newton = search.at - slope / curve  # 0 / 0 where all is saturated: not a number, and so not taken
        fast = (low <= newton) & (newton <= high) & (jnp.abs(2 * slope) <= jnp.abs(search.step * curve))
        following = jnp.where(fast, newton, (low + high) / 2)
        return _Search(low, high, following, following - search.at, search.done + 1)

    far = lambda search: (jnp.abs(search.step) > _CLOSE) & (search.done < _STEPS)
    low, high = (-jnp.log(jnp.asarray(end, logits.dtype)) for end in (MOST, LEAST))
    start = _Search(low, high, jnp.zeros_like(low), high - low, jnp.zeros((), jnp.int32))
    return jnp.exp(-lax.while_loop(far, narrow, start).at)
