"""Changes between two models against exact enumeration and scikit-learn; exemplars by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, binomtest
from sklearn.metrics import recall_score

from jaxprune.assess import changes, exemplars
from jaxprune.assess.metrics import brier_losses, log_losses

KEY = jax.random.key(0)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 3), (10, 2), (1, 30), (700, 610)])
def test_accuracies_against_scipy(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True, False])
    second = np.array([False] * only_first + [True] * only_second + [True, False])
    logits = lambda hits: np.where(hits[:, None], [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
    got = changes(logits(first), logits(second), np.zeros(len(first), int), key=KEY, flips=9)
    assert (got.regressions, got.gains) == (only_first, only_second)
    # The mid-p value counts half of the probability of the counts themselves: on both sides, where they differ.
    n, expected = only_first + only_second, 1.0
    if only_first != only_second:
        expected = float(binomtest(only_first, n).pvalue) - float(binom.pmf(only_first, n, 0.5))
    np.testing.assert_allclose(got.p_values["accuracy"], expected, rtol=1e-9)


def test_adjusted_p_values_against_all_flips():
    # Nine samples of two classes: all 512 ways to deal the two answers to two models, and the largest of 5 deviations.
    rng = np.random.default_rng(2)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    first, second = (rng.normal(size=(9, 2)).astype(np.float32) for _ in range(2))
    hits = (second.argmax(1) == labels).astype(float) - (first.argmax(1) == labels)
    nll, brier = (np.asarray(f(second, labels) - f(first, labels), np.float64) for f in (log_losses, brier_losses))
    questions = np.stack([hits, nll, brier, hits * (labels == 0), hits * (labels == 1)], 1)
    questions /= np.maximum(np.sqrt((questions**2).sum(0)), 1e-30)
    every = np.array(list(itertools.product((-1, 1), repeat=9)))
    largest = np.abs(every @ questions).max(1)
    exact = (largest[:, None] >= np.abs(questions.sum(0)) - 1e-6).mean(0)
    got = changes(first, second, labels, key=KEY, flips=19_999)
    found = [*got.adjusted.values(), *got.recall_adjusted]
    np.testing.assert_allclose(found, exact, atol=4 * 0.5 / np.sqrt(20_000))


def test_exemplars_of_populations():
    # three samples, three dense models: votes (0 0 1), (1 1 1), (0 1 2: a tie, so 0); one pruned: 0, 2, 1
    votes = jnp.array([[0, 1, 0], [0, 1, 1], [1, 1, 2]])
    found = exemplars(jax.nn.one_hot(votes, 3), jax.nn.one_hot(jnp.array([0, 2, 1]), 3))
    assert found.dense.tolist() == [0, 1, 0]
    assert found.pruned.tolist() == [0, 2, 1]
    assert found.is_exemplar.tolist() == [False, True, True]


def test_recall_against_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 50)
    first, second = (rng.normal(size=(50, 4)).astype(np.float32) for _ in range(2))
    got = changes(first, second, labels, key=KEY, flips=9)
    for k, each in enumerate(got.recall):
        before, after = (recall_score(labels == k, (labels == k) & (x.argmax(1) == k)) for x in (first, second))
        np.testing.assert_allclose(each.estimate, after - before, atol=1e-12)


def test_errors():
    x = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"one shape; got \(3, 2\) and \(3, 3\)"):
        _ = changes(x, jnp.zeros((3, 3)), jnp.zeros(3, int), key=KEY)
    with pytest.raises(ValueError, match=r"got \(1, 3, 2\) and \(1, 2, 2\)"):
        _ = exemplars(x, x[:2])
    with pytest.raises(ValueError, match="pruned logits hold NaN"):
        _ = exemplars(x, x.at[0, 0].set(jnp.nan))
