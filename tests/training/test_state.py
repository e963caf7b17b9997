"""What training loops find in the state of a sparsified optimizer, and in the optimizer itself."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import jaxprune
from jaxprune import masks, schedules, training
from tests.training.loops import batch, expect_zeros, gradual, init_params, loss


def update(optimizer: Any, params: Any, state: Any, i: int = 0) -> tuple[Any, Any]:
    updates, state = optimizer.update(jax.grad(loss)(params, batch(i)), state, params)
    return optax.apply_updates(params, updates), state


def test_attributes_and_indices_are_handed_on():
    params = init_params()
    optimizer: Any = jaxprune.sparsify(optax.chain(optax.clip(1.0), optax.adam(0.1)), gradual())
    _, state = update(optimizer, params, optimizer.init(params))
    assert int(state[1][0].count) == 1
    assert state[1][0].mu is state.inner[1][0].mu
    assert [type(x) for x in state[:1]] == [optax.EmptyState]
    with pytest.raises(AttributeError, match="neither SparsifyState nor the state in it, tuple, has 'hyperparams'"):
        _ = state.hyperparams
    assert state._replace(step=5).step == 5
    assert pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))._fields == state._fields


def test_a_learning_rate_that_is_set_in_the_state_is_used():
    params = init_params()
    optimizer: Any = jaxprune.sparsify(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), training.one_shot(0.5))
    state = optimizer.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    after, state = update(optimizer, params, state)
    np.testing.assert_array_equal(after["first"]["bias"], params["first"]["bias"])
    state = optax.tree.set(state, learning_rate=0.5)
    assert float(optax.tree.get(state, "learning_rate")) == 0.5
    after, state = update(optimizer, after, state)
    assert np.count_nonzero(after["first"]["bias"] - params["first"]["bias"]) > 0


def test_multi_steps_says_when_it_has_updated():
    params = init_params()
    accumulate = optax.MultiSteps(optax.adam(0.1), 2)
    optimizer: Any = jaxprune.sparsify(accumulate, gradual())
    state, seen = optimizer.init(params), []
    for i in range(4):
        params, state = update(optimizer, params, state, i)
        seen.append((bool(accumulate.has_updated(state)), bool(optimizer.has_updated(state)), int(state.mini_step)))
    assert seen == [(False, False, 1), (True, True, 0)] * 2
    with pytest.raises(AttributeError, match="has_not"):
        _ = optimizer.has_not


def test_moments_are_found_by_name_and_by_what_they_mirror():
    params = init_params()
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), gradual())
    state = optimizer.init(params)
    assert optax.tree.get(state, "mu") is state.inner[0].mu
    halved: Any = optax.tree.map_params(optimizer, lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), state)
    assert halved.inner[0].mu["first"]["kernel"].dtype == jnp.bfloat16
    assert halved.inner[0].count.dtype == jnp.int32


@pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])
@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_flax_serialization_restores_it(packed, key):
    params = init_params()
    optimizer: Any = jaxprune.sparsify(optax.adam(0.1), training.rigl(0.5, 8, every=1, key=key), packed=packed)
    after, state = update(optimizer, params, optimizer.init(params))
    restored = serialization.from_bytes(optimizer.init(params), serialization.to_bytes(state))
    expected, found = (update(optimizer, after, jax.tree.map(jnp.asarray, s), 1) for s in (state, restored))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lookahead_around_the_optimizer_keeps_both_kinds_of_weights_at_zero():
    params: Any = optax.LookaheadParams.init_synced(init_params())
    optimizer: Any = jaxprune.sparsify(optax.lookahead(optax.adam(0.05), 3, 0.5), gradual())
    state, kept = optimizer.init(params), None
    step = jax.jit(lambda p, s, x: optimizer.update(jax.grad(loss)(p.fast, x), s, p))
    for i in range(8):
        updates, state = step(params, state, batch(i))
        params = optax.apply_updates(params, updates)
        kept = jaxprune.get_masks(state)
        for tree in params:
            assert np.count_nonzero(masks.apply(tree, kept)["first"]["kernel"]) == np.count_nonzero(
                tree["first"]["kernel"]
            )
    assert kept is not None
    expect_zeros(params.slow, kept, {"first/kernel": 36, "second/kernel": 24})
    for moment in (state.fast_state[0].mu, state.fast_state[0].nu):
        assert np.count_nonzero(moment["first"]["kernel"][~kept["first"]["kernel"]]) == 0
    through = training.straight_through(0.75)
    optimizer = jaxprune.sparsify(optax.lookahead(optax.adam(0.05), 3, 0.5), through)
    params = optax.LookaheadParams.init_synced(init_params())
    updates, state = optimizer.update(jax.grad(loss)(params.fast, batch(0)), optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    expected = jaxprune.prune(params.fast, 0.75).masks["first"]["kernel"]
    np.testing.assert_array_equal(jaxprune.get_masks(state)["first"]["kernel"], expected)


def test_a_run_that_ended_before_its_schedule_is_told_by_the_state():
    params = init_params()
    method = training.gradual(schedules.cubic(0, 4, 0.75), when=schedules.every(3))
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), method)
    state, seen = optimizer.init(params), []
    for i in range(8):
        params, state = update(optimizer, params, state, i)
        seen.append(bool(training.is_finished(state)))
    # The first revision at or after step 4 is made before the seventh update.
    assert seen == [False] * 6 + [True] * 2
    ends = {
        "fixed": (training.fixed(masks.ones(params)), True),
        "static": (training.static(0.5, key=jax.random.key(0)), True),
        "one_shot": (training.one_shot(0.5, step=3), False),
        "unknown": (training.gradual(lambda step: 0.5), False),
        "too early": (training.gradual(schedules.cubic(0, 9, 0.5), when=schedules.every(2, 0, 6)), False),
        "straight_through": (training.straight_through(0.5), True),
    }
    for method, finished in ends.values():
        start = jaxprune.sparsify(optax.sgd(0.1), method).init(params)
        assert bool(training.is_finished((optax.EmptyState(), start))) == finished
    with pytest.raises(ValueError, match="one sparsify"):
        _ = training.is_finished(optax.adam(0.1).init(params))
