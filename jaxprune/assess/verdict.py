"""The verdict on one model in words (`verdict`), and short answers to what a reader asks first (`answers`)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxprune.assess import formatting, intervals
from jaxprune.assess.calibration_test import CalibrationTest, Region
from jaxprune.assess.intervals import Interval
from jaxprune.assess.paired import Changes
from jaxprune.assess.risk import Risk

OVERFITTED = 0.5
"""A training loss that is lower than the test loss by this fraction of it is called overfitted."""
ALPHA = 0.05
"""How often a verdict speaks of a difference where there is none, at most."""
LARGE = 0.03
"""An interval that allows the accuracy to fall by more than this leaves open whether a model is as good."""


def verdict(
    risk: Risk, changes: Changes | None = None, *, reference: Risk | None = None, name: str = "the reference"
) -> dict[str, str]:
    """Says in sentences what the figures show beyond noise, and only that.

    Each sentence is wrong in at most 5 % of the cases in which there is nothing to say:

    - fit: the training loss is lower or higher than the test loss with the whole interval of the gap, or the training
      loss is higher than the reference's with the whole 99.9 % interval of their difference. How good a fit can be
      depends on the noise in the labels, so no accuracy is asked for.
    - confidence: the calibration error and the mean confidence less the accuracy, against what a calibrated model
      would show by chance (`calibration_test`).
    - changes and classes: accuracy, NLL, Brier score and the accuracy within each class together (`changes`).

    Args:
      risk: of the model.
      changes: of the model against a reference; None for none.
      reference: the risk of the reference, for the fit; None for none.
      name: what the reference is called.

    Returns:
      Sentences under `fit`, `confidence`, and with `changes` under `changes` and `classes`; without training samples
      no `fit`.
    """
    words = {}
    if risk.train is not None:
        words["fit"] = _fit(risk, changes, reference, name)
    words["confidence"] = _confidence(risk.calibration["ece"], risk.figures["overconfidence"], risk.test.labels.size)
    if changes is not None:
        words |= {"changes": _changes(changes), "classes": _classes(changes)}
    return words


def _fit(risk: Risk, changes: Changes | None, reference: Risk | None, name: str) -> str:
    gap, test = risk.figures["nll_gap"], risk.figures["nll"].estimate
    found = []
    if risk.train is not None and reference is not None and reference.train is not None and changes is not None:
        found += _against(risk, changes, reference, name)
    ends = f"gap {gap.estimate:.3f}, {gap.low:.3f} to {gap.high:.3f}"
    lower = f"the training loss is {100 * gap.estimate / test:.0f} % lower than the test loss ({ends})" if test else ""
    if not math.isfinite(gap.estimate):
        found.append("the test loss is infinite: a test label got the probability 0")
    elif math.isnan(gap.low):
        wrong = int((~risk.test.correct).sum())
        found.append(f"over- or underfitting cannot be told from {wrong} wrong answers")
    elif gap.low > 0 and gap.estimate >= OVERFITTED * test:
        found.append(
            f"overfitted: the training loss is {100 * gap.estimate / test:.0f} % lower than the test loss ({ends})"
        )
    elif gap.low > 0:
        found.append(lower)
    elif gap.high < 0:
        found.append(
            f"the training loss is higher than the test loss ({ends}): as given the training samples are harder, as"
            " augmented ones are, so that overfitting cannot be told"
        )
    else:
        found.append(f"no gap between training and test loss beyond noise ({ends})")
    return "; ".join(found)


def _against(risk: Risk, changes: Changes, reference: Risk, name: str) -> list[str]:
    """How the training loss compares with the reference's."""
    if risk.train is None or reference.train is None:
        return []
    losses = reference.train.nll, risk.train.nll
    # The gap has spent the 5 % already.
    if not intervals.mean_difference(*losses, 0.999).interval.low > 0:
        return []
    found = intervals.mean_difference(*losses, risk.confidence).interval
    ends = f"its training loss is {found.estimate:.3f} higher ({found.low:.3f} to {found.high:.3f})"
    worse = changes.beyond_noise("nll") and changes.figures["nll"].estimate > 0
    if worse:
        return [f"underfitted against '{name}': {ends}, and its test loss is higher too"]
    return [f"fits the training samples less closely than '{name}', but new ones no worse beyond noise: {ends}"]


def _confidence(found: CalibrationTest, mean: Interval, samples: int) -> str:
    error = f"calibration error {found.error.estimate:.3f} ({found.error.low:.3f} to {found.error.high:.3f})"
    if found.p_value > ALPHA:
        return (
            f"no miscalibration beyond noise: {error}; a calibrated model would measure up to"
            f" {found.at_most_by_chance:.3f} with {samples:,} samples, this one measures {found.measured:.3f}"
        )
    parts = [
        f"{word} where it is {_regions([r for r in found.regions if (r.confidence > r.accuracy) == over])}"
        for word, over in (("overconfident", True), ("underconfident", False))
        if any((r.confidence > r.accuracy) == over for r in found.regions)
    ]
    if found.mean_is_off:
        word = "overconfident" if mean.estimate > 0 else "underconfident"
        points = f"{100 * abs(mean.estimate):.1f} points ({100 * mean.low:+.1f} to {100 * mean.high:+.1f})"
        parts.insert(0, f"{word} by {points} on average")
    if not parts:
        parts = ["miscalibrated, though in no one region beyond noise"]
    return f"{'; '.join(parts)}; {error}, p = {formatting.p_value(found.p_value)}"


def _regions(regions: Sequence[Region]) -> str:
    return ", ".join(
        f"{100 * r.low:.0f} to {100 * r.high:.0f} % sure ({100 * r.accuracy:.0f} % right of {r.samples:,})"
        for r in regions
    )


def _changes(changes: Changes) -> str:
    beyond = [_change(name, changes) for name in changes.figures if changes.beyond_noise(name)]
    alike = f"answers {formatting.percent(changes.agreement.estimate)} of the samples alike"
    if not beyond:
        seen = f"a change of {100 * changes.detectable:.1f} points in accuracy would show 4 times in 5"
        return f"nothing changed beyond noise in accuracy, NLL and Brier score ({seen}); {alike}"
    return f"changed beyond noise: {'; '.join(beyond)}; {alike}"


def _change(name: str, changes: Changes) -> str:
    interval, p = changes.figures[name], formatting.p_value(changes.adjusted[name])
    unit, scale, digits = (" points", 100, 1) if name == "accuracy" else ("", 1, 4)
    words = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier score"}[name]
    ends = f"{scale * interval.low:+.{digits}f} to {scale * interval.high:+.{digits}f}"
    return f"{words} {scale * interval.estimate:+.{digits}f}{unit} ({ends}, p = {p})"


def _classes(changes: Changes) -> str:
    known = [k for k, each in enumerate(changes.recall) if not math.isnan(each.estimate)]
    beyond = [k for k in known if changes.beyond_noise(k)]
    parts = []
    for word, sign in (("worse", -1), ("better", 1)):
        named = [k for k in beyond if sign * changes.recall[k].estimate > 0]
        if named:
            listed = formatting.listed([f"{k} ({100 * changes.recall[k].estimate:+.1f} points)" for k in named])
            parts.append(f"{word} in class {listed}")
    if not parts:
        parts = ["no class changed beyond noise"]
    missing = [str(k) for k in range(len(changes.recall)) if k not in set(known)]
    if missing:
        parts.append(f"no test sample of class {formatting.listed(missing)}")
    parts.append(f"{changes.regressions:,} samples lost that the reference had right, {changes.gains:,} won")
    return "; ".join(parts)


class Answer(NamedTuple):
    """The answer to one question about a model.

    Attributes:
      question: such as "as good?".
      grade: "yes", "no", or "open" where the samples or the measurements cannot tell.
      short: the answer in a few words.
      words: the answer in a sentence.
    """

    question: str
    grade: str
    short: str
    words: str


def answers(
    risk: Risk, changes: Changes | None, reference: Risk | None, sentences: Mapping[str, str]
) -> tuple[Answer, ...]:
    """Answers what a reader wants to know first: is the model as good, smaller, faster, calibrated, for every class?

    Args:
      risk: of the model.
      changes: of the model against the reference; None where there is no reference, or for the reference itself.
      reference: the risk of the reference; None likewise.
      sentences: what `verdict` said.

    Returns:
      Five answers; of a model without a reference only whether it is calibrated.
    """
    found = [_calibrated(risk.calibration["ece"], sentences["confidence"])]
    if changes is not None and reference is not None:
        found = [_as_good(changes, sentences), _smaller(risk, reference), _faster(risk, reference), *found]
        found.append(_every_class(changes, sentences))
    return tuple(found)


def _as_good(changes: Changes, sentences: Mapping[str, str]) -> Answer:
    question, accuracy = "as good?", changes.figures["accuracy"]
    signs = {name: -1 if name == "accuracy" else 1 for name in changes.figures}
    beyond = [name for name in changes.figures if changes.beyond_noise(name)]
    worse = [name for name in beyond if signs[name] * changes.figures[name].estimate > 0]
    points = f"{100 * accuracy.estimate:+.1f} points"
    if worse:
        words = {"accuracy": points, "nll": "higher loss", "brier": "higher Brier score"}
        return Answer(question, "no", f"no: {words[worse[0]]}", sentences["changes"])
    if beyond:
        return Answer(question, "yes", f"better: {points}" if "accuracy" in beyond else "better", sentences["changes"])
    # Without a change, what the interval still allows is the answer.
    if accuracy.low < -LARGE:
        return Answer(question, "open", f"open: {100 * accuracy.low:+.0f} possible", sentences["changes"])
    return Answer(question, "yes", f"yes: {points}", sentences["changes"])


def _smaller(risk: Risk, reference: Risk) -> Answer:
    question, cost, other = "smaller?", risk.complexity, reference.complexity
    if cost is None or other is None or not cost.kept:
        return Answer(question, "open", "not given", "the number of weights was not given")
    ratio = other.kept / cost.kept
    counts = f"{formatting.quantity(cost.kept)} weights of {formatting.quantity(other.kept)}"
    where = "in smaller arrays" if cost.total < other.total else "the others are zeros in arrays of the same size"
    grade = "yes" if ratio > 1.02 else "no"
    return Answer(question, grade, f"{ratio:.1f}x fewer" if grade == "yes" else "no", f"{counts}, {where}")


def _faster(risk: Risk, reference: Risk) -> Answer:
    question, cost, other = "faster?", risk.complexity, reference.complexity
    if risk.seconds and reference.seconds:
        ratio = reference.seconds / risk.seconds
        times = f"{1000 * risk.seconds:.3g} ms a call instead of {1000 * reference.seconds:.3g} ms, measured"
        return Answer(question, "yes" if ratio > 1.05 else "no", f"{ratio:.1f}x", times)
    if cost is None or other is None or not cost.flops or not cost.effective_flops:
        return Answer(question, "open", "not measured", "neither times nor FLOPs were given")
    if cost.flops < 0.98 * other.flops:
        ratio = other.flops / cost.flops
        return Answer(
            question, "yes", f"{ratio:.1f}x fewer FLOPs", f"{ratio:.1f} times fewer FLOPs; no time was measured"
        )
    ratio = other.effective_flops / cost.effective_flops
    if ratio < 1.02:
        return Answer(question, "no", "no", "as many FLOPs")
    words = f"only where zeros are skipped ({ratio:.1f} times fewer FLOPs); else it takes as long"
    return Answer(question, "open", "if zeros skipped", words)


def _calibrated(found: CalibrationTest, sentence: str) -> Answer:
    question = "calibrated?"
    if found.p_value > ALPHA:
        return Answer(question, "yes", "yes", sentence)
    over, under = ("overconfident" in sentence, "underconfident" in sentence)
    short = "over and under" if over and under else "overconfident" if over else "underconfident" if under else "no"
    return Answer(question, "no", short, sentence)


def _every_class(changes: Changes, sentences: Mapping[str, str]) -> Answer:
    question = "every class?"
    known = [k for k, each in enumerate(changes.recall) if not math.isnan(each.estimate)]
    worse = [k for k in known if changes.beyond_noise(k) and changes.recall[k].estimate < 0]
    missing = len(changes.recall) - len(known)
    if worse:
        named = ", ".join(map(str, worse)) if len(worse) <= 3 else f"{len(worse)} classes"
        return Answer(question, "no", f"worse: {named}", sentences["classes"])
    if missing:
        return Answer(question, "open", f"{missing} not tested", sentences["classes"])
    return Answer(question, "yes", "none worse", sentences["classes"])
