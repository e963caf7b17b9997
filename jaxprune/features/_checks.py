"""Checks of samples, targets, scores and similarities, shared by the functions that score features."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import dtypes
from jax.core import Tracer

Array = jax.Array


def samples(x: Any, *, what: str = "x", least: int = 2) -> Array:
    """Checks samples and returns them as a matrix in float32 or wider.

    Args:
      x: (n, features) numbers.
      what: the name of the argument, for the error.
      least: the smallest number of samples that is accepted.

    Returns:
      (n, features).

    Raises:
      ValueError: `x` is not a matrix, has too few samples or no feature, or contains NaN or infinite values. Values are
        checked only outside jit, where they are concrete.
    """
    matrix = jnp.asarray(x)
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    _check_samples(matrix, what, least)
    return matrix


def shifted(x: Any, *, what: str = "x") -> tuple[Any, Any]:
    """Checks samples, subtracts the first sample, and scales each column to a largest magnitude of about 1.

    For scores that do not depend on the units of the columns: float32 holds neither the squares of very large and small
    numbers nor the differences between seconds since 1970. Concrete samples are shifted in float64, and scaled by
    powers of two, so that equal values stay equal.

    Args:
      x: (n, features) numbers.
      what: the name of the argument, for the error.

    Returns:
      (n, features), in NumPy float64 if the samples are concrete, and the dtype in which to compute.

    Raises:
      ValueError: see `samples`.
    """
    if isinstance(x, Tracer):
        x = samples(x, what=what)
        x = _unit(x)
        return _unit(x - x[0]), x.dtype
    wide = _on_host(x, what)
    scaled = lambda x: np.ldexp(x, -np.frexp(np.abs(x).max(0))[1])
    wide = scaled(wide)
    return scaled(wide - wide[0]), jnp.promote_types(dtypes.canonicalize_dtype(np.asarray(x).dtype), jnp.float32)


def ordered(x: Any, *, what: str = "x") -> Array:
    """Checks samples for scores that use only the order of values: columns wider than float32 become ranks."""
    if not isinstance(x, Tracer) and not np.can_cast(np.asarray(x).dtype, np.float32):
        x = scipy.stats.rankdata(_on_host(x, what), axis=0)
    return samples(x, what=what)


def is_classes(y: Any) -> bool:
    """Returns whether targets are class labels: an integer, a boolean or a string for each sample."""
    if not hasattr(y, "dtype"):
        y = np.asarray(y)
    return y.ndim == 1 and not jnp.issubdtype(y.dtype, jnp.floating)


def classes(y: Any, n: int) -> tuple[Array, int]:
    """Numbers class labels from 0 in ascending order of the labels.

    Args:
      y: (n,) integers, booleans or strings.
      n: the number of samples.

    Returns:
      (n,) int32 class numbers, and the number of classes; under jit, where labels are unknown, the bound n.

    Raises:
      ValueError: `y` has another shape, or every sample is a different class (checked outside jit).
    """
    if np.shape(y) != (n,):
        raise ValueError(f"y must have shape ({n},), one class label for each sample; got {np.shape(y)}")
    if isinstance(y, Tracer):
        return jnp.unique(y, return_inverse=True, size=n)[1].astype(jnp.int32), n
    labels, numbers = np.unique(np.asarray(y), return_inverse=True)
    if n > 2 and len(labels) == n:
        raise ValueError(
            f"y has {n} different integers for {n} samples; integers are class labels: pass a measured quantity as "
            "floats, y.astype(float)"
        )
    return jnp.asarray(numbers, jnp.int32), len(labels)


def numbers(y: Any, n: int) -> Any:
    """Returns targets that are numbers as a matrix, one column for each target, for `shifted` and `ordered`.

    Args:
      y: (n,) or (n, targets) numbers.
      n: the number of samples.

    Returns:
      (n, targets), in the dtype of `y`.

    Raises:
      ValueError: `y` has another shape.
    """
    matrix = y if isinstance(y, Tracer) else np.asarray(y)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.shape[0] != n:
        raise ValueError(f"y must have shape ({n},) or ({n}, targets), one row for each sample; got {matrix.shape}")
    return matrix


def scores(values: Any, *, what: str = "scores") -> np.ndarray:
    """Checks scores and returns them as a float64 vector.

    Raises:
      ValueError: `values` is not a vector, is empty, or has NaN.
    """
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or not vector.size or np.isnan(vector).any():
        raise ValueError(f"{what} must be a vector, one number for each feature, not NaN; got shape {vector.shape}")
    return vector


def count(value: int, features: int) -> None:
    """Raises ValueError unless `value` is a number of features that can be chosen among `features`."""
    if not 1 <= value <= features:
        raise ValueError(f"count must be in 1 to {features}, the number of features; got {value}")


def similarity(values: Any) -> np.ndarray:
    """Checks a similarity between features and returns it as a float64 matrix.

    Raises:
      ValueError: `values` is not square, not symmetric, or has NaN.
    """
    matrix = np.asarray(values, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or np.isnan(matrix).any():
        raise ValueError(f"similarity must be (features, features) without NaN; got shape {matrix.shape}")
    if not np.allclose(matrix, matrix.T, atol=1e-5):
        raise ValueError("similarity must be symmetric: similarity[i, j] must equal similarity[j, i]")
    return matrix


def activations(values: Any) -> Array:
    """Checks activations (n, ..., channels) and returns them in float32 or wider.

    Raises:
      ValueError: `values` has fewer than two axes, is empty, or has NaN or infinite values.
    """
    array = jnp.asarray(values)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"activations must have shape (n, ..., channels); got {array.shape}")
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    if not isinstance(array, Tracer) and not bool(jnp.isfinite(array).all()):
        raise ValueError(f"activations of shape {array.shape} contain NaN or infinite values")
    return array


def _on_host(x: Any, what: str) -> np.ndarray:
    wide = np.asarray(x).astype(np.float64)
    _check_samples(wide, what, 2)
    return wide


def _check_samples(matrix: Any, what: str, least: int) -> None:
    if matrix.ndim != 2 or matrix.shape[0] < least or matrix.shape[1] < 1:
        raise ValueError(
            f"{what} must have shape (n, features) with n of {least} or more; got {matrix.shape}. "
            "Flatten images to one row each"
        )
    if not isinstance(matrix, Tracer):
        wrong = np.asarray(~np.isfinite(np.asarray(matrix)).all(0))
        if wrong.any():
            raise ValueError(
                f"{what} contains NaN or infinite values in {int(wrong.sum())} of {len(wrong)} features, the first is "
                f"feature {int(np.argmax(wrong))}; fill or drop them first"
            )


def _unit(x: Array) -> Array:
    size = jnp.abs(x).max(0)
    return x / jnp.where(size > 0, size, 1)
