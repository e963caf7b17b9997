"""Hidden channels and layers by their activations: against NumPy twins, and through slimming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import features, slimming
from jaxprune.features.hidden import channel_similarity, layer_similarity


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4, 5, 4)).astype(np.float32)
    x[..., 1] = -2 * x[..., 0] + 0.05 * rng.normal(size=x.shape[:3])
    x[..., 2] = x[:, :1, :, 2]  # equal rows: rank 1
    x[..., 3] = np.maximum(x[..., 3], 0)
    return x


def _cka_by_grams(a, b):
    """By HSIC on centred Gram matrices, in float64: another way to the same number."""
    n = len(a)
    centre = np.eye(n) - 1 / n
    k, l = (
        centre @ (m.reshape(n, -1).astype(np.float64) @ m.reshape(n, -1).T.astype(np.float64)) @ centre for m in (a, b)
    )
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def test_similarity_and_what_is_left_of_a_channel(maps):
    flat = maps.reshape(-1, 4).astype(np.float64)
    expected = np.abs(np.corrcoef(flat.T))
    np.testing.assert_allclose(features.correlations(maps), expected, atol=1e-4)
    left = 1 - np.where(np.eye(4, dtype=bool), 0, expected).max(1)
    np.testing.assert_allclose(features.distinctness(maps), left, atol=1e-4)
    assert np.argsort(left)[:2].tolist() in ([0, 1], [1, 0])
    still = np.concatenate([maps, np.ones_like(maps[..., :1])], -1)
    assert float(features.distinctness(still)[4]) == 0


def test_alive_is_what_apoz_leaves_and_agrees_with_the_criterion():
    rng = np.random.default_rng(1)
    params = {"a": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32), "b": jnp.ones((6, 2))}
    x = jnp.asarray(rng.normal(size=(20, 5)), jnp.float32)
    hidden = lambda p, x: jax.nn.relu(x @ p["a"])
    stats = jaxprune.calibrate(lambda p, x: hidden(p, x) @ p["b"], params, [x], collect="zeros")
    by_criterion = jaxprune.criteria.apoz(params, stats=stats)["b"][:, 0]
    found = features.alive(hidden(params, x))
    np.testing.assert_allclose(found, by_criterion, atol=1e-6)
    np.testing.assert_allclose(found, (np.asarray(hidden(params, x)) > 0).mean(0), atol=1e-6)


def test_rank_is_numpys_in_the_mean(maps):
    expected = [np.mean([np.linalg.matrix_rank(maps[i, :, :, c]) for i in range(6)]) for c in range(4)]
    np.testing.assert_allclose(features.map_rank(maps, batch=5), expected)
    assert expected[2] == 1


def test_cka_is_hsic_of_grams_wide_or_tall(maps):
    rng = np.random.default_rng(3)
    tall, wide = rng.normal(size=(30, 4)), rng.normal(size=(30, 70))
    mixed = wide + 3 * tall @ rng.normal(size=(4, 70))
    for a, b in ((tall, tall**2), (tall, mixed), (wide, mixed)):
        assert float(features.cka(a, b)) == pytest.approx(_cka_by_grams(a, b), rel=1e-4)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert float(features.cka(tall, 1e12 * tall @ rotation + 5)) == pytest.approx(1, abs=1e-4)
    assert float(features.cka(tall, np.ones((30, 3)))) == 0


def test_channels_that_say_the_same_are_aligned(maps):
    found = np.asarray(channel_similarity(maps))
    expected = [[_cka_by_grams(maps[..., i], maps[..., j]) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert found[0, 1] > 0.95


def test_similar_layers_are_named_with_the_later_one_second():
    rng = np.random.default_rng(4)
    a = rng.normal(size=(40, 5))
    layers = {"one": a, "two": a @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 0.05, "three": rng.normal(size=(40, 9))}
    [pair] = features.similar_layers(layers, threshold=0.9)
    assert (pair.first, pair.second) == ("one", "two")
    assert pair.cka == pytest.approx(1, abs=1e-4)
    matrix = layer_similarity(layers)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
    assert matrix[0, 2] == matrix[2, 0] < 0.9


def test_a_channel_that_others_stand_in_for_is_really_removed():
    rng = np.random.default_rng(5)
    first = rng.normal(size=(6, 5)).astype(np.float32)
    first[:, 3] = 2 * first[:, 1]
    params = {"a": jnp.asarray(first), "b": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)}
    network = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    x = jnp.asarray(rng.normal(size=(30, 6)), jnp.float32)
    groups = jaxprune.find_groups(network, params, x)
    scores = {"a[1]": features.distinctness(jax.nn.relu(x @ params["a"]))}
    small = jaxprune.slim(network, params, slimming.choose(groups, scores, 0.2), x)
    assert small.params["a"].shape == (6, 4)
    # Of the two that say the same, the first stays.
    np.testing.assert_array_equal(small.params["a"], first[:, [0, 1, 2, 4]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: features.alive(np.ones(3)), r"must have shape \(n, ..., channels\)"),
        (lambda: features.alive(np.array([[1.0, np.inf]])), "contain NaN or infinite values"),
        (lambda: features.distinctness(np.ones((3, 1))), "only one channel"),
        (lambda: features.map_rank(np.ones((2, 3, 4))), r"\(n, height, width, channels\)"),
        (lambda: features.cka(np.ones((3, 1)), np.ones((4, 1))), "same number of samples, 2 or more; got 3 and 4"),
        (lambda: layer_similarity({"a": np.ones((3, 1))}), "needs two layers or more"),
        (lambda: features.similar_layers({}, threshold=0), "a CKA in"),
        (lambda: channel_similarity(np.ones((1, 3))), "n of 2 or more"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
