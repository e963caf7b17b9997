"""Accuracy, likelihood, Brier score and calibration error of a classifier: `evaluate`, `log_losses`, `brier_losses`.

All functions take logits; logarithms of probabilities serve as logits.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["accuracy", "nll", "brier", "ece"],
    meta_fields=["samples", "bins"],
)
@dataclass(frozen=True)
class Metrics:
    """Accuracy, NLL, Brier score and calibration error of predictions; a pytree, so `vmap` can map over seeds.

    Attributes:
      accuracy: the fraction of samples whose label has the largest logit (top-1).
      nll: the mean negative log-likelihood, in nats.
      brier: the mean Brier score, in [0, 2].
      ece: the expected calibration error of the top class over equally wide bins.
      samples: the number of samples.
      bins: the number of bins of the calibration error.
    """

    accuracy: Any
    nll: Any
    brier: Any
    ece: Any
    samples: int
    bins: int

    def as_dict(self) -> dict[str, float]:
        """Returns the values as Python floats."""
        return {key: float(getattr(self, key)) for key in ("accuracy", "nll", "brier", "ece")}


def evaluate(logits: Any, labels: Any, *, bins: int = 15, probabilities: bool = False) -> Metrics:
    """Computes accuracy, NLL, Brier score and calibration error of a classifier.

    Args:
      logits: floating, (n, classes); -inf excludes a class. Lower precisions are computed in float32.
      labels: integers in [0, classes), (n,).
      bins: number of equally wide bins of the calibration error, static; default 15.
      probabilities: whether `logits` are probabilities; default False.

    Returns:
      `Metrics`: the values are float32 scalars (float64 for float64 logits) on the device; `as_dict` converts them to
      Python floats.

    Raises:
      TypeError: labels are not integers, or logits not floating.
      ValueError: shapes do not fit; concrete values have NaN, labels out of range, or probabilities that do not sum to
        one. Inside jit values are not checked.

    Example:
      >>> metrics = evaluate(jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), jnp.array([0, 1, 1]))
      >>> {name: round(value, 4) for name, value in metrics.as_dict().items()}
      {'accuracy': 0.6667, 'nll': 1.1629, 'brier': 0.6626, 'ece': 0.4469}
    """
    check_bins(bins)
    logits, labels = check(logits_from_probabilities(logits) if probabilities else logits, labels)
    return _evaluate(logits, labels, bins)


def check_bins(bins: int) -> None:
    """Raises ValueError unless `bins` is a positive integer."""
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer; got {bins!r}")


class Samples(NamedTuple):
    """What one model predicts for each sample, on the host in float64.

    Attributes:
      labels: the true classes, (n,).
      answers: the class with the largest probability for each sample, (n,).
      correct: whether the answers are the labels, bool (n,).
      confidence: the largest probabilities, (n,).
      nll: the negative log-likelihoods in nats, (n,).
      brier: the Brier scores, (n,).
    """

    labels: np.ndarray
    answers: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    brier: np.ndarray


def samples(logits: Any, labels: Any) -> Samples:
    """Judges each sample separately.

    Args:
      logits: floating, (n, classes).
      labels: integers in [0, classes), (n,).

    Returns:
      NumPy arrays.

    Raises:
      TypeError: logits are not floating, or labels are not integers.
      ValueError: see `evaluate`.

    Example:
      >>> samples(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])).correct.tolist()
      [True, False]
    """
    logits, labels = check(logits, labels)
    given, answers, hits, *floats = map(np.asarray, _samples(logits, labels))
    return Samples(given, answers, hits, *(x.astype(np.float64) for x in floats))


@jax.jit
def _samples(logits: Array, labels: Array) -> tuple[Array, ...]:
    losses = log_losses(logits, labels), brier_losses(logits, labels)
    return labels, logits.argmax(1), correct(logits, labels), confidences(logits), *losses


@partial(jax.jit, static_argnums=2)
def _evaluate(logits: Array, labels: Array, bins: int) -> Metrics:
    hits = correct(logits, labels).astype(logits.dtype)
    top = confidences(logits)
    return Metrics(
        accuracy=hits.mean(),
        nll=log_losses(logits, labels).mean(),
        brier=brier_losses(logits, labels).mean(),
        ece=binned_error(top, hits, equal_width(top, bins), bins),
        samples=logits.shape[0],
        bins=bins,
    )


def check(logits: Any, labels: Any) -> tuple[Array, Array]:
    """Checks logits and labels, and returns them as arrays, the logits in float32 at least.

    Shapes and dtypes are always checked, values only outside jit, where they are concrete.

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
        check_logits(np.asarray(logits))
    if not isinstance(labels, Tracer):
        check_labels(np.asarray(labels), logits.shape[1])
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels


def logits_from_probabilities(probabilities: Any) -> Array:
    """Returns logarithms of probabilities: logits whose softmax is the probabilities.

    Args:
      probabilities: (n, classes), each row summing to one.

    Returns:
      Logits in float32 at least; -inf where the probability is 0.

    Raises:
      TypeError: probabilities are not floating.
      ValueError: probabilities are not a matrix; concrete values have NaN, a negative value, or a row that does not sum
        to one within 100 machine epsilons of the dtype times the square root of the number of classes.

    Example:
      >>> logits_from_probabilities(jnp.array([[0.25, 0.75], [1.0, 0.0]])).tolist()[1]
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
            f"labels must be in [0, {classes}), the number of columns of the logits; "
            f"{int(wrong.sum())} do not, the first at {first}: {int(labels[first])}"
        )


def check_logits(logits: np.ndarray) -> None:
    """Raises ValueError if a row (n, classes) of logits has NaN, +inf or nothing but -inf."""
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
    off = ~(np.abs(values.sum(1) - 1) <= tolerance)  # True for NaN too
    wrong = off | (values < 0).any(1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"each row of probabilities must be non-negative and sum to one within {tolerance:.1g}; "
            f"{int(wrong.sum())} of {len(values)} do not, the first at {first}: sum {values[first].sum():.6g}. "
            "Pass logits as they are, without probabilities=True"
        )


def correct(logits: Array, labels: Array) -> Array:
    """Returns for each sample whether its label has the largest logit; if logits are equal, the lowest class counts.

    Args:
      logits: (n, classes).
      labels: (n,).

    Returns:
      bool (n,).
    """
    return jnp.argmax(logits, axis=1) == labels


def log_losses(logits: Any, labels: Any) -> Array:
    """Computes the negative log-likelihood -log p_y of each sample, in nats; inf where p_y = 0.

    Args:
      logits: floating, (n, classes).
      labels: integers in [0, classes), (n,).

    Returns:
      (n,).

    Example:
      >>> round(float(log_losses(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
      1.3863
    """
    logits, labels = check(logits, labels)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def brier_losses(logits: Any, labels: Any) -> Array:
    """Computes the Brier score sum_k (p_k - [k = y])^2 of each sample (Brier 1950), in [0, 2].

    For two classes the result is twice the one-sided score (p - y)^2.

    Args:
      logits: floating, (n, classes).
      labels: integers in [0, classes), (n,).

    Returns:
      (n,).

    Example:
      >>> brier_losses(jnp.zeros((1, 4)), jnp.array([2])).tolist()
      [0.75]
    """
    logits, labels = check(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return ((jax.nn.softmax(logits, axis=1) - targets) ** 2).sum(1)


def confidences(logits: Array) -> Array:
    """Returns the largest probability of each sample, (n,)."""
    return jax.nn.softmax(logits, axis=1).max(1)


def equal_width(values: Array, bins: int) -> Array:
    """Returns the bin of each probability: bin m of M holds ((m - 1)/M, m/M], and the first also 0.

    Args:
      values: probabilities, (n,).
      bins: M, static.

    Returns:
      int32 (n,) in [0, bins).

    Example:
      >>> equal_width(jnp.array([0.0, 0.25, 0.26, 1.0]), 4).tolist()
      [0, 0, 1, 3]
    """
    edges = jnp.arange(1, bins, dtype=values.dtype) / bins
    return jnp.searchsorted(edges, values, side="left").astype(jnp.int32)


def binned_error(values: Array, outcomes: Array, index: Array, bins: int) -> Array:
    """Computes the calibration error sum_m n_m/n |mean outcome in m - mean value in m| over bins.

    Naeini et al. 2015 (AAAI), Guo et al. 2017 (arXiv:1706.04599, eq. 3). Empty bins add nothing.

    Args:
      values: predicted probabilities, (n,).
      outcomes: the outcomes, 0 or 1, (n,).
      index: the bin of each sample, (n,).
      bins: the number of bins, static.

    Returns:
      A scalar in [0, 1].
    """
    gaps = jax.ops.segment_sum(outcomes - values, index, bins)
    return jnp.abs(gaps).sum() / values.shape[0]
