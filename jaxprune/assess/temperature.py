"""Temperature scaling: one number, fitted on held-out data, that makes confidences mean what they say."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.assess import predictions

Array = jax.Array
LEAST, MOST = 1e-3, 1e3
_STEPS, _CLOSE = 60, 1e-6


def fit_temperature(logits: Any, labels: Any) -> Array:
    """The T that minimises the negative log-likelihood of softmax(logits / T).

    Guo et al. 2017 (arXiv:1706.04599, section 4.2). In b = 1/T the mean loss is convex, with derivative
    mean(E_p[z] - z_y); its root is found in log b by Newton's method, halving the bracket where a step is not at most
    half the last one (Press et al. 2007, Numerical Recipes, section 9.4, rtsafe), to a part in a million. Accuracy does
    not change. A few steps do, so that `bootstrap(fit_temperature, logits, labels, key=key)` is cheap.

    Args:
      logits: (n, classes) of data that neither trained the model nor will judge it.
      labels: integers, (n,).

    Returns:
      A scalar in [0.001, 1000]. It is the least where every sample is right, and the most where the logits speak
      against the labels: then the likelihood has no maximum, and more held-out data are needed.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`.

    Example:
      >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
      >>> round(float(fit_temperature(logits, jnp.array([0, 0, 0, 1]))), 3)  # 4 / log(3)
      3.641
    """
    return _fit(*predictions.check(logits, labels))


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
