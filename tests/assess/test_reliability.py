"""Calibration errors against NumPy twins, scikit-learn's calibration curve, and hand-worked cases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from jaxprune.assess import calibration_error, evaluate, fit_temperature, reliability, reliability_diagram

rng = np.random.default_rng(0)
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


def test_unknown_binning():
    with pytest.raises(ValueError, match="one of equal_width, equal_mass; got 'quantile'"):
        _ = calibration_error(LOGITS, LABELS, binning="quantile")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(true):
    # Labels drawn from softmax(logits / true): the fit comes near, and beats every temperature on a grid.
    logits = 4 * jax.random.normal(jax.random.key(0), (4000, 5))
    labels = jax.random.categorical(jax.random.key(1), logits / true)
    got = fit_temperature(logits, labels)
    np.testing.assert_allclose(got, true, rtol=0.1)
    grid = jnp.geomspace(0.8, 1.25, 9) * got
    losses = [float(evaluate(logits / t, labels).nll) for t in grid]
    assert np.argmin(losses) == 4
    assert evaluate(logits / got, labels).accuracy == evaluate(logits, labels).accuracy


def test_temperature_at_its_bounds_and_with_an_excluded_class():
    logits = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(fit_temperature(logits, jnp.array([0, 1])), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(fit_temperature(logits, jnp.array([1, 0])), 1e3, rtol=1e-3)
    excluded = jnp.array([[4.0, 0.0, -jnp.inf]] * 4)
    np.testing.assert_allclose(fit_temperature(excluded, jnp.array([0, 0, 0, 1])), 4 / np.log(3), rtol=1e-4)
