"""Schedules: `cubic` and others give a sparsity for each step, `every` says at which steps masks are updated.

A schedule is any function `step -> sparsity`, and an update rule is any function `step -> bool`. The schedules and
rules of this module print as the call that made them, and store the steps at which they begin and end.
"""

from jaxprune.schedules.ramps import cubic as cubic
from jaxprune.schedules.ramps import cyclic as cyclic
from jaxprune.schedules.ramps import exponential as exponential
from jaxprune.schedules.ramps import from_optax as from_optax
from jaxprune.schedules.ramps import jump as jump
from jaxprune.schedules.ramps import ramp as ramp
from jaxprune.schedules.steps import every as every

__all__ = [
    "cubic",
    "cyclic",
    "every",
    "exponential",
    "from_optax",
    "jump",
    "ramp",
]
