"""Block by block in memory: the same as the loop written out, in two passes a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import calibrate, masks, reconstruct
from jaxprune.reconstruction import reconstruct_blocks, reconstruct_sequential, sequential
from tests.cases import normal

PATTERN = masks.NM(2, 4, axis=0)


def block(params, x):
    h = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x + jax.nn.silu(h @ params["up"]) @ params["down"]


@pytest.fixture
def stacked():
    keys = jax.random.split(jax.random.key(9), 2)
    up = jax.random.normal(keys[0], (5, 8, 16)) / 3
    return {"up": up, "down": jax.random.normal(keys[1], (5, 16, 8)) / 16}


BATCHES = [normal(4, 6, 8, seed=i) for i in range(2)]


def by_hand(params):
    hidden, out = BATCHES, []
    for i in range(5):
        own = jax.tree.map(lambda w, i=i: w[i], params)
        new = reconstruct(own, calibrate(block, own, hidden), pattern=masks.NM(2, 4)).params
        hidden = [block(new, x) for x in hidden]
        out.append(new)
    return out


@pytest.mark.slow
def test_each_block_is_calibrated_on_the_blocks_pruned_before_it(stacked):
    want = by_hand(stacked)
    found = reconstruct_blocks(block, stacked, BATCHES, pattern=masks.NM(2, 4))
    for i, own in enumerate(want):
        for name, x in own.items():
            np.testing.assert_allclose(found.params[name][i], x, atol=1e-5)
    assert found.masks["up"].shape == stacked["up"].shape
    np.testing.assert_array_equal(found.params["up"] != 0, found.masks["up"])


def test_a_list_of_blocks_stays_a_list(stacked):
    listed = [jax.tree.map(lambda w, i=i: w[i], stacked) for i in range(5)]
    found = reconstruct_blocks(block, listed, BATCHES, 0.5)
    together = reconstruct_blocks(block, stacked, BATCHES, 0.5)
    assert isinstance(found.params, list)
    for i in range(5):
        np.testing.assert_allclose(found.params[i]["down"], together.params["down"][i], atol=1e-6)


def test_each_block_runs_twice_and_compiles_once(stacked):
    traced = []

    def counted(params, x):
        traced.append(jnp.shape(params["up"]))
        return block(params, x)

    _ = reconstruct_blocks(counted, stacked, BATCHES, 0.5, method="wanda")
    assert len(traced) <= 3  # once to be calibrated and once to run, however many blocks there are


def test_mistakes_are_named(stacked):
    with pytest.raises(ValueError, match=r"as many blocks in each leaf.*\n  down: 5\n  up: 4"):
        _ = reconstruct_blocks(block, {**stacked, "up": stacked["up"][:4]}, BATCHES, 0.5)
    with pytest.raises(ValueError, match="params holds no block"):
        _ = reconstruct_blocks(block, [], BATCHES, 0.5)
    with pytest.raises(TypeError, match="batches must be a list"):
        _ = reconstruct_blocks(block, stacked, BATCHES[0], 0.5)  # pyright: ignore[reportArgumentType]


def test_a_scan_is_pruned_layer_by_layer_on_the_hidden_states(monkeypatch):
    keys = jax.random.split(jax.random.key(9), 3)
    params = {"w": jax.random.normal(keys[0], (3, 8, 8)) / 3, "shift": jax.random.normal(keys[1], (8,))}
    # Inside a jitted function, with an operand that all layers share and one that is no leaf.
    one = lambda x, at: (x + jnp.tanh((x + params["shift"] * at[1]) @ at[0]), None)
    fn = lambda p, x: jax.jit(lambda w, x: lax.scan(one, x, (w, jnp.arange(3.0)))[0])(p["w"], x * 2)
    entered, enter = [], sequential._Scan.enter
    monkeypatch.setattr(sequential._Scan, "enter", lambda *args: entered.append(1) or enter(*args))
    found = reconstruct_sequential(fn, params, BATCHES, 0.5, where="w")
    assert len(entered) == len(BATCHES)
    monkeypatch.setattr(sequential._Scan, "find", lambda *_: None)  # so that every stage runs the whole function
    slow = reconstruct_sequential(fn, params, BATCHES, 0.5, where="w")
    np.testing.assert_array_equal(found.masks["w"], slow.masks["w"])
    np.testing.assert_allclose(found.params["w"], slow.params["w"], atol=1e-4)


def test_what_cannot_be_cut_out_runs_whole(stacked):
    def find(fn, batches):
        jaxpr = jax.make_jaxpr(fn)(stacked, BATCHES[0]).jaxpr
        loop = (next(i for i, eqn in enumerate(jaxpr.eqns) if eqn.primitive.name == "scan"),)
        stage = sequential.Stage(("up",), 0, loop)
        return sequential._Scan.find(fn, stacked, batches, loop, [stage])

    over = lambda p, x, **more: lax.scan(lambda x, own: (block(own, x), None), x, p, **more)[0]
    plain = find(over, BATCHES)
    assert plain is not None
    assert plain.order == [0, 1, 2, 3, 4]
    backwards = find(lambda p, x: over(p, x, reverse=True), BATCHES)
    assert backwards is not None
    assert backwards.order == [4, 3, 2, 1, 0]
    assert find(lambda p, x: over(p, x) @ p["up"][0], BATCHES) is None  # a leaf that is used twice
    assert find(lambda p, x: over(jax.tree.map(lambda w: 2 * w, p), x), BATCHES) is None  # not the leaf itself
    assert find(over, [BATCHES[0], BATCHES[1][:2]]) is None  # two shapes of batches
