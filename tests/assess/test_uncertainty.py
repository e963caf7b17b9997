"""Selective prediction and detection of foreign data, against slow twins and scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy as reference_entropy
from sklearn.metrics import roc_auc_score

from jaxprune.assess import auroc, entropy, epistemic_uncertainty, risk_coverage
from jaxprune.assess.uncertainty import max_probability

rng = np.random.default_rng(0)
LOGITS = jnp.asarray(rng.normal(size=(60, 3)), jnp.float32)
LABELS = jnp.asarray(rng.integers(0, 3, 60))


def test_curve_against_a_loop():
    curve = risk_coverage(LOGITS, LABELS)
    order = np.argsort(np.asarray(max_probability(LOGITS)))
    wrong = (np.asarray(LOGITS).argmax(1) != np.asarray(LABELS))[order]
    risks = [wrong[:k].mean() for k in range(1, 61)]
    np.testing.assert_allclose(curve.risk, risks, rtol=1e-5)
    np.testing.assert_allclose(curve.aurc, np.mean(risks), rtol=1e-5)
    assert curve.coverage[-1] == 1
    best = [np.sort(wrong)[:k].mean() for k in range(1, 61)]
    np.testing.assert_allclose(curve.excess, np.mean(risks) - np.mean(best), rtol=1e-4)


def test_equal_uncertainty_gives_the_mean_over_all_orders():
    logits, labels = jnp.array([[1.0, 0.0]] * 4), jnp.array([0, 1, 0, 0])
    curve = risk_coverage(logits, labels)
    np.testing.assert_allclose(curve.risk, [0.25] * 4)
    turned = risk_coverage(logits, labels[::-1])
    np.testing.assert_array_equal(curve.risk, turned.risk)


def test_perfect_order_has_no_excess():
    wrong = LOGITS.argmax(1) != LABELS
    np.testing.assert_allclose(risk_coverage(LOGITS, LABELS, uncertainty=wrong * 1.0).excess, 0, atol=1e-6)


def test_auroc_against_scikit_learn_with_ties():
    known, foreign = rng.integers(0, 6, 50) / 4, rng.integers(1, 8, 40) / 4
    expected = roc_auc_score([0] * 50 + [1] * 40, np.concatenate([known, foreign]))
    np.testing.assert_allclose(auroc(known, foreign), expected, rtol=1e-6)


def test_uncertainties():
    np.testing.assert_allclose(max_probability(jnp.zeros((2, 4))), 0.75)
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.testing.assert_allclose(entropy(LOGITS), reference_entropy(p, axis=1), rtol=1e-5)
    assert entropy(jnp.array([[0.0, -jnp.inf]])) == 0
    # Two sure members that contradict each other: log 2; two that agree: 0.
    sure = jnp.array([[[50.0, 0.0], [50.0, 0.0]], [[0.0, 50.0], [50.0, 0.0]]])
    np.testing.assert_allclose(epistemic_uncertainty(sure), [np.log(2), 0], atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"one value for each sample, shape \(60,\); got shape \(59,\)"):
        _ = risk_coverage(LOGITS, LABELS, uncertainty=jnp.ones(59))
    with pytest.raises(ValueError, match="uncertainty hold NaN in 60 places"):
        _ = risk_coverage(LOGITS, LABELS, uncertainty=jnp.full(60, jnp.nan))
    with pytest.raises(ValueError, match=r"with a sample each; got \(0,\) and \(3,\)"):
        _ = auroc(jnp.zeros(0), jnp.zeros(3))
    with pytest.raises(ValueError, match="foreign scores hold NaN"):
        _ = auroc(jnp.zeros(2), jnp.array([jnp.nan]))
    with pytest.raises(TypeError, match=r"auroc\(scores\[~wrong\], scores\[wrong\]\)"):
        _ = auroc(jnp.zeros(3), jnp.array([True, False, False]))
