"""Every figure of a risk against what computes it alone, scikit-learn, and cases worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from jaxprune import assess
from jaxprune.assess import Labels, Predictions, bootstrap, changes, risk
from jaxprune.assess.risk import FIGURES

KEY = jax.random.key(0)
rng = np.random.default_rng(0)
LABELS = np.arange(120) % 3
LOGITS = (1.5 * np.eye(3)[LABELS] + rng.normal(size=(120, 3))).astype(np.float32)
TRAIN_LABELS = np.arange(90) % 3
TRAIN = (6 * np.eye(3)[TRAIN_LABELS] + rng.normal(size=(90, 3))).astype(np.float32)
FOREIGN = rng.normal(size=(70, 3)).astype(np.float32)
MEMBERS = np.stack([LOGITS, LOGITS + rng.normal(size=LOGITS.shape).astype(np.float32)])
STRANGE = rng.normal(size=(2, 70, 3)).astype(np.float32) * 3
WORSE = np.stack([LOGITS, LOGITS + 2 * rng.normal(size=LOGITS.shape).astype(np.float32)])
LABELS_OF = Labels(LABELS, TRAIN_LABELS, LABELS)
PREDICTIONS = Predictions(
    LOGITS, TRAIN, LOGITS, {"noise": FOREIGN}, {"blur": WORSE}, members=MEMBERS, foreign_members={"noise": STRANGE}
)


@pytest.fixture(scope="module")
def found():
    return risk(PREDICTIONS, LABELS_OF, key=KEY)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    return e / e.sum(-1, keepdims=True)


def test_figures_against_scikit_learn(found):
    p = softmax(LOGITS)
    expected = {
        "accuracy": reference.accuracy_score(LABELS, p.argmax(1)),
        "nll": reference.log_loss(LABELS, p),
        "brier": 3 * reference.mean_squared_error(np.eye(3)[LABELS], p),
        "overconfidence": p.max(1).mean() - (p.argmax(1) == LABELS).mean(),
        "train_nll": reference.log_loss(TRAIN_LABELS, softmax(TRAIN)),
        "nll_gap": reference.log_loss(LABELS, p) - reference.log_loss(TRAIN_LABELS, softmax(TRAIN)),
        "accuracy_gap": (TRAIN.argmax(1) == TRAIN_LABELS).mean() - (p.argmax(1) == LABELS).mean(),
        "corrupted/blur": np.mean([(x.argmax(1) == LABELS).mean() for x in WORSE]),
    }
    is_foreign = np.repeat([0, 1], [120, 70])
    scores = {"max_probability": lambda p: 1 - p.max(1), "entropy": lambda p: -(p * np.log(p)).sum(1)}
    for name, score in scores.items():
        values = np.concatenate([score(p), score(softmax(FOREIGN))])
        expected[f"foreign/noise/{name}"] = reference.roc_auc_score(is_foreign, values)
    entropy = scores["entropy"]
    information = lambda x: entropy(softmax(x).mean(0)) - np.mean([entropy(softmax(m)) for m in x], axis=0)
    values = np.concatenate([information(MEMBERS), information(STRANGE)])
    expected["foreign/noise/epistemic_uncertainty"] = reference.roc_auc_score(is_foreign, values)
    for name, value in expected.items():
        np.testing.assert_allclose(found.figures[name].estimate, value, rtol=1e-4, err_msg=name)


def test_figures_are_those_of_the_functions_that_stand_alone(found):
    assert found.calibration["ece"].measured == pytest.approx(float(assess.evaluate(LOGITS, LABELS).ece), rel=1e-5)
    for name, options in {"ece_mass": {"binning": "equal_mass"}, "ece_classwise": {"classwise": True}}.items():
        alone = float(assess.calibration_error(LOGITS, LABELS, **options))
        assert found.calibration[name].measured == pytest.approx(alone, rel=1e-5)
        assert found.figures[name] == found.calibration[name].error
    factor = found.figures["temperature"].estimate
    assert factor == pytest.approx(float(assess.fit_temperature(LOGITS, LABELS)), rel=1e-5)
    scaled = assess.evaluate(LOGITS / np.float32(factor), LABELS)
    bins = assess.reliability(LOGITS, LABELS)
    np.testing.assert_allclose(found.reliability.estimate.accuracy, bins.accuracy, rtol=1e-6)
    assert found.figures["scaled_nll"].estimate == pytest.approx(float(scaled.nll), rel=1e-5)
    assert found.figures["scaled_nll"].estimate <= found.figures["nll"].estimate
    levels = [level.estimate for level in found.corruption["blur"]]
    np.testing.assert_allclose(levels, [(x.argmax(1) == LABELS).mean() for x in WORSE], rtol=1e-6)


def test_every_figure_lies_inside_its_interval_and_the_same_key_gives_the_same(found):
    assert set(FIGURES) | {"corrupted/blur"} < set(found.figures)
    for name, interval in found.figures.items():
        # Of all figures only the classwise error has no interval.
        assert interval.low <= interval.estimate <= interval.high or name == "ece_classwise", name
        assert all(isinstance(end, float) for end in interval), name
    filled = found.reliability.estimate.samples > 0
    low, estimate, high = (found.reliability[k].accuracy[filled] for k in (1, 0, 2))
    assert (low <= estimate).all()
    assert (estimate <= high).all()
    assert (low < high).any()
    again = risk(PREDICTIONS, LABELS_OF, key=KEY)
    np.testing.assert_array_equal(list(again.figures.values()), list(found.figures.values()))


def test_groups_are_drawn_apart():
    # The variance of a difference of independent means is the sum of theirs.
    a, b = jax.random.normal(KEY, (300,)), 2 * jax.random.normal(jax.random.key(1), (200,)) + 1
    got = bootstrap(lambda a, b: b.mean() - a.mean(), (a,), (b,), key=KEY)
    half = 1.96 * np.sqrt(np.var(a) / 300 + np.var(b) / 200)
    np.testing.assert_allclose([got.low, got.high], [got.estimate - half, got.estimate + half], atol=0.05)


def test_strata_stay_as_large_as_they_are():
    labels = np.repeat([0, 1, 5], [1, 9, 20])
    counts = lambda y: jnp.array([(y == k).sum() for k in (0, 1, 5)])
    got = assess.bootstrap(counts, labels, key=KEY, resamples=20, strata=labels)
    assert got.low.tolist() == got.high.tolist() == [1, 9, 20]
    values = np.arange(30.0)  # and within a stratum samples are drawn, of all of it
    maxima = lambda x, y: jnp.array([jnp.where(y == k, x, -1).max() for k in (0, 1, 5)])
    got = assess.bootstrap(maxima, values, labels, key=KEY, resamples=200, strata=labels)
    assert got.low[0] == got.high[0] == 0
    assert 1 <= got.low[1] < got.high[1] == 9


def test_changes_by_hand():
    # class 0: 40 right in both; class 1: 20 of 40 lost; class 2: 10 of 40 won
    labels = np.repeat([0, 1, 2], 40)
    right, wrong = (np.eye(3, dtype=np.float32)[k % 3] for k in (labels, labels + 1))
    first = np.where((np.arange(120) >= 110)[:, None], wrong, right)
    second = np.where(((np.arange(120) >= 40) & (np.arange(120) < 60))[:, None], wrong, right)
    got = changes(first, second, labels, key=KEY)
    np.testing.assert_allclose([r.estimate for r in got.recall], [0, -0.5, 0.25], atol=1e-6)
    assert [got.beyond_noise(k) for k in range(3)] == [False, True, True]
    assert (got.regressions, got.gains) == (20, 10)
    assert got.figures["accuracy"].estimate == pytest.approx(-10 / 120)
    assert got.agreement.estimate == pytest.approx(90 / 120)
    assert int(got.exemplars.is_exemplar.sum()) == 30
    # 20 lost and 10 won: the exact p-value less the probability of the counts that were seen
    mid = stats.binomtest(10, 30).pvalue - float(stats.binom.pmf(10, 30, 0.5))
    assert got.p_values["accuracy"] == pytest.approx(mid)


def test_a_model_does_not_differ_from_itself():
    got = changes(LOGITS, LOGITS, LABELS, key=KEY)
    assert all(interval.estimate == 0 for interval in (*got.figures.values(), *got.recall))
    assert tuple(got.figures["nll"]) == tuple(got.figures["brier"]) == (0, 0, 0)
    # 120 equal answers do not show that the two never answer differently: 3.8416 / (120 + 3.8416)
    np.testing.assert_allclose(got.figures["accuracy"], [0, -0.0310, 0.0310], atol=1e-4)
    assert set(got.p_values.values()) == set(got.adjusted.values()) == set(got.recall_adjusted) == {1.0}


@pytest.mark.parametrize(
    ("outputs", "truth", "message"),
    [
        (Predictions(LOGITS * np.nan), LABELS_OF, "test: logits hold NaN"),
        (Predictions(LOGITS, TRAIN), Labels(LABELS), "train: logits without labels"),
        (Predictions(LOGITS, TRAIN[:, :1]), LABELS_OF, "train: metrics need a sample and two classes"),
        (Predictions(LOGITS, held_out=TRAIN), LABELS_OF, r"held_out: logits must have shape"),
        (
            Predictions(LOGITS, foreign={"x": FOREIGN[:, :2]}),
            LABELS_OF,
            r"foreign x: logits must be \(m, 3\).*got \(70, 2\)",
        ),
        (Predictions(LOGITS, foreign={"x": FOREIGN * np.nan}), LABELS_OF, "foreign x: logits hold NaN"),
        (
            Predictions(LOGITS, corrupted={"x": LOGITS}),
            LABELS_OF,
            r"corrupted x: logits must be \(levels, 120, 3\).*samples; got \(120, 3\)",
        ),
        (Predictions(LOGITS, members=MEMBERS[:, 1:]), LABELS_OF, r"members: logits must be \(k, 120, 3\)"),
        (Predictions(LOGITS, members=MEMBERS * np.nan), LABELS_OF, "members: logits hold NaN"),
        (Predictions(LOGITS, foreign={"x": FOREIGN[:0]}), LABELS_OF, r"foreign x: .* got \(0, 3\)"),
        (
            Predictions(LOGITS, foreign={"x": FOREIGN}, members=MEMBERS, foreign_members={"x": STRANGE * np.nan}),
            LABELS_OF,
            "foreign_members x: logits hold NaN",
        ),
        (
            Predictions(LOGITS, foreign={"x": FOREIGN}, members=MEMBERS, foreign_members={"x": STRANGE[:, 1:]}),
            LABELS_OF,
            r"foreign_members x: logits must be \(k, 70, 3\)",
        ),
        (
            Predictions(LOGITS, foreign={"x": FOREIGN}, members=MEMBERS, foreign_members={"y": STRANGE}),
            LABELS_OF,
            r"foreign_members y: each needs logits in foreign under its name \(\['x'\]\)",
        ),
        (Predictions(LOGITS), Labels(np.full(120, 7)), "test: labels must be in"),
    ],
)
def test_what_cannot_be_judged_is_named(outputs, truth, message):
    with pytest.raises(ValueError, match=message):
        _ = risk(outputs, truth, key=KEY)


def test_a_class_without_samples_is_left_out_and_the_rest_compared():
    # Class 2 has no sample; 12 of 60 samples of class 1 are lost.
    labels = np.arange(120) % 2
    right = np.eye(3, dtype=np.float32)[labels]
    lost = np.where((np.arange(120) % 10 == 1)[:, None], right[:, [1, 0, 2]], right)
    got = changes(right, lost, labels, key=KEY)
    assert [each.estimate for each in got.recall[:2]] == [0, -0.2]
    assert np.isnan([*got.recall[2], got.recall_adjusted[2]]).all()
    assert [got.beyond_noise(k) for k in range(3)] == [False, True, False]


def test_an_infinite_loss_has_no_interval_and_no_p_value():
    sure = LOGITS.copy()
    sure[0] = [0.0, -np.inf, -np.inf]
    labels = np.where(np.arange(120) == 0, 1, LABELS)
    got = changes(LOGITS, sure, labels, key=KEY)
    assert got.figures["nll"].estimate == np.inf
    assert np.isnan([*got.figures["nll"][1:], got.p_values["nll"], got.adjusted["nll"]]).all()
    assert not got.beyond_noise("nll")
    assert np.isfinite([*got.figures["brier"], got.adjusted["brier"], got.adjusted["accuracy"]]).all()


def test_few_wrong_answers_make_no_interval_of_a_loss():
    labels = np.arange(120) % 3
    logits = (5 * np.eye(3)[labels]).astype(np.float32)
    logits[:4] = logits[:4, [1, 2, 0]]
    figures = risk(Predictions(logits), Labels(labels), key=KEY).figures
    for name in ("nll", "brier", "aurc"):
        assert np.isnan([figures[name].low, figures[name].high]).all()
    for name in ("accuracy", "overconfidence", "ece"):
        assert figures[name].low <= figures[name].estimate <= figures[name].high
        assert figures[name].low < figures[name].high


def test_other_errors():
    with pytest.raises(ValueError, match=r"one shape; got \(120, 3\) and \(119, 3\)"):
        _ = changes(LOGITS, LOGITS[1:], LABELS, key=KEY)
    with pytest.raises(ValueError, match=r"2 or more and confidence in .* got 1 and 0.95"):
        _ = risk(PREDICTIONS, LABELS_OF, key=KEY, draws=1)
    with pytest.raises(TypeError, match=r"expected assess.Labels, got"):
        _ = risk(PREDICTIONS, LABELS, key=KEY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"one number a sample of one group, \(120,\); got \(3,\)"):
        _ = assess.bootstrap(jnp.mean, LABELS, key=KEY, strata=np.arange(3))
