"""Gradients over batches against one gradient at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import accumulate_gradients

PARAMS = {"w": jnp.array([[1.0, -2.0]]), "short": jnp.ones(2, jnp.bfloat16), "step": jnp.int32(3)}
BATCHES = [jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0]), jnp.array([3.0])]


def loss(params, x):
    return (jnp.tanh(x[:1] * params["w"]).sum() * params["step"] + (params["short"] * x.sum()).sum()).mean()


def test_means_of_gradients_and_of_their_squares():
    got = accumulate_gradients(loss, PARAMS, iter(BATCHES))
    each = [jax.grad(lambda w, x=x: loss({**PARAMS, "w": w}, x))(PARAMS["w"]) for x in BATCHES]
    np.testing.assert_allclose(got.mean["w"], np.mean(each, 0), rtol=1e-6)
    np.testing.assert_allclose(got.square["w"], np.mean(np.square(each), 0), rtol=1e-6)
    np.testing.assert_allclose(got.mean["short"], [5.5 / 3] * 2, rtol=1e-2)
    assert got.mean["short"].dtype == jnp.float32
    assert got.mean["step"].shape == ()
    assert got.batches == 3


def test_refusals():
    with pytest.raises(ValueError, match="at least one batch"):
        _ = accumulate_gradients(loss, PARAMS, [])
    with pytest.raises(ValueError, match="not finite for:\n  short"):
        _ = accumulate_gradients(lambda p, x: (p["short"] * x).sum(), PARAMS, [jnp.array([jnp.inf])])
