"""Verdicts hold their error rates and intervals cover, in small simulations (large ones: benchmarks/bench_risk.py)."""

import jax
import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from jaxprune.assess import Labels, Predictions, calibration_test, changes, intervals, risk
from jaxprune.assess.uncertainty import temperature_interval
from tests.cases import few

KEY = jax.random.key(0)


def twins(seed, n, classes, sharp=2.0):
    """Logits of two models that are equally good: each sample's two answers are dealt to them by a fair coin."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    shared = rng.normal(size=(n, classes))
    shared[np.arange(n), labels] += 3.5
    pair = [(sharp * (shared + 0.7 * rng.normal(size=(n, classes)))).astype(np.float32) for _ in range(2)]
    swap = rng.random(n)[:, None] < 0.5
    return np.where(swap, *pair), np.where(swap, *pair[::-1]), labels


def at_most(rate, repeats):
    """The count that a rate exceeds in one of 1,000 simulations."""
    return stats.binom.ppf(0.999, repeats, rate)


_SETTINGS = [(60, 2, 2.0), (400, 10, 2.0), (400, 10, 0.05), (1000, 100, 2.0)]


@pytest.mark.parametrize(("n", "classes", "sharp"), few(_SETTINGS, (60, 2, 2.0), (400, 10, 0.05)))
def test_equal_models_are_called_different_in_one_of_twenty_repeats_at_most(n, classes, sharp):
    # Also where nearly all answers are alike: with two classes the accuracy is about 99 %.
    named, disagree = 0, 0
    repeats = 150 if n < 1000 else 60
    for seed in range(repeats):
        first, second, labels = twins(seed, n, classes, sharp)
        found = changes(first, second, labels, key=jax.random.key(seed), flips=199)
        named += any(found.beyond_noise(name) for name in found.figures) or any(
            found.beyond_noise(k) for k in range(classes)
        )
        disagree += sum(
            (found.p_values[name] <= 0.05) != (each.low > 0 or each.high < 0) for name, each in found.figures.items()
        )
    assert named <= at_most(0.05, repeats)
    assert disagree == 0


def test_a_change_of_three_points_in_two_thousand_samples_is_seen():
    seen = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 10, 2000)
        right = rng.random(2000) < 0.93
        # 7 % of the samples change sides: 5 % are lost and 2 % won.
        second = np.where(right, rng.random(2000) > 0.05 / 0.93, rng.random(2000) < 0.02 / 0.07)
        say = lambda hits, labels=labels: 3 * np.eye(10, dtype=np.float32)[np.where(hits, labels, (labels + 1) % 10)]
        found = changes(say(right), say(second), labels, key=KEY, flips=199)
        seen += found.beyond_noise("accuracy")
        assert 0.01 < found.detectable < 0.03
    assert seen >= 27


def test_a_difference_and_its_p_value_agree_for_all_counts():
    for n, confidence in ((50, 0.95), (400, 0.9)):
        for gains in range(20):
            for losses in range(25 - gains):
                found = intervals.paired_difference(gains, losses, n, confidence)
                outside = found.interval.low > 0 or found.interval.high < 0
                assert outside == (found.p_value <= 1 - confidence)
                assert found.interval.low <= found.interval.estimate <= found.interval.high
                exact = stats.binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
                assert found.p_value <= exact + 1e-12


def test_proportions_against_scipy():
    for hits, n in ((0, 10), (7, 10), (100, 100), (1990, 2000)):
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(intervals.proportion(hits / n, n)[1:], expected, atol=1e-12)


def test_without_skewness_a_mean_has_the_interval_of_student():
    x = np.concatenate([np.arange(12.0), -np.arange(12.0)])
    expected = stats.ttest_1samp(x - 0.5, 0).confidence_interval()
    np.testing.assert_allclose(intervals.mean(x - 0.5)[1:], expected, rtol=1e-6)


def test_a_mean_difference_against_a_slow_twin():
    generator = np.random.default_rng(1)
    first, second = generator.exponential(size=(2, 30))
    got = intervals.mean_difference(first, second, np.random.default_rng(7), 0.9, draws=99)
    x, twin = second - first, np.random.default_rng(7)
    sizes = []
    for row in twin.integers(0, 30, (99, 30), np.int32):
        again = x[row]
        sizes.append(abs(again.mean() - x.mean()) / stats.sem(again))
    reach = stats.sem(x) * np.sort(sizes)[89]  # the 90th of 99: 0.9 of 100
    np.testing.assert_allclose(got.interval, [x.mean(), x.mean() - reach, x.mean() + reach], rtol=1e-9)
    larger = np.sum(np.array(sizes) >= abs(x.mean()) / stats.sem(x))
    assert got.p_value == pytest.approx((1 + larger) / 100)


def test_a_mean_difference_and_its_p_value_agree_and_normal_samples_have_student_s_interval():
    generator = np.random.default_rng(3)
    for shift in np.linspace(0, 0.5, 11):
        x = generator.normal(size=80) + shift
        found = intervals.mean_difference(np.zeros(80), x, generator)
        assert (found.p_value <= 0.05) == (found.interval.low > 0 or found.interval.high < 0)
        expected = stats.ttest_1samp(x, 0).confidence_interval()
        np.testing.assert_allclose(found.interval[1:], expected, atol=0.08)
    one = intervals.mean_difference(np.zeros(40), np.eye(40)[0], generator)  # a single sample differs
    assert np.isnan(one.interval[1:]).all()
    assert one.p_value > 0.3


@pytest.mark.parametrize("kind", ["a few samples are lost", "a few are lost and a few are won"])
def test_the_interval_of_a_mean_difference_covers_heavy_tails(kind):
    # A plain t interval covers the first in 84 %, one with its skewness removed covers the second in 89 %.
    held, repeats = 0, 250
    for seed in range(repeats):
        generator = np.random.default_rng(seed)
        x = generator.normal(0, 0.05, 200) + (generator.random(200) < 0.04) * generator.exponential(3, 200)
        if kind == "a few are lost and a few are won":
            x -= (generator.random(200) < 0.03) * generator.exponential(3, 200)
        truth = 0.12 if kind == "a few samples are lost" else 0.03
        held += covers(intervals.mean_difference(np.zeros(200), x, generator, draws=199).interval, truth)
    assert stats.binom.ppf(0.0005, repeats, 0.93) <= held <= stats.binom.ppf(0.9995, repeats, 0.98)


def test_areas_against_scikit_learn_and_a_perfect_order():
    rng = np.random.default_rng(0)
    known, foreign = rng.integers(0, 9, 70) / 2, rng.integers(3, 12, 40) / 2
    found = intervals.area_under_roc(known, foreign)
    expected = roc_auc_score([0] * 70 + [1] * 40, np.concatenate([known, foreign]))
    np.testing.assert_allclose(found.estimate, expected, rtol=1e-12)
    assert found.low < found.estimate < found.high
    perfect = intervals.area_under_roc(np.zeros(50), np.ones(50))
    assert perfect.estimate == perfect.high == 1
    assert 0.9 < perfect.low < 0.99


MOSTLY_TIED = [((0.01, 0.03), 50), ((0.0, 0.02), 100), ((0.03, 0.1), 50), ((0.06, 0.06), 60)]


@pytest.mark.parametrize("rates, n", few(MOSTLY_TIED, MOSTLY_TIED[0], MOSTLY_TIED[1]))
def test_the_interval_of_an_area_covers_when_most_scores_are_equal(rates, n):
    rng, repeats, held = np.random.default_rng(0), 300, 0
    for _ in range(repeats):
        known, foreign = ((rng.random(n) < rate).astype(np.float64) for rate in rates)
        held += covers(intervals.area_under_roc(known, foreign), 0.5 + 0.5 * (rates[1] - rates[0]))
    assert held >= stats.binom.ppf(0.0005, repeats, 0.93)
    tied = intervals.area_under_roc(np.zeros(20), np.zeros(30))
    assert tied.low < 0.4 and tied.high > 0.6


def covers(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.slow
def test_intervals_cover_at_two_hundred_samples():
    # Probabilities that are too sharp by 1.5: all figures have a true value that one large sample tells.
    def draw(rng, n):
        logits = 1.6 * rng.normal(size=(n, 5))
        return (1.5 * logits).astype(np.float32), (logits + rng.gumbel(size=(n, 5))).argmax(1)

    logits, labels = draw(np.random.default_rng(10**6), 200_000)
    big = risk(Predictions(logits), Labels(labels), key=KEY, draws=50).figures
    names = ["accuracy", "nll", "brier", "ece", "overconfidence", "aurc"]
    hits = dict.fromkeys([*names, "temperature"], 0)
    repeats = 200
    for seed in range(repeats):
        logits, labels = draw(np.random.default_rng(seed), 200)
        found = risk(Predictions(logits), Labels(labels), key=jax.random.key(seed), draws=200).figures
        for name in names:
            hits[name] += covers(found[name], big[name].estimate)
        hits["temperature"] += covers(temperature_interval(logits, labels), 1.5)
    low, high = stats.binom.ppf([0.0005, 0.9995], repeats, [0.93, 0.97])
    assert {name: n for name, n in hits.items() if not low <= n <= high} == {}


def test_a_calibrated_model_is_called_so():
    named, repeats = 0, 150
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        logits = 2 * rng.normal(size=(300, 6))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        found = calibration_test(logits.astype(np.float32), labels, key=jax.random.key(seed), draws=199)
        named += found.p_value <= 0.05
        assert found.error.low <= found.error.estimate <= found.error.high
        assert (found.error.low > 0) == (found.p_value <= 0.05)
        assert (found.p_value <= 0.05) or not found.regions
    assert named <= at_most(0.05, repeats)


def test_the_null_of_the_calibration_error_by_enumeration():
    # Three samples, each 3/4 sure and in one bin: the error by chance is |hits - 9/4| / 3 with hits binomial.
    logits = np.log(np.array([[0.75, 0.25]] * 3, np.float32))
    found = calibration_test(logits, np.array([1, 1, 1]), key=KEY, draws=20_000)
    hits = np.arange(4)
    weights = special.binom(3, hits) * 0.75**hits * 0.25 ** (3 - hits)
    errors = np.abs(hits - 2.25) / 3
    np.testing.assert_allclose(found.by_chance, weights @ errors, atol=0.01)
    np.testing.assert_allclose(found.measured, 0.75, rtol=1e-6)
    np.testing.assert_allclose(found.p_value, 1 / 64, atol=0.004)
    assert found.regions == ()  # three samples make no region


def test_classes_count_in_the_classwise_error_and_it_has_no_interval():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 4)).astype(np.float32)
    found = calibration_test(logits, rng.integers(0, 4, 200), key=KEY, classwise=True)
    assert np.isnan([found.error.low, found.error.high]).all()
    assert found.p_value < 0.05  # labels that have nothing to do with the probabilities
    with pytest.raises(ValueError, match="one of equal_width, equal_mass; got 'quantile'"):
        _ = calibration_test(logits, rng.integers(0, 4, 200), key=KEY, binning="quantile")  # pyright: ignore[reportArgumentType]
