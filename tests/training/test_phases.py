from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import allocation, masks, schedules, training
from tests.training.loops import REMOVED, batch, expect_zeros, init_params, loss

KEY = jax.random.key(3)


def train(method: training.Method, steps: int) -> list[tuple[Any, Any]]:
    optimizer: Any = jaxprune.sparsify(optax.adam(0.05), method)
    params = init_params()

    @jax.jit
    def step(params, state, x):
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    seen = [(params, jax.jit(optimizer.init)(params))]
    for i in range(steps):
        seen.append(step(*seen[-1], batch(i)))
    return seen


def first(state: Any) -> np.ndarray:
    return np.asarray(state.masks["first"]["kernel"])


def test_acdc_alternates_and_ends_compressed():
    # Compressed at 1, dense at 3, compressed at 4 and, from 5 on, to the end.
    seen = train(training.acdc(0.75, begin=1, end=5, compressed=2, dense=1, allocation=allocation.uniform), 8)
    removed = [int((~first(state)).sum()) for _, state in seen[1:]]
    assert removed == [0, 36, 36, 0, 36, 36, 36, 36]
    for (params, state), count in zip(seen[1:], removed, strict=True):
        expect_zeros(params, state.masks, REMOVED if count else {})
    expected = jaxprune.prune(seen[4][0], 0.75).masks["first"]["kernel"]
    np.testing.assert_array_equal(first(seen[5][1]), expected)
    assert np.count_nonzero(seen[4][0]["first"]["kernel"]) > 12  # those with a gradient came back


def test_acdc_that_ends_in_a_dense_phase_is_compressed_there():
    method = training.acdc(0.5, begin=0, end=3, compressed=2, dense=4)
    is_due: Any = method.is_due
    assert [step for step in range(12) if is_due(step)] == [0, 2, 3]
    assert [step for step in range(12) if bool(is_due(jnp.int32(step)))] == [0, 2, 3]


def test_acdc_has_the_phases_of_the_paper():
    # In epochs, as the authors' configuration of ResNet-50 at 90 % for 100 epochs lists them.
    method = training.acdc(0.9, begin=10, end=85, compressed=5, dense=5, last_dense=10)
    is_due: Any = method.is_due
    pruned, restored = [10, 20, 30, 40, 50, 60, 70, 85], [15, 25, 35, 45, 55, 65, 75]
    assert [step for step in range(100) if is_due(step)] == sorted(pruned + restored)


def test_acdc_ranks_all_leaves_together():
    params = init_params()
    method = training.acdc(0.75, begin=0, end=1, compressed=1, dense=1)
    optimizer: Any = jaxprune.sparsify(optax.sgd(0.1), method)
    _, state = optimizer.update(params, optimizer.init(params), params)
    expected = jaxprune.prune(params, 0.75, allocation=allocation.one_ranking).masks
    np.testing.assert_array_equal(first(state), expected["first"]["kernel"])
    assert first(state).sum() != 12


def test_gradual_pruning_then_rigl_at_the_sparsity_reached():
    gradual = training.gradual(schedules.cubic(1, 4, 0.75), when=schedules.every(1, 1, 4))
    method = training.phases((0, gradual), (5, training.rigl(0.9, 20, key=KEY, every=2)))
    seen = train(method, 8)
    removed = [int((~first(state)).sum()) for _, state in seen]
    assert removed[0] == 0
    assert removed[5:] == [36] * 4
    np.testing.assert_array_equal(first(seen[5][1]), first(seen[6][1]))
    assert (first(seen[7][1]) != first(seen[6][1])).any()  # at step 6 RigL moves some
    expect_zeros(seen[8][0], seen[8][1].masks, REMOVED)


def test_wrong_phases_are_named():
    fixed = training.static(0.5, key=KEY)
    with pytest.raises(ValueError, match="at least one part"):
        _ = training.phases()
    with pytest.raises(ValueError, match=r"must rise from 0, got \[0, 0\]"):
        _ = training.phases((0, fixed), (0, fixed))
    with pytest.raises(TypeError, match="each an argument of its own"):
        _ = training.phases([(0, fixed)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="takes pairs"):
        _ = training.phases(fixed)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at zero"):
        _ = training.phases((0, training.straight_through(0.5)))
    channels = training.one_shot(0.5, pattern=masks.Channel())
    with pytest.raises(ValueError, match=r"first/kernel: \(6, 8\) and \(1, 8\)"):
        _ = training.phases((0, fixed), (1, channels)).init(init_params())
    with pytest.raises(ValueError, match="end must come after begin"):
        _ = training.acdc(0.5, begin=3, end=3, compressed=1, dense=1)
    with pytest.raises(ValueError, match="dense must be 1 or more"):
        _ = training.acdc(0.5, begin=1, end=3, compressed=1, dense=0)
