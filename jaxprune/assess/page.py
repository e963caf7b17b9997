"""The risk report as one HTML page: tables, plots as SVG, pictures as PNG, nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

from jaxprune.assess import pictures, plots
from jaxprune.assess.changes import Changes
from jaxprune.assess.forgetting import Forgotten
from jaxprune.assess.risk import Risk
from jaxprune.assess.verdict import excludes_zero

Table = tuple[list[str], list[list[str]]]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: .5em 0 1.5em; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.worse { background: #fbe3e0; } td.better { background: #e2f2e4; }
figure { display: inline-block; margin: .5em; vertical-align: top; } figure svg { max-width: 100%; height: auto; }
figure.sample { width: 84px; font-size: 11px; text-align: center; }
figure.sample img { width: 72px; height: 72px; image-rendering: pixelated; object-fit: contain; background: #000; }
dt { font-weight: 600; margin-top: .7em; } dd { margin-left: 1.5em; } .note { color: #555; font-size: 13px; }
"""


class Reported(Protocol):
    """What a page shows: a `RiskReport`, which this file may not import, for it is imported from there."""

    @property
    def risks(self) -> Mapping[str, Risk]:
        """By name what is known of each model."""
        ...

    @property
    def reference(self) -> str | None:
        """What the others are compared with."""
        ...

    @property
    def changes(self) -> Mapping[str, Changes]:
        """By name what is different from the reference."""
        ...

    @property
    def verdicts(self) -> Mapping[str, Mapping[str, str]]:
        """By name sentences."""
        ...

    @property
    def forgotten(self) -> tuple[Forgotten, ...]:
        """The samples that most models answer otherwise than the reference."""
        ...

    def tables(self) -> dict[str, Table]:
        """By title the header and the rows of each table."""
        ...

    def all_notes(self) -> list[str]:
        """Sentences that must be read with the figures."""
        ...


def html(report: Reported, *, title: str, draw: Sequence[str] | None, most: int) -> str:
    """See `RiskReport.to_html`."""
    names = list(report.risks) if draw is None else list(draw)
    unknown = [name for name in names if name not in report.risks]
    if unknown or not names:
        raise ValueError(f"draw must name models of the report; not in it: {', '.join(unknown) or 'none was named'}")
    parts = [f"<h1>{escape(title)}</h1>", *map(_note, report.all_notes())]
    parts += ["<h2>Verdict</h2>", _verdicts(report.verdicts)]
    for heading, (header, rows) in report.tables().items():
        parts += [f"<h2>{escape(heading)}</h2>", table(header, rows)]
    parts += ["<h2>Plots</h2>", *_plots(report, names)]
    if report.changes:
        parts += ["<h2>Accuracy within each class</h2>", _classes(report)]
        parts += ["<h2>What pruning forgets</h2>", *_samples(report, most)]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], marks: Mapping[tuple[int, int], str] | None = None
) -> str:
    """A table; `marks` gives cells (row, column) a class."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for i, row in enumerate(rows):
        cells = [(escape(cell), (marks or {}).get((i, j))) for j, cell in enumerate(row)]
        lines.append("".join(f'<td class="{mark}">{cell}</td>' if mark else f"<td>{cell}</td>" for cell, mark in cells))
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _note(note: str) -> str:
    """A paragraph; lines that are broken on purpose, such as a map of pixels, stay so."""
    kind = "pre" if "\n" in note else "p"
    return f'<{kind} class="note">{escape(note)}</{kind}>'


def _verdicts(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    items = [
        f"<dt>{escape(name)}</dt>" + "".join(f"<dd>{escape(f'{key}: {said}')}</dd>" for key, said in words.items())
        for name, words in verdicts.items()
    ]
    return "<dl>" + "\n".join(items) + "</dl>"


def _plots(report: Reported, names: Sequence[str]) -> list[str]:
    risks = {name: report.risks[name] for name in names}
    figures: dict[str, Any] = {
        "Below the diagonal a model is overconfident; with intervals of each bin.": plots.reliability_diagram(
            {name: each.reliability for name, each in risks.items()}
        ),
        "The error among the samples that it is surest of.": plots.risk_coverage_curves(
            {name: each.coverage for name, each in risks.items()}
        ),
    }
    for way in dict.fromkeys(way for each in risks.values() for way in each.corruption):
        levels = {name: each.corruption[way] for name, each in risks.items() if way in each.corruption}
        figures[f"Accuracy under {way}, with intervals."] = plots.accuracy_by_level(levels, xlabel=f"level of {way}")
    return [
        f"<figure>{pictures.svg(figure)}<figcaption>{escape(words)}</figcaption></figure>"
        for words, figure in figures.items()
    ]


def _classes(report: Reported) -> str:
    """Differences in points, those beyond noise with a colour."""
    classes = len(next(iter(report.changes.values())).recall)
    rows, marks = [], {}
    for i, (name, each) in enumerate(report.changes.items()):
        rows.append([name, *(f"{100 * r.estimate:+.1f}" for r in each.recall), str(each.regressions), str(each.gains)])
        for k, interval in enumerate(each.recall):
            if excludes_zero(interval):
                marks[i, k + 1] = "better" if interval.low > 0 else "worse"
    header = ["model", *(f"class {k}" for k in range(classes)), "lost", "won"]
    words = f"In points against {report.reference}; in colour what differs beyond noise, over all classes together."
    return f'<p class="note">{escape(words)}</p>' + table(header, rows, marks)


def _samples(report: Reported, most: int) -> list[str]:
    shown = report.forgotten[:most]
    words = f"{len(report.forgotten)} samples that most models answer otherwise than {report.reference}"
    words += f"; the first {len(shown)} of them." if len(shown) < len(report.forgotten) else "."
    return [f"<p>{escape(words)}</p>", *map(_sample, shown)]


def _sample(sample: Forgotten) -> str:
    image = "" if sample.pixels is None else f'<img alt="" src="{pictures.data_uri(sample.pixels)}"><br>'
    words = f"no. {sample.index}: {sample.label}<br>{sample.reference} → {sample.others}"
    return f'<figure class="sample">{image}<figcaption>{words}</figcaption></figure>'
