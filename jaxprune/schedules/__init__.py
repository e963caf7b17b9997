"""Schedules: from a step to a sparsity, and from a step to whether masks are recomputed."""

from jaxprune.schedules.optax import from_optax as from_optax
from jaxprune.schedules.ramps import constant as constant
from jaxprune.schedules.ramps import cubic as cubic
from jaxprune.schedules.ramps import cyclic as cyclic
from jaxprune.schedules.ramps import exponential as exponential
from jaxprune.schedules.ramps import jump as jump
from jaxprune.schedules.ramps import ramp as ramp
from jaxprune.schedules.steps import Schedule as Schedule
from jaxprune.schedules.steps import Sparsity as Sparsity
from jaxprune.schedules.steps import Step as Step
from jaxprune.schedules.updates import Update as Update
from jaxprune.schedules.updates import every as every
