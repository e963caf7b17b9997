"""Accuracy, likelihood and calibration of a classifier, in one call."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxprune.assess import predictions, scores

Array = jax.Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["accuracy", "nll", "brier", "ece"],
    meta_fields=["samples", "bins"],
)
@dataclass(frozen=True)
class Metrics:
    """How good predictions are; a pytree, so that seeds and resamples can be mapped over.

    Attributes:
      accuracy: the fraction whose largest logit is the label's (top-1).
      nll: the mean negative log-likelihood, in nats.
      brier: the mean Brier score, in [0, 2].
      ece: the expected calibration error of the top class over equally wide bins.
      samples: how many predictions.
      bins: how many bins the ECE uses.
    """

    accuracy: Any
    nll: Any
    brier: Any
    ece: Any
    samples: int
    bins: int

    def as_dict(self) -> dict[str, float]:
        """The values as Python floats."""
        return {key: float(getattr(self, key)) for key in ("accuracy", "nll", "brier", "ece")}


def evaluate(logits: Any, labels: Any, *, bins: int = 15, probabilities: bool = False) -> Metrics:
    """The metrics of predictions.

    Args:
      logits: (n, classes), computed in float32 at least.
      labels: integers, (n,).
      bins: equally wide bins of the calibration error, static.
      probabilities: whether `logits` are probabilities.

    Returns:
      Metrics of scalars.

    Raises:
      TypeError: labels are not integers, or logits not floating.
      ValueError: shapes do not fit, and, where values are concrete, NaN, labels out of range, or probabilities
        that do not sum to one. Inside jit values are not checked.

    Example:
      >>> metrics = evaluate(jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), jnp.array([0, 1, 1]))
      >>> {name: round(value, 4) for name, value in metrics.as_dict().items()}
      {'accuracy': 0.6667, 'nll': 1.1629, 'brier': 0.6626, 'ece': 0.4469}
    """
    check_bins(bins)
    logits, labels = predictions.check(predictions.logits_of(logits) if probabilities else logits, labels)
    return _evaluate(logits, labels, bins)


def check_bins(bins: int) -> None:
    """Raises ValueError unless `bins` is a positive integer."""
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer; got {bins!r}")


@partial(jax.jit, static_argnums=2)
def _evaluate(logits: Array, labels: Array, bins: int) -> Metrics:
    hits = scores.correct(logits, labels).astype(logits.dtype)
    top = scores.confidences(logits)
    return Metrics(
        accuracy=hits.mean(),
        nll=scores.log_losses(logits, labels).mean(),
        brier=scores.brier_losses(logits, labels).mean(),
        ece=scores.binned_error(top, hits, scores.equal_width(top, bins), bins),
        samples=logits.shape[0],
        bins=bins,
    )
