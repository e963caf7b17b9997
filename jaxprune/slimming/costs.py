"""What a choice costs: `parameters`, `memory`, `flops`, measured `latency`; for `choose`."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune._jaxprs import count_flops, is_product, live, multiply_adds, sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune.slimming._labels.analysis import analyse
from jaxprune.slimming._labels.evaluate import Decision
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.slim import decided, slim

PyTree = Any
Cost = Callable[[Choice], float]
Measure = Callable[..., float]


def parameters(choice: Choice) -> float:
    """The number of entries of all leaves that are left.

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
    return float(sum(int(np.prod(kept.small)) for kept in choice.manifest().leaves if kept.shape is not None))


def memory(choice: Choice) -> float:
    """The bytes of all leaves that are left.

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


def flops(fn: Callable[..., PyTree], params: PyTree, *inputs: Any) -> Cost:
    """The FLOPs of the smaller function's matrix products and convolutions; nothing is computed.

    The function is traced once. Each choice is counted from the sizes that are left of the traced axes: milliseconds
    for a ResNet-56. The count is that of the smaller function's own program, 2 for each multiply-add.

    Args:
      fn: the function.
      params: its whole parameters, or their shapes.
      *inputs: what it is applied to, or their shapes.

    Returns:
      A cost: a function from a choice to its FLOPs.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.ones((3, 4)), 'b': np.ones((4, 2))}
      >>> fn = lambda p, x: x @ p['a'] @ p['b']
      >>> groups, cost = find_groups(fn, params, np.ones((5, 3))), flops(fn, params, np.ones((5, 3)))
      >>> cost(Choice.remove(groups, {})), cost(Choice.remove(groups, {'a[1]': [0]}))
      (200.0, 150.0)
    """
    analysis = analyse(fn, params, inputs, fix_outputs=True)
    return lambda choice: float(_flops(decided(analysis, choice.manifest()), analysis.frame))


def latency(
    fn: Callable[..., PyTree], params: PyTree, *inputs: Any, repeats: int = 20, measure: Measure | None = None
) -> Cost:
    """The median seconds of a call of the smaller function, compiled, on the default device.

    Time is not monotone in widths: on many machines a few channels less than a multiple of 8 are slower than all of
    them. Give `choose` limits with a `round_to` that the machine likes; its docstring says what holds otherwise.

    Args:
      fn: the function.
      params: its whole parameters.
      *inputs: arrays that it is applied to.
      repeats: the number of timed calls, 1 or more. Default: 20.
      measure: `measure(fn, params, *inputs) -> seconds`, in place of the clock of this machine: another statistic,
        another device, a table of measured layers. It gets the smaller function, not compiled.

    Returns:
      A cost: a function from a choice to seconds. Each call compiles the smaller function.

    Raises:
      ValueError: fewer than one repeat.

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


def _flops(decision: Decision, frame: Frame) -> int:
    """The FLOPs of a traced program with the sizes that a decision leaves, counted as `count_flops` counts."""
    total = 0
    for index, eqn in live(frame.jaxpr):
        if is_product(eqn):
            total += _product_flops(decision, frame, eqn)
            continue
        subs, children = sub_jaxprs(eqn), frame.children.get(index)
        if children is None:  # nothing shrinks in what slimming does not enter
            known = [sub for sub in subs if sub.role != "unknown"]
            total += sum(count_flops(sub).total * (1 if sub.length is None else sub.length) for sub in known)
            continue
        inside = [_flops(decision, child) for child in children]
        if subs[0].role == "branch":
            total += max(inside)
        elif subs[0].role == "scan":
            stacked = [decision.keep(frame.read(eqn.invars[k])[0]) for k in sorted(subs[0].stacked_inputs)[:1]]
            total += inside[0] * (stacked[0].size if stacked and stacked[0] is not None else subs[0].length or 1)
        else:
            total += sum(inside)
    return total


def _product_flops(decision: Decision, frame: Frame, eqn: Any) -> int:
    """The FLOPs of a matrix product or a convolution: those of the whole sizes, by the part that is left of each."""
    primitive = PRIMITIVES[eqn.primitive.name]
    if isinstance(primitive, Product):
        (_, contracted), (_, batch) = primitive.numbers(eqn)
        left = range(eqn.invars[0].aval.ndim)
        right = [axis for axis in range(eqn.invars[1].aval.ndim) if axis not in (*contracted, *batch)]
    else:  # samples and features of a convolution; windows do not shrink
        numbers = eqn.params["dimension_numbers"]
        left, right = numbers.lhs_spec[:1], numbers.rhs_spec[:2]
    total = 2 * multiply_adds(eqn).total
    for var, axes in ((eqn.invars[0], left), (eqn.invars[1], right)):
        for axis in axes:
            keep = decision.keep(frame.read(var)[axis])
            if keep is not None:
                total = total // keep.full * keep.size
    return total
