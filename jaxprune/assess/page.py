"""The risk report as one HTML page: the answers, then tables, plots and pictures, in one self-contained file."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.assess import formatting, plots
from jaxprune.assess.comparison import Forgotten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 4
"""The number of models in the plots by default, and the most whose sentences are open when the page is opened."""
_INK = "#010203"
"""Drawn in place of black, and written as the colour of the page's text, so that plots suit light and dark."""

_TERMS = {
    "accuracy": "Fraction of the test samples that the model answers rightly.",
    "NLL": "Negative log-likelihood: the mean of -log p of the true class, in nats. Smaller is better.",
    "Brier": "Mean squared distance of the probabilities from the truth, 0 to 2. Smaller is better.",
    "AURC": "Area under the risk-coverage curve: the error among the samples the model is surest of, over all"
    " fractions answered. Smaller is better.",
    "sparsity": "Fraction of the weights removed, among the parameters that are pruned.",
    "FLOPs": "Multiplications and additions of one call with the weights that are kept.",
    "calibration error": "Mean distance of confidence and accuracy over 15 bins (ECE), without the bias of few"
    " samples.",
    "as measured": "The usual ECE, which is larger than the true one where there are few samples.",
    "by chance": "The ECE that a calibrated model would measure with as many samples: the mean, and the value that most"
    " draws stay below (95 % of them at the default confidence).",
    "p": "How probable a difference as large would be if there were none, of this figure alone. A star: beyond noise"
    " among accuracy, NLL, Brier score and all classes together.",
    "confidence - accuracy": "Above 0 the model is surer than it is right.",
    "classwise, as measured": "ECE of the probability of each class, mean over the classes.",
    "T": "Temperature that makes held-out samples most likely; above 1 the model becomes less sure.",
    "answered alike": "Fraction of the samples that the model and the reference answer alike.",
    "lost": "Samples that the reference has right and the model wrong.",
    "won": "Samples that the model has right and the reference wrong.",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6470; --line: #d9dde3; --page: #fff; --card: #f5f7f9;
  --yes: #1a7f37; --no: #c0291d; --open: #8a6100; --yes-bg: #e3f4e6; --no-bg: #fde7e4; --open-bg: #fdf1d3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2aab5; --line: #3a4048; --page: #16181c;
  --card: #1f2328; --yes: #6fdc8c; --no: #ff9b8f; --open: #f2c94c; --yes-bg: #17331f; --no-bg: #43201c;
  --open-bg: #3a2f10; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1.2rem; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.6rem; margin: .2em 0; } h2 { font-size: 1.2rem; margin: 2em 0 .5em; } h3 { font-size: 1rem; }
.lead, .note { color: var(--soft); } .note { font-size: .85rem; }
pre.note { overflow-x: auto; line-height: 1.15; }
.scroll { overflow-x: auto; margin: .5em 0 1.5em; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .8em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
  padding-left: 0; }
td.worse { background: var(--no-bg); } td.better { background: var(--yes-bg); }
abbr { text-decoration: underline dotted; cursor: help; }
.answers { width: 100%; font-size: .95rem; } .answers td, .answers th { text-align: left; white-space: normal; }
.yes, .no, .open { border-radius: .4em; padding: .1em .5em; display: inline-block; }
.yes { color: var(--yes); background: var(--yes-bg); } .no { color: var(--no); background: var(--no-bg); }
.open { color: var(--open); background: var(--open-bg); }
summary { font-weight: 600; margin-top: .6em; cursor: pointer; } dl { margin: 0; }
dt { font-weight: 600; margin-top: .9em; } dd { margin: .15em 0 .15em 1.2em; } dd b { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .6em; padding: .8em; }
figure svg { width: 100%; height: auto; } figcaption { font-size: .85rem; color: var(--soft); }
.samples { display: flex; flex-wrap: wrap; gap: .4rem; }
figure.sample { width: 92px; padding: .4em; font-size: .7rem; text-align: center; }
figure.sample img { width: 72px; height: 72px; image-rendering: pixelated; object-fit: contain; background: #000; }
@media (max-width: 40rem) {
  body { padding: .8rem; } dd { margin-left: .4em; }
  .scroll td:first-child, .scroll th:first-child { white-space: normal; min-width: 7rem; max-width: 8rem; }
  .answers thead { display: none; } .answers tr { display: block; background: var(--card); border-radius: .6em;
    margin-bottom: .8em; padding: .5em .8em; }
  .answers td { display: flex; justify-content: space-between; gap: 1em; border: 0; padding: .2em 0; max-width: none; }
  .answers td:first-child { font-weight: 600; position: static; background: none; }
  .answers td[data-question]::before { content: attr(data-question); color: var(--soft); }
}
"""


def html(report: Any, *, title: str, draw: Sequence[str] | None, most: int) -> str:
    """Writes the page of a `RiskReport`; see `RiskReport.to_html`."""
    names = _drawn(report) if draw is None else list(draw)
    unknown = [name for name in names if name not in report.risks]
    if unknown or not names:
        raise ValueError(f"draw must name models of the report; not in it: {', '.join(unknown) or 'none was named'}")
    against = "" if report.reference is None else f" Compared with <b>{escape(report.reference)}</b>."
    samples = next(iter(report.risks.values())).test.labels.size
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">Judged by {samples:,} test samples.{against}</p>']
    parts += [_answers(report), "<h2>In words</h2>", _verdicts(report.verdicts)]
    for heading, (header, rows) in report.tables().items():
        parts += [f"<h2>{escape(heading)}</h2>", table(header, rows)]
    parts += ["<h2>Plots</h2>", '<div class="plots">', *_plots(report, names), "</div>"]
    if report.changes:
        parts += ["<h2>Accuracy within each class</h2>", _classes(report)]
        parts += ["<h2>What pruning forgets</h2>", *_samples(report, most)]
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in _TERMS.items())
    parts += ["<h2>How to read this</h2>", *map(_note, report.all_notes())]
    parts += [f'<details class="note"><summary>The terms</summary><dl>{terms}</dl></details>']
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], marks: Mapping[tuple[int, int], str] | None = None
) -> str:
    """Returns an HTML table that scrolls separately from the page; `marks` gives cells (row, column) a class."""
    head = "".join(f"<th>{_term(cell)}</th>" for cell in header)
    lines = []
    for i, row in enumerate(rows):
        cells = [(escape(cell), (marks or {}).get((i, j))) for j, cell in enumerate(row)]
        lines.append("".join(f'<td class="{mark}">{cell}</td>' if mark else f"<td>{cell}</td>" for cell, mark in cells))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _term(words: str) -> str:
    explained = _TERMS.get(words)
    return f'<abbr title="{escape(explained)}">{escape(words)}</abbr>' if explained else escape(words)


def _drawn(report: Any) -> list[str]:
    """Returns the reference and the first other models, as many as fit into one legend."""
    names = [name for name in (report.reference, *report.risks) if name is not None]
    return list(dict.fromkeys(names))[:DRAWN]


def _answers(report: Any) -> str:
    """Returns a table with a row for each model and coloured answers; on a narrow screen a card for each model."""
    questions = report.answer_table()[0][1:]
    head = "".join(f"<th>{escape(question)}</th>" for question in ("", *questions))
    rows = []
    for name, given in report.answers.items():
        by_question = {each.question: each for each in given}
        cells = [f"<td>{escape(name)}</td>"]
        for question in questions:
            each = by_question.get(question)
            if each is not None:
                said = f'<span class="{each.grade}" title="{escape(each.words)}">{escape(each.short)}</span>'
                cells.append(f'<td data-question="{escape(question)}">{said}</td>')
            else:
                cells.append("<td></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return f'<table class="answers"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _note(note: str) -> str:
    """Returns a paragraph; a note with line breaks, such as a map of pixels, keeps them."""
    kind = "pre" if "\n" in note else "p"
    return f'<{kind} class="note">{escape(note)}</{kind}>'


def _verdicts(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    """Returns a paragraph for each model; with many models each paragraph opens at a click."""
    items = []
    for name, words in verdicts.items():
        said = "".join(f"<dd><b>{key}:</b> {escape(sentence)}</dd>" for key, sentence in words.items())
        opened = " open" if len(verdicts) <= DRAWN else ""
        items.append(f"<details{opened}><summary>{escape(name)}</summary><dl>{said}</dl></details>")
    return "\n".join(items)


def _plots(report: Any, names: Sequence[str]) -> list[str]:
    inked = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK
    )
    with plots.style({**inked, "legend.framealpha": 0.0, "font.size": 12}):
        risks = {name: report.risks[name] for name in names}
        figures: dict[str, Any] = {
            "Below the diagonal a model is overconfident. Bars: intervals; rings: bins with fewer than 10 samples.": (
                plots.reliability_diagram({name: each.reliability for name, each in risks.items()})
            ),
            "The error among the samples that it is surest of.": plots.risk_coverage_curves(
                {name: each.coverage for name, each in risks.items()}
            ),
        }
        for way in dict.fromkeys(way for each in risks.values() for way in each.corruption):
            levels = {name: each.corruption[way] for name, each in risks.items() if way in each.corruption}
            figures[f"Accuracy under {way}, with intervals."] = plots.accuracy_by_level(
                levels, xlabel=f"level of {way}"
            )
        return [
            f"<figure>{svg(figure)}<figcaption>{escape(words)}</figcaption></figure>"
            for words, figure in figures.items()
        ]


def _classes(report: Any) -> str:
    """Returns the table of classes, with colours for the differences beyond noise."""
    header, rows = report.class_table()
    marks = {
        (i, j): "worse" if cell.startswith("-") else "better"
        for i, row in enumerate(rows)
        for j, cell in enumerate(row)
        if cell.endswith("*")
    }
    return f'<p class="note">{escape(report.class_title())}</p>' + table(header, rows, marks)


def _samples(report: Any, most: int) -> list[str]:
    shown = report.forgotten[:most]
    words = f"The most frequent answer of the other models is not that of '{report.reference}' for "
    words += formatting.count(len(report.forgotten), "sample")
    words += f"; here are the first {len(shown)}." if len(shown) < len(report.forgotten) else "."
    words += " Below each sample: its number and its class, then the answer of the reference and that of the others."
    return [f"<p>{escape(words)}</p>", '<div class="samples">', *map(_sample, shown), "</div>"]


def _sample(sample: Forgotten) -> str:
    image = "" if sample.pixels is None else f'<img alt="" src="{data_uri(sample.pixels)}"><br>'
    words = f"no. {sample.index}: {sample.label}<br>{sample.reference} → {sample.others}"
    return f'<figure class="sample">{image}<figcaption>{words}</figcaption></figure>'


def png(pixels: np.ndarray) -> bytes:
    r"""Encodes an image as a PNG file with Pillow.

    Args:
      pixels: uint8, (height, width) grey or (height, width, 3) RGB.

    Returns:
      The bytes of the file.

    Raises:
      ImportError: Pillow is not installed.
      ValueError: another dtype or other axes.

    Example:
      >>> png(np.zeros((2, 3), np.uint8))[:8]
      b'\x89PNG\r\n\x1a\n'
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures in the page need Pillow: pip install pillow") from error
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            f"pixels must be uint8, (height, width) or (height, width, 3); got {pixels.dtype} {pixels.shape}"
        )
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="png", optimize=True)
    return out.getvalue()


def data_uri(pixels: np.ndarray) -> str:
    """Returns an image as the `src` of an `<img>` that needs no file and no network."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def to_pixels(images: Any) -> np.ndarray:
    """Returns images as uint8 for `png`.

    Args:
      images: (n, height, width) or (n, height, width, channels) with 1 or 3 channels; uint8, or floating in [0, 1].

    Returns:
      uint8 (n, height, width) or (n, height, width, 3).

    Raises:
      ValueError: other axes or channels, or values outside [0, 1].
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"images must be (n, height, width) with 1 or 3 channels last; got {images.shape}")
    if images.dtype == np.uint8:
        return images
    if not (np.issubdtype(images.dtype, np.floating) and (images >= 0).all() and (images <= 1).all()):
        raise ValueError(f"images must be uint8, or floating in [0, 1]; got {images.dtype}")
    return np.rint(255 * images).astype(np.uint8)


def svg(figure: "Figure") -> str:
    """Returns a Matplotlib figure as an `<svg>` element without metadata, in the colour of the text around it."""
    import matplotlib as mpl

    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "jaxprune"}):
        figure.savefig(out, format="svg", metadata=none, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor").replace("#000000", "currentColor")
