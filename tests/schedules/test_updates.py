"""When masks are recomputed, and schedules that come from Optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import schedules


@pytest.mark.parametrize(("n", "begin", "end"), [(1, 0, None), (7, 0, 30), (5, 3, 18), (100, 10, 20), (4, 9, 9)])
def test_updates_fall_on_multiples_and_on_the_end(n, begin, end):
    steps = np.arange(60)
    wanted = {begin + i * n for i in range(60) if end is None or begin + i * n <= end} | ({end} if end else set())
    update = schedules.every(n, begin, end)
    assert {int(step) for step in steps if update(int(step))} == {step for step in wanted if step < 60}
    assert type(update(3)) is bool
    assert np.array_equal(jax.jit(jax.vmap(update))(jnp.asarray(steps)), [update(int(step)) for step in steps])
    assert np.array_equal(jax.vmap(update)(jnp.asarray(steps, jnp.uint32)), [update(int(step)) for step in steps])


def test_a_ramp_reaches_its_end_at_the_last_update():
    update, ramp = schedules.every(30, 0, 100), schedules.cubic(0, 100, 0.9)
    assert max(ramp(step) for step in range(200) if update(step)) == 0.9


def test_updates_are_checked():
    half: Any = 2.5
    with pytest.raises(ValueError, match="n must be 1 or more; got 0"):
        _ = schedules.every(0)
    with pytest.raises(ValueError, match="end must not come before begin; got begin=5, end=4"):
        _ = schedules.every(2, 5, 4)
    with pytest.raises(TypeError, match=r"n must be an integer; got 2\.5"):
        _ = schedules.every(half)


def test_optax_schedules_keep_their_values():
    inner = optax.polynomial_schedule(0.1, 0.8, power=2, transition_steps=50)
    schedule = schedules.from_optax(inner)
    for step in (0, 10, 50, 80):
        assert type(schedule(step)) is float
        assert schedule(step) == inner(step)
        assert np.isclose(jax.jit(schedule)(step), inner(step), atol=1e-7)


def test_optax_values_outside_the_range():
    with pytest.raises(ValueError, match=r"the schedule's sparsity at step 0 must be in \[0, 1\)"):
        _ = schedules.from_optax(optax.constant_schedule(1.0))
    rising = schedules.from_optax(lambda step: 0.1 * step)
    with pytest.raises(ValueError, match="the schedule's sparsity at step 20"):
        _ = rising(20)
    assert jax.jit(rising)(20) == np.nextafter(np.float32(1), np.float32(0))
    assert jax.jit(schedules.from_optax(lambda step: -0.1 * step))(20) == 0
    number: Any = 0.5
    with pytest.raises(TypeError, match="takes a function"):
        _ = schedules.from_optax(number)


def test_from_optax_inside_jit():
    def at(step):
        return schedules.from_optax(optax.linear_schedule(0.0, 0.5, 10))(step)

    assert jax.jit(at)(5) == 0.25
