"""Types and checks of steps and sparsities, and `Planned`, a schedule that knows its begin and end."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree

Step = Any  # an int, or an integer array of shape (), traced or not
Sparsity = Any  # a float in [0, 1) for an int step, else a floating array of shape ()
Schedule = Callable[[Step], Sparsity]


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
        """The sparsity at a step."""
        return self.value(as_step(step))

    def __repr__(self) -> str:
        return self.call


def is_static(step: Any) -> bool:
    """Whether a step is a plain integer, for which a schedule returns a Python float.

    Example:
      >>> is_static(3), is_static(jnp.int32(3))
      (True, False)
    """
    return isinstance(step, int | np.integer) and not isinstance(step, bool)


def as_step(step: Any) -> Any:
    """A step as a Python int, or as an integer array of 32 bits at least.

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
    """The number of steps from `step` to `end`, limited to the range from 0 to `end - begin`.

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


def check_sparsity(sparsity: Any, what: str) -> Any:
    """Checks a sparsity in [0, 1) and returns it as a float; a traced sparsity is returned unchecked.

    Args:
      sparsity: a real number, or an array of shape ().
      what: the name of the sparsity in messages.

    Returns:
      A Python float, or the traced array.

    Raises:
      TypeError: `sparsity` is not a real number.
      ValueError: `sparsity` is outside [0, 1).
    """
    if isinstance(sparsity, Tracer):
        return sparsity
    if np.ndim(sparsity) or not np.issubdtype(np.asarray(sparsity).dtype, np.number) or np.iscomplexobj(sparsity):
        raise TypeError(f"{what} must be a number, the fraction removed; got {sparsity!r}")
    value = float(sparsity)
    if not 0 <= value < 1:
        hint = "; a percentage must be divided by 100" if 1 < value <= 100 else ""
        raise ValueError(f"{what} must be in [0, 1), the fraction removed; got {value}{hint}")
    return value


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
    """Raises unless a schedule takes a step and returns one value; what it is at which step is not looked into.

    Raises:
      TypeError: it does not take a step, or returns something else than a number.
    """
    step = jax.ShapeDtypeStruct((), jnp.int32)
    value = jax.eval_shape(lambda at: _tree.call(schedule, "schedule", "schedule(step)", at), step)
    if getattr(value, "shape", None) != ():
        raise TypeError(f"schedule(step) must return a number in [0, 1), the sparsity; got {_tree.shown(value)}")
