"""Schedules: `jump`, `cubic`, `exponential`, `cyclic`, `ramp` by a formula, and `from_optax`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.schedules.steps import (
    Planned,
    Schedule,
    Sparsity,
    Step,
    as_step,
    check_interval,
    check_step,
    is_static,
    steps_left,
)

_LONGEST = 100  # the largest default interval between two mask updates of `gradual`, in steps


def jump(sparsity: Sparsity, step: int = 0) -> Schedule:
    """Returns a schedule of 0 before `step` and `sparsity` from `step` on; with the default step it is constant.

    Args:
      sparsity: the fraction removed, a number or a traced scalar in [0, 1).
      step: the first step with this sparsity, an int of 0 or more; default 0.

    Returns:
      A function from a step to a sparsity. An int gives a Python float, a traced step an array of the default float
      dtype.

    Raises:
      ValueError: the sparsity is outside [0, 1), or the step is negative.

    Example:
      >>> schedule = jump(0.9, step=100)
      >>> schedule(99), schedule(100)
      (0.0, 0.9)
      >>> schedule
      jump(0.9, step=100)
    """
    sparsity, step = _tree.check_sparsity(sparsity, "sparsity"), check_step(step, "step")
    return Planned(f"jump({sparsity}, step={step})", step, step, 1, _jump(sparsity, step))


def cubic(begin: int, end: int, final: Sparsity, initial: Sparsity = 0.0) -> Schedule:
    """Returns a sparsity that rises fast at first and slowly towards the end.

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))^3        for t_0 <= t <= t_n

    Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, eq. 1. The sparsity is `initial` up to `begin`,
    exactly `final` from `end` on, and never falls where `final >= initial`.

    Args:
      begin: t_0, the last step at `initial`, an int of 0 or more.
      end: t_n, the first step at `final`, an int above `begin`.
      final: s_f, in [0, 1); a number or a traced scalar, so that one compiled program serves all sparsities.
      initial: s_i, in [0, 1); a number or a traced scalar. Default 0.

    Returns:
      A function from a step to a sparsity. An int gives a Python float (computed in float64), a traced step an array
      of the default float dtype; eager and jitted calls return the same bits.

    Raises:
      ValueError: a sparsity is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> schedule = cubic(100, 300, 0.8)
      >>> schedule(100), schedule(200), schedule(300), schedule(301)
      (0.0, 0.7000000000000001, 0.8, 0.8)
      >>> schedule
      cubic(begin=100, end=300, final=0.8, initial=0.0)
    """
    return _planned("cubic", begin, end, final, initial, _cubic)


def exponential(begin: int, end: int, final: Sparsity, initial: Sparsity = 0.0) -> Schedule:
    """Returns a density that falls by the same factor at each step, like the rounds of iterative pruning.

        1 - s_t = (1 - s_i)^(1 - p) (1 - s_f)^p        with p = (t - t_0) / (t_n - t_0)

    With `initial=0` this is the schedule of Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1.

    Args:
      begin: t_0, the last step at `initial`, an int of 0 or more.
      end: t_n, the first step at `final`, an int above `begin`.
      final: s_f, in [0, 1); a number or a traced scalar.
      initial: s_i, in [0, 1); a number or a traced scalar. Default 0.

    Returns:
      A function from a step to a sparsity. An int gives a Python float (computed in float64), a traced step an array
      of the default float dtype; eager and jitted calls return the same bits.

    Raises:
      ValueError: a sparsity is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> schedule = exponential(0, 2, 0.75)
      >>> schedule(0), schedule(1), schedule(2)
      (0.0, 0.5, 0.75)
    """
    return _planned("exponential", begin, end, final, initial, _exponential)


def cyclic(begin: int, end: int, final: Sparsity, initial: Sparsity = 0.0, *, cycles: int) -> Schedule:
    """Returns cubic ramps one after another; weights removed in one cycle may return in the next.

    Srinivas et al. 2022, "Cyclical Pruning for Sparse Neural Networks", arXiv 2202.01290. The period of a cycle is
    (end - begin) / cycles. Each cycle reaches `final` at `begin` plus a multiple of the period, and the next cycle
    starts one step later. Updates whose interval divides the period therefore reach `final` once in each cycle.

    Args:
      begin: the last step at `initial`, an int of 0 or more.
      end: the last step of the last cycle, an int above `begin`; the sparsity is exactly `final` from there on.
      final: the sparsity at the end of each cycle, in [0, 1); a number or a traced scalar.
      initial: the sparsity that each ramp starts from, in [0, 1); a number or a traced scalar. Default 0. Only the step
        `begin` has this sparsity, because each later cycle starts one step into its ramp.
      cycles: the number of cycles, an int of 1 or more that divides `end - begin`.

    Returns:
      A function from a step to a sparsity. An int gives a Python float (computed in float64), a traced step an array
      of the default float dtype; eager and jitted calls return the same bits.

    Raises:
      ValueError: a sparsity is outside [0, 1), `end` is not after `begin`, or `cycles` does not divide the interval.

    Example:
      >>> schedule = cyclic(0, 4, 0.8, cycles=2)
      >>> [round(schedule(step), 3) for step in range(6)]
      [0.0, 0.7, 0.8, 0.7, 0.8, 0.8]
    """
    begin, end = check_interval(begin, end)
    cycles = check_step(cycles, "cycles", least=1)
    period, rest = divmod(end - begin, cycles)
    if rest:
        near = [f"end={begin + cycles * n}" for n in (period, period + 1) if n]
        raise ValueError(f"cycles={cycles} must divide end - begin = {end - begin}; use {' or '.join(near)}")
    within = cubic(0, period, final, initial)

    def value(step: Step) -> Sparsity:
        if is_static(step):
            inside = min(max(step, begin), end) - begin
            return within((inside - 1) % period + 1 if inside else 0)
        inside = jnp.clip(step, begin, end) - begin
        return within(jnp.where(inside > 0, (inside - 1) % period + 1, 0))

    call = f"cyclic(begin={begin}, end={end}, final={final}, initial={initial}, cycles={cycles})"
    interval = max(n for n in range(1, _interval(period) + 1) if period % n == 0)
    return Planned(call, begin, end, interval, value)


def ramp(
    begin: int, end: int, final: Sparsity, initial: Sparsity, value: Callable[[Any, Any, Any, Any], Any]
) -> Schedule:
    """Returns a schedule from `initial` at `begin` to `final` at `end` by your own formula.

    Args:
      begin: the last step at `initial`, an int of 0 or more.
      end: the first step at `final`, an int above `begin`.
      final: in [0, 1); a number or a traced scalar.
      initial: in [0, 1); a number or a traced scalar.
      value: `(xp, left, initial, final) -> sparsity`, where `xp` is numpy or jax.numpy and `left` is the fraction of
        the remaining steps, from 1 at `begin` to 0 at `end`. The sparsities at `begin` and `end` are exact, whatever
        `value` returns.

    Returns:
      A function from a step to a sparsity. An int gives a Python float, a traced step an array of the default float
      dtype.

    Raises:
      ValueError: a sparsity is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> squares = ramp(0, 10, 0.8, 0.0, lambda xp, left, initial, final: final + (initial - final) * left * left)
      >>> [round(squares(step), 3) for step in (0, 5, 10, 20)]
      [0.0, 0.6, 0.8, 0.8]
    """
    return _planned("ramp", begin, end, final, initial, value)


def from_optax(schedule: Callable[[Any], Any], *, begin: int = 0, end: int | None = None) -> Schedule:
    """Makes a schedule of sparsities from an Optax schedule, or from any function of a step.

    The value at step 0 is checked at once, and every value at an int step is checked when it is computed. A traced
    value cannot be checked and is clipped to [0, 1). Optax counts in float32, so its schedules lose steps after 2^24.

    Args:
      schedule: a function such as `optax.linear_schedule(0.0, 0.9, 1000)`.
      begin: the step at which the sparsity starts to change, an int of 0 or more; default 0.
      end: the step from which the sparsity is final, an int above `begin`. `training.gradual` updates masks until then.
        Default None: the end is unknown, and masks are updated at every step.

    Returns:
      A function from a step to a sparsity. An int gives a Python float, a traced step an array of the default float
      dtype.

    Raises:
      TypeError: `schedule` is not a function.
      ValueError: a value is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> import optax
      >>> schedule = from_optax(optax.linear_schedule(0.0, 0.5, transition_steps=10), end=10)
      >>> schedule(5), schedule(jnp.int32(20))
      (0.25, Array(0.5, dtype=float32))
    """
    if not callable(schedule):
        raise TypeError(f"from_optax takes a function from a step to a number; got {schedule!r}")

    def value(step: Step) -> Sparsity:
        step = as_step(step)
        if is_static(step):
            with jax.ensure_compile_time_eval():
                return _tree.check_sparsity(schedule(step), f"the schedule's sparsity at step {step}")
        sparsity = jnp.asarray(schedule(step), jnp.result_type(float))
        largest = np.nextafter(np.ones((), sparsity.dtype), np.zeros((), sparsity.dtype))
        return jnp.clip(sparsity, 0.0, largest)

    value(0)
    if end is None:
        return value
    begin, end = check_interval(begin, end)
    return Planned(f"from_optax({schedule!r}, begin={begin}, end={end})", begin, end, _interval(end - begin), value)


def _planned(name: str, begin: int, end: int, final: Sparsity, initial: Sparsity, value: Any) -> Planned:
    begin, end = check_interval(begin, end)
    final, initial = (_tree.check_sparsity(s, name) for s, name in ((final, "final"), (initial, "initial")))

    def at(step: Step) -> Sparsity:
        left = steps_left(step, begin, end)
        static = is_static(step) and isinstance(initial, float) and isinstance(final, float)
        xp, first, last = (np, initial, final) if static else (jnp, _as_float(initial), _as_float(final))
        sparsity = value(xp, xp.minimum(left * (1 / (end - begin)), 1.0), initial, final)
        sparsity = xp.clip(sparsity, xp.minimum(first, last), xp.maximum(first, last))
        sparsity = xp.where(left <= 0, last, xp.where(left >= end - begin, first, sparsity))
        return float(sparsity) if static else sparsity

    call = f"{name}(begin={begin}, end={end}, final={final}, initial={initial})"
    return Planned(call, begin, end, _interval(end - begin), at)


def _interval(period: int) -> int:
    """Returns a tenth of the period, but at most 100 steps."""
    return max(1, min(_LONGEST, period // 10))


def _jump(sparsity: Sparsity, at: int) -> Callable[[Step], Sparsity]:
    def value(step: Step) -> Sparsity:
        if is_static(step):
            return sparsity if step >= at else 0.0
        return jnp.where(step >= at, _as_float(sparsity), 0.0)

    return value


def _cubic(xp: Any, left: Any, initial: Any, final: Any) -> Any:
    return _interpolate(xp, final, initial, left * left * left)


def _exponential(xp: Any, left: Any, initial: Any, final: Any) -> Any:
    # A compiler evaluates log1p of a constant by another routine than log1p of an array, so numbers stay on the host.
    first, last = (np.log1p(-s) if isinstance(s, float) else jnp.log1p(-s) for s in (initial, final))
    return -xp.expm1(_interpolate(xp, last, first, left))


def _interpolate(xp: Any, at_0: Any, at_1: Any, weight: Any) -> Any:
    # The clip changes only the last bit. Without it a compiler fuses the product and the sum into one rounding, the
    # jitted and the eager schedule differ in that bit, and a count differs by one. There is no division by a constant,
    # because a compiler turns it into a product with the same effect.
    gap = at_1 - at_0
    return at_0 + xp.clip(gap * weight, xp.minimum(gap, 0.0), xp.maximum(gap, 0.0))


def _as_float(sparsity: Sparsity) -> jax.Array:
    return jnp.asarray(sparsity, jnp.result_type(float))
