"""Correlations against scipy, and what redundancy makes of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxprune import features

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
    np.testing.assert_allclose(features.pearson(x, y), expected, atol=1e-4)
    expected = [abs(stats.spearmanr(x[:, j], y).statistic) for j in range(7)]
    np.testing.assert_allclose(features.spearman(x, y), expected, atol=1e-5)


def test_the_matrix_is_numpys_and_the_ranked_one_scipys(data):
    x, _ = data
    np.testing.assert_allclose(features.correlations(x), np.abs(np.corrcoef(x.T.astype(np.float64))), atol=1e-4)
    ranked = np.abs(stats.spearmanr(x).statistic)
    np.testing.assert_allclose(features.correlations(x, ranked=True), ranked, atol=1e-5)


def test_what_does_not_vary_scores_zero_even_where_its_mean_rounds():
    x = jnp.stack([jnp.full(7, 0.1), jnp.arange(7.0), jnp.full(7, 1e30)], 1)
    assert features.pearson(x, jnp.arange(7.0)).tolist() == pytest.approx([0, 1, 0])
    assert features.spearman(x, jnp.arange(7.0)).tolist() == pytest.approx([0, 1, 0])
    assert np.asarray(features.correlations(x))[0, 2] == 0


def _labels(seed, n=90, classes=5):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    x[:, 0] += np.array([0, 3, 1, -2, 0.5])[y]  # in no order of the class numbers
    x[:, 1] += 4.0 * (y == 2)
    x[:, 2] = np.round(x[:, 2])
    return x, y


def test_class_numbers_are_no_scale():
    y = np.array([0, 0, 1, 1, 2, 2])
    x = jax.nn.one_hot(y, 3)[:, 1:2]
    for labels in (y, np.array(list("aabbcc")), 7 - y, jax.nn.one_hot(y, 3)):
        assert float(features.pearson(x, labels)[0]) == pytest.approx(1)
        assert float(features.spearman(x, labels)[0]) == pytest.approx(1)
    assert float(features.pearson(x, y.astype(float))[0]) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_the_correlation_ratio_is_the_share_of_variance_between_classes(seed):
    from sklearn.feature_selection import f_classif

    x, y = _labels(seed)
    means = np.stack([x[y == k].mean(0) for k in range(5)])
    expected = np.sqrt(((means[y] - x.mean(0)) ** 2).sum(0) / ((x - x.mean(0)) ** 2).sum(0))
    found = np.asarray(features.pearson(x, y))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # F = (R^2 / (K - 1)) / ((1 - R^2) / (n - K))
    np.testing.assert_allclose(found**2 / 4 / ((1 - found**2) / 85), f_classif(x, y)[0], rtol=1e-3)
    # H = (n - 1) R^2 of ranks
    kruskal = [stats.kruskal(*(x[y == k, j] for k in range(5))).statistic for j in range(6)]
    np.testing.assert_allclose(89 * np.asarray(features.spearman(x, y)) ** 2, kruskal, rtol=1e-3)
    for score in (features.pearson, features.spearman):
        np.testing.assert_allclose(score(x, np.eye(5)[y]), score(x, y), rtol=1e-4)
        np.testing.assert_allclose(jax.jit(score)(x, jnp.asarray(y)), score(x, y), rtol=1e-5)


def test_of_two_classes_it_is_the_size_of_the_correlation():
    x, y = _labels(3, classes=2)
    np.testing.assert_allclose(features.pearson(x, y), features.pearson(x, y.astype(float)), rtol=1e-4)


def test_several_numbers_as_target_are_one_multiple_correlation():
    rng = np.random.default_rng(4)
    y = rng.normal(size=(50, 3))
    y[:, 2] = y[:, 0] - 2 * y[:, 1]  # no dimension of its own
    x = np.stack([y[:, 0] + y[:, 1], y[:, 0] + rng.normal(size=50), rng.normal(size=50)], 1)
    expected = []
    for column in x.T:
        fit = np.c_[np.ones(50), y] @ np.linalg.lstsq(np.c_[np.ones(50), y], column, rcond=None)[0]
        expected.append(np.corrcoef(fit, column)[0, 1])
    np.testing.assert_allclose(features.pearson(x, y), expected, rtol=1e-4)


def test_a_feature_of_one_class_of_many_does_not_outscore_one_of_all():
    # The largest correlation with any one class would put feature 1, which tells one of 20 classes, first.
    rng = np.random.default_rng(5)
    y = np.arange(2000) % 20
    x = np.stack([y + 4 * rng.normal(size=2000), 1.0 * (y == 7)], 1)
    one_hot = np.abs(np.corrcoef(x.T, np.eye(20)[y].T)[:2, 2:]).max(1)
    assert one_hot[1] > 2 * one_hot[0]
    scores = np.asarray(features.pearson(x, y))
    assert scores[0] > 0.8
    assert scores[1] == pytest.approx(1)  # between its two values lies a class boundary alone
    noisy = np.c_[x[:, 0], x[:, 1] + 0.2 * rng.normal(size=2000)]
    found = np.asarray(features.pearson(noisy, y))
    assert found[0] > found[1]
    information = np.asarray(features.mutual_information(noisy, y))
    assert information[0] > 2 * information[1]


def test_scores_run_inside_jit(data):
    x, y = data
    np.testing.assert_allclose(jax.jit(features.spearman)(x, y), features.spearman(x, y), atol=1e-6)


def test_scikit_learns_f_arrives_as_it_is(data):
    from sklearn.feature_selection import f_classif, f_regression

    x, y = data
    labels = (y > 0).astype(int)
    np.testing.assert_allclose(features.anova_f(x, labels), f_classif(x.astype(np.float64), labels)[0])
    np.testing.assert_allclose(
        features.anova_f(x, y), f_regression(x.astype(np.float64), y.astype(np.float64))[0], rtol=1e-6
    )
    # F and r order alike: F = (n - 2) r^2 / (1 - r^2)
    np.testing.assert_array_equal(np.argsort(features.anova_f(x, labels)), np.argsort(features.pearson(x, labels)))


@pytest.mark.parametrize("bins", [2, 5, None])
def test_mutual_information_is_scikit_learns_of_quantile_bins_less_what_chance_gives(bins):
    from sklearn.metrics import mutual_info_score

    x, y = _labels(6, n=600)
    x[:, 3] = np.maximum(x[:, 3], 0)  # half of the values are equal
    x[:, 4] = 1.0
    count = bins or 16  # 600 // (5 classes x 5 samples), at most 16
    for target in (y, x[:, 0] + 0.3 * x[:, 5]):
        cut = lambda v: np.floor((np.argsort(np.argsort(v)) if len(set(v)) == len(v) else _below(v)) * count / 600)
        labels = target if target is y else cut(target)
        found = features.mutual_information(x, target, bins=count if target is not y else bins)
        for column, value in zip(x.T, found, strict=True):
            binned = cut(column)
            chance = (len(set(binned)) - 1) * (len(set(labels)) - 1) / 1200
            expected = max(0, mutual_info_score(labels, binned) - chance)
            assert float(value) == pytest.approx(expected, abs=2e-5)
    assert float(features.mutual_information(x, y)[4]) == 0


def _below(values):
    return np.asarray([(values < v).sum() for v in values])


def test_mutual_information_sees_what_is_not_monotone_and_agrees_with_nearest_neighbours():
    from sklearn.feature_selection import mutual_info_classif

    rng = np.random.default_rng(7)
    y = np.arange(3000) % 6
    x = rng.normal(size=(3000, 12)).astype(np.float32)
    x[:, 0] *= 1 + y  # equal means: variances tell the classes
    for j in range(1, 9):
        x[:, j] += 0.25 * j * (y % 3)
    neighbours = mutual_info_classif(x, y, random_state=0)
    found = np.asarray(features.mutual_information(x, y))
    assert float(features.pearson(x, y)[0]) < 0.1 < found[0]
    assert stats.spearmanr(found, neighbours).statistic > 0.9
    np.testing.assert_allclose(found, neighbours, atol=0.1)
    assert found[9:].max() < 0.02


@pytest.mark.parametrize("score", [features.pearson, features.spearman, features.anova_f, features.mutual_information])
def test_a_target_that_does_not_vary_scores_zero(score):
    x = np.random.default_rng(8).normal(size=(6, 2))
    for y in (np.full(6, 3), np.full(6, 0.1)):
        assert np.asarray(score(x, y)).tolist() == [0, 0]


def test_anova_of_a_feature_that_does_not_vary_is_zero():
    x = np.stack([np.ones(6), [0, 1, 0, 5, 6, 5]], 1)
    assert features.anova_f(x, np.array([0, 0, 0, 1, 1, 1]))[0] == 0


def _mrmr_by_hand(relevance, similarity, count):
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < count:
        left = [j for j in range(len(relevance)) if j not in chosen]
        value = [relevance[j] - np.mean([similarity[j][i] for i in chosen]) for j in left]
        chosen.append(left[int(np.argmax(value))])
    return chosen


def test_mrmr_is_the_sum_of_its_definition(data):
    x, y = data
    relevance, similarity = np.asarray(features.pearson(x, y)), np.asarray(features.correlations(x))
    assert features.mrmr(relevance, similarity, 7).tolist() == _mrmr_by_hand(relevance, similarity, 7)
    assert sorted(features.mrmr(relevance, similarity, 7, quotient=True)) == list(range(7))


def test_pooled_by_the_largest_a_copy_stays_out_however_many_are_chosen():
    similarity, relevance = np.eye(12), np.full(12, 0.5)
    similarity[0, 11] = similarity[11, 0] = 1
    relevance[[0, 11]] = 0.9, 0.89
    assert 11 in features.mrmr(relevance, similarity, 8)
    assert 11 not in features.mrmr(relevance, similarity, 8, pool=np.max)


def test_clusters_are_what_links_lead_to_and_are_numbered_by_their_first_feature():
    rng = np.random.default_rng(1)
    similarity = rng.uniform(size=(30, 30)) * 0.52
    similarity = np.maximum(similarity, similarity.T)
    found = features.clusters(similarity, 0.5)
    reached = (similarity >= 0.5) | np.eye(30, dtype=bool)
    for _ in range(5):  # paths of up to 32 links
        reached = (reached.astype(int) @ reached) > 0
    np.testing.assert_array_equal(found[:, None] == found, reached)
    count = len({row.tobytes() for row in reached})
    assert 1 < count < 30
    assert [int(k) for i, k in enumerate(found) if k not in found[:i]] == list(range(count))


def test_redundancy_deletes_what_relatedness_finds():
    # The target is the exclusive or of two directions, each measured twice; ten features are noise.
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(400, 2))
    x = np.concatenate([directions, directions + 0.1 * rng.normal(size=(400, 2)), rng.normal(size=(400, 10))], 1)
    alike = features.correlations(x)
    assert features.top(features.relatedness(alike), 4).nonzero()[0].tolist() == [0, 1, 2, 3]
    one_each = features.one_of_each(np.arange(14), features.clusters(alike, 0.8))
    assert one_each.nonzero()[0].tolist() == list(range(2, 14))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: features.pearson(np.ones(3), np.ones(3)), r"x must have shape \(n, features\).*got \(3,\)"),
        (
            lambda: features.pearson(np.array([[1.0], [np.nan]]), np.ones(2)),
            "in 1 of 1 features, the first is feature 0",
        ),
        (lambda: features.pearson(np.ones((3, 2)), np.ones(2)), r"y must have shape \(3,\)"),
        (lambda: features.anova_f(np.ones((3, 2)), np.ones(2, int)), r"y must have shape \(3,\)"),
        (lambda: features.pearson(np.ones((3, 2)), np.arange(3)), "3 different integers for 3 samples.*as floats"),
        (
            lambda: features.mutual_information(np.ones((4, 2)), np.array([0, 0, 1, 1]), bins=1),
            "bins must be 2 or more",
        ),
        (lambda: features.mutual_information(np.ones((3, 2)), np.ones(2)), r"y must have shape \(3,\)"),
        (lambda: features.mrmr([1.0, 2.0], np.eye(3), 1), "similarity has 3 features, but relevance has 2"),
        (lambda: features.mrmr([1.0, 2.0], np.eye(2), 3), "count must be in 1 to 2"),
        (lambda: features.clusters([[1.0, 0.2], [0.3, 1.0]], 0.5), "must be symmetric"),
        (lambda: features.clusters(np.ones((2, 3)), 0.5), r"must be \(features, features\)"),
        (lambda: features.one_of_each([1.0, 2.0], [0]), "clusters must have the shape of scores"),
        (lambda: features.one_of_each([1.0, np.nan], [0, 0]), "one number for each feature, not NaN"),
        (lambda: features.relatedness([[1.0]]), "only one feature"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_scikit_learn_the_error_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        _ = features.anova_f(np.ones((3, 2)), np.array([0, 1, 0]))


@pytest.mark.parametrize("score", [features.pearson, features.spearman, features.anova_f, features.mutual_information])
def test_scores_do_not_depend_on_units(score):
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    y = np.asarray(x[:, 0] > 0, int)
    want = np.asarray(score(x, y))
    for other in (
        x * np.float32(1e20),
        x * np.float32(1e-22),
        x.astype(np.float64) + 1e8,
        x.astype(np.float64) * 1e250,
    ):
        np.testing.assert_allclose(score(other, y), want, rtol=1e-4, atol=1e-6)
    if score is not features.anova_f:  # it runs on the host
        np.testing.assert_allclose(jax.jit(score)(x * np.float32(1e20), y), jax.jit(score)(x, y), rtol=1e-4, atol=1e-6)
