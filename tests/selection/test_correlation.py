"""Correlations against scipy, and what redundancy makes of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxprune import selection

# Its results are typed as tuples without their names.
stats: Any = scipy_stats


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 7)).astype(np.float32)
    x[:, 2] = np.round(x[:, 2])  # ties
    x[:, 3] = 1e4 + 3 * x[:, 0]  # far from zero
    y = (x[:, 0] ** 3 + x[:, 1] + 0.3 * rng.normal(size=60)).astype(np.float32)
    return x, y


def test_pearson_and_spearman_are_scipys(data):
    x, y = data
    expected = [abs(stats.pearsonr(x[:, j].astype(np.float64), y).statistic) for j in range(7)]
    np.testing.assert_allclose(selection.pearson(x, y), expected, atol=1e-4)
    expected = [abs(stats.spearmanr(x[:, j], y).statistic) for j in range(7)]
    np.testing.assert_allclose(selection.spearman(x, y), expected, atol=1e-5)


def test_the_matrix_is_numpys_and_the_ranked_one_scipys(data):
    x, _ = data
    np.testing.assert_allclose(selection.correlations(x), np.abs(np.corrcoef(x.T.astype(np.float64))), atol=1e-4)
    ranked = np.abs(stats.spearmanr(x).statistic)
    np.testing.assert_allclose(selection.correlations(x, ranked=True), ranked, atol=1e-5)


def test_what_does_not_vary_scores_zero_even_where_its_mean_rounds():
    x = jnp.stack([jnp.full(7, 0.1), jnp.arange(7.0), jnp.full(7, 1e30)], 1)
    assert selection.pearson(x, jnp.arange(7)).tolist() == pytest.approx([0, 1, 0])
    assert selection.spearman(x, jnp.arange(7)).tolist() == pytest.approx([0, 1, 0])
    assert np.asarray(selection.correlations(x))[0, 2] == 0


def test_of_several_classes_the_one_that_is_told_best_counts():
    y = jnp.array([0, 0, 1, 1, 2, 2])
    x = jax.nn.one_hot(y, 3)[:, 1:2]
    assert float(selection.pearson(x, jax.nn.one_hot(y, 3))[0]) == pytest.approx(1)
    assert float(selection.pearson(x, y)[0]) < 1e-6  # class numbers are no scale


def test_scores_run_inside_jit(data):
    x, y = data
    np.testing.assert_allclose(jax.jit(selection.spearman)(x, y), selection.spearman(x, y), atol=1e-6)


def test_scikit_learns_scores_arrive_as_they_are(data):
    from sklearn.feature_selection import f_classif, f_regression, mutual_info_classif

    x, y = data
    labels = (y > 0).astype(int)
    np.testing.assert_allclose(selection.anova_f(x, labels), f_classif(x.astype(np.float64), labels)[0])
    np.testing.assert_allclose(
        selection.anova_f(x, y), f_regression(x.astype(np.float64), y.astype(np.float64))[0], rtol=1e-6
    )
    expected = mutual_info_classif(x.astype(np.float64), labels, random_state=3)
    np.testing.assert_array_equal(selection.mutual_information(x, labels, seed=3), expected)
    # F and r order alike: F = (n - 2) r^2 / (1 - r^2)
    np.testing.assert_array_equal(np.argsort(selection.anova_f(x, labels)), np.argsort(selection.pearson(x, labels)))


def test_anova_of_a_feature_that_does_not_vary_is_zero():
    x = np.stack([np.ones(6), [0, 1, 0, 5, 6, 5]], 1)
    assert selection.anova_f(x, np.array([0, 0, 0, 1, 1, 1]))[0] == 0


def _mrmr_by_hand(relevance, similarity, count):
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < count:
        left = [j for j in range(len(relevance)) if j not in chosen]
        value = [relevance[j] - np.mean([similarity[j][i] for i in chosen]) for j in left]
        chosen.append(left[int(np.argmax(value))])
    return chosen


def test_mrmr_is_the_sum_of_its_definition(data):
    x, y = data
    relevance, similarity = np.asarray(selection.pearson(x, y)), np.asarray(selection.correlations(x))
    assert selection.mrmr(relevance, similarity, 7).tolist() == _mrmr_by_hand(relevance, similarity, 7)
    assert sorted(selection.mrmr(relevance, similarity, 7, quotient=True)) == list(range(7))


def test_clusters_are_connected_components():
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(1)
    similarity = rng.uniform(size=(30, 30)) * 0.52
    similarity = np.maximum(similarity, similarity.T)
    found = selection.clusters(similarity, 0.5)
    count, expected = connected_components(similarity >= 0.5)
    assert 1 < count < 30
    assert found.max() + 1 == count
    # The same parts, and each numbered by its first feature.
    assert len(set(zip(found.tolist(), expected.tolist(), strict=True))) == count
    assert [int(k) for i, k in enumerate(found) if k not in found[:i]] == list(range(count))


def test_redundancy_deletes_what_relatedness_finds():
    # The target is the exclusive or of two directions, each measured twice; ten features are noise.
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(400, 2))
    x = np.concatenate([directions, directions + 0.1 * rng.normal(size=(400, 2)), rng.normal(size=(400, 10))], 1)
    alike = selection.correlations(x)
    assert selection.top(selection.relatedness(alike), 4).nonzero()[0].tolist() == [0, 1, 2, 3]
    one_each = selection.one_of_each(np.arange(14), selection.clusters(alike, 0.8))
    assert one_each.nonzero()[0].tolist() == list(range(2, 14))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.pearson(np.ones(3), np.ones(3)), r"x must have shape \(n, features\).*got \(3,\)"),
        (
            lambda: selection.pearson(np.array([[1.0], [np.nan]]), np.ones(2)),
            "in 1 of 1 features, the first is feature 0",
        ),
        (lambda: selection.pearson(np.ones((3, 2)), np.ones(2)), r"y must have shape \(3,\)"),
        (lambda: selection.anova_f(np.ones((3, 2)), np.ones(2, int)), r"y must have shape \(3,\)"),
        (lambda: selection.mrmr([1.0, 2.0], np.eye(3), 1), "similarity is of 3 features, relevance of 2"),
        (lambda: selection.mrmr([1.0, 2.0], np.eye(2), 3), "count must be in 1 to 2"),
        (lambda: selection.clusters([[1.0, 0.2], [0.3, 1.0]], 0.5), "must be symmetric"),
        (lambda: selection.clusters(np.ones((2, 3)), 0.5), r"must be \(features, features\)"),
        (lambda: selection.one_of_each([1.0, 2.0], [0]), "clusters must have the shape of scores"),
        (lambda: selection.one_of_each([1.0, np.nan], [0, 0]), "none of them NaN"),
        (lambda: selection.relatedness([[1.0]]), "one feature alone"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_scikit_learn_the_error_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        _ = selection.anova_f(np.ones((3, 2)), np.array([0, 1, 0]))
