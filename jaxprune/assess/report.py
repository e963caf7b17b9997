"""The risk report: several models side by side with a reference, as text, JSON and one HTML page: `risk_report`."""

import html
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxprune import _tree
from jaxprune.assess import formatting, page
from jaxprune.assess.calibration_error import LEAST_SAMPLES
from jaxprune.assess.comparison import Changes, Forgotten, forgotten
from jaxprune.assess.intervals import Interval
from jaxprune.assess.risk import FIGURES, Labels, Predictions, Risk, risk
from jaxprune.assess.verdict import Answer, judge

Array = jax.Array
Table = tuple[list[str], list[list[str]]]
WIDTH = 100
"""The largest number of columns of the text."""
CLASSES = 20
"""The largest number of classes in the table of classes."""


@dataclass(frozen=True)
class RiskReport:
    """The figures of each model, the changes from the reference, and the verdicts. Notebooks show the report as a page.

    Attributes:
      risks: the figures of each model, by name.
      reference: the name of the model with which all others are compared; None without a comparison.
      changes: the changes from the reference, by the name of the model, without the reference.
      verdicts: sentences on each model, by name: `fit`, `confidence`, `changes`, `classes`.
      answers: for each model, by name, the answers to five questions: whether it is as good, smaller, faster,
        calibrated, and no worse for any class. Without a reference, and for the reference, only whether it is
        calibrated.
      forgotten: the test samples for which the class that the other models predict most often is not the class that the
        reference predicts; empty without a reference.
      notes: sentences to read with the figures.
    """

    risks: Mapping[str, Risk]
    reference: str | None
    changes: Mapping[str, Changes]
    verdicts: Mapping[str, Mapping[str, str]]
    answers: Mapping[str, tuple[Answer, ...]]
    forgotten: tuple[Forgotten, ...]
    notes: tuple[str, ...]

    def answer_table(self) -> Table:
        """Returns the header and the rows of the answers, one column for each question."""
        questions = [each.question for each in max(self.answers.values(), key=len)]
        rows = []
        for name, given in self.answers.items():
            said = {each.question: each.short for each in given}
            rows.append([name, *(said.get(question, formatting.MISSING) for question in questions)])
        return ["model", *questions], rows

    def tables(self) -> dict[str, Table]:
        """Returns the header and the rows of each table, by title, without columns in which no model has a value."""
        made = {title: self._table(columns) for title, columns in _TABLES.items()}
        if self.changes:
            made[f"Difference from '{self.reference}' on the same samples"] = self._changed()
        made["Whether its probabilities mean what they say"] = self._calibration()
        names = list(dict.fromkeys(key for each in self.risks.values() for key in each.figures))
        for title, prefix in (
            ("Telling foreign samples: area under the ROC curve", "foreign/"),
            ("Accuracy under corruption, mean over the levels", "corrupted/"),
        ):
            columns = {key: key.removeprefix(prefix).replace("/", ", ") for key in names if key.startswith(prefix)}
            made[title] = self._table(columns)
        made["Accuracy in %, by confidence, and the samples"] = self._bins()
        return {title: table for title, table in made.items() if len(table[0]) > 1}

    def class_table(self) -> Table:
        """Returns the reference's accuracy within each class, and the difference of each model in points.

        A star marks a difference beyond noise. If there are more than 20 classes, the table has the 20 that changed
        most, classes with a star first.
        """
        test, changes = self.risks[str(self.reference)].test, self.changes.values()
        recall = np.array([[each.estimate for each in found.recall] for found in changes])
        beyond = np.array([[found.beyond_noise(k) for k in range(recall.shape[1])] for found in changes])
        largest = np.nan_to_num(np.abs(recall)).max(0) + 10 * beyond.any(0)
        rows = []
        for k in sorted(np.argsort(-largest, kind="stable")[:CLASSES].tolist()):
            right, pairs = test.correct[test.labels == k], zip(recall[:, k], beyond[:, k], strict=True)
            cells = [f"{100 * x:+.1f} {'*' if star else ' '}" for x, star in pairs]
            known = [f"{100 * right.mean():.1f} %", *cells] if right.size else [formatting.MISSING] * (1 + len(cells))
            rows.append([str(k), f"{right.size:,}", *known])
        return ["class", "samples", str(self.reference), *self.changes], rows

    def class_title(self) -> str:
        """Returns what `class_table` shows."""
        count = len(next(iter(self.changes.values())).recall)
        some = f" ({CLASSES} of {count} that changed most)" if count > CLASSES else ""
        return f"Accuracy by class{some}; difference from '{self.reference}' in points (* beyond noise)"

    def to_text(self) -> str:
        """Returns the answers, the verdicts, tables and notes, in lines of at most 100 characters."""
        against = "" if self.reference is None else f" Compared with '{self.reference}'."
        samples = next(iter(self.risks.values())).test.labels.size
        parts = [f"Judged by {samples:,} test samples.{against}\n\n{_tree.table(*self.answer_table(), width=WIDTH)}"]
        for name, words in self.verdicts.items():
            parts.append("\n".join([name, *(_wrapped(f"{key}: {said}", "  ") for key, said in words.items())]))
        if self.reference is not None:
            lost = formatting.count(len(self.forgotten), "sample")
            parts.append(f"The most frequent answer of the other models is not that of '{self.reference}' for {lost}.")
        tables = self.tables() | ({self.class_title(): self.class_table()} if self.changes else {})
        parts += [f"{title}\n{_tree.table(*table, width=WIDTH)}" for title, table in tables.items()]
        return "\n\n".join([*parts, "\n".join(map(_wrapped, self.all_notes()))])

    def to_json(self) -> str:
        """Returns all values except pictures as JSON, in full precision; infinite values and NaN become null."""
        content = {
            "models": {name: _risk_dict(each) for name, each in self.risks.items()},
            "reference": self.reference,
            "answers": {name: [each._asdict() for each in given] for name, given in self.answers.items()},
            "changes": {name: _changes_dict(each) for name, each in self.changes.items()},
            "verdicts": {name: dict(words) for name, words in self.verdicts.items()},
            "forgotten": [
                {"index": x.index, "label": x.label, "reference": x.reference, "others": x.others}
                for x in self.forgotten
            ],
            "notes": self.all_notes(),
        }
        return json.dumps(_strict(content), indent=2, ensure_ascii=False, allow_nan=False)

    def to_html(self, *, title: str = "Risk report", draw: Sequence[str] | None = None, most: int = 60) -> str:
        """Returns the report as one HTML page, which contains its plots and pictures and needs no other file.

        Args:
          title: the heading; default "Risk report".
          draw: the models in the plots; None (default) for the reference and the first three others.
          most: the largest number of forgotten samples shown; the page also gives their total number. Default 60.

        Returns:
          HTML.

        Raises:
          ImportError: matplotlib is not installed; or there are pictures and Pillow is not installed.
          ValueError: a model to draw is not in the report.
        """
        return page.html(self, title=title, draw=draw, most=most)

    def all_notes(self) -> list[str]:
        """Returns explanations of the intervals and tests, and then the notes that were passed."""
        first = next(iter(self.risks.values()))
        level, rest = (f"{100 * share:.3g} %" for share in (first.confidence, 1 - first.confidence))
        lines = [
            f"In brackets: {level} intervals from {first.test.labels.size:,} test samples. They show chance in the"
            " samples, not in the training. Where the samples cannot give an interval that covers, none is printed.",
            "Calibration errors are printed without the bias of few samples; 'as measured' is the usual figure, and"
            f" 'by chance' is what a calibrated model would show: the mean, and the value that {level} of calibrated"
            " models stay below.",
        ]
        if self.changes:
            lines.append(
                "Each difference has its own interval and p-value. Verdict and star test all questions together:"
                f" accuracy, NLL, Brier score and each class. Of models that are equally good, at most {rest} get a"
                " star or a class named (max-T permutation test). This holds for each model; the number of models is"
                " not corrected for."
            )
        return [*lines, *self.notes]

    def _table(self, columns: Mapping[str, str]) -> Table:
        present = [key for key in columns if any(key in _values(each) for each in self.risks.values())]
        rows = [[name, *(cell(key, _values(each).get(key)) for key in present)] for name, each in self.risks.items()]
        return ["model", *(columns[key] for key in present)], rows

    def _calibration(self) -> Table:
        header = ["model", "calibration error", "as measured", "by chance", "p", "confidence - accuracy"]
        scaled = any("temperature" in each.figures for each in self.risks.values())
        header += ["classwise, as measured", "by chance", *(["T", "NLL at T", "error at T"] if scaled else [])]
        rows = []
        for name, each in self.risks.items():
            top, classwise = each.calibration["ece"], each.calibration["ece_classwise"]
            rows.append([
                name, cell("ece", top.error), f"{top.measured:.3f}",
                f"{top.by_chance:.3f}, up to {top.at_most_by_chance:.3f}", formatting.p_value(top.p_value),
                cell("overconfidence", each.figures["overconfidence"]), f"{classwise.measured:.4f}",
                f"{classwise.by_chance:.4f}, up to {classwise.at_most_by_chance:.4f}",
                *(cell(key, each.figures.get(key)) for key in (_SCALED if scaled else ())),
            ])  # fmt: skip
        return header, rows

    def _bins(self) -> Table:
        """Returns the reliability diagram as numbers: a row for each bin with samples, a column for each model."""
        every = [each.reliability for each in self.risks.values()]
        count = len(every[0].estimate.samples)
        filled = [k for k in range(count) if any(each.estimate.samples[k] for each in every)]
        rows = [[f"{k / count:.2f} to {(k + 1) / count:.2f}", *(_bin(each, k) for each in every)] for k in filled]
        return ["confidence", *self.risks], rows

    def _changed(self) -> Table:
        header = ["model", "accuracy", "p", "NLL", "p", "Brier", "p", "answered alike", "lost", "won"]
        rows = []
        for name, each in self.changes.items():
            cells = []
            for key, interval in each.figures.items():
                p = each.p_values[key]
                cells.append(cell(key, interval, signed=True))
                mark = " *" if each.beyond_noise(key) else "  "
                cells.append(formatting.MISSING if math.isnan(p) else formatting.p_value(p) + mark)
            rows.append([name, *cells, cell("agreement", each.agreement), str(each.regressions), str(each.gains)])
        return header, rows

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """Returns the page for a notebook, in its own frame so that its style does not change the notebook."""
        try:
            whole = self.to_html()
        except ImportError:  # no Matplotlib for the plots: the answers alone
            return formatting.html_table(*self.answer_table())
        style = "width: 100%; height: 40rem; border: 1px solid #8884; border-radius: .5em"
        return f'<iframe title="Risk report" style="{style}" srcdoc="{html.escape(whole)}"></iframe>'


def risk_report(
    models: Mapping[str, Predictions],
    labels: Labels,
    *,
    key: Array,
    reference: str | None = None,
    images: Any = None,
    notes: Sequence[str] = (),
    draws: int = 2000,
    confidence: float = 0.95,
) -> RiskReport:
    """Reports how far to trust one model, or several models against a reference such as the dense network.

    The report first answers whether each model is as good as the reference, smaller, faster, calibrated, and no worse
    for any class; then it gives the evidence. It also lists the forgotten samples, for which most of the other models
    predict another class than the reference (Hooker et al. 2019, arXiv:1911.05248, with one reference).

    Args:
      models: the predictions of each model, by name.
      labels: the labels of the samples.
      key: a JAX key for the draws.
      reference: the name of the model to compare with; None (default) compares nothing.
      images: the test images for pictures, (n, height, width) or with 1 or 3 channels; uint8, or floating in [0, 1].
        None (default) for no pictures.
      notes: sentences for the report, such as the data, the seeds, and how models were chosen; default none.
      draws: the number of draws in the tests of calibration and of changes; default 2000.
      confidence: the confidence of every interval and every verdict, in (0, 1); default 0.95.

    Returns:
      A report: `print(report)`, `report.to_json()`, `report.to_html()`.

    Raises:
      TypeError: see `risk`.
      ValueError: there is no model, the reference is not one of the models, the images are of other samples, or the
        predictions of a model are wrong; the message names the model. See `risk`.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]] * 20)
      >>> models = {'dense': Predictions(logits), 'pruned': Predictions(logits / 2)}
      >>> report = risk_report(models, Labels(jnp.array([0, 1] * 20)), key=jax.random.key(0), reference='dense')
      >>> [answer.question for answer in report.answers['pruned']]
      ['as good?', 'smaller?', 'faster?', 'calibrated?', 'every class?']
    """
    _tree.check_instance(models, Mapping, "models", "a mapping from names to assess.Predictions")
    if not models or (reference is not None and reference not in models):
        raise ValueError(f"reference must be one of the models, {', '.join(models) or 'but there are none'}; "
                         f"got {reference!r}")  # fmt: skip
    pixels = None if images is None else page.to_pixels(images)
    if pixels is not None and len(pixels) != len(labels.test):
        raise ValueError(f"images must be the {len(labels.test)} images of the test samples; got {len(pixels)}")
    risks = {}
    for name, predictions in models.items():
        try:
            risks[name] = risk(predictions, labels, key=key, draws=draws, confidence=confidence)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    found = judge(risks, reference, key, draws)
    lost: tuple[Forgotten, ...] = ()
    if reference is not None and found.changes:
        first = risks[reference].test
        others = np.stack([risks[name].test.answers for name in found.changes])
        lost = forgotten(first.answers, others, first.labels, pixels)
    return RiskReport(risks, reference, found.changes, found.sentences, found.answers, lost, tuple(notes))


_TABLES = {
    "How good it is, and what it costs": {
        "accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "aurc": "AURC",
        "sparsity": "sparsity", "kept": "weights kept", "effective_flops": "FLOPs", "seconds": "ms a call",
    },
    "Whether it generalises": {
        "train_accuracy": "training accuracy", "accuracy_gap": "training - test accuracy",
        "train_nll": "training NLL", "nll_gap": "test - training NLL",
    },
}  # fmt: skip
_SCALED = ("temperature", "scaled_nll", "scaled_ece")
_PERCENT = {"accuracy", "train_accuracy", "accuracy_gap", "overconfidence", "agreement"}
_COSTS = {
    "sparsity": formatting.percent,
    "kept": formatting.quantity,
    "effective_flops": formatting.quantity,
    "seconds": lambda value: f"{1000 * value:.3g}",
}


def cell(key: str, value: Any, *, signed: bool = False) -> str:
    """Returns a table's text for a figure and its interval; "too few" if there are too few samples for an interval."""
    if value is None:
        return formatting.MISSING
    if not isinstance(value, Interval):
        return _COSTS[key](value)
    percent = key in _PERCENT or key.startswith(("corrupted/", "foreign/"))
    plus = "+" if signed or key in ("overconfidence", "accuracy_gap", "nll_gap") else ""
    digits = {"temperature": 2, "aurc": 4}.get(key, 3)
    number = (lambda x: f"{100 * x:{plus}.1f}") if percent else (lambda x: f"{x:{plus}.{digits}f}")
    unit = "" if not percent else " points" if plus else " %"
    if math.isnan(value.low) or math.isnan(value.high):
        return f"{number(value.estimate)}{unit} (too few)" if math.isfinite(value.estimate) else number(value.estimate)
    return f"{number(value.estimate)} ({number(value.low)} to {number(value.high)}){unit}"


def _values(each: Risk) -> dict[str, Any]:
    cost = each.complexity
    costs = {} if cost is None else {key: getattr(cost, key) for key in ("sparsity", "kept", "effective_flops")}
    return {**costs, **({} if each.seconds is None else {"seconds": each.seconds}), **each.figures}


def _bin(bins: Interval, k: int) -> str:
    samples = int(bins.estimate.samples[k])
    if not samples:
        return formatting.MISSING
    accuracy, low, high = (100 * each.accuracy[k] for each in bins)
    few = " few" if samples < LEAST_SAMPLES else ""
    return f"{accuracy:.0f} ({low:.0f} to {high:.0f}), {samples}{few}"


def _wrapped(text: str, indent: str = "") -> str:
    """Breaks a text into lines of at most `WIDTH` characters, except a text with line breaks, such as a map."""
    if "\n" in text:
        return text
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def _lists(bins: Any) -> dict[str, list[float]]:
    return {name: np.asarray(values, float).tolist() for name, values in bins._asdict().items()}


def _risk_dict(each: Risk) -> dict[str, Any]:
    cost = each.complexity
    tests = {}
    for name, found in each.calibration.items():
        regions = [region._asdict() for region in found.regions]
        tests[name] = {**vars(found), "error": found.error._asdict(), "regions": regions}
    return {
        "samples": int(each.test.labels.size),
        "figures": {
            name: {**interval._asdict(), "means": FIGURES.get(name, name)} for name, interval in each.figures.items()
        },
        "calibration": tests,
        "corruption": {name: [level._asdict() for level in levels] for name, levels in each.corruption.items()},
        "reliability": {name: _lists(bins) for name, bins in each.reliability._asdict().items()},
        "complexity": None
        if cost is None
        else {k: getattr(cost, k) for k in ("sparsity", "kept", "flops", "effective_flops")},
        "seconds": each.seconds,
    }


def _changes_dict(each: Changes) -> dict[str, Any]:
    return {
        "figures": {name: interval._asdict() for name, interval in each.figures.items()},
        "p_values": dict(each.p_values),
        "adjusted": dict(each.adjusted),
        "recall": [interval._asdict() for interval in each.recall],
        "recall_adjusted": list(each.recall_adjusted),
        "agreement": each.agreement._asdict(),
        "exemplars": np.flatnonzero(np.asarray(each.exemplars.is_exemplar)).tolist(),
        "regressions": each.regressions,
        "gains": each.gains,
        "detectable": each.detectable,
    }


def _strict(value: Any) -> Any:
    """Replaces values that JSON does not have by None."""
    if isinstance(value, dict):
        return {key: _strict(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
