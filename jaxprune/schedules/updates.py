"""When masks are recomputed."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxprune.schedules.steps import Step, as_step, check_step, is_static

Update = Callable[[Step], Any]


def every(n: int, begin: int = 0, end: int | None = None) -> Update:
    """True at `begin`, every `n` steps from there, and at `end`.

    The update at `end` falls there even where `n` does not divide `end - begin`, so that a ramp which ends
    there reaches its final sparsity; without it the last ramp of a schedule would stop short in silence.

    Args:
      n: the interval, 1 or more.
      begin: the first update; 0 or more.
      end: the last update; None goes on for ever.

    Returns:
      A function from a step to a bool: Python's for a Python int, else an array of shape ().

    Raises:
      TypeError: one of them is not an integer.
      ValueError: `n` is below 1, `begin` is negative, or `end` comes before `begin`.

    Example:
      >>> update = every(4, begin=2, end=12)
      >>> [step for step in range(20) if update(step)]
      [2, 6, 10, 12]
    """
    n, begin = check_step(n, "n", least=1), check_step(begin, "begin")
    if end is not None:
        end = check_step(end, "end")
        if end < begin:
            raise ValueError(f"end must not come before begin; got begin={begin}, end={end}")

    def update(step: Step) -> Any:
        step = as_step(step)
        due = (step >= begin) & ((step - begin) % n == 0)
        if end is not None:
            due = due & (step <= end) | (step == end)
        return bool(due) if is_static(step) else jnp.asarray(due)

    return update
