"""Channels and layers by their activations: against NumPy twins, and through slimming."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import selection, slimming


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
    np.testing.assert_allclose(selection.similarity(maps), expected, atol=1e-4)
    left = 1 - np.where(np.eye(4, dtype=bool), 0, expected).max(1)
    np.testing.assert_allclose(selection.distinctness(maps), left, atol=1e-4)
    assert np.argsort(left)[:2].tolist() in ([0, 1], [1, 0])
    still = np.concatenate([maps, np.ones_like(maps[..., :1])], -1)
    assert float(selection.distinctness(still)[4]) == 0


def test_alive_is_what_apoz_leaves_and_agrees_with_the_criterion():
    rng = np.random.default_rng(1)
    params = {"a": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32), "b": jnp.ones((6, 2))}
    x = jnp.asarray(rng.normal(size=(20, 5)), jnp.float32)
    hidden = lambda p, x: jax.nn.relu(x @ p["a"])
    stats = jaxprune.calibrate(lambda p, x: hidden(p, x) @ p["b"], params, [x], collect="zeros")
    by_criterion = jaxprune.criteria.apoz(params, stats=stats)["b"][:, 0]
    found = selection.alive(hidden(params, x))
    np.testing.assert_allclose(found, by_criterion, atol=1e-6)
    np.testing.assert_allclose(found, (np.asarray(hidden(params, x)) > 0).mean(0), atol=1e-6)


def test_rank_is_numpys_in_the_mean(maps):
    expected = [np.mean([np.linalg.matrix_rank(maps[i, :, :, c]) for i in range(6)]) for c in range(4)]
    np.testing.assert_allclose(selection.map_rank(maps, batch=5), expected)
    assert expected[2] == 1


def test_median_distance_is_the_sum_over_pairs():
    rng = np.random.default_rng(2)
    kernel: Any = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
    kernel[..., 4] = kernel[..., :4].mean(-1)
    filters = kernel.reshape(-1, 5).T.astype(np.float64)
    expected = np.asarray([sum(np.linalg.norm(a - b) for b in filters) for a in filters])
    found: Any = np.asarray(selection.median_distance(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.argmin() == 4
    np.testing.assert_allclose(selection.median_distance(np.moveaxis(kernel, -1, 0), axis=0), expected, rtol=1e-5)


def test_cka_is_hsic_of_grams_wide_or_tall(maps):
    rng = np.random.default_rng(3)
    tall, wide = rng.normal(size=(30, 4)), rng.normal(size=(30, 70))
    mixed = wide + 3 * tall @ rng.normal(size=(4, 70))
    for a, b in ((tall, tall**2), (tall, mixed), (wide, mixed)):
        assert float(selection.cka(a, b)) == pytest.approx(_cka_by_grams(a, b), rel=1e-4)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert float(selection.cka(tall, 1e12 * tall @ rotation + 5)) == pytest.approx(1, abs=1e-4)
    assert float(selection.cka(tall, np.ones((30, 3)))) == 0


def test_channels_that_say_the_same_are_aligned(maps):
    found = np.asarray(selection.channel_similarity(maps))
    expected = [[_cka_by_grams(maps[..., i], maps[..., j]) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert found[0, 1] > 0.95


def test_similar_layers_are_named_with_the_later_one_second():
    rng = np.random.default_rng(4)
    a = rng.normal(size=(40, 5))
    layers = {"one": a, "two": a @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 0.05, "three": rng.normal(size=(40, 9))}
    [pair] = selection.similar_layers(layers, threshold=0.9)
    assert (pair.first, pair.second) == ("one", "two")
    assert pair.cka == pytest.approx(1, abs=1e-4)
    matrix = selection.layer_similarity(layers)
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
    scores = selection.unit_scores(groups, {"a[1]": selection.distinctness(jax.nn.relu(x @ params["a"]))})
    small = jaxprune.slim(network, params, slimming.choose(groups, scores, {"a[1]": 0.2}), x)
    assert small.params["a"].shape == (6, 4)
    # Of the two that say the same, the first stays.
    np.testing.assert_array_equal(small.params["a"], first[:, [0, 1, 2, 4]])


def test_block_influence_is_a_mean_of_cosines_and_blocks_go():
    rng = np.random.default_rng(6)
    hidden = [rng.normal(size=(3, 4, 5)) for _ in range(4)]
    hidden[2] = 7 * hidden[1]
    expected = []
    for a, b in itertools.pairwise(hidden):
        cosines = [
            u @ v / np.linalg.norm(u) / np.linalg.norm(v)
            for u, v in zip(a.reshape(-1, 5), b.reshape(-1, 5), strict=True)
        ]
        expected.append(1 - np.mean(cosines))
    found = selection.block_influence(hidden)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    keep = selection.keep_influential(found, 1)
    assert keep.tolist() == [True, False, True]


def test_a_residual_network_without_its_idle_block_says_the_same():
    rng = np.random.default_rng(7)
    w = jnp.asarray(rng.normal(size=(4, 5, 5)), jnp.float32).at[2].mul(1e-4)
    block = lambda h, w: (h + jnp.tanh(h @ w), h)
    x = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)

    def run(w, x):
        last, before = jax.lax.scan(block, x, w)
        return last, jnp.concatenate([before, last[None]])

    out, hidden = run(w, x)
    keep = selection.keep_influential(selection.block_influence(hidden), 1)
    shorter, _ = run(selection.keep_blocks(w, keep), x)
    np.testing.assert_allclose(shorter, out, atol=1e-2)
    assert keep.tolist() == [True, True, False, True]
    assert selection.keep_blocks(["a", "b", "c", "d"], keep) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.alive(np.ones(3)), r"must have shape \(n, ..., channels\)"),
        (lambda: selection.alive(np.array([[1.0, np.inf]])), "hold NaN or infinite values"),
        (lambda: selection.distinctness(np.ones((3, 1))), "one channel alone"),
        (lambda: selection.map_rank(np.ones((2, 3, 4))), r"\(n, height, width, channels\)"),
        (lambda: selection.median_distance(np.ones((2, 3)), axis=2), "no axis 2"),
        (lambda: selection.cka(np.ones((3, 1)), np.ones((4, 1))), "same two samples or more; got 3 and 4"),
        (lambda: selection.layer_similarity({"a": np.ones((3, 1))}), "two layers to compare"),
        (lambda: selection.similar_layers({}, threshold=0), "alignment in"),
        (lambda: selection.channel_similarity(np.ones((1, 3))), "n of 2 or more"),
        (lambda: selection.block_influence([np.ones((2, 3)), np.ones((2, 4))]), "all of one shape"),
        (lambda: selection.block_influence([np.ones((2, 3)), np.full((2, 3), np.nan)]), "holds NaN"),
        (lambda: selection.keep_influential([0.1, 0.2], 2), "one must stay"),
        (lambda: selection.keep_blocks([1, 2], [True]), "2 blocks and 1 entries"),
        (lambda: selection.keep_blocks([1, 2], [False, False]), "one of them True"),
        (lambda: selection.keep_blocks({"w": np.ones((3, 2))}, [True, False]), r"2 blocks on its first axis:\n.*w"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_of_another_group_or_width_are_refused():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    groups = jaxprune.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"group a\[1\] has 4 units; got scores \(3,\)"):
        _ = selection.unit_scores(groups, {"a[1]": np.ones(3)})
    with pytest.raises(KeyError, match="no group 'z'"):
        _ = selection.unit_scores(groups, {"z": np.ones(4)})
