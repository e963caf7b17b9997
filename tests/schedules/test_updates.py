"""When masks are recomputed, and schedules that come from Optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import schedules
from jaxprune.schedules.steps import covering


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
    with pytest.raises(ValueError, match=r"the schedule's sparsity at step 0 is the fraction .* must be in \[0, 1\)"):
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


def test_schedules_and_updates_print_as_the_calls_that_make_them():
    assert repr(schedules.every(5, 1)) == "every(n=5, begin=1, end=None)"
    made = {
        "jump(0.5, step=0)": schedules.jump(0.5),
        "jump(0.5, step=3)": schedules.jump(0.5, 3),
        "cubic(begin=0, end=9, final=0.9, initial=0.1)": schedules.cubic(0, 9, 0.9, 0.1),
        "exponential(begin=0, end=9, final=0.9, initial=0.0)": schedules.exponential(0, 9, 0.9),
        "cyclic(begin=0, end=9, final=0.9, initial=0.0, cycles=3)": schedules.cyclic(0, 9, 0.9, cycles=3),
    }
    assert {repr(schedule): schedule for schedule in made.values()} == made


def test_the_updates_that_cover_a_schedule_include_its_end():
    covered = {
        schedules.cubic(0, 60, 0.9): schedules.every(6, 0, 60),
        schedules.cubic(100, 5000, 0.9): schedules.every(100, 100, 5000),
        schedules.cubic(0, 3, 0.9): schedules.every(1, 0, 3),
        schedules.jump(0.9, 7): schedules.every(1, 7, 7),
        # The interval divides the period of 35, so that every cycle reaches its end.
        schedules.cyclic(0, 70, 0.9, cycles=2): schedules.every(1, 0, 70),
        schedules.cyclic(0, 800, 0.9, cycles=2): schedules.every(40, 0, 800),
        schedules.from_optax(lambda step: 0.5, begin=2, end=22): schedules.every(2, 2, 22),
        len: schedules.every(1),
    }
    assert {schedule: covering(schedule) for schedule in covered} == covered


@pytest.mark.parametrize(("step", "expected"), [(0, 2), (2, 2), (3, 6), (10, 10), (11, 12), (12, 12), (13, None)])
def test_the_first_update_from_a_step_on(step, expected):
    update = schedules.every(4, 2, 12)
    assert update.first_from(step) == expected
    assert update.first_from(step) == next((s for s in range(step, 30) if update(s)), None)
    assert schedules.every(4, 2).first_from(13) == 14
