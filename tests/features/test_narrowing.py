"""A network of fewer inputs equals the network with zeros there, and is really smaller."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import features


def _random(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    params = {"a": {"w": _random(rng, 8, 5), "b": _random(rng, 5)}, "skip": _random(rng, 8, 3), "c": _random(rng, 5, 3)}

    def fn(p, x):
        return jax.nn.relu(x @ p["a"]["w"] + p["a"]["b"]) @ p["c"] + x @ p["skip"]

    return fn, params


def test_every_layer_that_reads_the_input_shrinks(net):
    fn, params = net
    mask = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    names = [f"f{i}" for i in range(8)]
    small = features.narrow(fn, params, mask, jax.ShapeDtypeStruct((2, 8), jnp.float32), names=names)
    assert small.kept == ("f0", "f2", "f3", "f6")
    assert small.params["a"]["w"].shape == (4, 5)
    assert small.params["skip"].shape == (4, 3)
    assert small.params["c"].shape == (5, 3)
    assert small.inexact is None
    for n in (3, 7):  # any batch, jitted or not
        x = _random(np.random.default_rng(n), n, 8)
        expected = fn(params, jnp.where(mask, x, 0))
        np.testing.assert_allclose(jax.jit(small.fn)(small.params, small.take(x)), expected, atol=1e-5)
    moments = small.manifest.shrink({"mu": params})
    assert moments["mu"]["a"]["w"].shape == (4, 5)


def test_the_smaller_network_trains(net):
    fn, params = net
    small = features.narrow(fn, params, np.arange(8) < 3, jnp.zeros((2, 8)))
    x = _random(np.random.default_rng(1), 4, 8)
    grads = jax.grad(lambda p: small.fn(p, small.take(x)).sum())(small.params)
    zeros = jax.grad(lambda p: fn(p, x.at[:, 3:].set(0)).sum())(params)
    np.testing.assert_allclose(grads["a"]["w"], zeros["a"]["w"][:3], atol=1e-5)


def test_flattened_images_lose_pixels_of_a_column():
    rng = np.random.default_rng(2)
    w = _random(rng, 3 * 4, 2)
    fn = lambda w, x: x.reshape(x.shape[0], -1) @ w
    mask = np.array([True, False, True, True])
    small = features.narrow(fn, w, mask, jnp.zeros((2, 3, 4)))
    assert small.params.shape == (9, 2)
    x = _random(rng, 5, 3, 4)
    np.testing.assert_allclose(small.fn(small.params, small.take(x)), fn(w, jnp.where(mask, x, 0)), atol=1e-5)


def test_behind_a_mean_that_is_subtracted_a_feature_that_goes_counts_as_its_mean():
    rng = np.random.default_rng(3)
    mean, w = _random(rng, 4), _random(rng, 4, 2)
    fn = lambda w, x: (x - mean) @ w
    small = features.narrow(fn, w, np.array([True, True, False, True]), jnp.zeros((2, 4)))
    assert small.inexact is None
    x = _random(rng, 3, 4)
    found = small.fn(small.params, small.take(x))
    np.testing.assert_allclose(found, fn(w, x.at[:, 2].set(mean[2])), atol=1e-5)
    np.testing.assert_allclose(found, fn(small.manifest.expand(small.params), x), atol=1e-5)


def test_a_normalisation_over_features_is_named():
    fn = lambda w, x: (x / jnp.exp(x).sum(1, keepdims=True)) @ w
    small = features.narrow(fn, jnp.ones((4, 2)), np.arange(4) < 3, jnp.zeros((2, 4)))
    assert small.inexact is not None


def test_a_network_in_flax():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="out")(nn.relu(nn.Dense(6, name="first")(x)))

    x = _random(np.random.default_rng(4), 3, 5)
    params: Any = Net().init(jax.random.key(0), x)
    mask = np.array([False, True, True, False, True])
    small = features.narrow(Net().apply, params, mask, x)
    assert small.params["params"]["first"]["kernel"].shape == (3, 6)
    expected: Any = Net().apply(params, jnp.where(mask, x, 0))
    np.testing.assert_allclose(small.fn(small.params, small.take(x)), expected, atol=1e-5)


def test_what_cannot_go_is_said():
    conv = lambda w, x: jax.lax.conv(x[:, None], w, (1,), "SAME")
    with pytest.raises(ValueError, match="cannot remove features from axis 1"):
        _ = features.narrow(conv, jnp.ones((1, 1, 3)), np.arange(6) > 0, jnp.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"cannot remove features from axis 1.*\n.*output"):
        _ = features.narrow(lambda w, x: x * w, jnp.ones(6), np.arange(6) > 0, jnp.zeros((2, 6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones(7, bool)}, "mask must be 8 bools"),
        ({"mask": np.ones(8)}, "mask must be 8 bools.*float64"),
        ({"mask": np.zeros(8, bool)}, "keeps no feature"),
        ({"axis": 2}, "with an axis 2"),
        ({"names": ["a"]}, "each of the 8 features; got 1"),
    ],
)
def test_errors_say_what_is_wrong(net, change, message):
    fn, params = net
    options = {"mask": np.ones(8, bool), **change}
    with pytest.raises(ValueError, match=message):
        _ = features.narrow(fn, params, options.pop("mask"), jnp.zeros((2, 8)), **options)


def test_taking_features_of_another_width_is_refused(net):
    fn, params = net
    small = features.narrow(fn, params, np.arange(8) < 3, jnp.zeros((2, 8)))
    with pytest.raises(ValueError, match="must have all 8 features"):
        _ = small.take(jnp.zeros((2, 3)))
