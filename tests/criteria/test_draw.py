"""Random scores: uniform, a leaf's own, and the same under any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import criteria


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


def test_bits_do_not_depend_on_the_layout(devices):
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    params, key = {"w": jnp.zeros((16, 6))}, jax.random.key(0)
    draw = jax.jit(lambda p: criteria.random(p, key=key), out_shardings=sharding)
    sharded = draw(jax.device_put(params, sharding))
    assert len(sharded["w"].sharding.device_set) == 8
    assert np.array_equal(sharded["w"], criteria.random(params, key=key)["w"])
