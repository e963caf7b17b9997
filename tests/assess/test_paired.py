"""Paired tests against SciPy and exact enumeration; exemplars, agreement and recall by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import recall_score

from jaxprune.assess import exemplars, log_losses, mcnemar, recall_by_class, sign_flip_test
from jaxprune.assess.forgetting import agreement

KEY = jax.random.key(0)


def logits_with(hits):
    """Logits of two classes that are right for label 0 where told."""
    return jnp.where(jnp.asarray(hits)[:, None], jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 3), (10, 2), (1, 30), (700, 610), (2000, 1600)])
def test_mcnemar_against_scipy(only_first, only_second):
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    got = mcnemar(logits_with(first), logits_with(second), jnp.zeros(len(first), int))
    assert got[:2] == (only_first, only_second)
    n = only_first + only_second
    expected = binomtest(only_first, n).pvalue if n else 1.0
    np.testing.assert_allclose(got.p_value, expected, rtol=1e-9)


def test_sign_flips_against_all_of_them():
    first = jnp.array([0.3, 1.0, 0.2, 0.9, 0.8, 1.2, 0.4, 0.6])
    second = jnp.array([0.5, 0.4, 0.3, 0.1, 0.7, 0.3, 0.45, 0.2])
    d = np.asarray(first - second, np.float64)
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(sums) >= abs(d.sum()) - 1e-9)
    got = sign_flip_test(first, second, key=KEY)
    np.testing.assert_allclose(got, exact, atol=4 * np.sqrt(exact * (1 - exact) / 9999) + 1e-4)


def test_equal_losses_do_not_differ():
    losses = log_losses(jnp.zeros((5, 2)), jnp.zeros(5, int))
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    assert sign_flip_test(losses, losses, key=KEY, flips=99) == 1


def test_exemplars_of_populations():
    # three samples, three dense models: votes (0 0 1), (1 1 1), (0 1 2: a tie, so 0); one pruned: 0, 2, 1
    votes = jnp.array([[0, 1, 0], [0, 1, 1], [1, 1, 2]])
    found = exemplars(jax.nn.one_hot(votes, 3), jax.nn.one_hot(jnp.array([0, 2, 1]), 3))
    assert found.dense.tolist() == [0, 1, 0]
    assert found.pruned.tolist() == [0, 2, 1]
    assert found.is_exemplar.tolist() == [False, True, True]
    np.testing.assert_allclose(agreement(jax.nn.one_hot(votes, 3), jax.nn.one_hot(votes[0], 3)), 1, rtol=1e-6)


def test_recall_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    expected = [recall_score(labels == k, logits.argmax(1) == k) for k in range(4)]
    np.testing.assert_allclose(recall_by_class(logits, labels), expected, rtol=1e-6)


def test_errors():
    x, labels = jnp.zeros((3, 2)), jnp.zeros(3, int)
    with pytest.raises(ValueError, match=r"one shape; got \(3, 2\) and \(3, 3\)"):
        _ = mcnemar(x, jnp.zeros((3, 3)), labels)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        _ = sign_flip_test(jnp.zeros(3), jnp.zeros(2), key=KEY)
    with pytest.raises(ValueError, match="NaN or inf"):
        _ = sign_flip_test(jnp.zeros(1), jnp.array([jnp.inf]), key=KEY)
    with pytest.raises(ValueError, match=r"got \(1, 3, 2\) and \(1, 2, 2\)"):
        _ = exemplars(x, x[:2])
    with pytest.raises(ValueError, match="pruned logits hold NaN"):
        _ = exemplars(x, x.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="no sample of class 1: it has no recall"):
        _ = recall_by_class(x, labels)
