"""Do the verdicts of the risk report hold their error rates, and do its intervals cover? Prints tables of Markdown.

python benchmarks/bench_risk.py            # about an hour on one core
python benchmarks/bench_risk.py --repeats 50
"""

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxprune import assess
from jaxprune.assess import Labels, Predictions, intervals, metrics
from jaxprune.assess.comparison import Changes, compare
from jaxprune.assess.intervals import Interval
from jaxprune.assess.metrics import Samples
from jaxprune.assess.uncertainty import temperature_interval
from jaxprune.assess.verdict import verdict

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def judged(labels: np.ndarray, margins: np.ndarray, sharp: float = 1.5) -> Samples:
    """Samples of a model from how far the true class lies above the others; without logits, for many classes."""
    p = 1 / (1 + np.exp(-sharp * margins))
    right = margins > 0
    answers = np.where(right, labels, labels + 1)
    return Samples(labels, answers, right, np.maximum(p, 1 - p), np.logaddexp(0, -sharp * margins), 2 * (1 - p) ** 2)


def twins(rng: np.random.Generator, n: int, classes: int, easy: float, changed: float) -> tuple[Samples, Samples]:
    """Two models that are equally good: each sample's two answers are dealt to them by a fair coin."""
    labels, shared = rng.integers(0, classes, n), easy + 1.5 * rng.standard_normal(n)
    pair = shared + changed * rng.standard_normal((2, n))
    swap = rng.random(n) < 0.5
    return judged(labels, np.where(swap, *pair)), judged(labels, np.where(swap, *pair[::-1]))


def named(found: Changes) -> tuple[bool, bool]:
    """Whether the verdict names a figure, and whether it names a class."""
    figures = any(found.beyond_noise(name) for name in found.figures)
    known = np.flatnonzero(np.array(found.recall_adjusted) <= 1 - found.confidence)
    return figures, any(found.beyond_noise(int(k)) for k in known)


def error_rates(repeats: int) -> None:
    print("\nEqual models that the verdict calls changed, in figures or any class, % (5 or less is right)\n")
    print("| classes | samples | accuracy 99 % | 80 % | 2 % |\n| --- | --- | --- | --- | --- |")
    for classes in (2, 10, 100, 1000):
        for n in (50, 500, 2000, 10_000):
            count = repeats if n < 10_000 else max(repeats // 2, 2)
            cells = []
            for easy in (4.2, 1.5, -3.7):
                rng = np.random.default_rng(n + classes)
                hits = 0
                for k in range(count):
                    pair = twins(rng, n, classes, easy, 1.0)
                    found = compare(*pair, classes, jax.random.key(k), 499, 0.95)
                    hits += any(named(found))
                cells.append(f"{100 * hits / count:.1f}")
            print(f"| {classes} | {n:,} | {' | '.join(cells)} |", flush=True)


def power(repeats: int) -> None:
    print("\nA change of 3 points in 2,000 samples of 10 classes: how often the verdict names it, and the change that")
    print("it says would be seen 4 times in 5\n")
    print("| answers that differ in right and wrong | named, % | would be seen, points |\n| --- | --- | --- |")
    for unequal in (0.04, 0.06, 0.1, 0.15):
        hits, seen = 0, []
        for k in range(repeats):
            rng = np.random.default_rng(k)
            labels, u = rng.integers(0, 10, 2000), rng.random(2000)
            lost, won = u < (unequal + 0.03) / 2, u > 1 - (unequal - 0.03) / 2
            first = np.where(lost, 1.5, np.where(won, -1.5, np.where(rng.random(2000) < 0.9, 1.5, -1.5)))
            second = np.where(lost | won, -first, first)
            found = compare(judged(labels, first), judged(labels, second), 10, jax.random.key(k), 499, 0.95)
            hits += found.beyond_noise("accuracy")
            seen.append(100 * found.detectable)
        print(f"| {100 * unequal:.0f} % | {100 * hits / repeats:.1f} | {np.mean(seen):.1f} |", flush=True)


def gumbel(spread: float, factor: float, classes: int) -> Draw:
    """Logits whose labels are drawn from the softmax of logits / factor: calibrated where factor is 1."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        logits = spread * rng.standard_normal((n, classes))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        return (factor * logits).astype(np.float32), labels

    return draw


def null_of_calibration(repeats: int) -> None:
    print("\nCalibrated models that are called miscalibrated, and models with equal loss in training and test that are")
    print("called over- or underfitted, %; 5 or less is right\n")
    print("| classes | samples | miscalibrated | a gap is named |\n| --- | --- | --- | --- |")
    for classes in (2, 10, 100):
        for n in (50, 200, 2000, 10_000):
            count = max(repeats // (4 if n == 10_000 else 1), 2)
            draw, off, gaps = gumbel(2.5, 1.0, classes), 0, 0
            for k in range(count):
                rng = np.random.default_rng(k)
                (logits, labels), (train, train_labels) = draw(rng, n), draw(rng, n)
                found = assess.calibration_test(logits, labels, key=jax.random.key(k), draws=499)
                off += found.p_value <= 0.05
                gap = assess.risk(
                    Predictions(logits, train), Labels(labels, train_labels), key=jax.random.key(k), draws=2
                )
                said = verdict(gap)["fit"]
                gaps += "lower than" in said or "higher than" in said
            print(f"| {classes} | {n:,} | {100 * off / count:.1f} | {100 * gaps / count:.1f} |", flush=True)


def everything(draw: Draw, rng: np.random.Generator, n: int, draws: int) -> dict[str, Interval]:
    """All figures of one data set, and those of a second model less the first."""
    key = jax.random.key(int(rng.integers(2**31)))  # draws that all repeats share would shift their coverage together
    logits, labels = draw(rng, n)
    train, train_labels = draw(rng, n)
    foreign = 0.6 * draw(rng, n)[0]
    noise = np.array([1, 2], np.float32)[:, None, None] * rng.standard_normal((2, *logits.shape)).astype(np.float32)
    worse = logits + noise
    second = (0.8 * logits + 0.7 * rng.standard_normal(logits.shape)).astype(np.float32)
    given = Predictions(logits, train, foreign={"x": foreign}, corrupted={"noise": worse})
    found = dict(assess.risk(given, Labels(labels, train_labels), key=key, draws=draws).figures)
    found.pop("ece_classwise")
    found["temperature"] = temperature_interval(logits, labels)
    a, b = (metrics.samples(x, labels) for x in (logits, second))
    gains, losses = int((b.correct & ~a.correct).sum()), int((a.correct & ~b.correct).sum())
    found["change of accuracy"] = intervals.paired_difference(gains, losses, n).interval
    found["change of nll"] = intervals.mean_difference(a.nll, b.nll, rng).interval
    found["change of brier"] = intervals.mean_difference(a.brier, b.brier, rng).interval
    return found


def coverage(repeats: int) -> None:
    kinds = {
        "calibrated, 93 % right": gumbel(6.0, 1.0, 10),
        "too sharp, 80 % right": gumbel(3.0, 1.6, 10),
        "too dull, 60 % right": gumbel(1.8, 0.7, 10),
    }
    print("\nHow often the 95 % interval holds the true value, % (in brackets: samples that give no interval)\n")
    print(f"| figure | {' | '.join(f'{kind}, {n}' for kind in kinds for n in (200, 2000))} |")
    print("| --- " * (1 + 2 * len(kinds)) + "|", flush=True)
    columns: list[dict[str, str]] = []
    for draw in kinds.values():
        truth = everything(draw, np.random.default_rng(10**6), 300_000, 2)
        truth = {name: found.estimate for name, found in truth.items()}
        known = gumbel_truths(draw)
        for n in (200, 2000):
            count = repeats if n == 200 else max(repeats // 2, 2)
            held: dict[str, list[float]] = {}
            for k in range(count):
                for name, found in everything(draw, np.random.default_rng(k), n, 300).items():
                    assert not found.low > found.estimate and not found.high < found.estimate, name
                    value = known.get(name, truth[name])
                    held.setdefault(name, []).append(
                        np.nan if np.isnan(found.low + found.high) else found.low <= value <= found.high
                    )
            columns.append({name: _cell(np.array(values, float)) for name, values in held.items()})
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |", flush=True)


def gumbel_truths(draw: Draw) -> dict[str, float]:
    """Calibration errors of a very large sample, without the bias that even it has: 0 where the model is calibrated."""
    logits, labels = draw(np.random.default_rng(10**6), 300_000)
    if abs(float(assess.fit_temperature(logits, labels)) - 1) < 0.02:
        return {"ece": 0.0, "ece_mass": 0.0}
    return {}


def _cell(values: np.ndarray) -> str:
    missing = np.isnan(values).sum()
    text = f"{100 * np.nanmean(values):.1f}" if missing < values.size else "-"
    return f"{text} ({missing} of {values.size})" if missing else text


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=600, help="of each cell")
    options = parser.parse_args(arguments)
    start = time.time()
    names = ("jax", "numpy", "scipy")
    print(f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, "
          f"{', '.join(f'{name} {version(name)}' for name in names)}, {options.repeats} repeats, CPU")  # fmt: skip
    coverage(options.repeats)
    power(options.repeats)
    error_rates(options.repeats)
    null_of_calibration(options.repeats)
    print(f"\n{(time.time() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
