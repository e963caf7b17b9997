"""Channels in another order: the same function, more magnitude kept by 2:4, a known optimum, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune import criteria, masks
from jaxprune.calibration import calibrate
from jaxprune.slimming import permute_channels
from jaxprune.slimming.permutation import stripe_order
from tests.cases import normal

KEY = jax.random.key(0)


def kept(scores, order, n=2, m=4):
    stripes = np.asarray(scores)[np.asarray(order)].reshape(-1, m, scores.shape[1])
    return np.sort(stripes, 1)[:, m - n :].sum()


@pytest.mark.parametrize("seed", [2, 5, 7])
def test_two_stripes_reach_the_best_of_all_35_partitions(seed):
    # Rows of few large entries, so that it matters which channels are neighbours.
    scores = np.random.default_rng(seed).exponential(1, (8, 6)) ** 3
    order = stripe_order(jnp.asarray(scores, jnp.float32), KEY, n=2, m=4, sweeps=20)
    assert sorted(np.asarray(order)) == list(range(8))
    partitions = [[0, *rest, *(set(range(1, 8)) - set(rest))] for rest in itertools.combinations(range(1, 8), 3)]
    assert kept(scores, range(8)) < kept(scores, order)
    assert kept(scores, order) == pytest.approx(max(kept(scores, order) for order in partitions), rel=1e-5)


def network(params, x):
    """Convolutions with a residual sum, and two dense layers [outputs, inputs]."""
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = conv(x, params["stem"])
    x = x + conv(jax.nn.relu(conv(x, params["first"]) * params["scale"]), params["second"])
    x = jax.nn.relu(x.mean((1, 2)))
    return jnp.tanh(x @ params["up"].T + params["bias"]) @ params["down"].T


SHAPES = {
    "stem": (3, 3, 3, 8),
    "first": (3, 3, 8, 12),
    "scale": (12,),
    "second": (3, 3, 12, 8),
    "up": (16, 8),
    "bias": (16,),
    "down": (5, 16),
}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(2)
    params = {name: jnp.asarray(rng.normal(size=shape) ** 3, jnp.float32) / 4 for name, shape in SHAPES.items()}
    return params, jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)


def test_the_function_stays_and_two_of_four_keeps_more(problem):
    params, x = problem
    new = permute_channels(network, params, 2, 4, x, key=KEY, sweeps=50)
    np.testing.assert_allclose(network(new, x), network(params, x), rtol=1e-4, atol=1e-4)
    pattern = {"first": masks.NM(2, 4, axis=2), "second": masks.NM(2, 4, axis=2), "*": masks.NM(2, 4, axis=1)}
    where = ["first", "second", "up", "down"]
    totals = []
    for tree in (params, new):
        pruned = jaxprune.prune(tree, 0.5, pattern=pattern, where=where).params
        totals.append(sum(float(jnp.abs(pruned[name]).sum()) for name in where))
    for name in SHAPES:
        np.testing.assert_allclose(np.sort(np.ravel(new[name])), np.sort(np.ravel(params[name])))
    assert totals[1] > 1.01 * totals[0]


@pytest.mark.slow
def test_a_criterion_of_activations_keeps_more_of_its_scores(problem):
    params, x = problem
    stats = calibrate(network, params, [x], where="down")  # other leaves have no scores and do not count
    new = permute_channels(network, params, 2, 4, x, key=KEY, criterion=criteria.wanda, stats=stats, sweeps=50)
    np.testing.assert_allclose(network(new, x), network(params, x), rtol=1e-4, atol=1e-4)
    before = criteria.wanda(params, stats=stats)["down"].T
    after = criteria.wanda(new, stats=calibrate(network, new, [x]))["down"].T
    assert kept(after, range(16)) > kept(before, range(16))


def test_refusals(problem):
    params, x = problem
    with pytest.raises(ValueError, match="needs 0 < n < m, got n = 4, m = 4"):
        _ = permute_channels(network, params, 4, 4, x, key=KEY)
    with pytest.raises(TypeError, match="pass arrays, not ShapeDtypeStructs"):
        _ = permute_channels(network, params, 2, 4, jax.ShapeDtypeStruct(x.shape, x.dtype), key=KEY)
    with pytest.raises(ValueError, match="no group of channels can be reordered for 2 of 5"):
        _ = permute_channels(network, params, 2, 5, x, key=KEY)
    tilted = lambda p, x: jnp.tanh(x @ p["a"] + jnp.arange(8.0)) @ p["b"]
    two = {"a": normal(3, 8), "b": normal(8, 2, seed=1) ** 3}
    with pytest.raises(ValueError, match=r"a\[1\] are reordered: it uses their order by more than its parameters"):
        _ = permute_channels(tilted, two, 2, 4, jnp.ones((2, 3)), key=KEY)
    with pytest.raises(ValueError, match=r"do not depend on the channels of first\[2\].*pass real inputs, not zeros"):
        _ = permute_channels(network, params, 2, 4, jnp.zeros_like(x), key=KEY)
