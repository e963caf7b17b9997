from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import lottery

A = {"w": jnp.array([0.0, -1.0, 3.0]), "step": jnp.int32(3)}
B = {"w": jnp.array([0.0, 1.0, 5.0]), "step": jnp.int32(9)}


def seen(a: Any, b: Any, points: int) -> list[Any]:
    """The networks on the line between two, as the error function sees them."""
    networks: list[Any] = []

    def error(params: Any) -> jax.Array:
        jax.debug.callback(networks.append, params, ordered=True)
        return jnp.zeros(())

    jax.block_until_ready(lottery.error_barrier(error, a, b, points=points))
    jax.effects_barrier()
    return networks


def test_the_ends_are_the_networks_and_zeros_stay():
    first, middle, _, _, last = seen(A, B, 5)
    chex.assert_trees_all_equal(first, A)
    chex.assert_trees_all_equal(last["w"], B["w"])
    assert middle["w"].tolist() == [0.0, -0.5, 3.5]
    assert int(middle["step"]) == 3
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {"w": A["w"]})
    assert seen(narrow, narrow, 2)[0]["w"].dtype == jnp.bfloat16


def test_the_barrier_is_the_hill_above_the_mean_of_the_ends():
    error = lambda p: 1 - p["w"][1] ** 2 + p["w"][2]
    path = jax.jit(lambda a, b: lottery.error_barrier(error, a, b, points=5))(A, B)
    np.testing.assert_allclose(path.positions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(path.errors, [3, 0.75 + 3.5, 1 + 4, 0.75 + 4.5, 5], rtol=1e-6)
    assert float(path.barrier) == 1.25
    assert float(lottery.error_barrier(error, A, A, points=2).barrier) == 0


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="points must be 2 or more"):
        _ = lottery.error_barrier(lambda p: 0.0, A, B, points=1)
    with pytest.raises(ValueError, match="step: in params, not in the other params"):
        _ = lottery.error_barrier(lambda p: 0.0, A, {"w": B["w"]})


def test_instability_trains_both_ends_from_one_start_under_the_same_masks():
    held = {"w": jnp.array([[True, False], [True, True]])}
    start = {"w": jnp.array([[1.0, 5.0], [2.0, 3.0]])}
    calls: list[tuple[Any, Any]] = []

    def train(params: Any, masks: Any, key: Any) -> Any:
        calls.append((params, masks))
        return jax.tree.map(lambda w: w + jax.random.normal(key, w.shape), params)

    error = lambda params: 1 - jnp.sum(params["w"] ** 2)
    found = lottery.instability(train, error, start, held, jax.random.key(3), points=3)
    assert [params["w"][0, 1] for params, _ in calls] == [0.0, 0.0]
    ends = [
        np.where(held["w"], train(calls[0][0], calls[0][1], key)["w"], 0) for key in jax.random.split(jax.random.key(3))
    ]
    expected = [1 - np.sum(w**2) for w in (ends[0], (ends[0] + ends[1]) / 2, ends[1])]
    np.testing.assert_allclose(found.errors, expected, rtol=1e-5)
    np.testing.assert_allclose(found.barrier, max(expected) - (expected[0] + expected[2]) / 2, rtol=1e-4)
