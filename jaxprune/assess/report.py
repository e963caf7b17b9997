"""The risk report: several models side by side with a reference, in text, JSON and HTML."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxprune.assess import formatting, page
from jaxprune.assess.forgetting import Forgotten, forgotten
from jaxprune.assess.intervals import Interval
from jaxprune.assess.paired import Changes, changes
from jaxprune.assess.risk import FIGURES, Labels, Predictions, Risk, risk
from jaxprune.assess.verdict import verdict

Array = jax.Array


@dataclass(frozen=True)
class RiskReport:
    """What is known of each model, what changed against the reference, and the verdict.

    Attributes:
      risks: by name the figures.
      reference: the name of the model that the others are compared with; None for none.
      changes: by name, without the reference.
      verdicts: by name sentences, see `verdict`.
      forgotten: the samples that pruning forgets, all of them.
      notes: sentences that must be read with the figures.
    """

    risks: Mapping[str, Risk]
    reference: str | None
    changes: Mapping[str, Changes]
    verdicts: Mapping[str, Mapping[str, str]]
    forgotten: tuple[Forgotten, ...]
    notes: tuple[str, ...]

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """By title the header and the rows of each table; a column that no model has a value for is left out."""
        made = {title: self._table(columns) for title, columns in _TABLES.items()}
        names = list(dict.fromkeys(key for each in self.risks.values() for key in each.figures))
        for title, prefix in (
            ("Foreign samples: AUROC of telling them", "foreign/"),
            ("Accuracy under corruption", "corrupted/"),
        ):
            columns = {key: key.removeprefix(prefix).replace("/", ", ") for key in names if key.startswith(prefix)}
            made[title] = self._table(columns)
        made["Accuracy in %, by confidence, and the samples"] = self._bins()
        if self.changes:
            made[f"Less {self.reference}"] = self._changed()
        return {title: table for title, table in made.items() if len(table[0]) > 1}

    def to_text(self) -> str:
        """Tables, verdicts and notes for the terminal."""
        parts = [f"{title}\n{formatting.table(*table)}" for title, table in self.tables().items()]
        for name, words in self.verdicts.items():
            parts.append("\n".join([name, *(f"  {key}: {sentence}" for key, sentence in words.items())]))
        if self.reference is not None:
            parts.append(
                f"{len(self.forgotten)} samples are answered otherwise by most models than by {self.reference}"
            )
        return "\n\n".join([*parts, "\n".join(self.all_notes())])

    def to_json(self) -> str:
        """Everything but the pictures, in full precision; what is infinite or NaN is null."""
        content = {
            "models": {name: _risk_dict(each) for name, each in self.risks.items()},
            "reference": self.reference,
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
        """One page that needs no other file and no network; plots as SVG, pictures as PNG.

        Args:
          title: the heading.
          draw: the models in the plots; None for all.
          most: how many forgotten samples are shown at most; the page says how many there are.

        Returns:
          HTML.

        Raises:
          ImportError: matplotlib is not installed.
          ValueError: a model to draw that is not in the report.
        """
        return page.html(self, title=title, draw=draw, most=most)

    def all_notes(self) -> list[str]:
        """What intervals and tests are, and the notes given."""
        first = next(iter(self.risks.values()))
        line = (
            f"In brackets: {100 * first.confidence:.0f} % bootstrap intervals, {first.resamples:,} resamples of"
            f" {first.samples:,} test samples. They tell chance in the samples, not in the training."
        )
        bias = (
            "Calibration errors are biased upwards by their bins, and those of resamples once more: an interval may lie"
            " above its figure."
        )
        several = "p-values are not corrected for the number of models; the intervals of classes are, for the classes."
        return [line, bias, *([several] if self.changes else []), *self.notes]

    def _table(self, columns: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
        present = [key for key in columns if any(key in _values(each) for each in self.risks.values())]
        rows = [[name, *(_cell(key, _values(each).get(key)) for key in present)] for name, each in self.risks.items()]
        return ["model", *(columns[key] for key in present)], rows

    def _bins(self) -> tuple[list[str], list[list[str]]]:
        """The reliability diagram in numbers: a row for each bin that any model fills, a column for each model."""
        every = [each.reliability for each in self.risks.values()]
        count = len(every[0].estimate.samples)
        filled = [k for k in range(count) if any(each.estimate.samples[k] for each in every)]
        rows = [[f"{k / count:.2f} to {(k + 1) / count:.2f}", *(_bin(each, k) for each in every)] for k in filled]
        return ["confidence", *self.risks], rows

    def _changed(self) -> tuple[list[str], list[list[str]]]:
        header = ["model", "accuracy", "p", "NLL", "p", "Brier", "p", "agreement"]
        rows = []
        for name, each in self.changes.items():
            cells = []
            for key, interval in each.figures.items():
                p = each.p_values.get(key)
                cells += [_cell(key, interval, signed=True), formatting.MISSING if p is None else f"{p:.2g}"]
            rows.append([name, *cells, _cell("agreement", each.agreement)])
        return header, rows

    def __str__(self) -> str:
        return self.to_text()


def risk_report(
    models: Mapping[str, Predictions],
    labels: Labels,
    *,
    key: Array,
    reference: str | None = None,
    images: Any = None,
    notes: Sequence[str] = (),
    resamples: int = 1000,
    confidence: float = 0.95,
) -> RiskReport:
    """The report of one model, or of several against a reference.

    All models are judged by the same resamples. The forgotten samples are those on which the reference differs from the
    modal answer of the others (Hooker et al. 2019, arXiv:1911.05248, with one reference).

    Args:
      models: by name what each says.
      labels: the labels.
      key: a JAX key.
      reference: the name of the dense model, say; None compares nothing.
      images: the test images for pictures, (n, height, width) or with 1 or 3 channels; uint8, or floating in [0, 1].
      notes: which data, which seeds, what was chosen how.
      resamples: of every interval.
      confidence: of every interval.

    Returns:
      A report: `print(report)`, `report.to_json()`, `report.to_html()`.

    Raises:
      TypeError: see `risk`.
      ValueError: no model, a reference that is not among them, images of other samples; see `risk` and `changes`; each
        names the model.
    """
    if not models or (reference is not None and reference not in models):
        raise ValueError(f"reference must be one of the models, {', '.join(models) or 'of which there are none'}; "
                         f"got {reference!r}")  # fmt: skip
    pixels = None if images is None else page.to_pixels(images)
    if pixels is not None and len(pixels) != len(labels.test):
        raise ValueError(f"images must be those of the {len(labels.test)} test samples; got {len(pixels)}")
    risks, changed = {}, {}
    options: dict[str, Any] = {"key": key, "resamples": resamples, "confidence": confidence}
    for name, predictions in models.items():
        try:
            risks[name] = risk(predictions, labels, **options)
            if reference is not None and name != reference:
                changed[name] = changes(models[reference].test, predictions.test, labels.test, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    verdicts = {name: verdict(each, changed.get(name)) for name, each in risks.items()}
    lost: tuple[Forgotten, ...] = ()
    if reference is not None and changed:
        others = np.stack([np.asarray(models[name].test) for name in changed])
        lost = forgotten(models[reference].test, others, labels.test, pixels)
    return RiskReport(risks, reference, changed, verdicts, lost, tuple(notes))


_TABLES = {
    "What it costs, and how good it is": {
        "sparsity": "sparsity", "kept": "kept", "effective_flops": "FLOPs",
        "accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "aurc": "AURC",
    },
    "Whether its probabilities mean what they say": {
        "overconfidence": "confidence - accuracy", "ece": "ECE", "ece_mass": "ECE, equal mass",
        "ece_classwise": "ECE, classwise", "temperature": "T", "scaled_nll": "NLL at T", "scaled_ece": "ECE at T",
    },
    "Whether it generalises": {
        "train_accuracy": "training accuracy", "accuracy_gap": "accuracy gap",
        "train_nll": "training NLL", "nll_gap": "NLL gap",
    },
}  # fmt: skip
_PERCENT = {"accuracy", "train_accuracy", "accuracy_gap", "overconfidence", "agreement"}


def _values(each: Risk) -> dict[str, Any]:
    cost = each.complexity
    values: dict[str, Any] = (
        {} if cost is None else {k: getattr(cost, k) for k in ("sparsity", "kept", "effective_flops")}
    )
    return {**values, **each.figures}


def _cell(key: str, value: Any, *, signed: bool = False) -> str:
    if value is None:
        return formatting.MISSING
    if not isinstance(value, Interval):
        return {"sparsity": formatting.percent}.get(key, formatting.quantity)(value)
    percent = key in _PERCENT or key.startswith(("corrupted/", "foreign/"))
    plus = "+" if signed or key in ("overconfidence", "accuracy_gap", "nll_gap") else ""
    digits = 3 if key == "temperature" else 4
    number = (lambda x: f"{100 * x:{plus}.1f}") if percent else (lambda x: f"{x:{plus}.{digits}f}")
    unit = "" if not percent else " points" if plus else " %"
    return f"{number(value.estimate)} ({number(value.low)} to {number(value.high)}){unit}"


def _bin(bins: Interval, k: int) -> str:
    samples = int(bins.estimate.samples[k])
    if not samples:
        return formatting.MISSING
    accuracy, low, high = (100 * each.accuracy[k] for each in bins)
    return f"{accuracy:.0f} ({low:.0f} to {high:.0f}), {samples}"


def _lists(bins: Any) -> dict[str, list[float]]:
    return {name: np.asarray(values, float).tolist() for name, values in bins._asdict().items()}


def _risk_dict(each: Risk) -> dict[str, Any]:
    cost = each.complexity
    return {
        "samples": each.samples,
        "figures": {
            name: {**interval._asdict(), "means": FIGURES.get(name, name)} for name, interval in each.figures.items()
        },
        "corruption": {name: [level._asdict() for level in levels] for name, levels in each.corruption.items()},
        "reliability": {name: _lists(bins) for name, bins in each.reliability._asdict().items()},
        "complexity": None
        if cost is None
        else {k: getattr(cost, k) for k in ("sparsity", "kept", "flops", "effective_flops")},
    }


def _changes_dict(each: Changes) -> dict[str, Any]:
    return {
        "figures": {name: interval._asdict() for name, interval in each.figures.items()},
        "p_values": dict(each.p_values),
        "recall": [interval._asdict() for interval in each.recall],
        "agreement": each.agreement._asdict(),
        "exemplars": np.flatnonzero(np.asarray(each.exemplars.is_exemplar)).tolist(),
        "regressions": each.regressions,
        "gains": each.gains,
    }


def _strict(value: Any) -> Any:
    """The same without what JSON lacks."""
    if isinstance(value, dict):
        return {key: _strict(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
