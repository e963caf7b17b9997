"""`follow`: follows parameters entry by entry to the equations that use them.

Every value is a `Weight` (a parameter leaf in another shape), `Lost` (computed from parameters in a way that cannot be
followed), `Data` or `Constant`. Equations are visited in order of execution, inside sub-jaxprs too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxprune._jaxprs.primitives import PRIMITIVES, Concatenate, Entrywise, Move, Moves, Pad, Pick, Stack, Zero
from jaxprune._jaxprs.walk import Sub, Values, settle, sub_jaxprs, walk

Equation = Any
Jaxpr = Any
Views = list[np.ndarray]
_SHOWN_ZERO = 1 << 16  # larger constants are not searched for nonzero entries


@dataclass(frozen=True)
class Weight:
    """Parameter leaves after casts, reshapes, slices and similar moves: an entry is zero where the leaf's entry is.

    Attributes:
      leaves: the inputs of the jaxpr that the value consists of; several after a concatenation.
      view: maps an array in the shape of each of these inputs to the arrays in the shape of the value, one for each run
        of the equation: a leaf that a scan slices has one array for each slice.
      slices: the number of arrays that `view` returns.
      broadcast: whether an entry of a leaf has several positions in the value.
    """

    leaves: tuple[int, ...]
    view: Callable[[Mapping[int, np.ndarray]], Views]
    slices: int = 1
    broadcast: bool = False

    def then(self, step: Callable[[np.ndarray], np.ndarray], *, broadcast: bool = False) -> "Weight":
        """Returns the same leaves after one more move."""
        return replace(
            self, view=lambda leaves: [step(x) for x in self.view(leaves)], broadcast=self.broadcast or broadcast
        )

    def split(self, into: Callable[[np.ndarray], Sequence[np.ndarray]], n: int) -> "Weight":
        """Returns the same leaves in n pieces, which are used one after the other."""
        return replace(
            self, view=lambda leaves: [piece for x in self.view(leaves) for piece in into(x)], slices=self.slices * n
        )


@dataclass(frozen=True)
class Lost:
    """A value computed only from parameters, whose entries are no longer single entries of a leaf.

    Attributes:
      leaves: the inputs of the jaxpr from which the value is computed.
      primitive: the primitive that could not be followed.
      picked: whether data choose the entries, for example of an embedding. All values computed from it are then data.
    """

    leaves: frozenset[int]
    primitive: str
    picked: bool = False


@dataclass(frozen=True)
class Constant:
    """A value computed from neither parameters nor data.

    Attributes:
      zero: whether the value is known to be zero everywhere.
    """

    zero: bool = False


@dataclass(frozen=True)
class Data:
    """A value computed from inputs that are not parameters.

    Attributes:
      mask: whether the value is a cast boolean, so that a product with it is a selection.
    """

    mask: bool = False


State: TypeAlias = Weight | Lost | Constant | Data


def mix(states: Sequence[State], primitive: str) -> State:
    """Returns the state of a value that an operation computes from other values and that cannot be followed."""
    if any(isinstance(s, Data) or (isinstance(s, Lost) and s.picked) for s in states):
        return Data()
    lost = [s for s in states if isinstance(s, Lost)]
    leaves = frozenset(leaf for s in states if isinstance(s, (Weight, Lost)) for leaf in s.leaves)
    if not leaves:
        return Constant()
    return Lost(leaves, lost[0].primitive if lost else primitive)


def join(first: State, second: State, primitive: str) -> State:
    """Returns the state of a value that has one of two states: after a cond, or in the next round of a loop."""
    if first == second or first is second:
        return first
    if isinstance(first, Constant) and isinstance(second, Constant):
        return Constant()
    return mix([first, second], primitive)


class Met(NamedTuple):
    """One equation that contains no sub-jaxprs, or none that can be entered.

    Attributes:
      eqn: the equation.
      states: the state of each operand.
      repeats: how often the equation runs when the function runs once.
      path: the equations around it, starting with the outermost: `("scan", "jit:silu")`.
    """

    eqn: Equation
    states: tuple[State, ...]
    repeats: int
    path: tuple[str, ...]


Choose = Callable[[list[list[Met]]], list[Met]]


def follow(closed: Any, params: Sequence[int], *, choose: Choose | None = None) -> list[Met]:
    """Returns every equation that runs, with the states of its operands.

    Equations without an effect on the results are left out, as the compiler does. The body and the condition of a
    `while` count as running once.

    Args:
      closed: a closed jaxpr.
      params: positions of the parameters in its invars; all other inputs are data.
      choose: from the equations of each branch of a cond to the equations that count; default: all of them.

    Returns:
      The equations in the order of execution.

    Example:
      >>> import jax
      >>> closed = jax.make_jaxpr(lambda w, x: x @ w.T)(jnp.ones((2, 3)), jnp.ones(3))
      >>> dot = follow(closed, [0])[-1]
      >>> dot.eqn.primitive.name, [type(state).__name__ for state in dot.states], dot.states[1].leaves
      ('dot_general', ['Data', 'Weight'], (0,))
    """
    jaxpr, chosen = closed.jaxpr, frozenset(params)
    states = [_leaf(i) if i in chosen else Data() for i in range(len(jaxpr.invars))]
    walker = _Walker(choose or (lambda branches: list(chain.from_iterable(branches))))
    return walker.run(jaxpr, closed.consts, states, 1, ())[1]


class _Walker(NamedTuple):
    choose: Choose

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[Any], states: Sequence[State], repeats: int, path: tuple[str, ...]
    ) -> tuple[list[State], list[Met]]:
        """Returns the states of a jaxpr's results, and the equations that run."""
        met: list[Met] = []

        def equation(index: int, eqn: Equation, operands: list[State]) -> list[State]:
            del index
            subs = sub_jaxprs(eqn)
            if not subs or subs[0].role == "unknown":
                met.append(Met(eqn, tuple(operands), repeats, path))
                return _results(eqn, operands)
            results, inside = self._enter(eqn, subs, operands, repeats, (*path, label(eqn)))
            met.extend(inside)
            return results

        given: list[State] = [*map(_constant, consts), *states]
        return walk(jaxpr, given, Values[State](_constant), equation, only_live=True), met

    def _enter(
        self, eqn: Equation, subs: Sequence[Sub], operands: Sequence[State], repeats: int, path: tuple[str, ...]
    ) -> tuple[list[State], list[Met]]:
        name, branches = eqn.primitive.name, []
        reached: dict[int, list[State]] = {k: [] for k in range(len(eqn.outvars))}
        for sub in subs:
            states = [_into(sub, k, eqn, operands) for k in range(len(sub.inputs))]
            times = repeats * (1 if sub.length is None else sub.length)
            met: list[Met] = []

            def once(states: list[State], sub: Sub = sub, times: int = times, met: list[Met] = met) -> list[State]:
                outs, met[:] = self.run(sub.jaxpr, sub.consts, states, times, path)
                return outs

            # States only rise (constant, weight, lost, data), so the loop ends.
            _, outs = settle(sub, states, once, lambda a, b: join(a, b, name))
            branches.append(met)
            for k, place in enumerate(sub.outputs):
                if place is not None:
                    reached[place].append(_out_of(sub, k, outs[k], name))
        if subs[0].role == "branch":
            return [_either(reached[k], operands[0], name) for k in reached], self.choose(branches)
        return [reached[k][0] if reached[k] else Data() for k in reached], list(chain.from_iterable(branches))


def label(eqn: Equation) -> str:
    """Returns the name of an equation in paths: its primitive, and the name of a jitted function."""
    name = eqn.params.get("name")
    return f"{eqn.primitive.name}:{name}" if isinstance(name, str) else eqn.primitive.name


def _leaf(number: int) -> Weight:
    return Weight((number,), lambda leaves: [leaves[number]])


def _into(sub: Sub, k: int, eqn: Equation, operands: Sequence[State]) -> State:
    """Returns the state of a sub-jaxpr's input."""
    place = sub.inputs[k]
    if place is None:
        return Data()
    state = operands[place]
    if not isinstance(state, Weight):
        return state
    if k in sub.stacked_inputs:
        return state.split(list, sub.length) if sub.length else Constant()
    if sub.role == "shard_map":
        return _pieces(state, eqn.invars[place].aval.shape, sub.jaxpr.invars[k].aval.shape)
    return state


def _out_of(sub: Sub, k: int, state: State, name: str) -> State:
    """Returns the state of an equation's result; stacked slices are not followed."""
    together = k in sub.stacked_outputs or sub.role == "shard_map"
    return mix([state], name) if together and isinstance(state, Weight) else state


def _either(states: Sequence[State], predicate: State, name: str) -> State:
    """Returns the state of a cond's result."""
    state = reduce(lambda a, b: join(a, b, name), states)
    by_data = isinstance(predicate, Data) and isinstance(state, Constant)
    return Data() if by_data else state


def _constant(value: Any) -> Constant:
    if np.size(value) > _SHOWN_ZERO or not hasattr(value, "dtype") or value.dtype.kind not in "biuf":
        return Constant(zero=np.isscalar(value) and value == 0)
    return Constant(zero=not np.any(np.asarray(value)))


def _pieces(weight: Weight, outer: tuple[int, ...], inner: tuple[int, ...]) -> Weight:
    """Returns a weight of shape `outer`, cut into the blocks of shape `inner` that devices of a shard_map receive."""
    if outer == inner:
        return weight
    counts = [o // i for o, i in zip(outer, inner, strict=True)]

    def blocks(x: np.ndarray) -> list[np.ndarray]:
        parts = [x]
        for axis, n in enumerate(counts):
            parts = [piece for part in parts for piece in np.split(part, n, axis)]
        return parts

    return weight.split(blocks, math.prod(counts))


def _results(eqn: Equation, states: Sequence[State]) -> list[State]:
    """Returns the states of the results of an equation without jaxprs."""
    what = PRIMITIVES.get(eqn.primitive.name)
    if isinstance(what, Moves):
        return list(states) if what.each else [_moved(eqn, move, states) for move in what.moves(eqn)]
    rule = _ENTRYWISE.get(what.zero, _mix) if isinstance(what, Entrywise) else _pick if isinstance(what, Pick) else _mix
    return [rule(eqn, states)] * len(eqn.outvars)


def _moved(eqn: Equation, move: Move, states: Sequence[State]) -> State:
    if isinstance(move, (Concatenate, Stack)):
        return _joined(eqn, move, states)
    first, *others = states
    if isinstance(move, Pad) or any(not isinstance(s, Constant) for s in others):  # a shape that depends on data
        return _mix(eqn, states)
    if not isinstance(first, Weight):
        return first
    return first.then(move, broadcast=eqn.outvars[0].aval.size > eqn.invars[0].aval.size)


def _joined(eqn: Equation, move: Concatenate | Stack, states: Sequence[State]) -> State:
    weights = [s for s in states if isinstance(s, Weight)]
    if len(weights) < len(states) or len({w.slices for w in weights}) > 1:
        return states[0] if all(s == Constant(zero=True) for s in states) else _mix(eqn, states)
    leaves = tuple(sorted({leaf for w in weights for leaf in w.leaves}))

    def view(arrays: Any) -> list[np.ndarray]:
        return [move(*parts) for parts in zip(*(w.view(arrays) for w in weights), strict=True)]

    return Weight(leaves, view, weights[0].slices, any(w.broadcast for w in weights))


def _mix(eqn: Equation, states: Sequence[State]) -> State:
    return mix(states, eqn.primitive.name)


def _first(eqn: Equation, states: Sequence[State]) -> State:
    if len(states) > 1:
        return states[0] if isinstance(states[0], Weight) and not isinstance(states[1], Data) else _mix(eqn, states)
    was_bool = eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == np.bool_
    return Data(mask=True) if was_bool and isinstance(states[0], Data) else states[0]


def _multiply(eqn: Equation, states: Sequence[State]) -> State:
    # A product is zero where either factor is zero. If both are weights (a kernel and a gain broadcast over it), the
    # weight that is not broadcast is followed. A weight times data is an activation, unless the data are a mask.
    weights = sorted((s for s in states if isinstance(s, Weight)), key=lambda w: w.broadcast)
    if Constant(zero=True) in states:
        return Constant(zero=True)
    if not weights or (len(weights) == 2 and weights[0].broadcast):
        return _mix(eqn, states)
    others = [s for s in states if s is not weights[0]]
    spread = weights[0].broadcast and any(isinstance(s, Lost) for s in others)
    return _mix(eqn, states) if spread or Data(mask=False) in others else weights[0]


def _select(eqn: Equation, states: Sequence[State]) -> State:
    cases = [s for s in states[1:] if s != Constant(zero=True)]
    if not cases:
        return Constant(zero=True)
    return cases[0] if len(cases) == 1 and isinstance(cases[0], Weight) else _mix(eqn, states)


def _pick(eqn: Equation, states: Sequence[State]) -> State:
    # Only the data tell which entries are read, but the value must still be known as part of a parameter.
    first, picked = states[0], any(isinstance(s, Data) for s in states[1:])
    if isinstance(first, Weight):
        return Lost(frozenset(first.leaves), eqn.primitive.name, picked)
    if isinstance(first, Lost):
        return replace(first, picked=first.picked or picked)
    return _mix(eqn, states)


_ENTRYWISE: dict[Zero, Callable[[Equation, Sequence[State]], State]] = {
    Zero.SAME: _first,
    Zero.FIRST: _first,
    Zero.DIVIDE: _first,
    Zero.ANY: _multiply,
    Zero.CASES: _select,
}
