"""The risk report as one HTML page: tables, plots as SVG, pictures as PNG, nothing from elsewhere."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxprune.assess import plots
from jaxprune.assess.forgetting import Forgotten
from jaxprune.assess.paired import Changes
from jaxprune.assess.risk import Risk
from jaxprune.assess.verdict import excludes_zero

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        f"<figure>{svg(figure)}<figcaption>{escape(words)}</figcaption></figure>" for words, figure in figures.items()
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
        raise ImportError('pictures in the page need Pillow: pip install "jaxprune[report]"') from error
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            f"pixels must be uint8, (height, width) or (height, width, 3); got {pixels.dtype} {pixels.shape}"
        )
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="png", optimize=True)
    return out.getvalue()


def data_uri(pixels: np.ndarray) -> str:
    """An image as the `src` of an `<img>` that needs no file and no network."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def to_pixels(images: Any) -> np.ndarray:
    """Images as uint8 for `png`.

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
    """A Matplotlib figure as an `<svg>` element to stand in HTML: no header, no metadata, the same text each time."""
    import matplotlib as mpl

    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "jaxprune"}):
        figure.savefig(out, format="svg", metadata=none)
    text = out.getvalue()
    return text[text.index("<svg") :]
