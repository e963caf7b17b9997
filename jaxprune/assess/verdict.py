"""The verdict on a model in words (`verdict`), and short answers to five questions about it (`answers`)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from jaxprune.assess import formatting, intervals
from jaxprune.assess.calibration_error import Region
from jaxprune.assess.comparison import Changes, compare
from jaxprune.assess.risk import Risk

OVERFITTED = 0.5
"""A model is called overfitted if its training loss is lower than its test loss by this fraction of the test loss."""
LARGE = 0.03
"""If the interval allows the accuracy to fall by more than this, the verdict leaves open whether a model is as good."""


class Verdicts(NamedTuple):
    """The result of `judge`, by the name of the model.

    Attributes:
      changes: the changes from the reference, without the reference; empty without a reference.
      sentences: the result of `verdict` for each model.
      answers: the result of `answers` for each model.
    """

    changes: dict[str, Changes]
    sentences: dict[str, dict[str, str]]
    answers: dict[str, "tuple[Answer, ...]"]


def judge(risks: Mapping[str, Risk], reference: str | None, key: jax.Array, draws: int) -> Verdicts:
    """Compares every model with the reference, and describes the results in sentences.

    Raises:
      ValueError: a model has other classes than the reference.
    """
    found = Verdicts({}, {}, {})
    for name, each in risks.items():
        other = risks[reference] if reference is not None and name != reference else None
        if other is not None:
            if each.classes != other.classes:
                raise ValueError(f"{name} has logits of {each.classes} classes, {reference} of {other.classes}")
            found.changes[name] = compare(other.test, each.test, other.classes, key, draws - 1, each.confidence)
        changed = found.changes.get(name)
        found.sentences[name] = verdict(each, changed, reference=other, name=str(reference))
        found.answers[name] = answers(each, changed, other, found.sentences[name])
    return found


def verdict(
    risk: Risk, changes: Changes | None = None, *, reference: Risk | None = None, name: str = "the reference"
) -> dict[str, str]:
    """Describes in sentences only the properties that the figures show beyond noise.

    If a sentence is false for a model, it appears in at most a fraction 1 - `risk.confidence` of the cases, by default
    5 %:

    - fit: the whole interval of the gap between training and test loss is above or below 0, or the whole 99.9 %
      interval of the difference from the reference's training loss is above 0. The best possible fit depends on the
      noise in the labels, so no accuracy is required.
    - confidence: the calibration error, and the mean confidence less the accuracy, exceed the values that a calibrated
      model shows by chance (`calibration_test`).
    - changes and classes: accuracy, NLL, Brier score and the accuracy within each class, tested together (`changes`).

    Args:
      risk: the figures of the model.
      changes: the changes from a reference; None (default) without a reference.
      reference: the figures of the reference, for the fit; None (default) without a reference.
      name: the name of the reference; default "the reference".

    Returns:
      Sentences under `fit` (with training samples), `confidence`, and with `changes` under `changes` and `classes`.
    """
    words = {}
    if risk.train is not None:
        words["fit"] = _fit(risk, changes, reference, name)
    words["confidence"] = _confidence(risk)
    if changes is not None:
        words |= {"changes": _changes(changes), "classes": _classes(changes)}
    return words


def _fit(risk: Risk, changes: Changes | None, reference: Risk | None, name: str) -> str:
    gap, test = risk.figures["nll_gap"], risk.figures["nll"].estimate
    found = [] if changes is None or reference is None else _against(risk, changes, reference, name)
    ends = f"gap {gap.estimate:.3f}, {gap.low:.3f} to {gap.high:.3f}"
    lower = f"the training loss is {100 * gap.estimate / test:.0f} % lower than the test loss ({ends})" if test else ""
    if not math.isfinite(gap.estimate):
        found.append("the test loss is infinite: a test label got the probability 0")
    elif math.isnan(gap.low):
        wrong = formatting.count(int((~risk.test.correct).sum()), "wrong answer")
        found.append(f"over- or underfitting cannot be told from {wrong}")
    elif gap.low > 0:
        found.append(f"overfitted: {lower}" if gap.estimate >= OVERFITTED * test else lower)
    elif gap.high < 0:
        found.append(
            f"the training loss is higher than the test loss ({ends}): the training samples that were given are harder"
            " than the test samples, as augmented ones are, so overfitting cannot be told"
        )
    else:
        found.append(f"no gap between training and test loss beyond noise ({ends})")
    return "; ".join(found)


def _against(risk: Risk, changes: Changes, reference: Risk, name: str) -> list[str]:
    """Returns how the training loss compares with the reference's."""
    if risk.train is None or reference.train is None:
        return []
    higher = risk.train.nll - reference.train.nll
    # The test of the gap already uses the allowed rate of false sentences.
    if not intervals.mean(higher, 0.999).low > 0:
        return []
    found = intervals.mean(higher, risk.confidence)
    ends = f"its training loss is {found.estimate:.3f} higher ({found.low:.3f} to {found.high:.3f})"
    if changes.beyond_noise("nll") and changes.figures["nll"].estimate > 0:
        return [f"underfitted against '{name}': {ends}, and its test loss is higher too"]
    return [f"fits the training samples less closely than '{name}', but new ones no worse beyond noise: {ends}"]


def _is_calibrated(risk: Risk) -> bool:
    """Returns whether the calibration test finds no error beyond noise."""
    return risk.calibration["ece"].p_value > 1 - risk.confidence + 1e-12


def _confidence(risk: Risk) -> str:
    found, mean, samples = risk.calibration["ece"], risk.figures["overconfidence"], risk.test.labels.size
    error = f"calibration error {found.error.estimate:.3f} ({found.error.low:.3f} to {found.error.high:.3f})"
    if _is_calibrated(risk):
        return (
            f"no miscalibration beyond noise: {error}; with {samples:,} samples a calibrated model would measure up to"
            f" {found.at_most_by_chance:.3f}, and this model measures {found.measured:.3f}"
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
        parts = ["miscalibrated, though no single region is beyond noise"]
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
        seen = f"these samples would show a change of {100 * changes.detectable:.1f} points in accuracy 4 times in 5"
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
            shown = [f"{k} ({100 * changes.recall[k].estimate:+.1f} points)" for k in named]
            listed = ", ".join(shown) if sign < 0 else formatting.listed(shown)  # no class that gets worse is hidden
            parts.append(f"{word} in class {listed}")
    if not parts:
        parts = ["no class changed beyond noise"]
    missing = [str(k) for k in range(len(changes.recall)) if k not in set(known)]
    if missing:
        parts.append(f"no test sample of class {formatting.listed(missing)}")
    lost = formatting.count(changes.regressions, "sample")
    parts.append(f"{lost} lost that the reference had right, {changes.gains:,} won")
    return "; ".join(parts)


class Answer(NamedTuple):
    """The answer to one question about a model.

    Attributes:
      question: such as "as good?".
      grade: "yes", "no", or "open" if the samples or measurements do not decide it.
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
    """Answers five questions: is the model as good, smaller, faster, calibrated, no worse for every class?

    Args:
      risk: the figures of the model.
      changes: the changes from the reference; None without a reference, and for the reference itself.
      reference: the figures of the reference; None without a reference, and for the reference itself.
      sentences: the result of `verdict`.

    Returns:
      Five answers; without a reference only whether the model is calibrated.
    """
    found = [_calibrated(risk, sentences["confidence"])]
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
    # Without a change beyond noise, the answer says what the interval does not exclude.
    if accuracy.low < -LARGE:
        return Answer(question, "open", f"open: {100 * accuracy.low:+.0f} possible", sentences["changes"])
    return Answer(question, "yes", f"yes: {points}", sentences["changes"])


def _smaller(risk: Risk, reference: Risk) -> Answer:
    question, cost, other = "smaller?", risk.complexity, reference.complexity
    if cost is None or other is None or not cost.kept:
        return Answer(question, "open", "not given", "the number of weights was not given")
    ratio = other.kept / cost.kept
    counts = f"{formatting.quantity(cost.kept)} weights of {formatting.quantity(other.kept)}"
    where = "in smaller arrays" if cost.total < other.total else "the removed ones are zeros in arrays of the same size"
    grade = "yes" if ratio > 1.02 else "no"
    return Answer(question, grade, f"{ratio:.1f}x fewer" if grade == "yes" else "no", f"{counts}, {where}")


def _faster(risk: Risk, reference: Risk) -> Answer:
    question, cost, other = "faster?", risk.complexity, reference.complexity
    if risk.seconds and reference.seconds:
        ratio = reference.seconds / risk.seconds
        times = f"{1000 * risk.seconds:.3g} ms a call instead of {1000 * reference.seconds:.3g} ms, measured"
        faster = ratio > 1.05
        return Answer(question, "yes" if faster else "no", f"{'' if faster else 'no: '}{ratio:.1f}x", times)
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
    words = f"only on hardware that skips zeros ({ratio:.1f} times fewer FLOPs); elsewhere it takes as long"
    return Answer(question, "open", "if zeros skipped", words)


def _calibrated(risk: Risk, sentence: str) -> Answer:
    question = "calibrated?"
    if _is_calibrated(risk):
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
    return Answer(question, "yes", "none shown worse", sentences["classes"])
