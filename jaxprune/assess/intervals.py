"""How sure a figure is: bootstrap confidence intervals of anything computed from samples."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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

    Returns:
      The estimate, and the (1 - confidence)/2 and (1 + confidence)/2 quantiles.

    Raises:
      ValueError: arrays of different lengths or none, fewer than 2 resamples, a confidence outside (0, 1).

    Example:
      >>> import jax
      >>> interval = bootstrap(jnp.mean, jnp.arange(100.0), key=jax.random.key(0))
      >>> float(interval.estimate), bool((interval.low < 49.5) & (49.5 < interval.high))
      (49.5, True)
    """
    arrays = tuple(map(jnp.asarray, samples))
    lengths = {x.shape[0] if x.ndim else None for x in arrays}
    if len(lengths) != 1 or lengths & {None, 0}:
        raise ValueError(f"samples must have one length on their first axis; got {[x.shape for x in arrays]}")
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"needs 2 resamples and a confidence in (0, 1); got {resamples} and {confidence}")
    drawn = _resample(statistic, resamples, batch, key, arrays)
    ends = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = (jax.tree.map(lambda x, k=k: jnp.quantile(x, ends[k], axis=0), drawn) for k in (0, 1))
    return Interval(statistic(*arrays), low, high)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _resample(
    statistic: Callable[..., PyTree], resamples: int, batch: int, key: Array, arrays: tuple[Array, ...]
) -> PyTree:
    n = arrays[0].shape[0]

    def once(key: Array) -> PyTree:
        drawn = jax.random.randint(key, (n,), 0, n)
        return statistic(*(x[drawn] for x in arrays))

    return lax.map(once, jax.random.split(key, resamples), batch_size=min(batch, resamples))
