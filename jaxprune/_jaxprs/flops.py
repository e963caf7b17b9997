"""`count_flops` counts the FLOPs of a traced function by operation and parameter; `shares` splits them by leaf."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._jaxprs.primitives import PRIMITIVES, Convolution, Entrywise, Mix, Product, Ragged, Reduce
from jaxprune._jaxprs.primitives import Flops as Cost
from jaxprune._jaxprs.weights import Lost, Met, State, Weight, follow

Equation = Any


class Operation(NamedTuple):
    """One equation that multiplies, over all its runs.

    Attributes:
      primitive: the name of the primitive.
      path: the equations around it, starting with the outermost.
      flops: 2 for each multiply-add, over all runs.
      repeats: how often it runs when the function runs once.
      weight: the parameter leaves that it multiplies by; None if its operands are activations or were lost.
      per_entry: multiply-adds of each entry of the weight in one run, broadcasting to the weight's shape.
      lost: the leaves of an operand that could not be followed, and where they were lost.
    """

    primitive: str
    path: tuple[str, ...]
    flops: int
    repeats: int
    weight: Weight | None = None
    per_entry: np.ndarray | None = None
    lost: Lost | None = None


class Flops(NamedTuple):
    """The FLOPs of a function.

    Attributes:
      operations: matrix products and convolutions, in order.
      elementwise: FLOPs of other arithmetic, one for each entry; None if not requested.
      uncounted: how often primitives without a known count run (an FFT, a decomposition, a kernel).
      unbounded: the paths of `while` loops, whose bodies are counted as running once.
    """

    operations: tuple[Operation, ...]
    elementwise: int | None
    uncounted: dict[str, int]
    unbounded: tuple[str, ...]

    @property
    def total(self) -> int:
        """All FLOPs counted."""
        return sum(operation.flops for operation in self.operations) + (self.elementwise or 0)


def count_flops(closed: Any, params: Sequence[int] = (), *, elementwise: bool = False) -> Flops:
    """Counts the FLOPs of a jaxpr: 2 for each multiply-add of a matrix product or a convolution.

    The body of a scan counts as often as it runs. A cond counts its branch with the most FLOPs. The body of a `while`
    counts once, and `unbounded` names the loop. A shard_map counts the work of all its devices. Dead code does not
    count. See `multiply_adds` for what counts in a convolution.

    Args:
      closed: a closed jaxpr, such as `trace(fn, *args).closed`.
      params: positions of the parameters in its invars; operations are attributed to them.
      elementwise: whether other arithmetic counts too: one FLOP for each entry of the result of an elementwise
        function, and one for each entry that a reduction or a pooling window reads. Default False.

    Returns:
      The operations, and the names of what was not counted.

    Example:
      >>> from jaxprune._jaxprs.walk import trace
      >>> traced = trace(lambda w, x: jnp.tanh(x @ w), jnp.ones((3, 5)), jnp.ones((2, 3)))
      >>> count_flops(traced.closed).total, count_flops(traced.closed, elementwise=True).total
      (60, 70)
    """
    met = follow(closed, params, choose=_most)
    operations = tuple(_operation(m) for m in met if is_product(m.eqn))
    uncounted = Counter[str]()
    for m in met:
        if _cost(m.eqn) is Cost.UNKNOWN:
            uncounted[m.eqn.primitive.name] += m.repeats
    rest = sum(map(_elementwise, met)) if elementwise else None
    loops = dict.fromkeys("/".join(m.path) for m in met if "while" in m.path and (_flops(m) or _elementwise(m)))
    return Flops(operations, rest, dict(uncounted), tuple(loops))


def _most(branches: list[list[Met]]) -> list[Met]:
    return max(branches, key=lambda met: (sum(map(_flops, met)), sum(map(_elementwise, met))))


def _flops(met: Met) -> int:
    return 2 * multiply_adds(met.eqn).total * met.repeats if is_product(met.eqn) else 0


def _operation(met: Met) -> Operation:
    counted = multiply_adds(met.eqn)
    operation = Operation(met.eqn.primitive.name, met.path, 2 * counted.total * met.repeats, met.repeats)
    weights = [k for k, state in enumerate(met.states) if isinstance(state, Weight)]
    if weights:
        k = min(weights, key=lambda k: _preference(met, met.states[k], k))
        weight = met.states[k]
        return operation._replace(weight=weight, per_entry=counted.per_entry[k])
    return operation._replace(lost=next((s for s in met.states if isinstance(s, Lost)), None))


def _preference(met: Met, state: State, k: int) -> tuple[bool, int]:
    # If both operands are weights, the weight that is not broadcast is preferred, then the larger weight.
    return isinstance(state, Weight) and state.broadcast, -met.eqn.invars[k].aval.size


def _elementwise(met: Met) -> int:
    cost, out = _cost(met.eqn), met.eqn.outvars[0].aval
    if cost in (Cost.NONE, Cost.UNKNOWN) or not jnp.issubdtype(out.dtype, jnp.inexact):
        return 0
    if cost is Cost.WINDOW:
        return met.repeats * math.prod(out.shape) * math.prod(met.eqn.params["window_dimensions"])
    return met.repeats * math.prod(met.eqn.invars[0].aval.shape if cost is Cost.OPERAND else out.shape)


def _cost(eqn: Equation) -> Cost:
    """Counts the operations of an equation that is not a product."""
    what = PRIMITIVES.get(eqn.primitive.name)
    if what is None:
        return Cost.UNKNOWN
    return what.flops if isinstance(what, (Entrywise, Reduce, Mix)) else Cost.NONE


class MultiplyAdds(NamedTuple):
    """The multiply-adds of one run of an equation.

    Attributes:
      total: the number of multiply-adds.
      per_entry: for each of the two operands an int64 array that broadcasts to its shape: the multiply-adds of each
        entry. Summed over the whole operand they give `total`.
    """

    total: int
    per_entry: tuple[np.ndarray, np.ndarray]


def is_product(eqn: Equation) -> bool:
    """Returns whether an equation is a matrix product or a convolution."""
    return isinstance(PRIMITIVES.get(eqn.primitive.name), (Product, Ragged, Convolution))


def multiply_adds(eqn: Equation) -> MultiplyAdds:
    """Counts the multiply-adds of an equation exactly.

    A dot_general uses every entry of an operand equally often. A convolution uses an entry of the kernel once for each
    output position at which it multiplies an entry of the input. Padding and the holes of a dilated input do not count,
    so the taps at the border of a SAME convolution count less often. XLA's cost analysis counts in the same way. Zero
    times a number counts; a complex number counts as one number. A ragged product uses each row once; its rows count as
    spread evenly over the groups.

    Args:
      eqn: a product or a convolution (`is_product`).

    Returns:
      The counts.

    Example:
      >>> import jax
      >>> eqn = jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 5))).jaxpr.eqns[0]
      >>> counted = multiply_adds(eqn)
      >>> counted.total, counted.per_entry[0].item(), counted.per_entry[1].item()
      (30, 5, 2)
    """
    what = PRIMITIVES[eqn.primitive.name]
    if isinstance(what, Ragged):
        return _ragged(eqn)
    return _product_of(eqn, what) if isinstance(what, Product) else _conv(eqn)


def _ragged(eqn: Equation) -> MultiplyAdds:
    (rows, inputs), (groups, *_, outputs) = (v.aval.shape for v in eqn.invars[:2])
    each = rows // groups + (np.arange(groups, dtype=np.int64) < rows % groups)
    return MultiplyAdds(rows * inputs * outputs, (_filled(2, outputs), each.reshape(groups, 1, 1)))


def _product_of(eqn: Equation, what: Product) -> MultiplyAdds:
    lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
    (contract_l, contract_r), (batch_l, batch_r) = what.numbers(eqn)
    free_l = _of_axes(lhs, {*range(len(lhs))} - {*contract_l} - {*batch_l})
    free_r = _of_axes(rhs, {*range(len(rhs))} - {*contract_r} - {*batch_r})
    total = free_l * free_r * _of_axes(lhs, {*contract_l}) * _of_axes(lhs, {*batch_l})
    return MultiplyAdds(total, (_filled(len(lhs), free_r), _filled(len(rhs), free_l)))


def _conv(eqn: Equation) -> MultiplyAdds:
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    p = eqn.params
    lhs_spec, rhs_spec, out_spec = p["dimension_numbers"]
    met = []
    for d in range(len(lhs) - 2):
        sizes = lhs[lhs_spec[2 + d]], rhs[rhs_spec[2 + d]], out[out_spec[2 + d]]
        steps = p["window_strides"][d], p["padding"][d][0], p["lhs_dilation"][d], p["rhs_dilation"][d]
        met.append(met_1d(*sizes, *steps))
    # Every kernel entry multiplies its input feature in each sample of its batch group. Every input entry is used by
    # all the output features of its feature group and batch group.
    samples = lhs[lhs_spec[0]] // p["batch_group_count"]
    features = rhs[rhs_spec[0]] // (p["feature_group_count"] * p["batch_group_count"])
    per_lhs = _outer(len(lhs), [(lhs_spec[2 + d], m.sum(0)) for d, m in enumerate(met)], features)
    per_rhs = _outer(len(rhs), [(rhs_spec[2 + d], m.sum(1)) for d, m in enumerate(met)], samples)
    pairs = math.prod(int(m.sum()) for m in met)
    return MultiplyAdds(pairs * samples * rhs[rhs_spec[0]] * rhs[rhs_spec[1]], (per_lhs, per_rhs))


def met_1d(
    size: int, taps: int, positions: int, stride: int, pad: int, lhs_dilation: int, rhs_dilation: int
) -> np.ndarray:
    """Returns how often each tap multiplies each input entry along one axis, (taps, size) of int64.

    At output position o, tap k multiplies position o * stride + k * rhs_dilation - pad of the dilated input, in which
    only multiples of lhs_dilation contain entries.
    """
    place = np.arange(positions)[:, None] * stride + np.arange(taps) * rhs_dilation - pad  # (positions, taps)
    entry, hole = np.divmod(place, lhs_dilation)
    real = (hole == 0) & (entry >= 0) & (entry < size)
    met = np.zeros((taps, size), np.int64)
    np.add.at(met, (np.broadcast_to(np.arange(taps), place.shape)[real], entry[real]), 1)
    return met


def _of_axes(shape: tuple[int, ...], axes: set[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _filled(ndim: int, value: int) -> np.ndarray:
    return np.full((1,) * ndim, value, np.int64)


def _outer(ndim: int, factors: list[tuple[int, np.ndarray]], scale: int) -> np.ndarray:
    result = _filled(ndim, scale)
    for axis, factor in factors:
        result = result * np.expand_dims(factor, [a for a in range(ndim) if a != axis])
    return result


class Share(NamedTuple):
    """The FLOPs of one operation that multiply by one parameter leaf.

    Attributes:
      leaf: the position of the leaf among the inputs of the jaxpr.
      dense: the FLOPs that multiply by this leaf.
      effective: the FLOPs that multiply by a kept entry of this leaf.
    """

    leaf: int
    dense: int
    effective: int


def shares(
    operation: Operation, shapes: Mapping[int, tuple[int, ...]], masks: Mapping[int, np.ndarray]
) -> tuple[Share, ...]:
    """Splits an operation's FLOPs by parameter leaf, dense and effective.

    Every kept entry counts with its multiply-adds: equally many in a matrix product, fewer at the border of a SAME
    convolution. A leaf that a scan slices is counted slice by slice.

    Args:
      operation: one of `count_flops(...).operations`.
      shapes: the shape of each input of the jaxpr that is a parameter.
      masks: bool arrays that broadcast to these shapes, True = kept; a leaf without a mask counts as kept.

    Returns:
      One share for each leaf of the operation's weight; empty if it has no weight.

    Example:
      >>> import jax
      >>> closed = jax.make_jaxpr(lambda w, x: x @ w)(jnp.ones((3, 5)), jnp.ones((2, 3)))
      >>> shares(count_flops(closed, [0]).operations[0], {0: (3, 5)}, {0: np.eye(3, 5, dtype=bool)})
      (Share(leaf=0, dense=60, effective=12),)
    """
    if operation.weight is None:
        return ()
    leaves = operation.weight.leaves
    whole = {leaf: np.broadcast_to(np.True_, shapes[leaf]) for leaf in leaves}
    found = []
    for leaf in leaves:
        # In a concatenation, all other leaves count as absent.
        others = {other: np.broadcast_to(np.False_, shapes[other]) for other in leaves if other != leaf}
        dense = operation.flops if len(leaves) == 1 else _kept_flops(operation, {**others, leaf: whole[leaf]})
        mask = masks.get(leaf)
        kept = dense if mask is None else _kept_flops(operation, {**others, leaf: np.broadcast_to(mask, shapes[leaf])})
        found.append(Share(leaf, dense, kept))
    return tuple(found)


def _kept_flops(operation: Operation, present: Mapping[int, np.ndarray]) -> int:
    weight, per_entry = operation.weight, operation.per_entry
    if weight is None or per_entry is None:
        return 0
    alike = tuple(axis for axis, size in enumerate(per_entry.shape) if size == 1)
    met = 0
    for view in weight.view(present):
        counted = np.count_nonzero(view, axis=alike, keepdims=True) if alike else view
        met += int((counted * per_entry).sum())
    return 2 * met * operation.repeats // weight.slices
