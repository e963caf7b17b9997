"""Steps: `every` and `covering` say when masks are updated; `Planned` is a schedule that knows its begin and end."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree

Step = Any  # an int, or an integer array of shape (), traced or not
Sparsity = Any  # a float in [0, 1) for an int step, else a floating array of shape ()
Schedule = Callable[[Step], Sparsity]
Update = Callable[[Step], Any]


@dataclass(frozen=True, eq=False)
class Planned:
    """A schedule that knows where it begins and ends, and prints as the call that made it.

    Attributes:
      call: the call that made the schedule.
      begin: the last step at the initial sparsity.
      end: the first step at the final sparsity, which then stays constant.
      interval: the number of steps between mask updates that suffices to follow the schedule.
      value: the function from a step to a sparsity.
    """

    call: str
    begin: int
    end: int
    interval: int
    value: Callable[[Step], Sparsity]

    def __call__(self, step: Step) -> Sparsity:
        """Returns the sparsity at a step."""
        return self.value(as_step(step))

    def __repr__(self) -> str:
        return self.call


@dataclass(frozen=True)
class every:  # users call it as a function, and it prints as that call
    """Updates masks at `begin`, every `n` steps from there, and at `end`.

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
        """Returns whether the masks are updated at this step."""
        step = as_step(step)
        due = (step >= self.begin) & ((step - self.begin) % self.n == 0)
        if self.end is not None:
            due = due & (step <= self.end) | (step == self.end)
        return bool(due) if is_static(step) else jnp.asarray(due)

    def first_from(self, step: int) -> int | None:
        """Returns the step of the first update at or after `step`; None if no update follows."""
        following = self.begin + max(0, -(-(step - self.begin) // self.n)) * self.n
        if self.end is None or following <= self.end:
            return following
        return self.end if step <= self.end else None


def covering(schedule: Schedule) -> Update:
    """Returns the updates that a schedule needs to reach its final sparsity in a run of its length.

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


def is_static(step: Any) -> bool:
    """Returns whether a step is a plain integer, for which a schedule returns a Python float.

    Example:
      >>> is_static(3), is_static(jnp.int32(3))
      (True, False)
    """
    return isinstance(step, int | np.integer) and not isinstance(step, bool)


def as_step(step: Any) -> Any:
    """Returns a step as a Python int, or as an integer array of 32 bits at least.

    Args:
      step: an int, or an integer array (traced or not) of shape ().

    Returns:
      An int for a static step, else an array.

    Raises:
      TypeError: the step is not an integer. Floats raise, because a float32 counter stops at 2^24.
    """
    if is_static(step):
        return int(step)
    dtype = getattr(step, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        got = dtype if dtype is not None else type(step).__name__
        raise TypeError(f"a schedule takes an integer step; got {got}: count the steps in an int32")
    return jnp.asarray(step, jnp.int32 if dtype.itemsize < 4 else dtype)


def steps_left(step: Any, begin: int, end: int) -> Any:
    """Returns the number of steps from `step` to `end`, limited to the range from 0 to `end - begin`.

    The difference is computed in integers and then rounded to a float, with a relative error of 2^-24 at any step. A
    float32 step would lose whole steps after 2^24.

    Args:
      step: from `as_step`.
      begin: the first step of the interval, an int.
      end: the last step of the interval, an int.

    Returns:
      An int for a static step, else an array of the default float dtype.

    Example:
      >>> steps_left(12, 10, 20), steps_left(jnp.int32(2**30 - 1), 0, 2**30)
      (8, Array(1., dtype=float32))
    """
    if is_static(step):
        return end - min(max(step, begin), end)
    if end > jnp.iinfo(step.dtype).max:
        raise ValueError(f"end={end} does not fit the step's dtype, {step.dtype}")
    return (end - jnp.clip(step, begin, end)).astype(jnp.result_type(float))


def check_step(step: Any, what: str, least: int = 0) -> int:
    """Checks a step number given by the user: an integer of `least` or more.

    Raises:
      TypeError: the step is not an integer; step numbers are static.
      ValueError: the step is below `least`.
    """
    try:
        value = operator.index(step)
    except TypeError:
        raise TypeError(f"{what} must be an integer; got {step!r}") from None
    if value < least:
        raise ValueError(f"{what} must be {least} or more; got {value}")
    return value


def check_interval(begin: Any, end: Any) -> tuple[int, int]:
    """Checks the two ends of a ramp and returns them as ints.

    Raises:
      TypeError: an end is not an integer.
      ValueError: `begin` is negative, or `end` is not after `begin`.
    """
    begin, end = check_step(begin, "begin"), check_step(end, "end")
    if end <= begin:
        raise ValueError(f"end must come after begin; got begin={begin}, end={end} (jump changes in a single step)")
    return begin, end


def check_schedule(schedule: Any) -> None:
    """Raises unless a schedule takes a step and returns one number; the number itself is not checked.

    Raises:
      TypeError: the schedule does not take a step, or does not return a number.
    """
    step = jax.ShapeDtypeStruct((), jnp.int32)
    value = jax.eval_shape(lambda at: _tree.call(schedule, "schedule", "schedule(step)", at), step)
    if getattr(value, "shape", None) != ():
        raise TypeError(f"schedule(step) must return a number in [0, 1), the sparsity; got {_tree.shown(value)}")
