"""The cost of a choice, for `choose`: `parameters`, `memory`, `flops`, measured `latency`."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune._jaxprs import count_flops, is_product, live, multiply_adds, sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, Product
from jaxprune.slimming._labels.analysis import analyse, decided, whole_pieces
from jaxprune.slimming._labels.axes import Axis, is_fixed
from jaxprune.slimming._labels.evaluate import Decision, Piece, labels_that_go
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.labels import Labels
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.groups import Groups
from jaxprune.slimming.slim import slim

PyTree = Any
Cost = Callable[[Choice], float]
Measure = Callable[..., float]
Count = Callable[[Decision], int]


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
    return float(sum(int(np.prod(kept.small)) for kept in choice.manifest().leaves if kept.shape is not None))


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
    whole, count = whole_pieces(analysis), _counter(analysis.frame, _one_of_equal(analysis.labels))
    distinct: dict[Groups, list[tuple[Piece, np.ndarray]] | None] = {}

    def cost(choice: Choice) -> float:
        groups = choice.groups
        if groups not in distinct:
            distinct.clear()  # one choice after another has the same groups
            distinct[groups] = _distinct_pieces(groups, whole)
        pieces, keep = distinct[groups], np.append(choice.keep, True)
        try:
            if pieces is not None:
                decided_pieces = [piece._replace(stay=keep[units].all(-1)) for piece, units in pieces]
                return float(count(Decision(analysis.labels, labels_that_go(analysis.labels, decided_pieces))))
        except ValueError:  # `decided` raises it again, and names all leaves
            pass
        return float(count(decided(analysis, choice.manifest(), whole)))

    return cost


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


def _distinct_pieces(groups: Groups, whole: Sequence[tuple[int, int, Piece]]) -> list[tuple[Piece, np.ndarray]] | None:
    """Returns one of all axes with the same labels and units, and its units: (n, k), -1 where a unit cannot be removed.

    The leaves of a network have far more axes than distinct ones: a kernel, its bias, its norm and the next kernel
    share theirs. Returns None if layers of stacked leaves have their own units.
    """
    found: dict[Any, tuple[Piece, np.ndarray]] = {}
    for k, axis, piece in whole:
        units = groups.units[k][axis]
        if not (units >= 0).any():
            units = np.full((piece.stay.size, 1), -1)
        elif units.ndim > 2 or piece.ids.ndim > 1 or len(units) != piece.stay.size:
            return None
        atoms = np.asarray(piece.atoms)
        found.setdefault((atoms.shape, atoms.tobytes(), units.shape, units.tobytes()), (piece, units))
    return list(found.values())


def _one_of_equal(labels: Labels) -> Callable[[Axis], Axis]:
    """Returns a function from an axis to the first axis it saw with the same labels, so that each is sized once."""
    known: dict[Any, Axis] = {}

    def one(axis: Axis) -> Axis:
        roots = [None if factor.of is None else labels.find(factor.of) for factor in axis]
        key = tuple((f.size, r if r is None else (r.shape, r.tobytes())) for f, r in zip(axis, roots, strict=True))
        return known.setdefault(key, axis)

    return one


def _counter(frame: Frame, one: Callable[[Axis], Axis]) -> Count:
    """Counts the FLOPs of a traced program from the remaining sizes, in the same way as `count_flops`."""
    parts: list[Count] = []
    for index, eqn in live(frame.jaxpr):
        if is_product(eqn):
            parts.append(_product(frame, eqn, one))
            continue
        subs, children = sub_jaxprs(eqn), frame.children.get(index)
        if children is None:  # nothing shrinks in what slimming does not enter
            known = [sub for sub in subs if sub.role != "unknown"]
            flops = sum(count_flops(sub).total * (1 if sub.length is None else sub.length) for sub in known)
            parts += [lambda decision, flops=flops: flops] if flops else []
            continue
        inside = [_counter(child, one) for child in children]
        if subs[0].role == "branch":
            parts.append(lambda decision, inside=inside: max(count(decision) for count in inside))
        elif subs[0].role == "scan":
            turns = [one(frame.read(eqn.invars[k])[0]) for k in sorted(subs[0].stacked_inputs)[:1]]
            parts.append(_times(inside[0], subs[0].length or 0, turns))
        else:
            parts += [count for count in inside if count is not _nothing]
    return (lambda decision: sum(count(decision) for count in parts)) if parts else _nothing


def _product(frame: Frame, eqn: Any, one: Callable[[Axis], Axis]) -> Count:
    """Counts a matrix product or a convolution: 2 for each multiply-add of the remaining part of each axis."""
    primitive = PRIMITIVES[eqn.primitive.name]
    if isinstance(primitive, Product):
        (_, contracted), (_, batch) = primitive.numbers(eqn)
        left = range(eqn.invars[0].aval.ndim)
        right = [axis for axis in range(eqn.invars[1].aval.ndim) if axis not in (*contracted, *batch)]
    else:  # samples and features of a convolution; windows do not shrink
        numbers = eqn.params["dimension_numbers"]
        left, right = numbers.lhs_spec[:1], numbers.rhs_spec[:2]
    lhs, rhs = map(frame.read, eqn.invars)
    axes = [one(lhs[axis]) for axis in left] + [one(rhs[axis]) for axis in right]
    flops = 2 * multiply_adds(eqn).total
    return _times(lambda decision: flops, 1, axes)


def _times(count: Count, length: int, axes: Sequence[Axis]) -> Count:
    """Returns a count times a length; each axis of the length may shrink."""
    shrinking = [axis for axis in axes if not is_fixed(axis)]

    def counted(decision: Decision) -> int:
        total = count(decision) * length
        for keep in map(decision.keep, shrinking):
            if keep is not None:
                total = total // keep.full * keep.size
        return total

    return _nothing if count is _nothing else counted


def _nothing(decision: Decision) -> int:
    del decision
    return 0
