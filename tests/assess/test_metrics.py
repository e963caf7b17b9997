"""Metrics against scikit-learn, NumPy twins, and cases worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from jaxprune.assess import evaluate

rng = np.random.default_rng(0)
LOGITS = jnp.asarray(2 * rng.normal(size=(200, 5)), jnp.float32)
LABELS = jnp.asarray(rng.integers(0, 5, 200))
PROBS = jax.nn.softmax(LOGITS, axis=1)


def ece_twin(probabilities, labels, bins):
    confidence, hits = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    return total


def test_against_scikit_learn():
    got = evaluate(LOGITS, LABELS)
    probabilities, labels = np.asarray(PROBS, np.float64), np.asarray(LABELS)
    probabilities /= probabilities.sum(1, keepdims=True)
    assert got.accuracy == reference.accuracy_score(labels, probabilities.argmax(1))
    np.testing.assert_allclose(got.nll, reference.log_loss(labels, probabilities), rtol=1e-5)
    brier = 5 * reference.mean_squared_error(np.eye(5)[labels], probabilities)
    np.testing.assert_allclose(got.brier, brier, rtol=1e-5)
    np.testing.assert_allclose(got.ece, ece_twin(probabilities, labels, 15), rtol=1e-4)


def test_ece_by_hand():
    # Two bins: confidences 0.6 (wrong) and 0.7, 0.9 (right): bin (0.5, 1] holds all: |2/3 - 2.2/3|.
    probabilities = jnp.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    got = evaluate(probabilities, jnp.array([1, 1, 0]), bins=2, probabilities=True)
    np.testing.assert_allclose(got.ece, 0.2 / 3, rtol=1e-5)
    # Ten bins: each alone: (0.6 + 0.3 + 0.1) / 3.
    got = evaluate(probabilities, jnp.array([1, 1, 0]), bins=10, probabilities=True)
    np.testing.assert_allclose(got.ece, 1 / 3, rtol=1e-5)


def test_probabilities_and_logits_agree():
    a, b = evaluate(LOGITS, LABELS), evaluate(PROBS, LABELS, probabilities=True)
    for key, value in a.as_dict().items():
        np.testing.assert_allclose(b.as_dict()[key], value, rtol=1e-5)


def test_certainty():
    sure = jnp.eye(3)
    right = evaluate(sure, jnp.arange(3), probabilities=True)
    assert right.as_dict() == {"accuracy": 1.0, "nll": 0.0, "brier": 0.0, "ece": 0.0}
    wrong = evaluate(sure, jnp.array([1, 2, 0]), probabilities=True)
    assert wrong.as_dict() == {"accuracy": 0.0, "nll": np.inf, "brier": 2.0, "ece": 1.0}


def test_ties_fall_to_the_lowest_class_and_classes_without_samples_are_fine():
    got = evaluate(jnp.zeros((2, 3)), jnp.array([0, 1]))
    assert got.accuracy == 0.5


def test_an_excluded_class():
    got = evaluate(jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([0]))
    np.testing.assert_allclose(got.nll, np.log(2), rtol=1e-6)


def test_low_precision_is_computed_in_float32():
    low = LOGITS.astype(jnp.bfloat16)
    got, expected = evaluate(low, LABELS), evaluate(low.astype(jnp.float32), LABELS)
    assert got.as_dict() == expected.as_dict()
    assert got.nll.dtype == jnp.float32


def test_jit_and_vmap_over_models():
    stacked = jnp.stack([LOGITS, -LOGITS])
    mapped = jax.jit(jax.vmap(evaluate, (0, None)))(stacked, LABELS)
    for k, logits in enumerate(stacked):
        np.testing.assert_allclose(mapped.nll[k], evaluate(logits, LABELS).nll, rtol=1e-6)
    assert (mapped.samples, mapped.bins) == (200, 15)


NAN = LOGITS.at[3, 1].set(jnp.nan)
ERRORS = {
    "integer logits": (jnp.ones((2, 3), int), jnp.zeros(2, int), {}, TypeError, "logits must be floating; got int"),
    "floating labels": (LOGITS, LABELS * 1.0, {}, TypeError, "labels must be integers"),
    "one-hot labels": (LOGITS, jax.nn.one_hot(LABELS, 5, dtype=int), {}, ValueError, "one-hot labels into indices"),
    "lengths": (LOGITS, LABELS[:-1], {}, ValueError, r"got \(200, 5\) and \(199,\)"),
    "empty": (LOGITS[:0], LABELS[:0], {}, ValueError, "need a sample and two classes"),
    "one class": (LOGITS[:, :1], LABELS, {}, ValueError, "need a sample and two classes"),
    "nan": (NAN, LABELS, {}, ValueError, "in 1 of 200 samples, the first at 3"),
    "inf": (LOGITS.at[0, 0].set(jnp.inf), LABELS, {}, ValueError, r"the first at 0"),
    "labels out of range": (LOGITS, LABELS.at[7].set(5), {}, ValueError, r"in \[0, 5\).* 1 do not, the first at 7: 5"),
    "negative label": (LOGITS, LABELS.at[0].set(-1), {}, ValueError, "the first at 0: -1"),
    "logits as probabilities": (LOGITS, LABELS, {"probabilities": True}, ValueError, "sum to one within"),
    "nan probabilities": (NAN, LABELS, {"probabilities": True}, ValueError, "of 200 do not"),
    "probabilities of one sample": (PROBS[0], LABELS, {"probabilities": True}, ValueError, r"\(n, classes\)"),
    "integer probabilities": (LABELS[None], LABELS, {"probabilities": True}, TypeError, "probabilities must be fl"),
    "bins": (LOGITS, LABELS, {"bins": 0}, ValueError, "bins must be a positive integer; got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    logits, labels, options, error, match = ERRORS[name]
    with pytest.raises(error, match=match):
        _ = evaluate(logits, labels, **options)


def test_rounded_probabilities_pass_in_their_own_precision():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        low = PROBS.astype(dtype)
        assert np.isfinite(evaluate(low, LABELS, probabilities=True).nll)
