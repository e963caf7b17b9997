"""How each primitive passes on what a value is: the table behind `follow`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxprune._jaxprs.states import Constant, Data, Lost, State, Weight, mix

Equation = Any
Rule = Callable[[Equation, Sequence[State]], State]

# The first operand's entries, each by itself, and zero stays zero.
_KEEPING_ZEROS = frozenset(
    {"convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "neg", "abs", "sign", "square"}
    | {"sqrt", "cbrt", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "expm1", "log1p", "erf"}
    | {"real", "conj", "name", "sharding_constraint", "mesh_cast", "reshard", "pvary", "pcast", "layout_constraint"}
)


def result(eqn: Equation, states: Sequence[State]) -> list[State]:
    """The states of an equation's results, given those of its operands.

    Args:
      eqn: an equation without sub-jaxprs.
      states: one for each of `eqn.invars`.

    Returns:
      One for each of `eqn.outvars`.
    """
    name = eqn.primitive.name
    if name in ("optimization_barrier", "device_put") and len(states) == len(eqn.outvars):
        return list(states)
    rule = _keep if name in _KEEPING_ZEROS else _RULES.get(name, _mix)
    return [rule(eqn, states)] * len(eqn.outvars)


def pieces(weight: Weight, outer: tuple[int, ...], inner: tuple[int, ...]) -> Weight:
    """A weight of the shape `outer` in blocks of the shape `inner`, as the devices of a shard_map see it."""
    if outer == inner:
        return weight
    counts = [o // i for o, i in zip(outer, inner, strict=True)]

    def blocks(x: np.ndarray) -> list[np.ndarray]:
        parts = [x]
        for axis, n in enumerate(counts):
            parts = [piece for part in parts for piece in np.split(part, n, axis)]
        return parts

    return weight.split(blocks, math.prod(counts))


def _mix(eqn: Equation, states: Sequence[State]) -> State:
    return mix(states, eqn.primitive.name)


def _keep(eqn: Equation, states: Sequence[State]) -> State:
    was_bool = eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == np.bool_
    return Data(mask=True) if was_bool and isinstance(states[0], Data) else states[0]


def _shaped(step: Callable[[Equation, np.ndarray], np.ndarray]) -> Rule:
    """The rule of a primitive that only moves entries."""

    def rule(eqn: Equation, states: Sequence[State]) -> State:
        first, *others = states
        if any(not isinstance(s, Constant) for s in others):  # a shape that depends on data
            return mix(states, eqn.primitive.name)
        if not isinstance(first, Weight):
            return first
        larger = eqn.outvars[0].aval.size > eqn.invars[0].aval.size
        return first.then(lambda x: step(eqn, x), broadcast=larger)

    return rule


def _transpose(eqn: Equation, x: np.ndarray) -> np.ndarray:
    return x.transpose(eqn.params["permutation"])


def _to_out_shape(eqn: Equation, x: np.ndarray) -> np.ndarray:
    return x.reshape(eqn.outvars[0].aval.shape)


def _reshape(eqn: Equation, x: np.ndarray) -> np.ndarray:
    order = eqn.params.get("dimensions")
    return _to_out_shape(eqn, x if order is None else x.transpose(order))


def _broadcast(eqn: Equation, x: np.ndarray) -> np.ndarray:
    kept = [1] * len(eqn.params["shape"])
    for axis, size in zip(eqn.params["broadcast_dimensions"], x.shape, strict=True):
        kept[axis] = size
    return np.broadcast_to(x.reshape(kept), eqn.params["shape"])


def _slice(eqn: Equation, x: np.ndarray) -> np.ndarray:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * x.ndim
    return x[tuple(slice(*bounds) for bounds in zip(starts, limits, strides, strict=True))]


def _reverse(eqn: Equation, x: np.ndarray) -> np.ndarray:
    return np.flip(x, eqn.params["dimensions"])


def _concatenate(eqn: Equation, states: Sequence[State]) -> State:
    weights = [s for s in states if isinstance(s, Weight)]
    if len(weights) < len(states) or len({w.slices for w in weights}) > 1:
        return states[0] if all(s == Constant(zero=True) for s in states) else _mix(eqn, states)
    axis = eqn.params["dimension"]
    leaves = tuple(sorted({leaf for w in weights for leaf in w.leaves}))

    def view(arrays: Any) -> list[np.ndarray]:
        return [np.concatenate(parts, axis) for parts in zip(*(w.view(arrays) for w in weights), strict=True)]

    return Weight(leaves, view, weights[0].slices, any(w.broadcast for w in weights))


def _multiply(eqn: Equation, states: Sequence[State]) -> State:
    # A product is zero where either factor is. Of two weights (a kernel and a gain spread over it) the one that
    # is not spread is followed. A weight times data is an activation, unless the data are a mask.
    weights = sorted((s for s in states if isinstance(s, Weight)), key=lambda w: w.broadcast)
    if Constant(zero=True) in states:
        return Constant(zero=True)
    if not weights or (len(weights) == 2 and weights[0].broadcast):
        return _mix(eqn, states)
    others = [s for s in states if s is not weights[0]]
    spread = weights[0].broadcast and any(isinstance(s, Lost) for s in others)
    return _mix(eqn, states) if spread or Data(mask=False) in others else weights[0]


def _divide(eqn: Equation, states: Sequence[State]) -> State:
    by_data = isinstance(states[1], Data)
    return states[0] if isinstance(states[0], Weight) and not by_data else _mix(eqn, states)


def _select(eqn: Equation, states: Sequence[State]) -> State:
    cases = [s for s in states[1:] if s != Constant(zero=True)]
    if not cases:
        return Constant(zero=True)
    return cases[0] if len(cases) == 1 and isinstance(cases[0], Weight) else _mix(eqn, states)


def _pick(eqn: Equation, states: Sequence[State]) -> State:
    # Which entries are taken only the data tell; that they are a parameter's must not be forgotten.
    first, picked = states[0], any(isinstance(s, Data) for s in states[1:])
    if isinstance(first, Weight):
        return Lost(frozenset(first.leaves), eqn.primitive.name, picked)
    if isinstance(first, Lost):
        return replace(first, picked=first.picked or picked)
    return _mix(eqn, states)


_RULES: dict[str, Rule] = {
    "reshape": _shaped(_reshape),
    "squeeze": _shaped(_to_out_shape),
    "expand_dims": _shaped(_to_out_shape),
    "transpose": _shaped(_transpose),
    "broadcast_in_dim": _shaped(_broadcast),
    "slice": _shaped(_slice),
    "rev": _shaped(_reverse),
    "concatenate": _concatenate,
    "mul": _multiply,
    "div": _divide,
    "select_n": _select,
    "gather": _pick,
    "dynamic_slice": _pick,
}
