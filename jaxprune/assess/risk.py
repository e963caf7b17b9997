"""How far to trust one model: `risk` computes every figure of its predictions, each with an interval that covers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.assess import intervals, metrics, selective
from jaxprune.assess.calibration_test import CalibrationTest, class_table, judge_table, top_table
from jaxprune.assess.complexity import Complexity
from jaxprune.assess.intervals import Interval
from jaxprune.assess.metrics import Samples
from jaxprune.assess.reliability import Binning, Reliability, temperature_interval

Array = jax.Array
_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """The logits of one model on the samples that it is judged by.

    `logits_from_probabilities` turns probabilities into logits.

    Attributes:
      test: logits of the test samples, (n, classes).
      train: logits of training samples, for the gap between training and test.
      held_out: logits of samples that neither trained the model nor judge it, for temperature scaling.
      foreign: logits of samples of another kind, by the name of the kind, for their detection.
      corrupted: logits of the test samples made worse, by the name of the corruption, (levels, n, classes); see
        `corrupted_logits`.
      members: logits of the members of an ensemble on the test samples, (members, n, classes), for their epistemic
        uncertainty.
      foreign_members: the same of foreign samples, with the keys of `foreign`.
      complexity: what the model costs.
      seconds: the measured time of one call, on the same inputs and the same machine for all models.
    """

    test: Any
    train: Any = None
    held_out: Any = None
    foreign: Mapping[str, Any] = field(default_factory=dict)
    corrupted: Mapping[str, Any] = field(default_factory=dict)
    members: Any = None
    foreign_members: Mapping[str, Any] = field(default_factory=dict)
    complexity: Complexity | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Labels:
    """The labels, integers (n,), of the samples of `Predictions`."""

    test: Any
    train: Any = None
    held_out: Any = None


@dataclass(frozen=True)
class Risk:
    """What is known of one model. Intervals hold floats; ends that the samples cannot give are NaN.

    Attributes:
      figures: each figure with its interval, by name; `FIGURES` says in words what they are.
      calibration: the tests behind `ece`, `ece_mass`, `ece_classwise` and `scaled_ece`: measured errors, what a
        calibrated model would show by chance, p-values.
      reliability: the bins of the reliability diagram, a `Reliability` each for the estimate and the ends of the
        accuracy; NaN in a bin without samples.
      coverage: the risk-coverage curve.
      corruption: the accuracy at each level, each with its interval, by the name of the corruption.
      complexity: what it costs; None if not given.
      seconds: the measured time of one call; None if not given.
      test: what the model says about each test sample.
      train: what it says about each training sample; None if not given.
      confidence: of the intervals.
    """

    figures: Mapping[str, Interval]
    calibration: Mapping[str, CalibrationTest]
    reliability: Interval
    coverage: selective.RiskCoverage
    corruption: Mapping[str, tuple[Interval, ...]]
    complexity: Complexity | None
    seconds: float | None
    test: Samples
    train: Samples | None
    confidence: float


FIGURES = {
    "accuracy": "fraction of the test samples that the model answers rightly",
    "nll": "mean negative log-likelihood of the test labels, in nats; the loss of training",
    "brier": "mean squared distance of the probabilities from the truth, in [0, 2]",
    "ece": "expected calibration error of the largest probability over 15 equally wide bins, bias removed",
    "ece_mass": "the same over 15 bins of equally many samples",
    "ece_classwise": "calibration error of the probability of each class, mean over the classes, as measured",
    "overconfidence": "mean confidence less accuracy",
    "aurc": "area under the risk-coverage curve: mean error among the surest, over all coverages",
    "temperature": "temperature fitted on held-out samples; above 1 it makes the model less sure",
    "scaled_nll": "NLL after temperature scaling, the temperature taken as given",
    "scaled_ece": "calibration error after temperature scaling, bias removed",
    "train_accuracy": "accuracy on training samples",
    "train_nll": "NLL of training samples",
    "accuracy_gap": "training less test accuracy",
    "nll_gap": "test less training NLL",
}
"""What the figures are; beside these there are `foreign/NAME/SCORE` and `corrupted/NAME`."""


def risk(predictions: Predictions, labels: Labels, *, key: Array, draws: int = 1000, confidence: float = 0.95) -> Risk:
    """Computes every figure of one model that its predictions allow.

    Args:
      predictions: its logits; figures of what is None or empty are left out.
      labels: the labels.
      key: a JAX key for the draws of the calibration tests.
      draws: how many sets of labels these draw.
      confidence: of every interval, in (0, 1).

    Returns:
      The figures, on the host.

    Raises:
      TypeError: `predictions` or `labels` is another type; see `evaluate`.
      ValueError: see `evaluate`, with the part that is wrong; logits without labels, corrupted or member logits of
        other samples, foreign logits of other classes, NaN; fewer than 2 draws, a confidence outside (0, 1).

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
      >>> found = risk(Predictions(logits), Labels(jnp.array([0, 1, 1, 1])), key=jax.random.key(0))
      >>> [round(end, 2) for end in found.figures['accuracy']]
      [0.75, 0.3, 0.95]
    """
    return figures_of(judge(predictions, labels, confidence), key, draws)


@dataclass(frozen=True)
class Judged:
    """What one model says, judged sample by sample; all that its figures need.

    Attributes:
      test: the test samples.
      by_class: the bins of the probability of each class, see `calibration_test.class_table`.
      classes: how many classes there are.
      train: the training samples; None if not given.
      temperature: fitted on the held-out samples; None if not given.
      cooled: the test samples at this temperature.
      scores: uncertainties of test and of foreign samples, by `NAME/SCORE`.
      corrupted: whether each answer is right, (levels, n), by the name of the corruption.
      complexity: what the model costs.
      seconds: the measured time of one call.
      confidence: of the intervals to be computed.
    """

    test: Samples
    by_class: np.ndarray
    classes: int
    train: Samples | None
    temperature: Interval | None
    cooled: Samples | None
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]]
    corrupted: Mapping[str, np.ndarray]
    complexity: Complexity | None
    seconds: float | None
    confidence: float


def judge(predictions: Predictions, labels: Labels, confidence: float) -> Judged:
    """Reads all logits once: checks them, and judges each sample; see `risk` for arguments and errors."""
    parts = _check(predictions, labels)
    test, held_out = jnp.asarray(predictions.test), predictions.held_out
    temperature = None if held_out is None else temperature_interval(held_out, labels.held_out, confidence)
    scores = {}
    for name, logits in predictions.foreign.items():
        ways: dict[str, tuple[Any, Any, Any]] = {
            "max_probability": (selective.max_probability, test, logits),
            "entropy": (selective.entropy, test, logits),
        }
        if predictions.members is not None and name in predictions.foreign_members:
            members = predictions.members, predictions.foreign_members[name]
            ways["epistemic_uncertainty"] = (selective.epistemic_uncertainty, *members)
        for way, (uncertainty, known, foreign) in ways.items():
            scores[f"{name}/{way}"] = tuple(np.asarray(uncertainty(jnp.asarray(x))) for x in (known, foreign))
    return Judged(
        test=parts["test"],
        by_class=np.asarray(class_table(test, jnp.asarray(labels.test), _BINS, "equal_width"), np.float64),
        classes=test.shape[1],
        train=parts.get("train"),
        temperature=temperature,
        cooled=None if temperature is None else metrics.samples(test / float(temperature.estimate), labels.test),
        scores=scores,
        corrupted={
            name: np.asarray(jnp.argmax(jnp.asarray(worse), -1)) == parts["test"].labels
            for name, worse in predictions.corrupted.items()
        },
        complexity=predictions.complexity,
        seconds=predictions.seconds,
        confidence=confidence,
    )


def figures_of(judged: Judged, key: Array, draws: int) -> Risk:
    """The figures of a model that is judged already; see `risk`."""
    if draws < 2 or not 0 < judged.confidence < 1:
        raise ValueError(f"needs 2 draws and a confidence in (0, 1); got {draws} and {judged.confidence}")
    test, train, confidence = judged.test, judged.train, judged.confidence
    table, calibration = _calibrations(judged, key, draws)
    figures = {
        "accuracy": intervals.proportion(float(test.correct.mean()), test.correct.size, confidence),
        "nll": _loss(test.nll, test, confidence),
        "brier": _loss(test.brier, test, confidence),
        **{name: found.error for name, found in calibration.items() if name != "scaled_ece"},
        "overconfidence": _overconfidence(test, confidence),
        "aurc": selective.area_under_risk_coverage(test.confidence, test.correct, confidence),
    }
    if judged.temperature is not None and judged.cooled is not None:
        figures["temperature"] = judged.temperature
        figures["scaled_nll"] = _loss(judged.cooled.nll, test, confidence)
        figures["scaled_ece"] = calibration["scaled_ece"].error
    if train is not None:
        seen = intervals.proportion(float(train.correct.mean()), train.correct.size, confidence)
        loss = intervals.mean(train.nll, confidence)
        figures |= {"train_accuracy": seen, "train_nll": loss}
        figures["accuracy_gap"] = intervals.independent_difference(seen, figures["accuracy"])
        figures["nll_gap"] = intervals.independent_difference(figures["nll"], loss)
    for name, (known, foreign) in judged.scores.items():
        figures[f"foreign/{name}"] = intervals.area_under_roc(known, foreign, confidence)
    corruption = {}
    for name, right in judged.corrupted.items():
        corruption[name] = tuple(intervals.proportion(float(x.mean()), x.size, confidence) for x in right)
        figures[f"corrupted/{name}"] = _share(right.mean(0), confidence)
    return Risk(
        figures=figures,
        calibration=calibration,
        reliability=_bins(table, confidence),
        coverage=selective.risk_coverage_curve(jnp.asarray(1 - test.confidence), jnp.asarray(~test.correct)),
        corruption=corruption,
        complexity=judged.complexity,
        seconds=judged.seconds,
        test=test,
        train=train,
        confidence=confidence,
    )


def _loss(losses: np.ndarray, test: Samples, confidence: float) -> Interval:
    """The mean loss; without ends where too few answers are wrong, for these make most of it."""
    found = intervals.mean(losses, confidence)
    few = (~test.correct).sum() < intervals.FEW
    return Interval(found.estimate, np.nan, np.nan) if few else found


def _share(values: np.ndarray, confidence: float) -> Interval:
    """The mean of fractions in [0, 1]: a proportion of as many samples as would vary as much."""
    share, variance = float(values.mean()), float(values.var()) / max(values.size - 1, 1)
    return intervals.proportion(share, share * (1 - share) / variance if variance > 0 else values.size, confidence)


def _overconfidence(test: Samples, confidence: float) -> Interval:
    """Mean confidence less accuracy; where nearly all answers are right, the accuracy's interval carries it."""
    if min(test.correct.sum(), (~test.correct).sum()) >= intervals.FEW:
        return intervals.mean(test.confidence - test.correct, confidence)
    hits = intervals.proportion(float(test.correct.mean()), test.correct.size, confidence)
    return intervals.independent_difference(_share(test.confidence, confidence), hits)


def _calibrations(judged: Judged, key: Array, draws: int) -> tuple[np.ndarray, dict[str, CalibrationTest]]:
    """The equally wide bins, and the tests as the model is and after temperature scaling."""

    def table(samples: Samples, binning: Binning) -> np.ndarray:
        values = jnp.asarray(samples.confidence, jnp.float32), jnp.asarray(samples.correct)
        return np.asarray(top_table(*values, _BINS, binning), np.float64)

    top, options = table(judged.test, "equal_width"), (key, draws, judged.confidence)
    found = {
        "ece": judge_table(top, 1 / _BINS, False, *options),
        "ece_mass": judge_table(table(judged.test, "equal_mass"), None, False, *options),
        "ece_classwise": judge_table(judged.by_class, None, True, *options),
    }
    if judged.cooled is not None:
        found["scaled_ece"] = judge_table(table(judged.cooled, "equal_width"), 1 / _BINS, False, *options)
    return top, found


def _bins(table: np.ndarray, confidence: float) -> Interval:
    """The reliability diagram with the interval of the accuracy in each bin that has a sample."""
    count, promised, came = table
    with np.errstate(invalid="ignore"):
        found = Reliability(count, promised / count, came / count)
    ends = [
        intervals.proportion(float(accuracy), float(samples), confidence)[1:] if samples else (np.nan, np.nan)
        for samples, accuracy in zip(found.samples, found.accuracy, strict=True)
    ]
    low, high = (found._replace(accuracy=np.array(side)) for side in zip(*ends, strict=True))
    return Interval(found, low, high)


def _check(predictions: Predictions, labels: Labels) -> dict[str, Samples]:
    """Checks everything before anything is computed, and judges each sample of the parts that have labels."""
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
            checked[part] = metrics.samples(logits, targets)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{part}: {error}") from error
    _check_others(predictions, jnp.shape(predictions.test))
    return checked


def _check_others(predictions: Predictions, shape: tuple[int, ...]) -> None:
    for what in ("foreign", "foreign_members", "corrupted"):
        _tree.check_instance(getattr(predictions, what), Mapping, what, "a mapping from names to logits")
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
