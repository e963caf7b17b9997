"""Gradients that are not finite: no mask changes on a step that is skipped, and the revision comes later."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import criteria, schedules, training
from tests.training.loops import batch, init_params, loss

METHODS: dict[str, Any] = {
    "rigl": lambda: training.rigl(0.5, 8, key=jax.random.key(0), every=2),
    "averaged gradients": lambda: training.dynamic(
        0.5, key=jax.random.key(0), when=schedules.every(2), grow=training.gradient_growth, momentum=0.9
    ),
    "one_shot": lambda: training.one_shot(0.5, step=2, criterion=criteria.snip),
    "straight_through": lambda: training.straight_through(0.5, when=schedules.every(2), criterion=criteria.magnitude),
}
# Around or inside the pruning.
QUICK = [("rigl", False), ("straight_through", False)]


def make_run(optimizer: Any, spoil: Any) -> Any:
    """A function from steps to the parameters and state before each and at the end.

    A step with a minus is one whose gradients `spoil` makes bad.
    """

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, bad: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss)(params, x)
        grads = jax.lax.cond(bad, lambda g: spoil(g, state), lambda g: g, grads)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(steps: list[int]) -> list[tuple[Any, Any]]:
        params = init_params()
        found = [(params, optimizer.init(params))]
        for i in steps:
            found.append(step(*found[-1], batch(abs(i)), i < 0))
        return found

    return run


def spoil_first(grads: Any, state: Any) -> Any:
    del state
    return jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads)


def check(name: str, around: bool) -> None:
    guard, inner = partial(optax.apply_if_finite, max_consecutive_errors=3), optax.sgd(0.1, momentum=0.9)
    method = METHODS[name]()
    optimizer = guard(jaxprune.sparsify(inner, method)) if around else jaxprune.sparsify(guard(inner), method)
    run = make_run(optimizer, spoil_first)
    # Two bad ones where the second revision is due.
    found, without = run([0, 1, -9, -9, 2, 3, 4]), run([0, 1, 2, 3, 4])
    for spoiled in found[3:5]:
        chex.assert_trees_all_equal(jaxprune.get_masks(spoiled[1]), jaxprune.get_masks(found[2][1]))
    chex.assert_trees_all_equal(found[-1][0], without[-1][0])
    held, expected = jaxprune.get_masks(found[-1][1]), jaxprune.get_masks(without[-1][1])
    chex.assert_trees_all_equal(held, expected)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), jaxprune.get_masks(found[2][1]), held)
    assert changed["first"]["kernel"]  # the revision that was put off did come


@pytest.mark.parametrize(("name", "around"), QUICK)
def test_a_skipped_step_is_as_if_it_had_not_been(name, around):
    check(name, around)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "around"), [(n, a) for n in METHODS for a in (True, False) if (n, a) not in QUICK])
def test_a_skipped_step_is_as_if_it_had_not_been_with_any_method(name, around):
    check(name, around)


def test_bad_gradients_of_removed_weights_skip_nothing():
    def spoil(grads: Any, state: Any) -> Any:
        return jax.tree.map(lambda g, m: jnp.where(m, g, jnp.inf) if m.ndim else g, grads, jaxprune.get_masks(state))

    method = training.gradual(schedules.cubic(0, 4, 0.75), when=schedules.every(1, 0, 4))
    optimizer = jaxprune.sparsify(optax.apply_if_finite(optax.sgd(0.1), 3), method)
    run = make_run(optimizer, spoil)
    found, expected = run([0, 1, -2, -3, 4]), run([0, 1, 2, 3, 4])
    chex.assert_trees_all_equal(found[-1], expected[-1])
    assert int(found[-1][1].step) == 5


def test_growth_into_a_bad_gradient_is_put_off():
    # All that may grow has gradients that are not finite, so whatever grew would make the optimizer skip the step.
    def spoil(grads: Any, state: Any) -> Any:
        return jax.tree.map(lambda g, m: jnp.where(m, g, jnp.nan) if m.ndim else g, grads, jaxprune.get_masks(state))

    optimizer = jaxprune.sparsify(optax.apply_if_finite(optax.sgd(0.1), 3), METHODS["rigl"]())
    found = make_run(optimizer, spoil)([0, 1, -2, 3])
    chex.assert_trees_all_equal(jaxprune.get_masks(found[3][1]), jaxprune.get_masks(found[2][1]))
    assert [int(state.step) for _, state in found] == [0, 1, 2, 2, 3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[-1][0]))


def test_without_a_guard_bad_gradients_reach_kept_weights_and_no_mask():
    method = training.gradual(schedules.cubic(0, 4, 0.75), when=schedules.every(1, 0, 4))
    run = make_run(jaxprune.sparsify(optax.sgd(0.1), method), spoil_first)
    found, expected = run([0, 1, -2]), run([0, 1, 2])
    chex.assert_trees_all_equal(found[-1][1].masks, expected[-1][1].masks)
    kernel, mask = np.asarray(found[-1][0]["first"]["kernel"]), np.asarray(found[-1][1].masks["first"]["kernel"])
    assert np.all(kernel[~mask] == 0)
    assert np.isnan(kernel[0][mask[0]]).all()
    assert np.isfinite(kernel[1:]).all()
