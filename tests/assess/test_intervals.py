"""Bootstrap intervals: coverage, determinism, trees, pairing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.assess import bootstrap, evaluate
from tests.cases import normal

KEY = jax.random.key(0)


def test_of_a_mean_as_the_normal_theory_has_it():
    x = normal(400, seed=1) + 3
    got = bootstrap(jnp.mean, x, key=KEY, resamples=1000)
    half = 1.96 * np.std(x) / 20
    np.testing.assert_allclose(got.estimate, x.mean(), rtol=1e-6)
    np.testing.assert_allclose([got.low, got.high], [x.mean() - half, x.mean() + half], atol=0.03)


@pytest.mark.slow
def test_covers_the_truth_about_as_often_as_it_says():
    draws = normal(200, 50, seed=2)
    inside = jax.vmap(lambda x, k: bootstrap(jnp.mean, x, key=k, resamples=200, confidence=0.9)[1:])
    low, high = inside(draws, jax.random.split(KEY, 200))
    # 0.9 of 200, with a standard deviation of 0.021; the percentile interval is a little narrow
    assert 0.81 <= float(((low < 0) & (high > 0)).mean()) <= 0.96


def test_metrics_come_back_as_metrics_and_the_key_and_batch_decide_nothing_else():
    logits, labels = normal(60, 3), jnp.arange(60) % 3
    a = bootstrap(evaluate, logits, labels, key=KEY, resamples=20)
    b = bootstrap(evaluate, logits, labels, key=KEY, resamples=20, batch=7)
    assert a.estimate.as_dict() == evaluate(logits, labels).as_dict()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    assert a.low.nll < a.estimate.nll < a.high.nll


def test_resampled_together_two_equal_models_never_differ():
    x = normal(40)
    got = bootstrap(lambda a, b: a.mean() - b.mean(), x, x + 1, key=KEY, resamples=20)
    np.testing.assert_allclose([got.low, got.high], -1, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "options", "match"),
    [
        ((jnp.ones(3), jnp.ones(4)), {}, r"one length on their first axis; got \[\(3,\), \(4,\)\]"),
        ((jnp.ones(()),), {}, "one length"),
        ((jnp.ones(0),), {}, "one length"),
        ((), {}, "one length"),
        ((jnp.ones(3),), {"resamples": 1}, "got 1 and 0.95"),
        ((jnp.ones(3),), {"confidence": 95}, "got 1000 and 95"),
    ],
)
def test_errors(samples, options, match):
    with pytest.raises(ValueError, match=match):
        _ = bootstrap(jnp.mean, *samples, key=KEY, **options)
