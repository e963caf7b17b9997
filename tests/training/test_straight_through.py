from itertools import pairwise
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import masks, schedules, training
from tests.training.loops import batch, init_params, loss


def train(method: training.Method, optimizer: Any = None, steps: int = 3) -> list[tuple[Any, Any, Any]]:
    """(gradients, parameters, state) after every step, with the sparse forward pass."""
    wrapped: Any = jaxprune.sparsify(optimizer or optax.sgd(0.5), method)
    params = init_params()
    state = jax.jit(wrapped.init)(params)

    @jax.jit
    def step(params, state, x):
        held = jaxprune.get_masks(state)
        grads = jax.grad(lambda p: loss(training.sparse_params(p, held), x))(params)
        updates, state = wrapped.update(grads, state, params)
        return grads, optax.apply_updates(params, updates), state

    seen = [(None, params, state)]
    for i in range(steps):
        seen.append(step(*seen[-1][1:], batch(i)))
    return seen


def kernel(tree: Any) -> np.ndarray:
    return np.asarray(tree["first"]["kernel"])


def test_the_gradient_is_that_at_the_sparse_weights_for_all_of_them():
    params = init_params()
    held = jaxprune.prune(params, 0.75).masks
    x = batch(0)
    through = jax.grad(lambda p: loss(training.sparse_params(p, held), x))(params)
    at_sparse = jax.grad(loss)(masks.apply(params, held), x)
    chex.assert_trees_all_close(through, at_sparse, rtol=1e-6)
    assert np.count_nonzero(kernel(through)[~kernel(held)]) > 0
    chex.assert_trees_all_equal(training.sparse_params(params, held), masks.apply(params, held))
    packed = training.sparse_params(params, masks.pack(held))
    chex.assert_trees_all_equal(packed, masks.apply(params, held))
    _, tangent = jax.jvp(lambda p: training.sparse_params(p, held), (params,), (params,))
    chex.assert_trees_all_equal(tangent, params)


def test_straight_through_trains_all_weights_behind_masks_of_the_present_ones():
    seen = train(training.straight_through(0.75))
    for (_, before, _), (grads, after, state) in pairwise(seen):
        np.testing.assert_allclose(kernel(after), kernel(before) - 0.5 * kernel(grads), rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_equal(jaxprune.get_masks(state), jaxprune.prune(after, 0.75).masks)
        assert np.count_nonzero(kernel(after)) == 48


def test_straight_through_follows_a_schedule_and_updates_when_it_is_due():
    schedule = schedules.cubic(0, 3, 0.75)
    seen = train(training.straight_through(schedule, when=schedules.every(3)), optax.adam(0.1), steps=4)
    assert [int((~kernel(jaxprune.get_masks(state))).sum()) for _, _, state in seen] == [0, 0, 0, 36, 36]
    assert np.count_nonzero(kernel(seen[-1][2].inner[0].mu)) == 48


def test_sr_ste_decays_what_is_removed():
    seen = train(training.sr_ste(decay=0.5, where="second/kernel"), steps=1)
    (_, before, start), (grads, after, end) = seen
    w, g, m = (np.asarray(t["second"]["kernel"]) for t in (before, grads, jaxprune.get_masks(start)))
    np.testing.assert_allclose(after["second"]["kernel"], w - 0.5 * (g + 0.5 * np.where(m, 0, w)), rtol=1e-5)
    np.testing.assert_allclose(kernel(after), kernel(before) - 0.5 * kernel(grads), rtol=1e-5, atol=1e-7)
    found = np.asarray(jaxprune.get_masks(end)["second"]["kernel"])
    assert (found.reshape(2, 4, 4).sum(1) == 2).all()


def test_top_kast_updates_the_larger_set_only():
    seen = train(training.top_kast(0.75, 0.5, penalty=0.1), optax.sgd(0.5, 0.9), steps=2)
    (_, before, start), (grads, after, middle), (_, last, _) = seen
    a, b = kernel(jaxprune.get_masks(start)), kernel(start.method)
    assert (a.sum(), b.sum(), (a & ~b).sum()) == (12, 24, 0)
    w, g = kernel(before), kernel(grads)
    step = np.where(b, g + 0.1 * np.where(a, w, w / 0.25), 0)
    np.testing.assert_allclose(kernel(after), w - 0.5 * step, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(kernel(last)[~kernel(middle.method)], kernel(after)[~kernel(middle.method)])
    bias = np.asarray(before["first"]["bias"]) - 0.5 * np.asarray(grads["first"]["bias"])
    np.testing.assert_allclose(after["first"]["bias"], bias, rtol=1e-6)


def test_movement_keeps_what_moves_away_from_zero():
    schedule = schedules.cubic(0, 2, 0.75)
    seen = train(training.movement(schedule), steps=4)
    score = np.zeros((6, 8), np.float32)
    for i, ((_, before, old), (grads, after, new)) in enumerate(pairwise(seen)):
        # The rule of the paper in NumPy: scores from the weights that the gradient was taken at.
        score -= kernel(grads) * kernel(before)
        held = kernel(jaxprune.get_masks(old))
        np.testing.assert_allclose(kernel(new.method[0]), score, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(kernel(after), kernel(before) - 0.5 * np.where(held, kernel(grads), 0), rtol=1e-5)
        removed = int(np.floor(48 * float(schedule(i + 1)) + 0.5))
        expected = np.ones(48, bool)
        expected[np.argsort(score.ravel(), kind="stable")[:removed]] = False
        np.testing.assert_array_equal(kernel(jaxprune.get_masks(new)).ravel(), expected)
        np.testing.assert_array_equal(kernel(after)[~held], kernel(before)[~held])  # the removed rest
    masks_seen = [kernel(jaxprune.get_masks(state)) for _, _, state in seen]
    assert (masks_seen[-1] & ~masks_seen[-2]).any()  # and may come back


def test_movement_learns_at_every_step_and_revises_when_it_is_due():
    method = training.movement(0.5, learn=optax.adam(0.01), when=schedules.every(3), where="first/*kernel")
    seen = train(method, steps=3)
    held = [kernel(jaxprune.get_masks(state)) for _, _, state in seen]
    np.testing.assert_array_equal(held[2], held[0])
    assert (held[3] != held[0]).any()
    assert int(seen[-1][2].method[1][0].count) == 3
    assert {int(mask.sum()) for mask in held} == {24}
    assert jaxprune.get_masks(seen[-1][2])["second"]["kernel"].shape == ()


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"sr_ste needs masks\.NM"):
        _ = training.sr_ste(pattern=masks.Block((2, 2)))
    with pytest.raises(ValueError, match="decay must be 0 or more"):
        _ = training.sr_ste(decay=-1.0)
    with pytest.raises(ValueError, match=r"backward must be at most sparsity=0\.5"):
        _ = training.top_kast(0.5, 0.6)
    with pytest.raises(ValueError, match="must be in"):
        _ = training.straight_through(1.0)
    with pytest.raises(ValueError, match="must be in"):
        _ = training.movement(1.0)
    with pytest.raises(ValueError, match="not divided by m=4"):
        _ = training.sr_ste().init(init_params())
    with pytest.raises(ValueError, match=r"first/kernel: mask \(8, 6\)"):
        held = masks.ones(init_params())
        held["first"]["kernel"] = held["first"]["kernel"].T
        _ = training.sparse_params(init_params(), held)
