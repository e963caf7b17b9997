"""Any Optax schedule as a schedule of sparsities."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.schedules.steps import Schedule, Sparsity, Step, as_step, check_sparsity, is_static


def from_optax(schedule: Callable[[Any], Any]) -> Schedule:
    """An Optax schedule, or any function from a step to a number, as a schedule of sparsities.

    What it gives at step 0 is checked at once, and so is every value asked for with a Python int; a traced
    value cannot be checked and is clipped to [0, 1). Optax counts in float32, so its schedules lose steps
    after 2^24.

    Args:
      schedule: such as `optax.linear_schedule(0.0, 0.9, 1000)`.

    Returns:
      A schedule. A Python int gives a Python float, a traced step an array of the default float dtype.

    Raises:
      TypeError: it is not a function.
      ValueError: a value is outside [0, 1).

    Example:
      >>> import optax
      >>> schedule = from_optax(optax.linear_schedule(0.0, 0.5, transition_steps=10))
      >>> schedule(5), schedule(jnp.int32(20))
      (0.25, Array(0.5, dtype=float32))
    """
    if not callable(schedule):
        raise TypeError(f"from_optax takes a function from a step to a number; got {schedule!r}")

    def at(step: Step) -> Sparsity:
        step = as_step(step)
        if is_static(step):
            with jax.ensure_compile_time_eval():
                return check_sparsity(schedule(step), f"the schedule's sparsity at step {step}")
        value = jnp.asarray(schedule(step), jnp.result_type(float))
        largest = np.nextafter(np.ones((), value.dtype), np.zeros((), value.dtype))
        return jnp.clip(value, 0.0, largest)

    at(0)
    return at
