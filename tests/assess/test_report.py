"""The verdict says what the figures say; the report holds them all, and its page needs nothing else."""

import dataclasses
import html
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxprune import assess
from jaxprune.assess import Labels, Predictions, complexity, page, risk, risk_report
from jaxprune.assess.intervals import Interval
from jaxprune.assess.verdict import verdict

KEY = jax.random.key(0)
OPTIONS: dict[str, Any] = {"key": KEY, "draws": 400}
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
    assert max(map(len, text.splitlines())) <= 100
    for name, words in report.verdicts.items():
        assert text.count(name) >= 6
        assert set(words) == {"fit", "confidence"} | ({"changes", "classes"} if name != "dense" else set())
        flat = " ".join(text.split())
        assert all(sentence in flat for sentence in words.values())
    assert "data: drawn" in text
    assert f"of the other models is not that of 'dense' for {len(report.forgotten)} samples." in text


def test_json_is_strict_and_has_every_figure(report):
    content = json.loads(report.to_json(), parse_constant=lambda _: pytest.fail("not JSON"))
    for name, each in report.risks.items():
        figures = content["models"][name]["figures"]
        written = [value["low"] for value in figures.values()]
        np.testing.assert_array_equal(np.array(written, float), [v.low for v in each.figures.values()])  # null is NaN
        tests = content["models"][name]["calibration"]
        assert {key: value["measured"] for key, value in tests.items()} == {
            key: value.measured for key, value in each.calibration.items()
        }
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
    text = report.to_html(title="a < b")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert page.seen.count("svg") == 3  # reliability, risk-coverage, blur
    assert page.seen.count("img") == len(report.forgotten) > 0
    assert '<pre class="note">map:\n#.\n.#</pre>' in text
    assert "a &lt; b" in text
    assert "&lt;noise&gt;" in text
    assert "pruned &amp; small" in text
    assert text == report.to_html(title="a < b")


def test_a_notebook_shows_the_page_in_a_frame_and_a_comparison_as_a_table(report):
    frame = getattr(report, "_repr_html_")()  # noqa: B009
    assert frame.startswith("<iframe") and frame.count("<") == 2
    assert html.unescape(frame.partition('srcdoc="')[2]).startswith(report.to_html()[:3000])
    results = [assess.ModelResult("a<b", extra={"seconds": 1.5})]
    table = getattr(assess.comparison_table(results, notes=["one run"]), "_repr_html_")()  # noqa: B009
    assert "<th>a&lt;b</th><td>1.5</td>" in table and "<p>one run</p>" in table


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


def test_the_fit_is_told_from_the_gap(report):
    fits = {
        "overfitted: the training loss is 75 % lower than the test loss": {
            "nll": (0.4, 0.3, 0.5),
            "gap": (0.3, 0.1, 0.4),
        },
        "the training loss is 25 % lower than the test loss": {"nll": (0.4, 0.3, 0.5), "gap": (0.1, 0.05, 0.2)},
        "the test loss is infinite": {"nll": (np.inf, np.nan, np.nan), "gap": (np.inf, np.nan, np.nan)},
        "cannot be told from": {"nll": (0.4, np.nan, np.nan), "gap": (0.3, np.nan, np.nan)},
        "no gap between training and test loss beyond noise": {"nll": (0.4, 0.3, 0.5), "gap": (0.3, -0.1, 0.4)},
        "as augmented ones are": {"nll": (0.4, 0.3, 0.5), "gap": (-0.3, -0.4, -0.1)},
    }
    for words, given in fits.items():
        said = verdict(risk_with(report, nll=given["nll"], nll_gap=given["gap"]))["fit"]
        assert words in said
        assert said.startswith("overfitted") == words.startswith("overfitted")


def test_underfitted_is_told_against_the_reference_alone():
    # Both models say what they say of the training samples of the test samples too; the second is less sure of all.
    sharp, dull = CLEAN + rng.normal(size=(120, 3)), 0.1 * CLEAN
    models = {name: Predictions(x.astype(np.float32), train=x.astype(np.float32)) for name, x in
              {"sharp": sharp, "dull": dull}.items()}  # fmt: skip
    found = risk_report(models, Labels(LABELS, LABELS), reference="sharp", **OPTIONS)
    assert found.verdicts["dull"]["fit"].startswith("underfitted against 'sharp': its training loss is")
    assert "and its test loss is higher too" in found.verdicts["dull"]["fit"]
    alone = risk_report({"dull": models["dull"]}, Labels(LABELS, LABELS), **OPTIONS)
    assert "underfitted" not in alone.verdicts["dull"]["fit"]
    # Here the reference fits the training samples closely and new ones no better.
    sure = {
        "memory": Predictions(CLEAN[:, [1, 2, 0]], train=9 * CLEAN),
        "plain": Predictions(CLEAN[:, [1, 2, 0]], CLEAN),
    }
    found = risk_report(sure, Labels(LABELS, LABELS), reference="memory", **OPTIONS)
    assert "less closely than 'memory', but new ones no worse" in found.verdicts["plain"]["fit"]


def test_the_best_model_for_noisy_labels_is_not_underfitted():
    # It knows the probabilities from which the labels are drawn: 0.72 of the labels are the likeliest ones.
    generator = np.random.default_rng(3)
    likeliest = generator.integers(0, 5, 1200)
    noisy = np.where(generator.random(1200) < 0.35, generator.integers(0, 5, 1200), likeliest)
    logits = np.log(0.65 * np.eye(5)[likeliest] + 0.07).astype(np.float32)
    best = Predictions(logits[600:], train=logits[:600])
    words = risk_report({"best": best}, Labels(noisy[600:], noisy[:600]), **OPTIONS).verdicts["best"]
    assert words["fit"].startswith("no gap between training and test loss beyond noise")
    assert words["confidence"].startswith("no miscalibration beyond noise")


def test_over_and_underconfident_regions_are_both_named():
    # Right in 60 % of all cases, 43 % sure of one half of the samples and 77 % sure of the other: the mean is right.
    sure = np.where(np.arange(1500) % 2, 0.77, 0.43)
    logits = np.log(np.stack([sure, *[(1 - sure) / 3] * 3], 1)).astype(np.float32)
    labels = np.where(np.arange(1500) % 5 < 3, 0, 1 + np.arange(1500) % 3)
    words = verdict(risk(Predictions(logits), Labels(labels), key=KEY))["confidence"]
    assert words.startswith(
        "overconfident where it is 73 to 80 % sure (60 % right of 750); underconfident where it is 40"
    )
    assert "on average" not in words
    assert "calibration error 0.17" in words


@pytest.mark.parametrize(("factor", "word"), [(4.0, "overconfident"), (0.3, "underconfident")])
def test_confidence_that_is_off_on_average(factor, word):
    generator = np.random.default_rng(0)
    logits = 1.5 * generator.normal(size=(800, 4))
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(1)  # drawn from the softmax
    found = risk_report({"m": Predictions((factor * logits).astype(np.float32))}, Labels(labels), **OPTIONS)
    assert re.match(rf"{word} by \d+\.\d points \(.* to .*\) on average; ", found.verdicts["m"]["confidence"])
    [answer] = found.answers["m"]
    assert (answer.question, answer.grade, answer.short) == ("calibrated?", "no", word)


def test_the_confidence_of_the_report_decides_the_verdict(report):
    # A p-value of 0.03 is beyond noise at a confidence of 0.95, and not at 0.99.
    each = report.risks["dense"]
    off = {**each.calibration, "ece": dataclasses.replace(each.calibration["ece"], p_value=0.03)}
    words = [
        verdict(dataclasses.replace(each, calibration=off, confidence=level))["confidence"] for level in (0.95, 0.99)
    ]
    assert "no miscalibration beyond noise" not in words[0]
    assert words[1].startswith("no miscalibration beyond noise")
    strict = {name: dataclasses.replace(risk, confidence=0.995) for name, risk in report.risks.items()}
    notes = " ".join(dataclasses.replace(report, risks=strict).all_notes())
    assert "99.5 % intervals" in notes
    assert "at most 0.5 % get a star" in notes


def test_verdicts_name_what_changed(report):
    nothing = assess.changes(CLEAN, CLEAN, LABELS, key=KEY)
    words = verdict(report.risks["dense"], nothing)
    assert words["changes"].startswith("nothing changed beyond noise")
    assert words["classes"].startswith("no class changed beyond noise; 0 samples lost")
    lost = np.where((LABELS == 1)[:, None], np.roll(CLEAN, 1, axis=1), CLEAN)
    words = verdict(report.risks["dense"], assess.changes(CLEAN, lost, LABELS, key=KEY))
    assert "accuracy -33.3 points (-42" in words["changes"]
    assert words["classes"].startswith("worse in class 1 (-100.0 points); 40 samples lost")
    without = np.where(LABELS == 2, 0, LABELS)
    words = verdict(report.risks["dense"], assess.changes(CLEAN, CLEAN, without, key=KEY))
    assert "no test sample of class 2" in words["classes"]


def test_every_class_that_gets_worse_is_named_and_the_text_has_the_classes():
    labels = np.repeat(np.arange(24), 30)
    clean = np.eye(24, dtype=np.float32)[labels] * 9
    lost = np.where((labels < 22)[:, None], np.roll(clean, 1, axis=1), clean)
    models = {"dense": Predictions(clean), "lost": Predictions(lost)}
    report = risk_report(models, Labels(labels), reference="dense", **OPTIONS)
    listed = ", ".join(f"{k} (-100.0 points)" for k in range(22))
    assert report.verdicts["lost"]["classes"].startswith(f"worse in class {listed}; ")
    header, rows = report.class_table()
    assert header == ["class", "samples", "dense", "lost"]
    assert rows == [[str(k), "30", "100.0 %", "-100.0 *"] for k in range(20)]
    assert "Accuracy by class (20 of 24 that changed most); difference from 'dense'" in str(report)


def test_answers_come_first_and_say_what_can_be_known(report):
    asked = ["as good?", "smaller?", "faster?", "calibrated?", "every class?"]
    assert [each.question for each in report.answers["worse"]] == asked
    assert [each.question for each in report.answers["dense"]] == ["calibrated?"]
    good, smaller, faster, _, every = report.answers["worse"]
    assert (good.grade, smaller.short, faster.short) == ("no", "no", "no")
    assert every.words == report.verdicts["worse"]["classes"]
    text = str(report)
    assert text.index("as good?") < min(text.index(title) for title in report.tables())
    # With times and fewer weights the answers give both.
    eye = np.eye(4, dtype=bool)
    cost = complexity(lambda p, x: x @ p, np.ones((4, 4), np.float32), eye, np.ones((1, 4), np.float32))
    dense = complexity(lambda p, x: x @ p, np.ones((4, 4), np.float32), None, np.ones((1, 4), np.float32))
    logits = noisy(1)
    models = {
        "dense": Predictions(logits, complexity=dense, seconds=0.02),
        "small": Predictions(logits, complexity=cost),
    }
    said = {x.question: x for x in risk_report(models, Labels(LABELS), reference="dense", **OPTIONS).answers["small"]}
    assert said["smaller?"].short == "4.0x fewer"
    assert "zeros in arrays of the same size" in said["smaller?"].words
    assert (said["faster?"].grade, said["faster?"].short) == ("open", "if zeros skipped")
    assert (said["as good?"].grade, said["every class?"].grade) == ("open", "yes")  # 120 samples allow 3.1 points
    models["small"] = Predictions(logits, complexity=cost, seconds=0.005)
    said = {x.question: x for x in risk_report(models, Labels(LABELS), reference="dense", **OPTIONS).answers["small"]}
    assert (said["faster?"].grade, said["faster?"].short) == ("yes", "4.0x")
    assert said["faster?"].words == "5 ms a call instead of 20 ms, measured"


def test_errors(report):
    with pytest.raises(ValueError, match="must be one of the models, a; got 'b'"):
        _ = risk_report({"a": Predictions(CLEAN)}, Labels(LABELS), key=KEY, reference="b")
    with pytest.raises(ValueError, match="but there are none"):
        _ = risk_report({}, Labels(LABELS), key=KEY)
    with pytest.raises(ValueError, match="a: test: logits hold NaN"):
        _ = risk_report({"a": Predictions(CLEAN * np.nan)}, Labels(LABELS), key=KEY)
    with pytest.raises(ValueError, match="the 120 images of the test samples; got 119"):
        _ = risk_report({"a": Predictions(CLEAN)}, Labels(LABELS), images=IMAGES[1:], **OPTIONS)
    with pytest.raises(ValueError, match="not in it: x"):
        _ = report.to_html(draw=["x"])
    with pytest.raises(ValueError, match=r"with 1 or 3 channels last; got \(2, 2\)"):
        _ = page.to_pixels(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"floating in \[0, 1\]; got int64"):
        _ = page.to_pixels(np.zeros((1, 2, 2), np.int64))
    with pytest.raises(ValueError, match="pixels must be uint8"):
        _ = page.png(np.zeros((2, 2)))
