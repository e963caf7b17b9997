"""Blocks of residual networks: their influence against a NumPy twin, and the network without them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming


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
    found = slimming.block_influence(hidden)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    keep = slimming.keep_influential(found, 1)
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
    keep = slimming.keep_influential(slimming.block_influence(hidden), 1)
    shorter, _ = run(slimming.keep_blocks(w, keep), x)
    np.testing.assert_allclose(shorter, out, atol=1e-2)
    assert keep.tolist() == [True, True, False, True]
    assert slimming.keep_blocks(["a", "b", "c", "d"], keep) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slimming.block_influence([np.ones((2, 3)), np.ones((2, 4))]), "all of one shape"),
        (lambda: slimming.block_influence([np.ones((2, 3)), np.full((2, 3), np.nan)]), "holds NaN"),
        (lambda: slimming.keep_influential([0.1, 0.2], 2), "one must stay"),
        (lambda: slimming.keep_blocks([1, 2], [True]), "each of the 2 blocks; got 1"),
        (lambda: slimming.keep_blocks([1, 2], [False, False]), "keep must be True for at least one of the 2 blocks"),
        (lambda: slimming.keep_blocks({"w": np.ones((3, 2))}, [True, False]), r"2 blocks on its first axis:\n.*w"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
