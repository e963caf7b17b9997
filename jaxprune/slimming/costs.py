"""The cost of a choice, for `choose`: `parameters`, `memory`, `flops`, measured `latency`."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune.slimming._labels.analysis import analyse
from jaxprune.slimming._labels.flops import flops_of
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.groups import Groups
from jaxprune.slimming.manifest import entries
from jaxprune.slimming.slim import slim

PyTree = Any
Cost = Callable[[Choice], float]
Measure = Callable[..., float]


def parameters(choice: Choice) -> float:
    """Returns the number of entries of all leaves after slimming.

    Args:
      choice: the choice.

    Returns:
      A whole number, as a float.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.ones((3, 4)), 'b': np.ones((4, 2))}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, np.ones((5, 3)))
      >>> parameters(Choice.remove(groups, {})), parameters(Choice.remove(groups, {'a[1]': [0]}))
      (20.0, 15.0)
    """
    return float(entries(choice.manifest())[0])


def memory(choice: Choice) -> float:
    """Returns the bytes of all leaves after slimming.

    Args:
      choice: the choice.

    Returns:
      A whole number, as a float.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.ones((3, 4), 'f4'), 'b': np.ones((4, 2), 'f2')}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, np.ones((5, 3)))
      >>> memory(Choice.remove(groups, {}))
      64.0
    """
    pairs = zip(choice.manifest().leaves, choice.groups.analysis.leaves, strict=True)
    return float(sum(np.prod(k.small) * np.dtype(leaf.dtype).itemsize for k, leaf in pairs if k.shape is not None))


def flops(fn: Callable[..., PyTree] | Groups, params: PyTree = None, *inputs: Any) -> Cost:
    """Makes a cost: the FLOPs of the smaller function's matrix products and convolutions, counted without running it.

    The function is traced once. Each choice is then counted from the remaining sizes of the traced axes, which takes
    milliseconds. The result equals the count of the smaller function's own program, 2 for each multiply-add.

    Args:
      fn: the function; or the groups that `find_groups` returned, to count the function that they were found for
        without tracing it again.
      params: its whole parameters, or their shapes; not given with groups.
      *inputs: the inputs of the function, or their shapes; not given with groups.

    Returns:
      A cost: a function from a choice to its FLOPs.

    Raises:
      TypeError: groups are given together with parameters; or `fn` is not a function.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.ones((3, 4)), 'b': np.ones((4, 2))}
      >>> fn = lambda p, x: x @ p['a'] @ p['b']
      >>> groups, cost = find_groups(fn, params, np.ones((5, 3))), flops(fn, params, np.ones((5, 3)))
      >>> cost(Choice.remove(groups, {})), cost(Choice.remove(groups, {'a[1]': [0]}))
      (200.0, 150.0)
      >>> flops(groups)(Choice.remove(groups, {'a[1]': [0]}))
      150.0
    """
    if not isinstance(fn, Groups):
        analysis = analyse(fn, params, inputs, fix_outputs=True)
    elif params is None and not inputs:
        analysis = fn.analysis
    else:
        raise TypeError("flops takes either groups alone, or a function with its parameters and inputs; got both")
    count = flops_of(analysis)
    return lambda choice: float(count(choice))


def latency(
    fn: Callable[..., PyTree], params: PyTree, *inputs: Any, repeats: int = 20, measure: Measure | None = None
) -> Cost:
    """Makes a cost: the median seconds of a call of the compiled smaller function, on the default device.

    Time is not monotone in widths: on many machines, a width slightly below a multiple of 8 is slower than the
    multiple. Give `choose` limits with a suitable `round_to`; its docstring explains what a time target means.

    Args:
      fn: the function.
      params: its whole parameters.
      *inputs: the inputs of the function, as arrays.
      repeats: the number of timed calls, 1 or more. Default: 20.
      measure: `measure(fn, params, *inputs) -> seconds`, in place of the clock of this machine: another statistic,
        another device, a table of measured layers. It receives the smaller function, not compiled.

    Returns:
      A cost: a function from a choice to seconds. Each call compiles the smaller function.

    Raises:
      ValueError: `repeats` is below 1.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.ones((3, 4)), 'b': np.ones((4, 2))}
      >>> fn = lambda p, x: x @ p['a'] @ p['b']
      >>> groups = find_groups(fn, params, np.ones((5, 3)))
      >>> latency(fn, params, np.ones((5, 3)), repeats=3)(Choice.remove(groups, {})) > 0
      True
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
