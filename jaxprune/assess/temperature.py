"""Temperature scaling: one number, fitted on held-out data, that makes confidences mean what they say."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.assess import predictions

Array = jax.Array
LEAST, MOST = 1e-3, 1e3
_HALVINGS = 60


def fit_temperature(logits: Any, labels: Any) -> Array:
    """The T that minimises the negative log-likelihood of softmax(logits / T).

    Guo et al. 2017 (arXiv:1706.04599, section 4.2). In b = 1/T the mean loss is convex, with derivative
    mean(E_p[z] - z_y); its root is found by bisection of log b. Accuracy does not change.

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


@jax.jit
def _fit(logits: Array, labels: Array) -> Array:
    logits = logits - logits.max(1, keepdims=True)
    label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def slope(b: Array) -> Array:
        p = jax.nn.softmax(b * logits, axis=1)
        return (jnp.where(p > 0, p * logits, 0).sum(1) - label).mean()  # an excluded class: p = 0 of -inf

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        rising = slope(jnp.exp(middle)) > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    bounds = (-jnp.log(jnp.asarray(MOST, logits.dtype)), -jnp.log(jnp.asarray(LEAST, logits.dtype)))
    low, high = lax.fori_loop(0, _HALVINGS, halve, bounds)
    return jnp.exp(-(low + high) / 2)
