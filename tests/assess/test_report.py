"""The verdict says what the figures say; the report holds them all, and its page needs nothing else."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from PIL import Image

from jaxprune import assess
from jaxprune.assess import Interval, Labels, Predictions, complexity, page, risk_report
from jaxprune.assess.verdict import verdict

KEY = jax.random.key(0)
OPTIONS = {"key": KEY, "resamples": 48}
rng = np.random.default_rng(1)
# The numbers of samples are those of test_risk.py: what is compiled there serves here.
LABELS, TRAIN_LABELS = np.arange(120) % 3, np.arange(90) % 3
CLEAN = 4 * np.eye(3, dtype=np.float32)[LABELS]
IMAGES = rng.uniform(size=(120, 5, 4, 1)).astype(np.float32)


def noisy(scale, n=120):
    return (CLEAN[:n] + scale * rng.normal(size=(n, 3))).astype(np.float32)


def outputs(scale):
    cost = complexity(lambda p, x: x @ p, np.ones((4, 3), np.float32), None, np.ones((1, 4), np.float32))
    logits = noisy(scale)
    return Predictions(
        logits,
        noisy(0.1, 90),
        noisy(scale),
        {"<noise>": noisy(9, 70)},
        {"blur": np.stack([logits, noisy(5)])},
        complexity=cost,
    )


MODELS = {"dense": outputs(1), "pruned & small": outputs(4), "worse": outputs(4)}


@pytest.fixture(scope="module")
def report():
    truth = Labels(LABELS, TRAIN_LABELS, LABELS)
    return risk_report(
        MODELS, truth, reference="dense", images=IMAGES, notes=["data: drawn", "map:\n#.\n.#"], **OPTIONS
    )


def test_text_has_every_model_table_and_verdict(report):
    text = str(report)
    for heading in report.tables():
        assert heading in text
    assert len(report.tables()) == 7
    for name, words in report.verdicts.items():
        assert text.count(name) >= 6
        assert set(words) == {"fit", "confidence"} | ({"changes", "classes"} if name != "dense" else set())
        assert all(sentence in text for sentence in words.values())
    assert "data: drawn" in text
    assert f"{len(report.forgotten)} samples are answered otherwise" in text


def test_json_is_strict_and_has_every_figure(report):
    content = json.loads(report.to_json(), parse_constant=lambda _: pytest.fail("not JSON"))
    for name, each in report.risks.items():
        figures = content["models"][name]["figures"]
        assert {key: value["low"] for key, value in figures.items()} == {k: v.low for k, v in each.figures.items()}
        for end, bins in each.reliability._asdict().items():
            written = np.array(content["models"][name]["reliability"][end]["accuracy"], float)
            np.testing.assert_array_equal(written, bins.accuracy)  # null is NaN
    assert content["reference"] == "dense"
    assert set(content["changes"]) == {"pruned & small", "worse"}
    assert [x["index"] for x in content["forgotten"]] == [x.index for x in report.forgotten]


def test_the_table_of_bins_holds_their_intervals(report):
    [(header, rows)] = [table for title, table in report.tables().items() if "by confidence" in title]
    assert header == ["confidence", *MODELS]
    bins = report.risks["dense"].reliability
    assert rows[-1][0] == "0.93 to 1.00"
    accuracy, low, high = (100 * end.accuracy[-1] for end in bins)
    assert rows[-1][1] == f"{accuracy:.0f} ({low:.0f} to {high:.0f}), {bins.estimate.samples[-1]:.0f}"
    every = [each.reliability.estimate.samples for each in report.risks.values()]
    assert len(rows) == (np.sum(every, 0) > 0).sum() > 1
    assert [cell for row in rows for cell in row[1:]].count("-") == (
        np.array(every)[:, np.sum(every, 0) > 0] == 0
    ).sum()


class Page(HTMLParser):
    void = frozenset({"meta", "img", "br", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(report):
    html = report.to_html(title="a < b")
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", html)
    assert page.seen.count("svg") == 3  # reliability, risk-coverage, blur
    assert page.seen.count("img") == len(report.forgotten) > 0
    assert '<pre class="note">map:\n#.\n.#</pre>' in html
    assert "a &lt; b" in html
    assert "&lt;noise&gt;" in html
    assert "pruned &amp; small" in html
    assert html == report.to_html(title="a < b")


def test_forgotten_samples_are_shown_as_they_are(report):
    dense, *others = (each.test for each in MODELS.values())
    by_hand = assess.exemplars(dense, np.stack(others))
    assert [x.index for x in report.forgotten] == np.flatnonzero(np.asarray(by_hand.is_exemplar)).tolist()
    first = report.forgotten[0]
    decoded = np.asarray(Image.open(io.BytesIO(page.png(first.pixels))))
    np.testing.assert_array_equal(decoded, np.rint(255 * IMAGES[first.index, ..., 0]))


def test_colour_png():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(page.png(pixels)))), pixels)


def risk_with(report, **figures):
    each = report.risks["dense"]
    return dataclasses.replace(each, figures={**each.figures, **{k: Interval(*v) for k, v in figures.items()}})


def test_verdicts_follow_their_rules(report):
    fits = {
        "overfitted: 75%": {"nll": (0.4, 0.3, 0.5), "nll_gap": (0.3, 0.1, 0.4)},
        "overfitted: an infinite part": {"nll": (np.inf, 0.3, np.inf), "nll_gap": (np.inf, 0.1, np.inf)},
        "only 25% of its test NLL": {"nll": (0.4, 0.3, 0.5), "nll_gap": (0.1, 0.05, 0.2)},
        "no gap beyond noise": {"nll": (0.4, 0.3, 0.5), "nll_gap": (0.3, -0.1, 0.4)},
        "underfitted: 80.00 %": {"nll_gap": (0.0, -0.1, 0.1), "train_accuracy": (0.8, 0.7, 0.9)},
    }
    for words, figures in fits.items():
        given = {"train_accuracy": (1.0, 1.0, 1.0), **figures}
        assert words in verdict(risk_with(report, **given))["fit"]
    both = {**fits["overfitted: 75%"], **fits["underfitted: 80.00 %"], "nll_gap": (0.3, 0.1, 0.4)}
    assert verdict(risk_with(report, **both))["fit"].count("fitted: ") == 2
    for words, ends in {
        "overconfident by 2.00 points": (0.02, 0.01, 0.03),
        "underconfident by 2.00 points": (-0.02, -0.03, -0.01),
        "as confident as it is accurate": (0.02, -0.01, 0.03),
    }.items():
        assert verdict(risk_with(report, overconfidence=ends))["confidence"].startswith(words)


def test_verdicts_name_what_changed(report):
    nothing = assess.changes(CLEAN, CLEAN, LABELS, **OPTIONS)
    words = verdict(report.risks["dense"], nothing)
    assert words["changes"].startswith("nothing changed beyond noise")
    assert words["classes"].startswith("no class changed beyond noise; 0 samples lost")
    lost = np.where((LABELS == 1)[:, None], np.roll(CLEAN, 1, axis=1), CLEAN)
    words = verdict(report.risks["dense"], assess.changes(CLEAN, lost, LABELS, **OPTIONS))
    assert "accuracy -33.33 points" in words["changes"]
    assert words["classes"].startswith("worse in class 1 (-100.0 points); 40 samples lost")


def test_errors(report):
    with pytest.raises(ValueError, match="must be one of the models, a; got 'b'"):
        _ = risk_report({"a": Predictions(CLEAN)}, Labels(LABELS), key=KEY, reference="b")
    with pytest.raises(ValueError, match="of which there are none"):
        _ = risk_report({}, Labels(LABELS), key=KEY)
    with pytest.raises(ValueError, match="a: test: logits hold NaN"):
        _ = risk_report({"a": Predictions(CLEAN * np.nan)}, Labels(LABELS), key=KEY)
    with pytest.raises(ValueError, match="those of the 120 test samples; got 119"):
        _ = risk_report({"a": Predictions(CLEAN)}, Labels(LABELS), images=IMAGES[1:], **OPTIONS)
    with pytest.raises(ValueError, match="not in it: x"):
        _ = report.to_html(draw=["x"])
    with pytest.raises(ValueError, match="fitted must be in"):
        _ = verdict(report.risks["dense"], fitted=0)
    with pytest.raises(ValueError, match=r"with 1 or 3 channels last; got \(2, 2\)"):
        _ = page.to_pixels(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"floating in \[0, 1\]; got int64"):
        _ = page.to_pixels(np.zeros((1, 2, 2), np.int64))
    with pytest.raises(ValueError, match="pixels must be uint8"):
        _ = page.png(np.zeros((2, 2)))
