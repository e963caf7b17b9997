"""Magnitudes and their norms against NumPy, in every dtype and on any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import criteria

NORMS = {
    None: lambda a: 1.0,
    "l1": lambda a: a.sum(),
    "l2": lambda a: np.sqrt((a**2).sum()),
    "mean": lambda a: a.mean(),
    "max": lambda a: a.max(),
}


def values(shape=(6, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_scores_are_the_formulas(norm, power, dtype):
    w = jnp.asarray(values(), dtype)
    params = {"w": w, "n": jnp.arange(3), "none": None}
    scores = criteria.magnitude(params, power=power, normalise=norm)
    a = np.abs(np.asarray(w, np.float64)) ** power
    assert scores["w"].dtype == (dtype if norm is None and power == 1 else jnp.float32)
    assert np.allclose(scores["w"], a / NORMS[norm](a), rtol=1e-6)
    assert scores["n"].shape == ()
    jitted = jax.jit(lambda p: criteria.magnitude(p, power=power, normalise=norm))(params)
    assert np.array_equal(jitted["w"], scores["w"])


def test_float64_stays():
    with jax.enable_x64(True):
        scores = criteria.magnitude({"w": jnp.asarray(values())}, power=2, normalise="l1")
        assert scores["w"].dtype == jnp.float64


@pytest.mark.parametrize("norm", ["l1", "l2", "mean", "max"])
def test_what_is_not_finite_takes_no_part_in_the_norm(norm):
    w = values()
    w[0, 0], w[1, 1], w[2, 2] = np.inf, -np.inf, np.nan
    scores = criteria.magnitude({"w": jnp.asarray(w, jnp.float32)}, normalise=norm)["w"]
    a = np.abs(w)
    finite = np.isfinite(a)
    divisor = a[finite].sum() / a.size if norm == "mean" else NORMS[norm](a[finite])
    assert np.allclose(scores, a / divisor, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("norm", ["l1", "l2", "mean", "max"])
def test_zeros_and_extremes(norm):
    assert not criteria.magnitude({"w": jnp.zeros((3, 2))}, normalise=norm)["w"].any()
    assert criteria.magnitude({"w": jnp.zeros((0, 2))}, normalise=norm)["w"].shape == (0, 2)
    for scale in (1e-30, 1e30):
        small = criteria.magnitude({"w": jnp.asarray(values() * scale, jnp.float32)}, normalise=norm)["w"]
        a = np.abs(values())
        assert np.allclose(small, a / NORMS[norm](a), rtol=1e-5)


def test_stacked_layers_have_norms_of_their_own():
    w = jnp.asarray(values((3, 4, 5)), jnp.float32)
    stacked = criteria.magnitude({"w": w, "v": w}, normalise="l2", batch_axes={"w": 1})
    apart = jnp.stack([criteria.magnitude({"w": layer}, normalise="l2")["w"] for layer in w])
    assert np.array_equal(stacked["w"], apart)
    assert not np.array_equal(stacked["v"], apart)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_bits_do_not_depend_on_the_layout(norm, devices):
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    w = jnp.asarray(values((64, 96)) ** 5, jnp.float32)
    score = jax.jit(lambda w: criteria.magnitude({"w": w}, normalise=norm)["w"])
    for spec in (jax.P("x"), jax.P(None, "x")):
        assert np.array_equal(score(jax.device_put(w, jax.NamedSharding(mesh, spec))), score(w))


def test_options_are_checked():
    with pytest.raises(ValueError, match="power must be 1 or 2; got 3"):
        _ = criteria.magnitude({"w": jnp.ones(2)}, power=3)
    with pytest.raises(ValueError, match="normalise must be None or one of l1, l2, mean, max; got 'sum'"):
        _ = criteria.magnitude({"w": jnp.ones(2)}, normalise="sum")
