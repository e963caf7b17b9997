"""How far to trust one model: every figure of its predictions, with a bootstrap interval."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.assess import intervals, metrics, selective
from jaxprune.assess.complexity import Complexity
from jaxprune.assess.intervals import Interval
from jaxprune.assess.reliability import calibration_error, fit_temperature, reliability

Array = jax.Array
_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """The logits of one model on the samples that it is judged by.

    `logits_from_probabilities` turns probabilities into logits.

    Attributes:
      test: (n, classes) of the test samples.
      train: of training samples, for the generalisation gap.
      held_out: of samples that neither trained the model nor judge it, for temperature scaling.
      foreign: by name those of samples of another kind, for their detection.
      corrupted: by name those of the test samples made worse, (levels, n, classes): see `corrupted_logits`.
      members: of an ensemble, (members, n, classes) of the test samples, for the mutual information.
      foreign_members: likewise by name, with the keys of `foreign`.
      complexity: what the model costs.
    """

    test: Any
    train: Any = None
    held_out: Any = None
    foreign: Mapping[str, Any] = field(default_factory=dict)
    corrupted: Mapping[str, Any] = field(default_factory=dict)
    members: Any = None
    foreign_members: Mapping[str, Any] = field(default_factory=dict)
    complexity: Complexity | None = None


@dataclass(frozen=True)
class Labels:
    """The labels, integers (n,), of the samples of `Predictions`."""

    test: Any
    train: Any = None
    held_out: Any = None


@dataclass(frozen=True)
class Risk:
    """What is known of one model. Intervals hold floats.

    Attributes:
      figures: by name each figure with its interval; `FIGURES` says in words what they are.
      reliability: the bins of the reliability diagram, a `Reliability` each of the estimate and of the ends. A resample
        that leaves a bin empty does not count for it; NaN in a bin that the samples leave empty.
      coverage: the risk-coverage curve.
      corruption: by name the accuracy at each level, each with its interval.
      complexity: what it costs; None if not given.
      samples: how many test samples there are.
      resamples: how many times they were drawn again.
      confidence: of the intervals.
    """

    figures: Mapping[str, Interval]
    reliability: Interval
    coverage: selective.RiskCoverage
    corruption: Mapping[str, tuple[Interval, ...]]
    complexity: Complexity | None
    samples: int
    resamples: int
    confidence: float


FIGURES = {
    "accuracy": "accuracy",
    "nll": "negative log-likelihood in nats",
    "brier": "Brier score, in [0, 2]",
    "ece": "calibration error, equal-width bins",
    "ece_mass": "calibration error, equal-mass bins",
    "ece_classwise": "classwise calibration error",
    "overconfidence": "mean confidence less accuracy",
    "aurc": "area under the risk-coverage curve",
    "temperature": "temperature fitted on held-out samples",
    "scaled_nll": "NLL after temperature scaling",
    "scaled_ece": "ECE after temperature scaling",
    "train_accuracy": "accuracy on training samples",
    "train_nll": "NLL of training samples",
    "accuracy_gap": "training less test accuracy",
    "nll_gap": "test less training NLL",
}
"""What the figures are called in words; beside these `foreign/NAME/SCORE` and `corrupted/NAME`."""


def risk(
    predictions: Predictions,
    labels: Labels,
    *,
    key: Array,
    resamples: int = 1000,
    confidence: float = 0.95,
    batch: int = 16,
) -> Risk:
    """Everything that can be said of one model from what it said.

    Models that get the same key are judged by the same resamples. The temperature is fitted again to each resample of
    the held-out samples, so that the intervals of what is scaled hold its own uncertainty too.

    Args:
      predictions: its logits; what is None or empty is left out.
      labels: the labels.
      key: a JAX key.
      resamples: of every interval, static.
      confidence: of every interval, in (0, 1).
      batch: resamples computed at once.

    Returns:
      The figures, on the host.

    Raises:
      TypeError: see `evaluate`.
      ValueError: see `evaluate`, each time with which samples; and logits without labels, corrupted or member logits
        of other samples, foreign logits of other classes.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
      >>> found = risk(Predictions(logits), Labels(jnp.array([0, 1, 1, 1])), key=jax.random.key(0), resamples=50)
      >>> float(found.figures['accuracy'].estimate)
      0.75
    """
    checked = _check(predictions, labels)
    options: dict[str, Any] = {"key": key, "resamples": resamples, "confidence": confidence, "batch": batch}
    logits, targets = checked["test"]
    figures = _floats(intervals.bootstrap(_figures, logits, targets, **options))
    if "held_out" in checked:
        figures |= _floats(intervals.bootstrap_apart(_scaled, checked["held_out"], checked["test"], **options))
    if "train" in checked:
        figures |= _floats(intervals.bootstrap_apart(_gap, checked["train"], checked["test"], **options))
    figures |= _foreign(predictions, logits, options)
    corruption = {}
    for name, worse in predictions.corrupted.items():
        hits = (jnp.argmax(jnp.asarray(worse), -1) == targets).astype(jnp.float32).T  # (n, levels)
        corruption[name] = _levels(hits, options)
        figures[f"corrupted/{name}"] = _float(intervals.bootstrap(jnp.mean, hits, **options))
    return Risk(
        figures=figures,
        reliability=_bins(logits, targets, options),
        coverage=selective.risk_coverage(logits, targets),
        corruption=corruption,
        complexity=predictions.complexity,
        samples=logits.shape[0],
        resamples=resamples,
        confidence=confidence,
    )


def overconfidence(logits: Array, labels: Array) -> Array:
    """The mean confidence less the accuracy: positive where a model promises more than it keeps."""
    return metrics.confidences(logits).mean() - metrics.correct(logits, labels).mean()


@jax.jit
def _figures(logits: Array, labels: Array) -> dict[str, Array]:
    plain = metrics.evaluate(logits, labels, bins=_BINS)
    error = partial(calibration_error, logits, labels, bins=_BINS)
    return {
        **{key: getattr(plain, key) for key in ("accuracy", "nll", "brier", "ece")},
        "ece_mass": error(binning="equal_mass"),
        "ece_classwise": error(classwise=True),
        "overconfidence": overconfidence(logits, labels),
        "aurc": selective.risk_coverage(logits, labels).aurc,
    }


@jax.jit
def _scaled(held_out: Array, held_out_labels: Array, test: Array, labels: Array) -> dict[str, Array]:
    factor = fit_temperature(held_out, held_out_labels)
    found = metrics.evaluate(test / factor, labels, bins=_BINS)
    return {"temperature": factor, "scaled_nll": found.nll, "scaled_ece": found.ece}


@jax.jit
def _gap(train: Array, train_labels: Array, test: Array, test_labels: Array) -> dict[str, Array]:
    seen = metrics.correct(train, train_labels).mean(), metrics.log_losses(train, train_labels).mean()
    new = metrics.correct(test, test_labels).mean(), metrics.log_losses(test, test_labels).mean()
    names = ("train_accuracy", "train_nll", "accuracy_gap", "nll_gap")
    return dict(zip(names, (*seen, seen[0] - new[0], new[1] - seen[1]), strict=True))


def _foreign(predictions: Predictions, test: Array, options: dict[str, Any]) -> dict[str, Interval]:
    """AUROC of telling foreign samples by each score."""
    found = {}
    for name, logits in predictions.foreign.items():
        ways = {"max_probability": selective.max_probability, "entropy": selective.entropy}
        pairs = {way: (score(test), score(jnp.asarray(logits))) for way, score in ways.items()}
        if predictions.members is not None and name in predictions.foreign_members:
            every = (predictions.members, predictions.foreign_members[name])
            known, foreign = (selective.epistemic_uncertainty(jnp.asarray(x)) for x in every)
            pairs["mutual_information"] = known, foreign
        for way, (known, foreign) in pairs.items():
            area = intervals.bootstrap_apart(selective.auroc, (known,), (foreign,), **options)
            found[f"foreign/{name}/{way}"] = _float(area)
    return found


_reliability = partial(reliability, bins=_BINS)


def _bins(logits: Array, labels: Array, options: dict[str, Any]) -> Interval:
    """Of each bin, on the host; a bin without samples has none in a resample either."""
    found = intervals.bootstrap(_reliability, logits, labels, skip_nan=True, **options)
    return jax.tree.map(np.asarray, found)


def _levels(hits: Array, options: dict[str, Any]) -> tuple[Interval, ...]:
    found = intervals.bootstrap(_mean, hits, **options)
    return tuple(Interval(*map(float, level)) for level in zip(*map(np.asarray, found), strict=True))


def _mean(hits: Array) -> Array:
    return hits.mean(0)


def _floats(found: Interval) -> dict[str, Interval]:
    return {key: Interval(*(float(part[key]) for part in found)) for key in found.estimate}


def _float(found: Interval) -> Interval:
    return Interval(*map(float, found))


def _check(predictions: Predictions, labels: Labels) -> dict[str, tuple[Array, Array]]:
    for given, kind in ((predictions, Predictions), (labels, Labels)):
        if not isinstance(given, kind):
            name = kind.__name__
            raise TypeError(f"expected assess.{name}, got {type(given).__name__}; pass assess.{name}(...)")
    checked = {}
    for part in ("test", "train", "held_out"):
        logits, targets = getattr(predictions, part), getattr(labels, part)
        if logits is None:
            continue
        if targets is None:
            raise ValueError(f"{part}: logits without labels; give labels.{part}, or leave predictions.{part} out")
        try:
            checked[part] = metrics.check(logits, targets)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{part}: {error}") from error
    _check_others(predictions, checked["test"][0].shape)
    return checked


def _check_others(predictions: Predictions, shape: tuple[int, ...]) -> None:
    for name, logits in predictions.foreign.items():
        if jnp.ndim(logits) != 2 or jnp.shape(logits)[1] != shape[1]:
            raise ValueError(f"foreign {name}: logits must be (m, {shape[1]}); got {jnp.shape(logits)}")
    for name, logits in (*predictions.corrupted.items(), ("members", predictions.members)):
        if logits is not None and jnp.shape(logits)[1:] != shape:
            raise ValueError(f"{name}: logits must be of the {shape[0]} test samples, (k, {shape[0]}, {shape[1]}); "
                             f"got {jnp.shape(logits)}")  # fmt: skip
    for what, every in (("foreign", predictions.foreign), ("corrupted", predictions.corrupted)):
        for name, logits in every.items():
            if np.isnan(np.asarray(logits, np.float64)).any():
                raise ValueError(f"{what} {name}: logits hold NaN")
