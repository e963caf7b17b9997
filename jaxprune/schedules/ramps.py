"""Schedules from a step to a sparsity: constant, in one step, and along a ramp."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.schedules.steps import (
    Schedule,
    Sparsity,
    Step,
    as_step,
    check_interval,
    check_sparsity,
    check_step,
    is_static,
    steps_left,
)


def constant(sparsity: Sparsity) -> Schedule:
    """The same sparsity at every step.

    Args:
      sparsity: the fraction removed, in [0, 1).

    Returns:
      A schedule. A Python int gives a Python float, a traced step an array of the default float dtype.

    Raises:
      ValueError: the sparsity is outside [0, 1).

    Example:
      >>> constant(0.9)(1000)
      0.9
    """
    return jump(sparsity)


def jump(sparsity: Sparsity, step: int = 0) -> Schedule:
    """Dense before `step`, `sparsity` from it on.

    Args:
      sparsity: the fraction removed, in [0, 1); may be traced.
      step: when it jumps, 0 or more.

    Returns:
      A schedule. A Python int gives a Python float, a traced step an array of the default float dtype.

    Raises:
      ValueError: the sparsity is outside [0, 1), or the step is negative.

    Example:
      >>> schedule = jump(0.9, step=100)
      >>> schedule(99), schedule(100)
      (0.0, 0.9)
    """
    sparsity, at = check_sparsity(sparsity, "sparsity"), check_step(step, "step")

    def schedule(step: Step) -> Sparsity:
        step = as_step(step)
        if is_static(step):
            return sparsity if step >= at else 0.0
        return jnp.where(step >= at, _as_float(sparsity), 0.0)

    return schedule


def cubic(begin: int, end: int, final: Sparsity, initial: Sparsity = 0.0) -> Schedule:
    """Fast at first, when many weights can be spared, and slowly towards the end.

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_n - t_0))^3        for t_0 <= t <= t_n

    Zhu and Gupta 2017, "To prune, or not to prune", arXiv 1710.01878, eq. 1. Before `begin` the sparsity is
    `initial`; at `end` and after it is exactly `final`. It never falls where `final >= initial`.

    Args:
      begin: t_0, the last step at `initial`; 0 or more.
      end: t_n, the first step at `final`; after `begin`.
      final: s_f, in [0, 1); may be traced, so that one compiled program serves all sparsities.
      initial: s_i, in [0, 1); may be traced.

    Returns:
      A schedule. A Python int gives a Python float (computed in float64), a traced step an array of the
      default float dtype; eager and jitted calls give the same bits.

    Raises:
      ValueError: a sparsity is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> schedule = cubic(100, 300, 0.8)
      >>> schedule(100), schedule(200), schedule(300), schedule(301)
      (0.0, 0.7000000000000001, 0.8, 0.8)
    """
    return ramp(begin, end, final, initial, _cubic)


def exponential(begin: int, end: int, final: Sparsity, initial: Sparsity = 0.0) -> Schedule:
    """The density falls by the same factor at each step, as in rounds of iterative pruning.

        1 - s_t = (1 - s_i)^(1 - p) (1 - s_f)^p        with p = (t - t_0) / (t_n - t_0)

    From `initial = 0` this is the schedule of Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1.

    Args:
      begin: t_0, the last step at `initial`; 0 or more.
      end: t_n, the first step at `final`; after `begin`.
      final: s_f, in [0, 1); may be traced.
      initial: s_i, in [0, 1); may be traced.

    Returns:
      A schedule, as of `cubic`.

    Raises:
      ValueError: a sparsity is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> schedule = exponential(0, 2, 0.75)
      >>> schedule(0), schedule(1), schedule(2)
      (0.0, 0.5, 0.75)
    """
    return ramp(begin, end, final, initial, _exponential)


def cyclic(begin: int, end: int, final: Sparsity, initial: Sparsity = 0.0, *, cycles: int) -> Schedule:
    """Cubic ramps one after another; weights removed in one cycle may come back in the next.

    Srinivas et al. 2022, "Cyclical Pruning for Sparse Neural Networks", arXiv 2202.01290. With a period of
    (end - begin) / cycles, each cycle reaches `final` at `begin` plus a multiple of the period, and the step
    after that starts the next; so updates at an interval that divides the period meet each `final` once.

    Args:
      begin: the last step at `initial`; 0 or more.
      end: the last step of the last cycle; exactly `final` from there on.
      final: the sparsity at the end of each cycle, in [0, 1); may be traced.
      initial: the sparsity from which each cycle starts, in [0, 1); may be traced.
      cycles: how many, 1 or more; must divide `end - begin`.

    Returns:
      A schedule, as of `cubic`.

    Raises:
      ValueError: a sparsity is outside [0, 1), `end` is not after `begin`, or `cycles` does not divide.

    Example:
      >>> schedule = cyclic(0, 4, 0.8, cycles=2)
      >>> [round(schedule(step), 3) for step in range(6)]
      [0.0, 0.7, 0.8, 0.7, 0.8, 0.8]
    """
    begin, end = check_interval(begin, end)
    cycles = check_step(cycles, "cycles", least=1)
    period, rest = divmod(end - begin, cycles)
    if rest:
        near = begin + cycles * max(period, 1)
        raise ValueError(f"cycles={cycles} must divide end - begin = {end - begin}; the nearest is end={near}")
    within = cubic(0, period, final, initial)

    def schedule(step: Step) -> Sparsity:
        step = as_step(step)
        if is_static(step):
            inside = min(max(step, begin), end) - begin
            return within((inside - 1) % period + 1 if inside else 0)
        inside = jnp.clip(step, begin, end) - begin
        return within(jnp.where(inside > 0, (inside - 1) % period + 1, 0))

    return schedule


def ramp(
    begin: int, end: int, final: Sparsity, initial: Sparsity, value: Callable[[Any, Any, Any, Any], Any]
) -> Schedule:
    """A schedule that goes from `initial` at `begin` to `final` at `end` by a formula of its own.

    Args:
      begin: the last step at `initial`; 0 or more.
      end: the first step at `final`; after `begin`.
      final: in [0, 1); may be traced.
      initial: in [0, 1); may be traced.
      value: `(np or jnp, fraction of the steps left, initial, final)` -> sparsity. It need not be exact at the
        ends, which are set here.

    Returns:
      A schedule, as of `cubic`.

    Raises:
      ValueError: a sparsity is outside [0, 1), or `end` is not after `begin`.

    Example:
      >>> squares = ramp(0, 10, 0.8, 0.0, lambda xp, left, initial, final: final + (initial - final) * left * left)
      >>> [round(squares(step), 3) for step in (0, 5, 10, 20)]
      [0.0, 0.6, 0.8, 0.8]
    """
    begin, end = check_interval(begin, end)
    final, initial = check_sparsity(final, "final"), check_sparsity(initial, "initial")

    def schedule(step: Step) -> Sparsity:
        step = as_step(step)
        left = steps_left(step, begin, end)
        static = is_static(step) and isinstance(initial, float) and isinstance(final, float)
        xp, first, last = (np, initial, final) if static else (jnp, _as_float(initial), _as_float(final))
        sparsity = value(xp, xp.minimum(left * (1 / (end - begin)), 1.0), initial, final)
        sparsity = xp.clip(sparsity, xp.minimum(first, last), xp.maximum(first, last))
        sparsity = xp.where(left <= 0, last, xp.where(left >= end - begin, first, sparsity))
        return float(sparsity) if static else sparsity

    return schedule


def _cubic(xp: Any, left: Any, initial: Any, final: Any) -> Any:
    return _interpolate(xp, final, initial, left * left * left)


def _exponential(xp: Any, left: Any, initial: Any, final: Any) -> Any:
    # The compiler folds log1p of a constant by another routine than it runs on an array: numbers stay on the host.
    first, last = (np.log1p(-s) if isinstance(s, float) else jnp.log1p(-s) for s in (initial, final))
    return -xp.expm1(_interpolate(xp, last, first, left))


def _interpolate(xp: Any, at_0: Any, at_1: Any, weight: Any) -> Any:
    # The clip changes nothing but the rounding's last bit. Without it a compiler fuses the product and the sum
    # into one rounding, the jitted schedule and the eager one differ in that bit, and a count by one. Division
    # by a constant has the same fault (it becomes a product), so there is none.
    gap = at_1 - at_0
    return at_0 + xp.clip(gap * weight, xp.minimum(gap, 0.0), xp.maximum(gap, 0.0))


def _as_float(sparsity: Sparsity) -> jax.Array:
    return jnp.asarray(sparsity, jnp.result_type(float))
