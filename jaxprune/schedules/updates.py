"""Update rules: `every` says at which steps masks are updated; `covering` derives a rule from a schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxprune.schedules.steps import Planned, Schedule, Step, as_step, check_step, is_static

Update = Callable[[Step], Any]


@dataclass(frozen=True)
class every:  # users call it as a function, and it prints as that call
    """True at `begin`, every `n` steps from there, and at `end`.

    The masks are also updated at `end` if `n` does not divide `end - begin`, so a schedule that ends at the same step
    reaches its final sparsity.

    Args:
      n: the number of steps between two updates, an int of 1 or more.
      begin: the step of the first update, an int of 0 or more; default 0.
      end: the step of the last update, an int not below `begin`; default None: the updates never end.

    Returns:
      A function from a step to a bool: a Python bool for a Python int, else an array of shape ().

    Raises:
      TypeError: an argument is not an integer.
      ValueError: `n` is below 1, `begin` is negative, or `end` comes before `begin`.

    Example:
      >>> update = every(4, begin=2, end=12)
      >>> [step for step in range(20) if update(step)]
      [2, 6, 10, 12]
      >>> update
      every(n=4, begin=2, end=12)
    """

    n: int
    begin: int = 0
    end: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_step(self.n, "n", least=1))
        object.__setattr__(self, "begin", check_step(self.begin, "begin"))
        if self.end is not None:
            object.__setattr__(self, "end", check_step(self.end, "end"))
            if self.end < self.begin:
                raise ValueError(f"end must not come before begin; got begin={self.begin}, end={self.end}")

    def __call__(self, step: Step) -> Any:
        """Whether the masks are updated at this step."""
        step = as_step(step)
        due = (step >= self.begin) & ((step - self.begin) % self.n == 0)
        if self.end is not None:
            due = due & (step <= self.end) | (step == self.end)
        return bool(due) if is_static(step) else jnp.asarray(due)

    def first_from(self, step: int) -> int | None:
        """The step of the first update at or after `step`; None if no update follows."""
        following = self.begin + max(0, -(-(step - self.begin) // self.n)) * self.n
        if self.end is None or following <= self.end:
            return following
        return self.end if step <= self.end else None


def covering(schedule: Schedule) -> Update:
    """The updates that a schedule needs to reach its final sparsity in a run of its length.

    Args:
      schedule: a function from a step to a sparsity.

    Returns:
      For a schedule that knows its end: every 100 steps from its begin to its end, or every tenth of its length if that
      is shorter. For any other function: every step.

    Example:
      >>> from jaxprune import schedules
      >>> covering(schedules.cubic(begin=0, end=60, final=0.9))
      every(n=6, begin=0, end=60)
    """
    return every(schedule.interval, schedule.begin, schedule.end) if isinstance(schedule, Planned) else every(1)
