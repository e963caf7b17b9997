"""Ramps against the formulas in float64, at their ends, and beyond 2^24 steps."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import schedules

RAMPS = [schedules.cubic, schedules.exponential]
INTERVALS = [(0, 1000, 0.9, 0.0), (100, 7000, 0.98, 0.3), (7, 8, 0.99, 0.0), (3, 400, 0.2, 0.7)]


def cubic_twin(step, begin, end, final, initial):
    left = Fraction(end - min(max(step, begin), end), end - begin)
    return float(Fraction(final) + (Fraction(initial) - Fraction(final)) * left**3)


def exponential_twin(step, begin, end, final, initial):
    done = 1 - (end - min(max(step, begin), end)) / (end - begin)
    return 1 - (1 - initial) ** (1 - done) * (1 - final) ** done


@pytest.mark.parametrize(("begin", "end", "final", "initial"), INTERVALS)
@pytest.mark.parametrize(
    ("ramp", "twin"), [(schedules.cubic, cubic_twin), (schedules.exponential, exponential_twin)], ids=["cubic", "exp"]
)
def test_values_are_the_formulas(ramp, twin, begin, end, final, initial):
    steps = range(max(begin - 2, 0), end + 3)
    wanted = np.array([twin(step, begin, end, final, initial) for step in steps])
    schedule = ramp(begin, end, final, initial)
    assert np.allclose([schedule(step) for step in steps], wanted, rtol=0, atol=1e-14)
    traced = jax.jit(jax.vmap(schedule))(jnp.asarray(steps))
    assert np.allclose(traced, wanted, rtol=0, atol=4e-7)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(("begin", "end", "final", "initial"), INTERVALS)
def test_ends_are_exact_and_the_way_between_is_monotone(ramp, begin, end, final, initial):
    schedule = ramp(begin, end, final, initial)
    for step in (end, end + 1, 2**31 - 1):
        assert schedule(step) == final
        assert jax.jit(schedule)(step) == np.float32(final)
    for step in (0, begin):
        assert schedule(step) == initial
        assert jax.jit(schedule)(step) == np.float32(initial)
    sign = np.sign(final - initial)
    static = np.array([schedule(step) for step in range(end + 2)])
    assert (sign * np.diff(static) >= 0).all()
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(end + 2))
    assert (sign * np.diff(np.asarray(traced)) >= 0).all()


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("ramp", RAMPS)
def test_eager_and_jit_give_the_same_bits(ramp):
    schedule, steps = ramp(3, 5000, 0.95, 0.1), jnp.arange(5010)
    eager = jax.vmap(schedule)(steps)
    assert np.array_equal(eager, jax.jit(jax.vmap(schedule))(steps))
    assert all(schedule(step) == eager[int(step)] for step in steps[::617])


@pytest.mark.parametrize("ramp", RAMPS)
def test_steps_beyond_2_to_the_24_are_told_apart(ramp):
    begin = 2**30 + 1
    schedule = ramp(begin, begin + 16, 0.9)
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(begin, begin + 17))
    assert len(np.unique(np.asarray(traced))) == 17
    assert np.allclose(traced, [schedule(begin + i) for i in range(17)], atol=4e-7)
    long = ramp(0, 2**31 - 1, 0.9)
    assert jax.jit(long)(2**31 - 2) == np.float32(long(2**31 - 2))


def test_one_compilation_for_all_sparsities_and_steps():
    traces = []

    @jax.jit
    def at(step, final):
        traces.append(step)
        return schedules.cubic(10, 20, final)(step)

    for step, final in ((0, 0.5), (15, 0.9), (20, 0.75)):
        assert np.isclose(at(step, final), schedules.cubic(10, 20, final)(step), atol=4e-7)
    assert len(traces) == 1


def test_every_kind_of_integer_step_is_taken():
    schedule = schedules.cubic(2, 1000, 0.9)
    for dtype in (np.int8, np.uint8, np.int32, np.uint32, np.int64):
        assert schedule(dtype(100)) == schedule(100)
    for dtype in (jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32):
        assert np.isclose(jax.jit(schedule)(dtype(100)), schedule(100), atol=4e-7)
    assert jax.jit(schedule)(jnp.uint32(2**31 + 5)) == np.float32(0.9)


def test_float64_where_jax_has_it():
    with jax.enable_x64(True):
        value = jax.jit(schedules.cubic(0, 1000, 0.9))(333)
        assert value.dtype == jnp.float64
        assert np.isclose(value, cubic_twin(333, 0, 1000, 0.9, 0.0), rtol=0, atol=1e-15)


def test_a_jump_and_a_constant():
    assert [schedules.jump(0.5)(step) for step in (0, 9)] == [0.5, 0.5]
    schedule = schedules.jump(0.9, step=3)
    assert [schedule(step) for step in range(5)] == [0.0, 0.0, 0.0, 0.9, 0.9]
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(5))
    assert traced.dtype == jnp.float32
    assert np.array_equal(traced, np.array([0, 0, 0, 0.9, 0.9], np.float32))
    assert jax.jit(lambda s: schedules.jump(s)(jnp.int32(0)))(0.25) == 0.25


def test_cyclic_is_cubic_in_each_cycle():
    schedule = schedules.cyclic(10, 70, 0.9, 0.2, cycles=3)
    within = schedules.cubic(0, 20, 0.9, 0.2)
    wanted = [within(0)] * 11 + [within(i) for _ in range(3) for i in range(1, 21)] + [0.9] * 5
    assert [schedule(step) for step in range(76)] == wanted
    assert np.allclose(jax.jit(jax.vmap(schedule))(jnp.arange(76)), wanted, atol=4e-7)
    once, cubic = schedules.cyclic(10, 70, 0.9, cycles=1), schedules.cubic(10, 70, 0.9)
    assert [once(step) for step in range(80)] == [cubic(step) for step in range(80)]


def test_a_ramp_of_ones_own():
    linear = schedules.ramp(0, 4, 0.8, 0.0, lambda xp, left, initial, final: final + (initial - final) * left)
    assert np.allclose([linear(step) for step in range(6)], [0, 0.2, 0.4, 0.6, 0.8, 0.8])


@pytest.mark.parametrize("build", [*RAMPS, lambda *args: schedules.cyclic(*args, cycles=1)])
def test_intervals_are_checked(build):
    with pytest.raises(ValueError, match="end must come after begin; got begin=10, end=10"):
        _ = build(10, 10, 0.5)
    with pytest.raises(ValueError, match="begin must be 0 or more; got -1"):
        _ = build(-1, 10, 0.5)
    with pytest.raises(TypeError, match=r"end must be an integer; got 10\.0"):
        _ = build(0, 10.0, 0.5)


@pytest.mark.parametrize("wrong", [1.0, -0.1, float("nan"), float("inf"), 1.5])
def test_sparsities_are_checked(wrong):
    for build in (schedules.jump, *(lambda s, r=r: r(0, 10, s) for r in RAMPS)):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
            _ = build(wrong)
    with pytest.raises(ValueError, match=r"initial is the fraction removed and must be in \[0, 1\)"):
        _ = schedules.cubic(0, 10, 0.5, wrong)


def test_messages_say_what_to_do():
    with pytest.raises(ValueError, match=r"for 90 % pass 0\.9"):
        _ = schedules.jump(90)
    with pytest.raises(TypeError, match="must be a number"):
        _ = schedules.jump("0.9")
    with pytest.raises(ValueError, match="cycles=4 must divide end - begin = 10; use end=8 or end=12"):
        _ = schedules.cyclic(0, 10, 0.9, cycles=4)
    with pytest.raises(TypeError, match="an integer step; got float32"):
        _ = schedules.cubic(0, 10, 0.9)(jnp.float32(3))
    with pytest.raises(TypeError, match="an integer step; got float"):
        _ = schedules.cubic(0, 10, 0.9)(3.0)
    with pytest.raises(ValueError, match="does not fit the step's dtype"):
        _ = schedules.cubic(0, 2**31, 0.9)(jnp.int32(3))
