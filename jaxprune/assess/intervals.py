"""How sure a figure is: bootstrap confidence intervals of anything computed from samples."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
PyTree = Any


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
    """The percentile bootstrap (Efron 1979): the statistic of samples drawn again with replacement.

    All arrays are resampled together, so that the difference between two models on the same samples is a paired
    comparison: `bootstrap(lambda a, b, y: evaluate(a, y).nll - evaluate(b, y).nll, ...)` differs beyond noise
    where the interval excludes 0.

    Args:
      statistic: a function of the arrays, traceable, returning a scalar or a tree of arrays, such as `evaluate`.
      *samples: arrays with the samples on their first axis.
      key: a JAX key; the same key gives the same interval.
      resamples: how many times samples are drawn, static.
      confidence: in (0, 1).
      batch: how many resamples are computed at once; memory grows with it, the result does not depend on it.
      strata: integers (n,), concrete: samples are drawn within each stratum, as many as it has, so that every class
        stays as large as it is. None for one stratum.
      skip_nan: whether a value that is NaN in some resamples, such as the accuracy in a bin that was left empty, gets
        its interval from the others; without it such an interval is NaN.

    Returns:
      The estimate, and the (1 - confidence)/2 and (1 + confidence)/2 quantiles.

    Raises:
      ValueError: arrays of different lengths or none, strata of another length, fewer than 2 resamples, a confidence
        outside (0, 1).

    Example:
      >>> interval = bootstrap(jnp.mean, jnp.arange(100.0), key=jax.random.key(0))
      >>> float(interval.estimate), bool((interval.low < 49.5) & (49.5 < interval.high))
      (49.5, True)
    """
    [group] = _checked([samples], resamples, confidence)
    n = group[0].shape[0]
    if strata is not None and np.shape(strata) != (n,):
        raise ValueError(f"strata must have one number a sample, {(n,)}; got {np.shape(strata)}")
    bounds = None if strata is None else _bounds(np.asarray(strata))
    drawn = _resample(statistic, resamples, batch, key, (group,), bounds)
    return Interval(statistic(*group), *_quantiles(drawn, confidence, skip_nan))


def bootstrap_apart(
    statistic: Callable[..., PyTree],
    *groups: tuple[Any, ...],
    key: Array,
    resamples: int = 1000,
    confidence: float = 0.95,
    batch: int = 16,
) -> Interval:
    """The percentile bootstrap of several groups of samples, each drawn again by itself.

    For what compares different samples: the training with the test images, known with foreign ones.

    Args:
      statistic: a function of the arrays of the first group, then those of the second, and so on; traceable.
      *groups: tuples of arrays; those of one group have the same samples on their first axis.
      key: a JAX key.
      resamples: as in `bootstrap`.
      confidence: as in `bootstrap`.
      batch: as in `bootstrap`.

    Returns:
      The estimate and its ends.

    Raises:
      ValueError: see `bootstrap`.

    Example:
      >>> gap = lambda a, b: a.mean() - b.mean()
      >>> found = bootstrap_apart(gap, (jnp.arange(50.0),), (jnp.arange(90.0),), key=jax.random.key(0), resamples=99)
      >>> float(found.estimate), bool(found.low < -20 < found.high)
      (-20.0, True)
    """
    checked = tuple(_checked(groups, resamples, confidence))
    drawn = _resample(statistic, resamples, batch, key, checked, None)
    return Interval(statistic(*(x for group in checked for x in group)), *_quantiles(drawn, confidence))


def _checked(groups: Any, resamples: int, confidence: float) -> list[tuple[Array, ...]]:
    made = [tuple(map(jnp.asarray, group)) for group in groups]
    for arrays in made:
        lengths = {x.shape[0] if x.ndim else None for x in arrays}
        if len(lengths) != 1 or lengths & {None, 0}:
            raise ValueError(f"samples must have one length on their first axis; got {[x.shape for x in arrays]}")
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"needs 2 resamples and a confidence in (0, 1); got {resamples} and {confidence}")
    return made


def _bounds(strata: np.ndarray) -> tuple[Array, Array, Array]:
    """The samples in the order of their strata; where that of each begins, and how many it has."""
    order = np.argsort(strata, kind="stable")
    _, first, index, count = np.unique(strata[order], return_index=True, return_inverse=True, return_counts=True)
    return jnp.asarray(order), jnp.asarray(first[index]), jnp.asarray(count[index])


def _quantiles(drawn: PyTree, confidence: float, skip_nan: bool = False) -> tuple[PyTree, PyTree]:
    ends = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    quantile = jnp.nanquantile if skip_nan else jnp.quantile
    low, high = (jax.tree.map(lambda x, k=k: quantile(x, ends[k], axis=0), drawn) for k in (0, 1))
    return low, high


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
        # Each group needs a key of its own; a single one takes the key itself.
        keys = [key] if len(groups) == 1 else jax.random.split(key, len(groups))
        drawn = [(rows(k, group[0].shape[0]), group) for k, group in zip(keys, groups, strict=True)]
        return statistic(*(x[chosen] for chosen, group in drawn for x in group))

    return lax.map(once, jax.random.split(key, resamples), batch_size=_even(batch, resamples))


def _even(batch: int, resamples: int) -> int:
    """The largest batch without a remainder, which would be compiled a second time; unless it is much smaller."""
    batch = min(batch, resamples)
    even = max(size for size in range(1, batch + 1) if resamples % size == 0)
    return even if 2 * even >= batch else batch
