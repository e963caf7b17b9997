"""What a choice costs: parameters, memory, FLOPs, measured latency. For `choose_budget`."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune._jaxprs import count_flops, trace
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.slim import slim

PyTree = Any
Cost = Callable[[Choice], float]
Measure = Callable[..., float]


def parameters(choice: Choice) -> float:
    """The number of entries of all leaves that are left."""
    return float(sum(int(np.prod(kept.small)) for kept in choice.manifest().leaves if kept.shape is not None))


def memory(choice: Choice) -> float:
    """The bytes of all leaves that are left."""
    pairs = zip(choice.manifest().leaves, choice.groups.analysis.leaves, strict=True)
    return float(sum(np.prod(k.small) * np.dtype(leaf.dtype).itemsize for k, leaf in pairs if k.shape is not None))


def flops(fn: Callable[..., PyTree], params: PyTree, *inputs: Any) -> Cost:
    """The FLOPs of the smaller function's products and convolutions, counted from its jaxpr; nothing is computed.

    Args:
      fn: the function.
      params: its whole parameters, or their shapes.
      *inputs: what it is applied to, or their shapes.

    Returns:
      A cost of choices.
    """
    shapes = jax.tree.map(_shape, params)

    def cost(choice: Choice) -> float:
        small = slim(fn, shapes, choice, *inputs)
        return float(count_flops(trace(small.fn, small.params, *inputs).closed).total)

    return cost


def latency(
    fn: Callable[..., PyTree], params: PyTree, *inputs: Any, repeats: int = 20, measure: Measure | None = None
) -> Cost:
    """The median seconds of a call of the smaller function, compiled, on the default device.

    Time is not monotone in widths: on many machines a few channels less than a multiple of 8 are slower than all of
    them. Give `choose_budget` limits with a `round_to` that the machine likes; its docstring says what holds otherwise.

    Args:
      fn: the function.
      params: its whole parameters.
      *inputs: arrays that it is applied to.
      repeats: the number of timed calls.
      measure: `measure(fn, params, *inputs) -> seconds`, in place of the clock of this machine: another statistic,
        another device, a table of measured layers. It gets the smaller function, not compiled.

    Returns:
      A cost of choices. Each call compiles the smaller function.

    Raises:
      ValueError: fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more; got {repeats}")
    timed = measure or partial(_median_seconds, repeats)

    def cost(choice: Choice) -> float:
        small = slim(fn, params, choice, *inputs)
        return float(timed(small.fn, small.params, *inputs))

    return cost


def _median_seconds(repeats: int, fn: Callable[..., PyTree], params: PyTree, *inputs: Any) -> float:
    compiled = jax.jit(fn)
    _ = jax.block_until_ready(compiled(params, *inputs))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        _ = jax.block_until_ready(compiled(params, *inputs))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
