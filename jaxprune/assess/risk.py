"""How far to trust one model: `risk` computes every figure of its `Predictions`, each with an interval that covers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.assess import intervals, metrics, uncertainty
from jaxprune.assess.calibration_error import CalibrationTest, Reliability, class_table, judge_table, top_table
from jaxprune.assess.complexity import Complexity
from jaxprune.assess.intervals import Interval
from jaxprune.assess.metrics import Samples

Array = jax.Array
_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """The logits of one model on the samples of an evaluation. Logarithms of probabilities may be passed as logits.

    Attributes:
      test: logits of the test samples, (n, classes).
      train: logits of training samples, (m, classes), for the gap between training and test.
      held_out: logits of samples that are used neither for training nor for testing, for temperature scaling.
      foreign: by name, logits of samples from other data sets, to test whether the model detects them.
      corrupted: by the name of a corruption, logits of the corrupted test samples, (levels, n, classes); see
        `corrupted_logits`.
      members: logits of the members of an ensemble on the test samples, (members, n, classes), for their epistemic
        uncertainty.
      foreign_members: logits of the members on foreign samples, with the names of `foreign`.
      complexity: the cost of the model, from `complexity`.
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
    """The labels of the samples of `Predictions`: integers, (n,) each.

    Attributes:
      test: the labels of the test samples.
      train: the labels of the training samples; None (default) if no model has `Predictions.train`.
      held_out: the labels of the held-out samples; None (default) if no model has `Predictions.held_out`.
    """

    test: Any
    train: Any = None
    held_out: Any = None


@dataclass(frozen=True)
class Risk:
    """The figures of one model. Intervals contain floats; an end is NaN if there are too few samples for it.

    Attributes:
      figures: each figure with its interval, by name; `FIGURES` explains the names.
      calibration: the tests behind `ece`, `ece_mass`, `ece_classwise` and `scaled_ece`: measured errors, the errors of
        a calibrated model by chance, p-values.
      reliability: the bins of the reliability diagram, a `Reliability` each for the estimate and for the ends of the
        accuracy; NaN in a bin without samples.
      coverage: the risk-coverage curve.
      corruption: the accuracy at each level, each with its interval, by the name of the corruption.
      complexity: the cost of the model; None if not given.
      seconds: the measured time of one call; None if not given.
      classes: the number of classes.
      test: the model's prediction for each test sample.
      train: the model's prediction for each training sample; None if not given.
      confidence: the confidence of the intervals.
    """

    figures: Mapping[str, Interval]
    calibration: Mapping[str, CalibrationTest]
    reliability: Interval
    coverage: uncertainty.RiskCoverage
    corruption: Mapping[str, tuple[Interval, ...]]
    complexity: Complexity | None
    seconds: float | None
    classes: int
    test: Samples
    train: Samples | None
    confidence: float


FIGURES = {
    "accuracy": "fraction of the test samples that the model answers rightly",
    "nll": "mean negative log-likelihood of the test labels, in nats; the loss of training",
    "brier": "mean squared distance of the probabilities from the truth, in [0, 2]",
    "ece": "expected calibration error of the largest probability over 15 equally wide bins, bias removed",
    "ece_mass": "the same error over 15 bins of equally many samples",
    "ece_classwise": "calibration error of the probability of each class, mean over the classes, as measured",
    "overconfidence": "mean confidence less accuracy",
    "aurc": "area under the risk-coverage curve: mean error among the surest samples, over all coverages",
    "temperature": "temperature fitted on held-out samples; above 1 it makes the model less sure",
    "scaled_nll": "NLL after temperature scaling, the temperature taken as given",
    "scaled_ece": "calibration error after temperature scaling, bias removed",
    "train_accuracy": "accuracy on training samples",
    "train_nll": "NLL of training samples",
    "accuracy_gap": "training less test accuracy",
    "nll_gap": "test less training NLL",
}
"""What the figures mean. `foreign/NAME/SCORE` is an area under a ROC curve, `corrupted/NAME` a mean accuracy."""


def risk(predictions: Predictions, labels: Labels, *, key: Array, draws: int = 1000, confidence: float = 0.95) -> Risk:
    """Computes every figure of one model that its predictions allow.

    Args:
      predictions: the logits of the model. If an attribute is None or empty, its figures are left out.
      labels: the labels of the samples.
      key: a JAX key for the draws of the calibration tests.
      draws: the number of sets of labels that these tests draw; default 1000.
      confidence: the confidence of every interval, in (0, 1); default 0.95.

    Returns:
      The figures, on the host.

    Raises:
      TypeError: `predictions` or `labels` has another type, logits are not floating, or labels are not integers.
      ValueError: logits have no labels, corrupted or member logits are of other samples, foreign logits are of other
        classes, values are NaN or out of range; fewer than 2 draws, a confidence outside (0, 1). The message names the
        part that is wrong.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
      >>> found = risk(Predictions(logits), Labels(jnp.array([0, 1, 1, 1])), key=jax.random.key(0))
      >>> [round(end, 2) for end in found.figures['accuracy']]
      [0.75, 0.3, 0.95]
    """
    if draws < 2 or not 0 < confidence < 1:
        raise ValueError(f"draws must be 2 or more and confidence in (0, 1); got {draws} and {confidence}")
    parts = _check(predictions, labels)
    logits, test, train = jnp.asarray(predictions.test), parts["test"], parts.get("train")
    scaled: dict[str, Interval] = {}
    cooled = None
    if "held_out" in parts:
        scaled["temperature"] = uncertainty.temperature_interval(predictions.held_out, labels.held_out, confidence)
        cooled = metrics.samples(logits / float(scaled["temperature"].estimate), labels.test)
        scaled["scaled_nll"] = _loss(cooled.nll, test, confidence)
    tables = {"ece": _table(test, "equal_width"), "ece_mass": _table(test, "equal_mass")}
    tables["ece_classwise"] = class_table(logits, jnp.asarray(labels.test), _BINS, "equal_width")
    if cooled is not None:
        tables["scaled_ece"] = _table(cooled, "equal_width")
    calibration = {
        name: judge_table(
            np.asarray(table, np.float64),
            1 / _BINS if name in ("ece", "scaled_ece") else None,
            name == "ece_classwise",
            key,
            draws,
            confidence,
        )
        for name, table in tables.items()
    }
    figures = {
        "accuracy": intervals.proportion(float(test.correct.mean()), test.correct.size, confidence),
        "nll": _loss(test.nll, test, confidence),
        "brier": _loss(test.brier, test, confidence),
        **{name: found.error for name, found in calibration.items()},
        "overconfidence": _overconfidence(test, confidence),
        "aurc": uncertainty.area_under_risk_coverage(test.confidence, test.correct, confidence),
        **scaled,
    }
    corrupted = {name: np.asarray(x).argmax(-1) == test.labels for name, x in predictions.corrupted.items()}
    figures |= {} if train is None else _gaps(train, figures["accuracy"], figures["nll"], confidence)
    figures |= _detection(predictions, confidence)
    figures |= {f"corrupted/{name}": _mean_fraction(right.mean(0), confidence) for name, right in corrupted.items()}
    return Risk(
        figures=figures,
        calibration=calibration,
        reliability=_bins(np.asarray(tables["ece"], np.float64), confidence),
        coverage=uncertainty.risk_coverage_curve(jnp.asarray(1 - test.confidence), jnp.asarray(~test.correct)),
        corruption={
            name: tuple(intervals.proportion(float(x.mean()), x.size, confidence) for x in right)
            for name, right in corrupted.items()
        },
        complexity=predictions.complexity,
        seconds=predictions.seconds,
        classes=logits.shape[1],
        test=test,
        train=train,
        confidence=confidence,
    )


def _gaps(train: Samples, accuracy: Interval, nll: Interval, confidence: float) -> dict[str, Interval]:
    """Returns the figures of the training samples, and their differences from the test samples."""
    seen = intervals.proportion(float(train.correct.mean()), train.correct.size, confidence)
    loss = intervals.mean(train.nll, confidence)
    return {
        "train_accuracy": seen,
        "train_nll": loss,
        "accuracy_gap": intervals.independent_difference(seen, accuracy),
        "nll_gap": intervals.independent_difference(nll, loss),
    }


def _detection(predictions: Predictions, confidence: float) -> dict[str, Interval]:
    """Returns how well each uncertainty tells foreign samples from test samples, by `foreign/NAME/SCORE`."""
    found = {}
    for name, logits in predictions.foreign.items():
        ways: dict[str, tuple[Any, Any, Any]] = {
            "max_probability": (uncertainty.max_probability, predictions.test, logits),
            "entropy": (uncertainty.entropy, predictions.test, logits),
        }
        if predictions.members is not None and name in predictions.foreign_members:
            members = predictions.members, predictions.foreign_members[name]
            ways["epistemic_uncertainty"] = (uncertainty.epistemic_uncertainty, *members)
        for way, (score, *both) in ways.items():
            known, foreign = (np.asarray(score(jnp.asarray(x))) for x in both)
            found[f"foreign/{name}/{way}"] = intervals.area_under_roc(known, foreign, confidence)
    return found


def _table(samples: Samples, binning: Any) -> Array:
    return top_table(jnp.asarray(samples.confidence, jnp.float32), jnp.asarray(samples.correct), _BINS, binning)


def _loss(losses: np.ndarray, test: Samples, confidence: float) -> Interval:
    """Returns the mean loss; without an interval if few answers are wrong, because these make most of the loss."""
    found = intervals.mean(losses, confidence)
    few = (~test.correct).sum() < intervals.FEW
    return Interval(found.estimate, np.nan, np.nan) if few else found


def _mean_fraction(values: np.ndarray, confidence: float) -> Interval:
    """Returns the mean of fractions in [0, 1], as a proportion of as many independent samples as have its variance."""
    mean, variance = float(values.mean()), float(values.var()) / max(values.size - 1, 1)
    return intervals.proportion(mean, mean * (1 - mean) / variance if variance > 0 else values.size, confidence)


def _overconfidence(test: Samples, confidence: float) -> Interval:
    """Returns mean confidence less accuracy; if nearly all answers are right, from the interval of the accuracy."""
    if min(test.correct.sum(), (~test.correct).sum()) >= intervals.FEW:
        return intervals.mean(test.confidence - test.correct, confidence)
    hits = intervals.proportion(float(test.correct.mean()), test.correct.size, confidence)
    return intervals.independent_difference(_mean_fraction(test.confidence, confidence), hits)


def _bins(table: np.ndarray, confidence: float) -> Interval:
    """Returns the reliability diagram, with the interval of the accuracy in each bin that has a sample."""
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
    n, classes = shape
    for what in ("foreign", "foreign_members", "corrupted"):
        _tree.check_instance(getattr(predictions, what), Mapping, what, "a mapping from names to logits")
    foreign, strange = predictions.foreign, predictions.foreign_members
    if strange.keys() - foreign.keys() or (strange and predictions.members is None):
        raise ValueError(
            f"foreign_members {', '.join(strange)}: each needs logits in foreign under its name ({[*foreign]}), and "
            "members, the logits of the same members on the test samples"
        )
    for name, logits in foreign.items():
        _check_logits(f"foreign {name}", logits, ("m", classes))
    for name, logits in strange.items():
        _check_logits(f"foreign_members {name}", logits, ("k", jnp.shape(foreign[name])[0], classes))
    for name, logits in predictions.corrupted.items():
        _check_logits(f"corrupted {name}", logits, ("levels", n, classes))
    if predictions.members is not None:
        _check_logits("members", predictions.members, ("k", n, classes))


def _check_logits(what: str, logits: Any, shape: tuple[Any, ...]) -> None:
    """Raises unless logits have the shape, in which a name stands for any size of 1 or more, and a softmax."""
    got = jnp.shape(logits)
    if len(got) != len(shape) or not all(a == b or (isinstance(b, str) and a) for a, b in zip(got, shape, strict=True)):
        raise ValueError(
            f"{what}: logits must be ({', '.join(map(str, shape))}), the last axis of classes, the axis before it of "
            f"samples; got {got}"
        )
    try:
        metrics.check_logits(np.asarray(logits).reshape(-1, got[-1]))
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
