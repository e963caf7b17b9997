"""What a choice costs: parameters, memory, FLOPs, measured latency. For `choose_budget`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxprune.jaxprs import count_flops, trace
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.slim import slim

PyTree = Any
Cost = Callable[[Choice], float]


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


def latency(fn: Callable[..., PyTree], params: PyTree, *inputs: Any, repeats: int = 20) -> Cost:
    """The median seconds of a call of the smaller function, compiled, on the default device.

    Args:
      fn: the function.
      params: its whole parameters.
      *inputs: arrays that it is applied to.
      repeats: the number of timed calls.

    Returns:
      A cost of choices. Each call compiles the smaller function.
    """

    def cost(choice: Choice) -> float:
        small = slim(fn, params, choice, *inputs)
        compiled = jax.jit(small.fn)
        _ = jax.block_until_ready(compiled(small.params, *inputs))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            _ = jax.block_until_ready(compiled(small.params, *inputs))
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return cost


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
