"""What the scores of features check at the door: samples and their targets, where values can be seen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array


def samples(x: Any, *, what: str = "x", least: int = 2) -> Array:
    """Samples as a matrix in float32 at least.

    Args:
      x: (n, features), numbers.
      what: what it is, for messages.
      least: the fewest samples that make sense.

    Returns:
      The array.

    Raises:
      ValueError: not a matrix, too few samples, no feature, or, where values are concrete, NaN or infinite ones.
    """
    found = jnp.asarray(x)
    if found.ndim != 2 or found.shape[0] < least or found.shape[1] < 1:
        raise ValueError(
            f"{what} must have shape (n, features) with n of {least} or more; got {found.shape}. "
            "Flatten images to one row each"
        )
    found = found.astype(jnp.promote_types(found.dtype, jnp.float32))
    if not isinstance(found, Tracer):
        wrong = np.asarray(~np.isfinite(np.asarray(found)).all(0))
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"{what} holds NaN or infinite values in {int(wrong.sum())} of {len(wrong)} features, the first is "
                f"feature {first}; fill or drop them first"
            )
    return found


def targets(y: Any, n: int) -> Array:
    """Targets as a matrix: one column for a number or two classes, one for each of several columns.

    Args:
      y: (n,) or (n, targets), numbers; several classes one-hot.
      n: the number of samples.

    Returns:
      (n, targets) in float32 at least.

    Raises:
      ValueError: another number of samples, or what `samples` raises.
    """
    found = jnp.asarray(y)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or found.shape[0] != n:
        raise ValueError(f"y must have shape ({n},) or ({n}, targets), one row for each sample; got {found.shape}")
    return samples(found, what="y")


def scores(values: Any, *, what: str = "scores") -> np.ndarray:
    """Scores of features as a vector of numbers.

    Raises:
      ValueError: not a vector, empty, or holding NaN.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not found.size or np.isnan(found).any():
        raise ValueError(f"{what} must be a vector, one number a feature, none of them NaN; got shape {found.shape}")
    return found


def similarity(values: Any) -> np.ndarray:
    """A similarity between features as a matrix of numbers.

    Raises:
      ValueError: not square, not symmetric, or holding NaN.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or np.isnan(found).any():
        raise ValueError(f"similarity must be (features, features) without NaN; got shape {found.shape}")
    if not np.allclose(found, found.T, atol=1e-5):
        raise ValueError("similarity must be symmetric: of i to j as of j to i")
    return found
