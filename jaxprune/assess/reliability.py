"""Whether probabilities mean what they say: calibration errors in all their forms, and the reliability diagram."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.assess import metrics, predictions, scores

Array = jax.Array
Binning = Literal["equal_width", "equal_mass"]


class Reliability(NamedTuple):
    """The bins of a reliability diagram.

    Attributes:
      samples: how many samples fall in each bin, (bins,).
      confidence: their mean confidence; NaN in an empty bin.
      accuracy: the fraction of them that is right; NaN in an empty bin.
    """

    samples: Array
    confidence: Array
    accuracy: Array


def calibration_error(
    logits: Any,
    labels: Any,
    *,
    bins: int = 15,
    binning: Binning = "equal_width",
    classwise: bool = False,
    probabilities: bool = False,
) -> Array:
    """The expected calibration error sum_m n_m/n |accuracy in bin m - mean confidence in bin m|.

    Of the top class (Guo et al. 2017, arXiv:1706.04599, eq. 3), or classwise: of p_k against [y = k], the mean over
    all classes k, with or without samples (Kull et al. 2019, arXiv:1910.12656). Bins are equally wide, or hold
    equally many samples (Nixon et al. 2019, arXiv:1904.01685); equal probabilities stay in one bin.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      bins: how many bins, static.
      binning: "equal_width" or "equal_mass", static.
      classwise: whether every class counts, static.
      probabilities: whether `logits` are probabilities.

    Returns:
      A scalar in [0, 1].

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`; and a binning of another name.

    Example:
      >>> probabilities = jnp.array([[0.75, 0.25], [0.75, 0.25]])
      >>> round(float(calibration_error(probabilities, jnp.array([0, 1]), probabilities=True)), 4)
      0.25
    """
    logits, labels = _checked(logits, labels, bins, binning, probabilities)
    return _calibration_error(logits, labels, bins, binning, classwise)


def reliability(
    logits: Any, labels: Any, *, bins: int = 15, binning: Binning = "equal_width", probabilities: bool = False
) -> Reliability:
    """How often the top class is right, by how confident the model is.

    Args:
      logits: (n, classes).
      labels: integers, (n,).
      bins: how many bins, static.
      binning: "equal_width" or "equal_mass", static.
      probabilities: whether `logits` are probabilities.

    Returns:
      The bins, from the least confidence to the most.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `calibration_error`.
    """
    logits, labels = _checked(logits, labels, bins, binning, probabilities)
    return _reliability(logits, labels, bins, binning)


def equal_mass(values: Array, bins: int) -> Array:
    """The bin of each value among bins of equally many: bin m ends at the ceil(m n / M)-th smallest value.

    Equal values share a bin, so that the order of samples does not matter; a bin may then be empty.

    Returns:
      int32 (n,) in [0, bins).

    Example:
      >>> equal_mass(jnp.array([0.9, 0.1, 0.5, 0.7]), 2).tolist()
      [1, 0, 0, 1]
    """
    n = values.shape[0]
    last = jnp.array([-(-m * n // bins) - 1 for m in range(1, bins)], jnp.int32)
    return jnp.searchsorted(jnp.sort(values)[last], values, side="left").astype(jnp.int32)


def _checked(logits: Any, labels: Any, bins: int, binning: str, probabilities: bool) -> tuple[Array, Array]:
    metrics.check_bins(bins)
    if binning not in _BINNINGS:
        raise ValueError(f"binning must be one of {', '.join(_BINNINGS)}; got {binning!r}")
    return predictions.check(predictions.logits_of(logits) if probabilities else logits, labels)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _calibration_error(logits: Array, labels: Array, bins: int, binning: str, classwise: bool) -> Array:
    def error(values: Array, outcomes: Array) -> Array:
        return scores.binned_error(values, outcomes.astype(values.dtype), _BINNINGS[binning](values, bins), bins)

    if not classwise:
        return error(scores.confidences(logits), scores.correct(logits, labels))
    targets = labels[:, None] == jnp.arange(logits.shape[1])
    return jax.vmap(error, 1)(jax.nn.softmax(logits, axis=1), targets).mean()


@partial(jax.jit, static_argnums=(2, 3))
def _reliability(logits: Array, labels: Array, bins: int, binning: str) -> Reliability:
    top = scores.confidences(logits)
    index = _BINNINGS[binning](top, bins)
    in_bins = lambda values: jax.ops.segment_sum(values.astype(top.dtype), index, bins)
    count = in_bins(jnp.ones_like(top))
    return Reliability(count, in_bins(top) / count, in_bins(scores.correct(logits, labels)) / count)


_BINNINGS = {"equal_width": scores.equal_width, "equal_mass": equal_mass}
