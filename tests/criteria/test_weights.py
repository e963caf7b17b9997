"""Magnitudes and their norms against NumPy, and random scores: in every dtype and on any sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import criteria
from tests.cases import few

NORMS = {
    None: lambda a: 1.0,
    "l1": lambda a: a.sum(),
    "l2": lambda a: np.sqrt((a**2).sum()),
    "mean": lambda a: a.mean(),
    "max": lambda a: a.max(),
}


def values(shape=(6, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dtype", few([jnp.float32, jnp.bfloat16, jnp.float16], jnp.float32))
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


def test_scores_depend_on_key_name_and_shape_alone():
    few = {"b": {"kernel": jnp.zeros((8, 9))}}
    many = {"a": jnp.ones((3, 3)), "b": {"kernel": jnp.ones((8, 9)), "bias": jnp.ones(9)}, "c": jnp.ones((8, 9))}
    key = jax.random.key(3)
    one, all_of_them = criteria.random(few, key=key), criteria.random(many, key=key)
    assert np.array_equal(one["b"]["kernel"], all_of_them["b"]["kernel"])
    assert not np.array_equal(all_of_them["c"], all_of_them["b"]["kernel"])
    again, other = criteria.random(few, key=key), criteria.random(few, key=jax.random.key(4))
    assert np.array_equal(one["b"]["kernel"], again["b"]["kernel"])
    assert not np.array_equal(one["b"]["kernel"], other["b"]["kernel"])
    raw = criteria.random(few, key=jax.random.PRNGKey(3))
    assert np.array_equal(one["b"]["kernel"], raw["b"]["kernel"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_scores_are_uniform_and_hardly_ever_tie(dtype):
    scores = criteria.random({"w": jnp.zeros((100, 100), dtype)}, key=jax.random.key(0))["w"]
    values = np.sort(np.asarray(scores).ravel())
    assert values.dtype == np.float32
    # Of 10^4 draws among 2^23 values about 6 pairs tie; in bfloat16 nearly all would.
    assert len(np.unique(values)) > 9950
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded with probability 0.001.
    assert np.abs(values - (np.arange(10_000) + 0.5) / 10_000).max() < 1.95 / 100


def test_integers_and_missing_leaves_get_no_scores():
    scores = criteria.random({"w": jnp.ones((2, 2)), "n": jnp.arange(3), "f": "relu", "x": None}, key=jax.random.key(0))
    assert scores["n"].shape == scores["f"].shape == ()
    assert scores["x"] is None


def test_a_key_is_needed():
    with pytest.raises(ValueError, match=r"criteria.random needs key: pass key=jax.random.key\(seed\)"):
        _ = criteria.random({"w": jnp.ones((2, 2))})


def test_random_bits_do_not_depend_on_the_layout(devices):
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    params, key = {"w": jnp.zeros((16, 6))}, jax.random.key(0)
    draw = jax.jit(lambda p: criteria.random(p, key=key), out_shardings=sharding)
    sharded = draw(jax.device_put(params, sharding))
    assert len(sharded["w"].sharding.device_set) == 8
    assert np.array_equal(sharded["w"], criteria.random(params, key=key)["w"])
