"""Confidence intervals of proportions, means, differences and areas under ROC curves, and a general `bootstrap`.

Each formula was chosen by its simulated coverage at 200 and 2,000 samples (`benchmarks/bench_risk.py`). A figure is
always inside its own interval. If there are too few samples for an interval with its nominal coverage, its ends are
NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax

from jaxprune import _tree

Array = jax.Array
PyTree = Any
FEW = 5
"""With fewer wrong answers than this a mean loss has no interval: the errors that were not seen would decide it."""


class Interval(NamedTuple):
    """A figure with its confidence interval; each field has the structure of the statistic.

    Attributes:
      estimate: the statistic of the samples as they are.
      low: the lower end.
      high: the upper end.
    """

    estimate: PyTree
    low: PyTree
    high: PyTree


class Difference(NamedTuple):
    """A difference of two models with the interval and the p-value of one test.

    Attributes:
      interval: the difference with its interval, which excludes 0 exactly where `p_value` <= 1 - confidence.
      p_value: the two-sided p-value of the hypothesis of no difference; NaN if it cannot be computed.
    """

    interval: Interval
    p_value: float


def proportion(share: float, samples: float, confidence: float = 0.95) -> Interval:
    """Computes the score interval of a proportion (Wilson 1927): 96.3 to 100 % for 100 right answers of 100.

    Args:
      share: the proportion in the samples, in [0, 1].
      samples: the number of samples, more than 0. If each sample has several answers, pass the number of
        independent answers whose mean would vary as much.
      confidence: in (0, 1).

    Returns:
      The interval, inside [0, 1].

    Example:
      >>> [round(end, 3) for end in proportion(1.0, 100)]
      [1.0, 0.963, 1.0]
    """
    z = scipy.special.ndtri((1 + confidence) / 2)
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * np.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    return Interval(share, float(np.clip(centre - half, 0, share)), float(np.clip(centre + half, share, 1)))


def mean(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Computes the interval of a mean from Student's t without its skewness (Hall 1992, JRSS B 54(1), eq. 2.4).

    Losses are skewed: most are small and a few are large. The plain t interval is then too low, and the percentile
    bootstrap is lower still.

    Args:
      values: (n,). If there are fewer than two values, or a value is infinite, there is no interval.
      confidence: in (0, 1).

    Returns:
      The interval; its ends are NaN if it cannot be computed. If all values are equal, the interval has no width.

    Example:
      >>> [round(end, 2) for end in mean(np.array([0.0, 0.0, 1.0, 0.0, 5.0, 0.0, 1.0, 0.0]))]
      [0.88, -0.09, 5.85]
    """
    values = np.asarray(values, np.float64)
    n, centre = values.size, float(values.mean())
    if n < 2 or not np.isfinite(values).all():
        return Interval(centre, np.nan, np.nan)
    deviations = values - centre
    spread = float((deviations**2).mean())
    if _is_constant(spread, centre):
        return Interval(centre, centre, centre)
    error = np.sqrt(spread / (n - 1))
    skew = float((deviations**3).mean()) / spread**1.5 / np.sqrt(n)  # the skewness of the mean
    # t + skew t^2 / 3 + skew^2 t^3 / 27 + skew / 6 is monotone in t, and its distribution is not skewed.
    root = lambda u: 3 / skew * (np.cbrt(1 + skew * u) - 1) if abs(skew) > 1e-9 else u
    quantile = float(scipy.special.stdtrit(n - 1, (1 + confidence) / 2))
    low, high = (centre - error * root(end - skew / 6) for end in (quantile, -quantile))
    return Interval(centre, float(min(low, centre)), float(max(high, centre)))


def mean_difference(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator, confidence: float = 0.95, draws: int = 999
) -> Difference:
    """Computes how much the mean loss of a second model exceeds the mean loss of the first on the same samples.

    The symmetric bootstrap of Student's t gives both the interval and the p-value: |t| of the resampled differences is
    the null distribution of |t| (Hall 1988, JRSS B 50(1)). Differences of losses may be skewed (a few samples are lost)
    or have heavy tails on both sides. This interval has its nominal coverage in both cases. A plain t interval is too
    short for skewed differences, and an interval corrected for skewness is too short for heavy tails.

    Args:
      first: a loss of each sample, (n,).
      second: the losses of the other model, (n,).
      rng: the generator that draws the resamples.
      confidence: the confidence of the interval, in (0, 1).
      draws: the number of resamples.

    Returns:
      The difference second - first. Its ends and its p-value are NaN if a loss is infinite. Only its ends are NaN if
      too few samples differ.

    Example:
      >>> losses, rng = np.arange(20.0), np.random.default_rng(0)
      >>> mean_difference(losses, losses, rng)
      Difference(interval=Interval(estimate=0.0, low=0.0, high=0.0), p_value=1.0)
    """
    with np.errstate(invalid="ignore"):
        values = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    n, centre = values.size, float(values.mean())
    if n < 2 or not np.isfinite(values).all():
        return Difference(Interval(centre, np.nan, np.nan), np.nan)
    if _is_constant(float(values.var()), centre):
        return Difference(Interval(centre, centre, centre), 1.0 if centre == 0 else 0.0)
    error = np.sqrt(values.var() / (n - 1))
    drawn, rows = [], max(1, 1_000_000 // n)
    for start in range(0, draws, rows):
        again = (values - centre)[rng.integers(0, n, (min(rows, draws - start), n), np.int32)]
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(np.abs(again.mean(1)) / np.sqrt(again.var(1) / (n - 1)))
    sizes = np.concatenate(drawn)
    sizes = np.sort(np.where(np.isnan(sizes), np.inf, sizes))  # 0 / 0: all resampled differences are equal
    # With the same rank for both, the interval excludes 0 exactly where the p-value is small.
    rank = int(np.ceil(confidence * (draws + 1) - 1e-9))
    reach = error * sizes[rank - 1] if rank <= draws else np.inf
    p_value = (1 + (sizes >= abs(centre) / error).sum()) / (1 + draws)
    ends = (centre - reach, centre + reach) if np.isfinite(reach) else (np.nan, np.nan)
    return Difference(Interval(centre, float(ends[0]), float(ends[1])), float(p_value))


def _is_constant(variance: float, centre: float) -> bool:
    return variance <= (1e-12 * max(abs(centre), 1e-30)) ** 2


def paired_difference(gains: int, losses: int, samples: int, confidence: float = 0.95) -> Difference:
    """Computes how much more often a second model is right than the first on the same samples.

    The p-value is McNemar's mid-p value (Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91). The
    interval is Tango's score interval (1998, Stat Med 17), extended to 0 if McNemar's test does not reject.

    Args:
      gains: the number of samples that only the second model classifies correctly.
      losses: the number of samples that only the first model classifies correctly.
      samples: the number of all samples, more than 0.
      confidence: the confidence of the interval, in (0, 1).

    Returns:
      The difference of the two accuracies.

    Example:
      >>> found = paired_difference(2, 12, 100)
      >>> [round(end, 3) for end in found.interval], round(found.p_value, 4)
      ([-0.1, -0.182, -0.031], 0.0074)
    """
    net, unequal = gains - losses, gains + losses
    least = min(gains, losses)
    tie = scipy.special.bdtr(least, unequal, 0.5) - (scipy.special.bdtr(least - 1, unequal, 0.5) if least else 0.0)
    p_value = min(1.0, 2 * scipy.special.bdtr(least, unequal, 0.5) - tie) if unequal else 1.0
    z = scipy.special.ndtri((1 + confidence) / 2)

    def score(at: float) -> float:
        linear = (2 * samples - net) * at - unequal
        other = (np.sqrt(max(linear**2 + 8 * samples * losses * at * (1 - at), 0.0)) - linear) / (4 * samples)
        spread = samples * (2 * other + at * (1 - at))
        far = net - samples * at
        return far / np.sqrt(spread) if spread > 0 else 0.0 if far == 0 else np.copysign(np.inf, far)

    estimate = net / samples
    low, high = _bisect(lambda at: score(at) > z, -1.0, estimate), _bisect(lambda at: score(at) > -z, estimate, 1.0)
    if p_value > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(Interval(estimate, min(low, estimate), max(high, estimate)), float(p_value))


def independent_difference(first: Interval, second: Interval) -> Interval:
    """Computes the difference first - second of two figures of different samples, from their intervals.

    Newcombe 1998 (Stat Med 17, method 10), for any figures (Zou and Donner 2008, "MOVER").

    Args:
      first: a figure with its interval.
      second: another figure, with the same confidence.

    Returns:
      The difference; its ends are NaN where one of the two figures has no interval.

    Example:
      >>> [round(end, 3) for end in independent_difference(proportion(0.9, 100), proportion(0.8, 100))]
      [0.1, 0.0, 0.199]
    """
    estimate = first.estimate - second.estimate
    low = estimate - np.hypot(first.estimate - first.low, second.high - second.estimate)
    high = estimate + np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate, float(low), float(high))


def area_under_roc(known: np.ndarray, foreign: np.ndarray, confidence: float = 0.95) -> Interval:
    """Computes the area under the ROC curve for foreign against known samples, with its interval.

    The interval is the score interval of Newcombe (2006, Stat Med 25, method 5), with its variance scaled to that of
    DeLong et al. (1988, Biometrics 44). If fewer than `FEW` samples are out of order, or have another score than the
    most frequent score, the variance is not scaled down: the few would give an interval of hardly any width.

    Args:
      known: scores of known samples, (n,).
      foreign: scores of foreign samples, (m,); larger than the known scores if the model detects foreign samples.
      confidence: in (0, 1).

    Returns:
      The area in [0, 1] with its interval.

    Example:
      >>> [round(end, 3) for end in area_under_roc(np.arange(50.0), np.arange(50.0) + 30)]
      [0.92, 0.841, 0.96]
    """
    known, foreign = np.asarray(known, np.float64), np.asarray(foreign, np.float64)
    m, n = known.size, foreign.size
    below, upto = (np.searchsorted(np.sort(known), foreign, side) for side in ("left", "right"))
    of_foreign = (below + upto) / (2 * m)
    below, upto = (np.searchsorted(np.sort(foreign), known, side) for side in ("left", "right"))
    of_known = 1 - (below + upto) / (2 * n)
    area, middle = float(of_foreign.mean()), (m + n) / 2 - 1

    def variance(at: float) -> float:
        return at * (1 - at) * (1 + middle * ((1 - at) / (2 - at) + at / (1 + at))) / (m * n)

    scale = 1.0
    if min(m, n) > 1 and variance(area) > 0:
        scale = (of_foreign.var(ddof=1) / n + of_known.var(ddof=1) / m) / variance(area)
    untied = m + n - int(np.unique(np.concatenate([known, foreign]), return_counts=True)[1].max())
    if min(area, 1 - area) * min(m, n) < FEW or untied < FEW:
        scale = max(scale, 1.0)
    z = scipy.special.ndtri((1 + confidence) / 2)
    beyond = lambda at: (area - at) ** 2 > z * z * scale * variance(at)
    low = _bisect(beyond, 0.0, area)
    high = _bisect(lambda at: not beyond(at), area, 1.0)
    return Interval(area, min(low, area), max(high, area))


def generator(key: Array) -> np.random.Generator:
    """Returns a NumPy generator whose draws depend only on a JAX key."""
    _tree.check_key(key, needed_by="this")
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.default_rng(np.asarray(data).ravel().tolist())


def bootstrap(
    statistic: Callable[..., PyTree],
    *samples: Any,
    key: Array,
    resamples: int = 1000,
    confidence: float = 0.95,
    batch: int = 16,
    strata: Any = None,
    skip_nan: bool = False,
) -> Interval:
    """Computes the percentile bootstrap (Efron 1979): the statistic of samples drawn again with replacement.

    All arrays are resampled together, so the difference between two models on the same samples is a paired comparison:
    `bootstrap(lambda a, b, y: evaluate(a, y).nll - evaluate(b, y).nll, ...)` differs beyond noise where the interval
    excludes 0. To compare different samples, such as training with test images, pass tuples of arrays: each tuple is
    one group, and the groups are resampled independently.

    The percentile bootstrap suits smooth statistics of a few hundred samples or more. It does not suit proportions
    near 0 or 1 (if 100 of 100 answers are right, so are all resamples, and the interval has no width), nor biased
    statistics such as calibration errors: `risk_report` has better intervals for accuracies, losses, areas and
    calibration errors.

    Args:
      statistic: a function of the arrays, in the order in which they are passed; traceable. It returns a scalar or a
        tree of arrays, such as `evaluate` does.
      *samples: arrays with the samples on their first axis, or tuples of arrays, one tuple for each group of samples.
      key: a JAX key; the same key gives the same interval.
      resamples: the number of times samples are drawn, static; default 1000.
      confidence: in (0, 1); default 0.95.
      batch: the number of resamples computed at once; memory grows with this number, the result does not depend on it.
      strata: integers (n,), concrete: each resample has as many samples of each stratum as the data, so every class
        keeps its size. None (default) for one stratum. Strata do not work with several groups.
      skip_nan: whether a value that is NaN in some resamples, such as the accuracy in an empty bin, gets its interval
        from the other resamples; by default its interval is NaN.

    Returns:
      The estimate, and the (1 - confidence)/2 and (1 + confidence)/2 quantiles.

    Raises:
      ValueError: arrays have different lengths or no sample, `strata` has another length, there are fewer than 2
        resamples, or the confidence is outside (0, 1).

    Example:
      >>> interval = bootstrap(jnp.mean, jnp.arange(100.0), key=jax.random.key(0))
      >>> float(interval.estimate), bool((interval.low < 49.5) & (49.5 < interval.high))
      (49.5, True)
      >>> gap = lambda a, b: a.mean() - b.mean()
      >>> found = bootstrap(gap, (jnp.arange(50.0),), (jnp.arange(90.0),), key=jax.random.key(0), resamples=99)
      >>> float(found.estimate), bool(found.low < -20 < found.high)
      (-20.0, True)
    """
    apart = bool(samples) and all(isinstance(each, tuple) for each in samples)
    groups = _checked(samples if apart else (samples,), resamples, confidence)
    bounds = None
    if strata is not None:
        n = groups[0][0].shape[0]
        if len(groups) > 1 or np.shape(strata) != (n,):
            raise ValueError(f"strata must have one number a sample of one group, {(n,)}; got {np.shape(strata)}")
        bounds = _bounds(np.asarray(strata))
    drawn = _resample(statistic, resamples, batch, key, groups, bounds)
    ends = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    quantile = jnp.nanquantile if skip_nan else jnp.quantile
    low, high = (jax.tree.map(lambda x, end=end: quantile(x, end, axis=0), drawn) for end in ends)
    return Interval(statistic(*(x for group in groups for x in group)), low, high)


def _checked(groups: Any, resamples: int, confidence: float) -> tuple[tuple[Array, ...], ...]:
    if any(callable(x) for group in groups for x in group):
        raise TypeError("samples must be arrays; got a function: statistic comes first, bootstrap(statistic, samples)")
    made = tuple(tuple(map(jnp.asarray, group)) for group in groups)
    for arrays in made:
        lengths = {x.shape[0] if x.ndim else None for x in arrays}
        if len(lengths) != 1 or lengths & {None, 0}:
            raise ValueError(f"samples must have one length on their first axis; got {[x.shape for x in arrays]}")
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be 2 or more and confidence in (0, 1); got {resamples} and {confidence}")
    return made


def _bounds(strata: np.ndarray) -> tuple[Array, Array, Array]:
    """Returns the samples in the order of their strata; for each sample the first place and the size of its stratum."""
    order = np.argsort(strata, kind="stable")
    _, first, index, count = np.unique(strata[order], return_index=True, return_inverse=True, return_counts=True)
    return jnp.asarray(order), jnp.asarray(first[index]), jnp.asarray(count[index])


@partial(jax.jit, static_argnums=(0, 1, 2))
def _resample(
    statistic: Callable[..., PyTree],
    resamples: int,
    batch: int,
    key: Array,
    groups: tuple[tuple[Array, ...], ...],
    bounds: tuple[Array, Array, Array] | None,
) -> PyTree:
    def rows(key: Array, n: int) -> Array:
        if bounds is None:
            return jax.random.randint(key, (n,), 0, n)
        order, first, count = bounds
        return order[first + jax.random.randint(key, (n,), 0, count)]

    def once(key: Array) -> PyTree:
        # Each group gets its own key; a single group uses the key itself.
        keys = [key] if len(groups) == 1 else jax.random.split(key, len(groups))
        drawn = [(rows(k, group[0].shape[0]), group) for k, group in zip(keys, groups, strict=True)]
        return statistic(*(x[chosen] for chosen, group in drawn for x in group))

    # A batch that divides the resamples needs no second compilation for the remainder; unless it is much smaller.
    batch = min(batch, resamples)
    even = max(size for size in range(1, batch + 1) if resamples % size == 0)
    return lax.map(once, jax.random.split(key, resamples), batch_size=even if 2 * even >= batch else batch)


def _bisect(left: Callable[[float], Any], low: float, high: float) -> float:
    """Finds the largest point at which a predicate holds, if it holds at all smaller points."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) else (low, middle)
    return high
