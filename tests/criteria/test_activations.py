"""Activation criteria against NumPy, on dense, grouped and stacked layers, and as channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import criteria, masks
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import reconstruct
from tests.cases import normal

PARAMS = {
    "dense": normal(6, 4),
    "stack": normal(2, 4, 4),
    "lost": jnp.ones((3, 3)),
    "step": jnp.arange(2),
}
X = jax.nn.relu(normal(40, 6, seed=1))


def fn(params, x):
    return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x @ params["dense"], params["stack"])[0]


@pytest.fixture(scope="module")
def stats():
    return calibrate(fn, PARAMS, [X], collect=("square", "total", "zeros"))


def hidden(i):
    h = X @ PARAMS["dense"]
    for w in PARAMS["stack"][:i]:
        h = jnp.tanh(h @ w)
    return np.asarray(h)


def test_wanda_is_weight_times_norm(stats):
    got = criteria.wanda(PARAMS, stats=stats)
    np.testing.assert_allclose(got["dense"], np.abs(PARAMS["dense"]) * np.linalg.norm(X, axis=0)[:, None], rtol=1e-5)
    for i in range(2):
        norm = np.linalg.norm(hidden(i), axis=0)[:, None]
        np.testing.assert_allclose(got["stack"][i], np.abs(PARAMS["stack"][i]) * norm, rtol=1e-4)
    assert got["lost"].shape == got["step"].shape == ()


def test_wanda_per_output_is_what_reconstruct_does(stats):
    scores = criteria.wanda(PARAMS, stats=stats)
    got = masks.select(scores, 0.5, masks.Unstructured(axes=-2), where="dense")
    want = reconstruct(PARAMS, stats, {"dense": 0.5}, method="wanda").masks
    np.testing.assert_array_equal(got["dense"], want["dense"])


def test_ria_by_hand(stats):
    w, norm = (
        np.abs(np.asarray(PARAMS["stack"], np.float64)),
        np.stack([np.linalg.norm(hidden(i), axis=0) for i in (0, 1)]),
    )
    want = (w / w.sum(1, keepdims=True) + w / w.sum(2, keepdims=True)) * np.sqrt(norm)[:, :, None]
    np.testing.assert_allclose(criteria.ria(PARAMS, stats=stats)["stack"], want, rtol=1e-4)
    empty = {**PARAMS, "dense": PARAMS["dense"].at[2].set(0.0)}
    got = criteria.ria(empty, stats=stats, power=0.0)["dense"]
    assert np.isfinite(got).all()
    assert not got[2].any()


def test_channels_stand_at_the_inputs(stats):
    mean = criteria.activation_mean(PARAMS, stats=stats)
    alive = criteria.apoz(PARAMS, stats=stats)
    np.testing.assert_allclose(mean["dense"], np.broadcast_to(X.mean(0)[:, None], (6, 4)), rtol=1e-5)
    np.testing.assert_allclose(alive["dense"], np.broadcast_to((X > 0).mean(0)[:, None], (6, 4)), rtol=1e-5)
    kept = masks.select(alive, 0.5, masks.Channel(axis=-2), where="dense")["dense"]
    assert kept.shape == (6, 1)
    np.testing.assert_array_equal(np.sort(np.argsort(-(X > 0).sum(0), stable=True)[:3]), np.flatnonzero(kept))


def test_grouped_convolution():
    conv = lambda p, x: lax.conv_general_dilated(
        x, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    params = {"w": normal(1, 1, 3, 4)}
    x = normal(5, 4, 4, 6, seed=2)
    stats = calibrate(conv, params, [x], collect=("square", "total"))
    norm = np.sqrt((np.asarray(x).reshape(-1, 6) ** 2).sum(0)).reshape(2, 3)
    want = np.abs(params["w"][0, 0].reshape(3, 2, 2)) * norm.T[:, :, None]
    np.testing.assert_allclose(criteria.wanda(params, stats=stats)["w"][0, 0], want.reshape(3, 4), rtol=1e-5)
    assert criteria.activation_mean(params, stats=stats)["w"].shape == (1, 1, 3, 4)


def test_under_jit_in_short_dtypes_and_with_missing_signals(stats):
    short = {**PARAMS, "dense": PARAMS["dense"].astype(jnp.bfloat16)}
    got = jax.jit(lambda p, s: criteria.wanda(p, stats=s))(short, stats)
    want = criteria.wanda(short, stats=stats)
    np.testing.assert_allclose(got["dense"], want["dense"], rtol=1e-6)
    assert got["dense"].dtype == jnp.float32
    with pytest.raises(ValueError, match=r"criteria\.ria needs stats: pass stats=calibrate"):
        _ = criteria.ria(PARAMS)
    with pytest.raises(TypeError, match="stats must be the result of calibrate, got dict"):
        _ = criteria.apoz(PARAMS, stats={})
    with pytest.raises(ValueError, match=r"collect=\('zeros',\)"):
        _ = criteria.apoz(PARAMS, stats=calibrate(fn, PARAMS, [X], collect="square"))
    with pytest.raises(ValueError, match="calibrate the parameters that you prune"):
        _ = criteria.wanda({**PARAMS, "dense": jnp.ones((6, 5))}, stats=stats)
