"""Choosing models: against hand-worked figures, scikit-learn's folds of a linear model, and what must hold."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import assess
from jaxprune.assess import selection


def _apply(params, x):
    return x @ params["w"] + params["b"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    y = (x[:, 0] - x[:, 1] + 0.7 * rng.normal(size=300) > 0).astype(np.int32)
    w = np.zeros((6, 2), np.float32)
    w[0], w[1] = [-1, 1], [1, -1]
    dense = {"w": jnp.asarray(w + 0.3 * rng.normal(size=(6, 2)), jnp.float32), "b": jnp.zeros(2)}
    pruned = jaxprune.prune(dense, 2 / 3)
    candidates = {
        "dense": assess.Candidate(dense, None, _apply),
        "pruned": assess.Candidate(pruned.params, pruned.masks, _apply),
    }
    return candidates, (x[:200], y[:200]), (x[200:], y[200:])


def _nll(params, x, y):
    logits = x.astype(np.float64) @ np.asarray(params["w"], np.float64) + np.asarray(params["b"], np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y], logits.argmax(1) != y


def test_the_scores_of_models_are_their_definitions(problem):
    candidates, train, test = problem
    scores = assess.hold_out(candidates, train, test, batch=64)
    assert [(s.name, s.kept, s.total, s.flops) for s in scores] == [("dense", 14, 14, 24), ("pruned", 6, 14, 8)]
    for s in scores:
        seen, _ = _nll(candidates[s.name].params, *train)
        unseen, wrong = _nll(candidates[s.name].params, *test)
        assert s.train == pytest.approx(seen.mean(), rel=1e-5)
        assert s.test == pytest.approx(unseen.mean(), rel=1e-5)
        assert s.error == pytest.approx(wrong.mean())
        assert s.standard_error == pytest.approx(unseen.std(ddof=1) / 10, rel=1e-4)
        assert s.gap == pytest.approx(unseen.mean() - seen.mean(), abs=1e-5)
        assert s.aic == pytest.approx(2 * s.kept + 2 * seen.sum(), rel=1e-5)
        assert s.bic == pytest.approx(s.kept * math.log(200) + 2 * seen.sum(), rel=1e-5)
        bits = seen.sum() / math.log(2) + s.kept / 2 * math.log2(200) + math.log2(math.comb(14, s.kept))
        assert s.bits == pytest.approx(bits, rel=1e-5)


def test_masks_count_also_where_the_parameters_are_not_zero_yet(problem):
    candidates, train, test = problem
    whole = candidates["dense"]._replace(masks=candidates["pruned"].masks)
    [masked] = assess.hold_out({"pruned": whole}, train, test)
    assert masked == assess.hold_out(candidates, train, test)[1]


def test_the_table_marks_the_least_and_the_simplest(problem):
    candidates, train, test = problem
    text = assess.model_table(assess.hold_out(candidates, train, test))
    dense, pruned = text.splitlines()[2:]
    assert dense.startswith("dense")
    assert "1se" in pruned
    assert pruned.count("*") + dense.count("*") == 5


def test_criteria_agree_with_statistics_on_a_gaussian_line():
    # Of nested linear models BIC picks the true order, and AIC no fewer parameters than BIC.
    rng = np.random.default_rng(1)
    n = 400
    t = rng.uniform(-1, 1, n)
    y = 1 - 2 * t + 1.5 * t**2 + 0.3 * rng.normal(size=n)
    nll = []
    for order in range(7):
        residual = y - np.polyval(np.polyfit(t, y, order), t)
        nll.append(0.5 * (math.log(2 * math.pi * residual.var()) + 1))
    chosen = {
        "aic": int(np.argmin([selection.aic(v, n, k + 2) for k, v in enumerate(nll)])),
        "bic": int(np.argmin([selection.bic(v, n, k + 2) for k, v in enumerate(nll)])),
        "bits": int(np.argmin([selection.description_length(v, n, k + 2, 8) for k, v in enumerate(nll)])),
    }
    assert chosen["bic"] == chosen["bits"] == 2
    assert chosen["aic"] >= 2


def test_folds_meet_every_row_once_and_never_train_on_it():
    seen = []

    def fit(train, test, fold):
        assert not set(train) & set(test)
        assert len(train) + len(test) == 17
        seen.extend(test.tolist())
        return test.astype(float)

    mean, error, means = assess.k_fold(fit, 17, 5, key=jax.random.key(0))
    assert sorted(seen) == list(range(17))
    assert mean == 8
    assert error == pytest.approx(np.std(means, ddof=1) / 5**0.5)


def test_folds_agree_with_scikit_learn_on_ridge_regression():
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_score

    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=60)
    order = np.asarray(jax.random.permutation(jax.random.key(5), 60))
    # Its folds, unshuffled, of rows that were shuffled as ours are.
    theirs = -cross_val_score(Ridge(), x[order], y[order], cv=KFold(6), scoring="neg_mean_squared_error")
    fit = lambda train, test, fold: (Ridge().fit(x[train], y[train]).predict(x[test]) - y[test]) ** 2
    mean, _, means = assess.k_fold(fit, 60, 6, key=jax.random.key(5))
    np.testing.assert_allclose(means, theirs)
    assert mean == pytest.approx(theirs.mean())


def test_one_standard_error_prefers_the_simple():
    losses, errors = [0.5, 0.31, 0.30, 0.32], [0.1, 0.02, 0.02, 0.02]
    assert assess.one_standard_error(losses, errors, [1, 5, 9, 3]) == 3
    assert assess.one_standard_error(losses, [0, 0, 0, 0], [1, 5, 9, 3]) == 2
    assert assess.one_standard_error(losses, errors, [1, 3, 9, 3]) == 1


def test_the_front_is_what_no_other_beats():
    rng = np.random.default_rng(3)
    errors, costs = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    expected = [
        not any(
            errors[j] <= errors[i] and costs[j] <= costs[i] and (errors[j] < errors[i] or costs[j] < costs[i])
            for j in range(40)
        )
        for i in range(40)
    ]
    assert selection.pareto_front(errors, costs).tolist() == expected
    assert 0 < sum(expected) < 40


def test_the_pareto_plot_joins_the_front():
    figure = assess.plots.pareto_plot({"a": (10.0, 0.1), "b": (20.0, 0.3), "c": (5.0, 0.2)})
    [line] = figure.axes[0].get_lines()
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    np.testing.assert_array_equal(x, [5, 10])
    np.testing.assert_allclose(y, [20, 10])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: assess.hold_out({}, p[1], p[2]), "no candidate"),
        (lambda p: assess.hold_out(p[0], p[1], (p[2][0][:1], p[2][1][:1])), "test must have two or more samples"),
        (lambda p: selection.description_length(1.0, 4, 5, 4), "5 parameters are kept of 4"),
        (lambda p: assess.k_fold(lambda *a: a, 4, 5, key=jax.random.key(0)), "folds must be in 2 to 4"),
        (
            lambda p: assess.k_fold(lambda a, b, f: b[:1], 4, 2, key=jax.random.key(0)),
            "each of the 2 samples",
        ),
        (lambda p: assess.one_standard_error([1.0], [np.nan], [1]), "none of them NaN"),
        (lambda p: selection.pareto_front([1.0], [1.0, 2.0]), "one number a model"),
        (lambda p: assess.pareto_table(["a"], [1, 2], [1, 2]), "each of the 2 models; got 1"),
        (lambda p: assess.plots.pareto_plot({"a": (0.0, 0.1)}), "must be positive"),
    ],
)
def test_errors_say_what_is_wrong(problem, call, message):
    with pytest.raises(ValueError, match=message):
        call(problem)


def test_without_matplotlib_the_error_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plots need matplotlib"):
        _ = assess.plots.pareto_plot({"a": (1.0, 0.1)})
