"""Combinations, uncertainty and the greedy choice against scikit-learn and slow twins."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from jaxprune import assess, ensembles

rng = np.random.default_rng(0)
LABELS = np.arange(90) % 3
MEMBERS = jnp.asarray(2 * np.eye(3)[LABELS] + 1.5 * rng.normal(size=(5, 90, 3)), jnp.float32)
P = softmax(np.asarray(MEMBERS, np.float64), axis=-1)


def test_mean_probability_against_scikit_learn():
    got = assess.evaluate(ensembles.mean_probability(MEMBERS), LABELS)
    np.testing.assert_allclose(got.nll, log_loss(LABELS, P.mean(0)), rtol=1e-5)
    np.testing.assert_allclose(got.accuracy, accuracy_score(LABELS, P.mean(0).argmax(1)), rtol=1e-6)
    alone = [log_loss(LABELS, p) for p in P]
    assert got.nll < np.mean(alone)  # Jensen


def test_mean_logit_is_the_normalised_geometric_mean():
    geometric = np.exp(np.log(P).mean(0))
    expected = geometric / geometric.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(ensembles.mean_logit(MEMBERS)), expected, rtol=1e-4)


def test_majority_counts_votes():
    votes = np.array([[(P[:, i].argmax(-1) == k).sum() for k in range(3)] for i in range(90)])
    got = ensembles.majority(MEMBERS)
    np.testing.assert_allclose(np.exp(got), votes / 5, atol=1e-6)
    np.testing.assert_array_equal(got.argmax(-1), votes.argmax(1))  # of equally many the lowest


def test_far_logits_do_not_overflow():
    far = jnp.array([[[1e4, 0.0]], [[0.0, 1e4]]])
    np.testing.assert_allclose(ensembles.mean_probability(far), np.log([[0.5, 0.5]]), rtol=1e-6)
    assert jnp.isneginf(ensembles.mean_logit(jnp.array([[[0.0, -jnp.inf]], [[0.0, 5.0]]]))).tolist() == [[False, True]]


def test_uncertainty_against_its_definition():
    entropy = lambda p: -(p * np.log(p)).sum(-1)
    got = ensembles.uncertainty(MEMBERS)
    np.testing.assert_allclose(got.total, entropy(P.mean(0)), rtol=1e-4)
    np.testing.assert_allclose(got.aleatoric, entropy(P).mean(0), rtol=1e-4)
    # I(answer; member) = mean KL(p_m || mean p)
    divergence = (P * np.log(P / P.mean(0))).sum(-1).mean(0)
    np.testing.assert_allclose(got.epistemic, divergence, rtol=1e-3, atol=1e-6)


def test_disagreement_against_all_pairs():
    answers = P.argmax(-1)
    pairs = list(itertools.combinations(range(5), 2))
    by_sample = np.mean([answers[i] != answers[j] for i, j in pairs], axis=0)
    np.testing.assert_allclose(ensembles.disagreement(MEMBERS), by_sample, atol=1e-6)


def greedy_twin(size):
    chosen, losses = [], []
    for _ in range(size):
        rest = [m for m in range(5) if m not in chosen]
        loss = {m: log_loss(LABELS, P[[*chosen, m]].mean(0)) for m in rest}
        chosen.append(min(rest, key=lambda m: (loss[m], m)))
        losses.append(loss[chosen[-1]])
    return chosen, losses


@pytest.mark.parametrize("size", [1, 3, None])
def test_greedy_against_its_twin(size):
    got = ensembles.greedy_selection(MEMBERS, LABELS, size)
    chosen, losses = greedy_twin(size or 5)
    assert got.order.tolist() == chosen
    np.testing.assert_allclose(got.losses, losses, rtol=1e-5)
    assert got.best.tolist() == chosen[: int(np.argmin(losses)) + 1]


def test_greedy_with_ties_and_infinite_losses():
    same = jnp.stack([MEMBERS[0]] * 3)
    assert ensembles.greedy_selection(same, LABELS).order.tolist() == [0, 1, 2]
    never = jnp.where(jnp.eye(3)[LABELS] > 0, -jnp.inf, 0.0)  # excludes every label
    assert ensembles.greedy_selection(jnp.stack([never, never, MEMBERS[0]]), LABELS).order.tolist() == [2, 0, 1]
    found = ensembles.greedy_selection(jnp.stack([never, never]), LABELS)
    assert found.order.tolist() == [0, 1]
    assert jnp.isinf(found.losses).all()


def test_kernels_are_the_same_under_jit():
    for fn in (ensembles.uncertainty, ensembles.disagreement, ensembles.mean_probability, ensembles.majority):
        for a, b in zip(jax.tree.leaves(jax.jit(fn)(MEMBERS)), jax.tree.leaves(fn(MEMBERS)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"\(members, n, classes\); got float32 \(90, 3\)"):
        _ = ensembles.uncertainty(MEMBERS[0])
    with pytest.raises(ValueError, match="needs at least 2 members; got 1"):
        _ = ensembles.disagreement(MEMBERS[:1])
    spoiled = MEMBERS.at[3, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="logits of member 3 contain NaN"):
        _ = ensembles.greedy_selection(spoiled, LABELS)
    with pytest.raises(ValueError, match=r"size must be in \[1, 5\]"):
        _ = ensembles.greedy_selection(MEMBERS, LABELS, 6)
    with pytest.raises(ValueError, match="labels must be in"):
        _ = ensembles.greedy_selection(MEMBERS, LABELS + 1)
