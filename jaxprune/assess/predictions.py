"""What metrics are computed from: logits and labels, checked where their values can be seen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array


def check(logits: Any, labels: Any) -> tuple[Array, Array]:
    """Logits (n, classes) in float32 at least, and labels (n,), after checks.

    Shapes and dtypes are checked always, values only where they are concrete: inside jit they cannot be seen.

    Args:
      logits: floating, (n, classes); -inf excludes a class.
      labels: integers in [0, classes), (n,).

    Returns:
      Both as arrays.

    Raises:
      TypeError: labels are not integers or logits not floating.
      ValueError: shapes do not fit, no sample, fewer than two classes, NaN or +inf, labels out of range.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floating; got {logits.dtype}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, one class index a sample; got {labels.dtype}")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must have shape (n, classes) and labels (n,); got {logits.shape} and {labels.shape}. "
            "Reshape further axes into the first; turn one-hot labels into indices with argmax"
        )
    if logits.shape[0] == 0 or logits.shape[1] < 2:
        raise ValueError(f"metrics need a sample and two classes; logits have shape {logits.shape}")
    if not isinstance(logits, Tracer):
        _check_logits(np.asarray(logits))
    if not isinstance(labels, Tracer):
        check_labels(np.asarray(labels), logits.shape[1])
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels


def logits_of(probabilities: Any) -> Array:
    """Probabilities as logits: their logarithms, which the softmax takes back to them.

    Args:
      probabilities: (n, classes), each row summing to one.

    Returns:
      Logits in float32 at least; -inf where the probability is 0.

    Raises:
      TypeError: not floating.
      ValueError: not a matrix; where values are concrete: NaN, negative, or a row that does not sum to one within
        100 machine epsilons of the dtype times the square root of the number of classes.

    Example:
      >>> logits_of(jnp.array([[0.25, 0.75], [1.0, 0.0]])).tolist()[1]
      [0.0, -inf]
    """
    probabilities = jnp.asarray(probabilities)
    if not jnp.issubdtype(probabilities.dtype, jnp.floating):
        raise TypeError(f"probabilities must be floating; got {probabilities.dtype}")
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities must have shape (n, classes); got {probabilities.shape}")
    if not isinstance(probabilities, Tracer):
        _check_probabilities(probabilities)
    return jnp.log(probabilities.astype(jnp.promote_types(probabilities.dtype, jnp.float32)))


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises ValueError if a label is not in [0, classes)."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"labels must lie in [0, {classes}), the number of columns of the logits; "
            f"{int(wrong.sum())} do not, the first at {first}: {int(labels[first])}"
        )


def _check_logits(logits: np.ndarray) -> None:
    values = logits.astype(np.float64)
    wrong = np.isnan(values).any(1) | np.isposinf(values).any(1) | np.isneginf(values).all(1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"logits hold NaN, +inf or nothing but -inf in {int(wrong.sum())} of {len(values)} samples, "
            f"the first at {first}: {logits[first][:8]}"
        )


def _check_probabilities(probabilities: Array) -> None:
    values = np.asarray(probabilities).astype(np.float64)
    tolerance = 100 * float(jnp.finfo(probabilities.dtype).eps) * max(1, values.shape[1]) ** 0.5
    off = ~(np.abs(values.sum(1) - 1) <= tolerance)  # so that NaN is off too
    wrong = off | (values < 0).any(1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"each row of probabilities must be non-negative and sum to one within {tolerance:.1g}; "
            f"{int(wrong.sum())} of {len(values)} do not, the first at {first}: sum {values[first].sum():.6g}. "
            "Pass logits as they are, without probabilities=True"
        )
