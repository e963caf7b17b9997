"""Calibration errors against NumPy twins, scikit-learn's calibration curve, and hand-worked cases."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from sklearn.calibration import calibration_curve

from jaxprune.assess import bootstrap, calibration_error, evaluate, fit_temperature, reliability
from jaxprune.assess.plots import reliability_diagram
from tests.cases import normal

rng = np.random.default_rng(0)
KEY = jax.random.key(4)
LOGITS = jnp.asarray(2 * rng.normal(size=(203, 4)), jnp.float32)
LABELS = jnp.asarray(rng.integers(0, 4, 203))
PROBS = np.asarray(jax.nn.softmax(LOGITS, axis=1))


def twin(values, outcomes, parts):
    """The error over bins given as lists of positions."""
    return sum(len(p) * abs(outcomes[p].mean() - values[p].mean()) for p in parts if len(p)) / len(values)


def equal_mass_parts(values, bins):
    order, n = np.argsort(values, kind="stable"), len(values)
    ends = [-(-m * n // bins) for m in range(bins + 1)]
    return [order[a:b] for a, b in itertools.pairwise(ends)]


def equal_width_parts(values, bins):
    return [np.flatnonzero((values > m / bins) & (values <= (m + 1) / bins)) for m in range(bins)]


PARTS = {"equal_width": equal_width_parts, "equal_mass": equal_mass_parts}


@pytest.mark.parametrize("binning", PARTS)
def test_top_class(binning):
    confidence, hits = PROBS.max(1), PROBS.argmax(1) == np.asarray(LABELS)
    expected = twin(confidence, hits, PARTS[binning](confidence, 10))
    got = calibration_error(LOGITS, LABELS, bins=10, binning=binning)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("binning", PARTS)
def test_classwise(binning):
    errors = [twin(PROBS[:, k], np.asarray(LABELS) == k, PARTS[binning](PROBS[:, k], 10)) for k in range(4)]
    got = calibration_error(LOGITS, LABELS, bins=10, binning=binning, classwise=True)
    np.testing.assert_allclose(got, np.mean(errors), rtol=1e-4)


def test_equal_width_is_that_of_evaluate():
    np.testing.assert_allclose(calibration_error(LOGITS, LABELS), evaluate(LOGITS, LABELS).ece, rtol=1e-6)


def test_equal_probabilities_share_a_bin_whatever_their_order():
    probabilities = jnp.array([[0.75, 0.25]] * 4)
    for labels in ([0, 0, 1, 1], [1, 0, 1, 0]):
        got = calibration_error(probabilities, jnp.array(labels), bins=2, binning="equal_mass", probabilities=True)
        np.testing.assert_allclose(got, 0.25, rtol=1e-6)


def test_one_bin_is_the_gap_of_the_means():
    got = calibration_error(LOGITS, LABELS, bins=1, binning="equal_mass")
    gap = PROBS.max(1).mean() - (PROBS.argmax(1) == np.asarray(LABELS)).mean()
    np.testing.assert_allclose(got, abs(gap), rtol=1e-5)


def test_reliability_against_scikit_learn():
    got = reliability(LOGITS, LABELS, bins=8)
    hits = PROBS.argmax(1) == np.asarray(LABELS)
    accuracy, confidence = calibration_curve(hits, PROBS.max(1), n_bins=8)
    filled = np.asarray(got.samples) > 0
    np.testing.assert_allclose(got.accuracy[filled], accuracy, rtol=1e-5)
    np.testing.assert_allclose(got.confidence[filled], confidence, rtol=1e-5)
    assert got.samples.sum() == 203


def test_diagram(tmp_path):
    figure = reliability_diagram({"dense": reliability(LOGITS, LABELS)})
    figure.savefig(tmp_path / "reliability.svg")
    [axes] = figure.axes
    assert axes.get_legend_handles_labels()[1] == ["calibrated", "dense"]
    with pytest.raises(ValueError, match="no model"):
        _ = reliability_diagram({})


def test_diagram_draws_the_intervals_of_the_bins_with_ten_samples():
    found = bootstrap(reliability, LOGITS, LABELS, key=KEY, resamples=20, skip_nan=True)
    [axes] = reliability_diagram({"dense": found}).axes
    filled = np.asarray(found.estimate.samples) >= 10
    assert 0 < filled.sum() < (np.asarray(found.estimate.samples) > 0).sum()
    [drawn] = [c for c in axes.collections if isinstance(c, LineCollection)]
    ends = np.array([segment[:, 1] for segment in drawn.get_segments()])
    np.testing.assert_allclose(ends, np.stack([found.low.accuracy, found.high.accuracy], 1)[filled], rtol=1e-6)


def test_unknown_binning():
    with pytest.raises(ValueError, match="one of equal_width, equal_mass; got 'quantile'"):
        _ = calibration_error(LOGITS, LABELS, binning="quantile")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(true):
    # Labels drawn from softmax(logits / true): the fit comes near, and beats every temperature on a grid.
    logits = 4 * normal(4000, 5)
    labels = jax.random.categorical(jax.random.key(1), logits / true)
    got = fit_temperature(logits, labels)
    np.testing.assert_allclose(got, true, rtol=0.1)
    grid = jnp.geomspace(0.8, 1.25, 9) * got
    losses = [float(evaluate(logits / t, labels).nll) for t in grid]
    assert np.argmin(losses) == 4
    assert evaluate(logits / got, labels).accuracy == evaluate(logits, labels).accuracy


def bisected(logits, labels):
    """The root of the slope in log b, by plain bisection in float64."""
    z = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    low, high = np.log(1e-3), np.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        p = np.exp(np.exp(middle) * z)
        p /= p.sum(1, keepdims=True)
        slope = ((p * z).sum(1) - z[np.arange(len(z)), labels]).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return np.exp(-(low + high) / 2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_temperature_and_its_interval_against_a_slow_twin(scale):
    logits = scale * np.asarray(LOGITS[:60])
    labels = np.where(np.arange(60) % 3, logits.argmax(1), np.asarray(LABELS[:60]))
    got = bootstrap(fit_temperature, logits, labels, key=jax.random.key(3), resamples=24)
    np.testing.assert_allclose(got.estimate, bisected(logits, labels), rtol=1e-4)
    rows = [np.asarray(jax.random.randint(k, (60,), 0, 60)) for k in jax.random.split(jax.random.key(3), 24)]
    drawn = [bisected(logits[r], labels[r]) for r in rows]
    np.testing.assert_allclose([got.low, got.high], np.quantile(drawn, [0.025, 0.975]), rtol=1e-4)
    assert got.low < got.estimate < got.high


def test_intervals_of_bins_against_a_slow_twin():
    # Few samples in many bins: some resamples leave a bin empty, and these do not count for it.
    got = bootstrap(partial(reliability, bins=12), LOGITS[:40], LABELS[:40], key=KEY, resamples=30, skip_nan=True)
    top, hits = PROBS[:40].max(1), (PROBS.argmax(1) == np.asarray(LABELS))[:40]
    rows = [np.asarray(jax.random.randint(k, (40,), 0, 40)) for k in jax.random.split(KEY, 30)]
    parts = [[r[(top[r] > m / 12) & (top[r] <= (m + 1) / 12)] for m in range(12)] for r in rows]
    lengths = np.array([[len(part) for part in resample] for resample in parts])
    assert ((lengths == 0).any(0) & (lengths > 0).any(0)).any()
    for name, values in (("accuracy", hits), ("confidence", top)):
        means = np.array([[values[p].mean() if len(p) else np.nan for p in resample] for resample in parts])
        for m in range(12):
            filled = means[~np.isnan(means[:, m]), m]
            ends = np.quantile(filled, [0.025, 0.975]) if len(filled) else [np.nan, np.nan]
            np.testing.assert_allclose([getattr(e, name)[m] for e in (got.low, got.high)], ends, rtol=1e-5)
    plain = bootstrap(partial(reliability, bins=12), LOGITS[:40], LABELS[:40], key=KEY, resamples=30)
    np.testing.assert_array_equal(np.isnan(plain.low.accuracy), (lengths == 0).any(0))


def test_temperature_at_its_bounds_and_with_an_excluded_class():
    logits = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(fit_temperature(logits, jnp.array([0, 1])), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(fit_temperature(logits, jnp.array([1, 0])), 1e3, rtol=1e-3)
    excluded = jnp.array([[4.0, 0.0, -jnp.inf]] * 4)
    np.testing.assert_allclose(fit_temperature(excluded, jnp.array([0, 0, 0, 1])), 4 / np.log(3), rtol=1e-4)
