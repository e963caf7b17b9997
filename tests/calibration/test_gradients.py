"""Gradients over batches against one gradient at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import accumulate_gradients
from tests.cases import normal

PARAMS = {"w": jnp.array([[1.0, -2.0]]), "short": jnp.ones(2, jnp.bfloat16), "step": jnp.int32(3)}
BATCHES = [jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0]), jnp.array([3.0])]


def loss(params, x):
    return (jnp.tanh(x[:1] * params["w"]).sum() * params["step"] + (params["short"] * x.sum()).sum()).mean()


@pytest.mark.usefixtures("optimized")  # without, the tanh of another program differs in its fifth digit
def test_means_of_gradients_and_of_their_squares():
    got = accumulate_gradients(loss, PARAMS, iter(BATCHES))
    each = [jax.grad(lambda w, x=x: loss({**PARAMS, "w": w}, x))(PARAMS["w"]) for x in BATCHES]
    np.testing.assert_allclose(got.mean["w"], np.mean(each, 0), rtol=1e-6)
    np.testing.assert_allclose(got.square["w"], np.mean(np.square(each), 0), rtol=1e-6)
    np.testing.assert_allclose(got.mean["short"], [5.5 / 3] * 2, rtol=1e-2)
    assert got.mean["short"].dtype == jnp.float32
    assert got.mean["step"].shape == ()
    assert got.samples == 3


def test_refusals():
    with pytest.raises(ValueError, match="at least one batch"):
        _ = accumulate_gradients(loss, PARAMS, [])
    with pytest.raises(ValueError, match="not finite for:\n  short"):
        _ = accumulate_gradients(lambda p, x: (p["short"] * x).sum(), PARAMS, [jnp.array([jnp.inf])])


def test_gradients_of_examples():
    values = {"w": PARAMS["w"], "step": jnp.int32(2)}
    own = lambda p, x: jnp.square(x @ p["w"].T).sum() / p["step"]
    x = normal(7, 2)
    got = accumulate_gradients(own, values, [x[:4], x[4:]], per_example=True)
    # d/dw (x w)^2 / 2 = (x w) x
    each = np.asarray((x @ PARAMS["w"].T) * x, np.float64)
    np.testing.assert_allclose(got.square["w"][0], (each**2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.mean["w"][0], each.mean(0), rtol=1e-5)
    assert got.samples == 7
    # Jensen: the mean of squares is no less than the mean square of the batches' gradients.
    whole = accumulate_gradients(lambda p, x: own(p, x) / len(x), values, [x[:4], x[4:]])
    assert (np.asarray(got.square["w"]) >= np.asarray(whole.square["w"]) * (1 - 1e-5)).all()
    for batch in ((jnp.ones(3), jnp.ones(2)), jnp.ones((0, 2)), jnp.ones(())):
        with pytest.raises(ValueError, match="share a leading axis"):
            _ = accumulate_gradients(lambda p, x: 0.0, values, [batch], per_example=True)
