"""Two models on the same samples: do they differ beyond chance, where, and on what."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune.assess import predictions, scores

Array = jax.Array


class McNemar(NamedTuple):
    """McNemar's exact test.

    Attributes:
      only_first: samples that only the first model gets right.
      only_second: samples that only the second model gets right.
      p_value: the probability of counts at least as unequal if both models are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Any, second: Any, labels: Any) -> McNemar:
    """Whether two models differ in accuracy: McNemar's test (1947) in its exact, binomial form, two-sided.

    Args:
      first: logits (n, classes) of one model.
      second: logits (n, classes) of the other.
      labels: integers, (n,).

    Returns:
      The counts and the p-value, on the host.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; and logits of different shapes.

    Example:
      >>> right, wrong = jnp.array([[1.0, 0.0]] * 6), jnp.array([[0.0, 1.0]] * 6)
      >>> mcnemar(right, wrong, jnp.zeros(6, int))  # p = 2 / 2**6
      McNemar(only_first=6, only_second=0, p_value=0.03125)
    """
    first, second, labels = _pair(first, second, labels)
    a, b = (np.asarray(scores.correct(logits, labels)) for logits in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n, least = only_first + only_second, min(only_first, only_second)
    term, tail = 1, 0  # binomial coefficients as integers: exact however many samples
    for k in range(least + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def sign_flip_test(first_losses: Any, second_losses: Any, *, key: Array, flips: int = 9999) -> Array:
    """Whether two models differ in the mean of any loss: the paired randomisation test (Fisher 1935), two-sided.

    If the models are equally good, each sample's difference could as well have the other sign. The p-value is
    (1 + how many random flips give a mean difference at least as large) / (1 + flips).

    Args:
      first_losses: a loss of each sample, (n,), such as `log_losses(logits, labels)`.
      second_losses: that of the other model, (n,).
      key: a JAX key.
      flips: how many random flips, static.

    Returns:
      The p-value, a scalar.

    Raises:
      ValueError: shapes differ or hold no sample; where values are concrete, NaN or inf.

    Example:
      >>> import jax
      >>> losses = jnp.arange(20.0)
      >>> round(float(sign_flip_test(losses, losses + 1.0, key=jax.random.key(0), flips=999)), 4)
      0.001
    """
    first, second = jnp.asarray(first_losses), jnp.asarray(second_losses)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"losses must have one shape (n,) with a sample; got {first.shape} and {second.shape}")
    difference = first - second
    if not isinstance(difference, Tracer) and not np.isfinite(np.asarray(difference, np.float64)).all():
        raise ValueError("losses hold NaN or inf: no mean to compare")
    return _sign_flip(difference.astype(jnp.promote_types(difference.dtype, jnp.float32)), key, flips)


def log_losses(logits: Any, labels: Any) -> Array:
    """The negative log-likelihood of each sample, checked, (n,)."""
    return scores.log_losses(*predictions.check(logits, labels))


def brier_losses(logits: Any, labels: Any) -> Array:
    """The Brier score of each sample, checked, (n,)."""
    return scores.brier_losses(*predictions.check(logits, labels))


def _pair(first: Any, second: Any, labels: Any) -> tuple[Array, Array, Array]:
    first, checked = predictions.check(first, labels)
    second, _ = predictions.check(second, labels)
    if first.shape != second.shape:
        raise ValueError(f"both models need logits of one shape; got {first.shape} and {second.shape}")
    return first, second, checked


@partial(jax.jit, static_argnums=2)
def _sign_flip(difference: Array, key: Array, flips: int) -> Array:
    size = jnp.abs(difference.sum())

    def larger(key: Array) -> Array:
        signs = jax.random.rademacher(key, difference.shape, difference.dtype)
        # A flip of all signs gives the same sum but for rounding, and must count as at least as large.
        return jnp.abs((signs * difference).sum()) >= size * (1 - 1e-6)

    return (1 + lax.map(larger, jax.random.split(key, flips), batch_size=64).sum()) / (1 + flips)
