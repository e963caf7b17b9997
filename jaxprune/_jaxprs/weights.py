"""Following parameters to the equations that they meet, entry by entry: `follow`.

Every value is a `Weight` (a parameter leaf in another shape), `Lost` (made of parameters in a way that cannot be
followed), `Data` or `Constant`. Equations are met in order, inside sub-jaxprs too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxprune._jaxprs.moves import Concatenate, Move, Pad, Stack
from jaxprune._jaxprs.primitives import PRIMITIVES, Entrywise, Moves, Pick, Zero
from jaxprune._jaxprs.subs import Sub, sub_jaxprs
from jaxprune._jaxprs.walk import Values, settle, walk

Equation = Any
Jaxpr = Any
Views = list[np.ndarray]
_SHOWN_ZERO = 1 << 16  # larger constants are not searched for something else than zeros


@dataclass(frozen=True)
class Weight:
    """Parameter leaves seen through casts, reshapes, slices and the like: an entry is zero where the leaf's is.

    Attributes:
      leaves: the inputs of the jaxpr that it is made of; more than one after a concatenation.
      view: takes an array in the shape of each of these inputs to the arrays in the shape of the value, one for
        each time the value is met: a leaf that a scan slices is met once for each slice.
      slices: how many arrays `view` gives.
      broadcast: whether an entry of a leaf stands in several places of the value.
    """

    leaves: tuple[int, ...]
    view: Callable[[Mapping[int, np.ndarray]], Views]
    slices: int = 1
    broadcast: bool = False

    def then(self, step: Callable[[np.ndarray], np.ndarray], *, broadcast: bool = False) -> "Weight":
        """The same leaves, seen through one more step."""
        return replace(
            self, view=lambda leaves: [step(x) for x in self.view(leaves)], broadcast=self.broadcast or broadcast
        )

    def split(self, into: Callable[[np.ndarray], Sequence[np.ndarray]], n: int) -> "Weight":
        """The same leaves, in n pieces that are met one after the other."""
        return replace(
            self, view=lambda leaves: [piece for x in self.view(leaves) for piece in into(x)], slices=self.slices * n
        )


@dataclass(frozen=True)
class Lost:
    """Made of parameters alone, but in a way in which an entry of a leaf is no longer one entry of the value.

    Attributes:
      leaves: the inputs of the jaxpr that went in.
      primitive: what could not be followed.
      picked: whether data told which entries were taken, as in an embedding: whatever is computed from it is data.
    """

    leaves: frozenset[int]
    primitive: str
    picked: bool = False


@dataclass(frozen=True)
class Constant:
    """Made of neither parameters nor data.

    Attributes:
      zero: whether it is known to be zero everywhere.
    """

    zero: bool = False


@dataclass(frozen=True)
class Data:
    """Made of inputs that are not parameters.

    Attributes:
      mask: whether it is a cast boolean, so that a product with it is a selection.
    """

    mask: bool = False


State: TypeAlias = Weight | Lost | Constant | Data


def mix(states: Sequence[State], primitive: str) -> State:
    """The state of a value that depends on others in any other way than those that can be followed."""
    if any(isinstance(s, Data) or (isinstance(s, Lost) and s.picked) for s in states):
        return Data()
    lost = [s for s in states if isinstance(s, Lost)]
    leaves = frozenset(leaf for s in states if isinstance(s, (Weight, Lost)) for leaf in s.leaves)
    if not leaves:
        return Constant()
    return Lost(leaves, lost[0].primitive if lost else primitive)


def join(first: State, second: State, primitive: str) -> State:
    """The state of a value that is the one or the other: after a cond, or in the next round of a loop."""
    if first == second or first is second:
        return first
    if isinstance(first, Constant) and isinstance(second, Constant):
        return Constant()
    return mix([first, second], primitive)


class Met(NamedTuple):
    """One equation without sub-jaxprs that can be entered.

    Attributes:
      eqn: the equation.
      states: what each of its operands is.
      repeats: how often it runs when the function runs once.
      path: the equations it sits in, from the outside: `("scan", "jit:silu")`.
    """

    eqn: Equation
    states: tuple[State, ...]
    repeats: int
    path: tuple[str, ...]


Choose = Callable[[list[list[Met]]], list[Met]]


def follow(closed: Any, params: Sequence[int], *, choose: Choose | None = None) -> list[Met]:
    """Every equation that is met, with what its operands are.

    Equations whose results nothing depends on are left out, as the compiler does. The body and the condition of a
    `while` are counted as running once.

    Args:
      closed: a closed jaxpr.
      params: positions in its invars that are parameters; the others are data.
      choose: which equations of a cond count, given those of each branch; all of them by default.

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
        """The states of a jaxpr's results, and the equations met on the way."""
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

            # States only ever go up (constant, weight, lost, data), so this ends.
            _, outs = settle(sub, states, once, lambda a, b: join(a, b, name))
            branches.append(met)
            for k, place in enumerate(sub.outputs):
                if place is not None:
                    reached[place].append(_out_of(sub, k, outs[k], name))
        if subs[0].role == "branch":
            return [_either(reached[k], operands[0], name) for k in reached], self.choose(branches)
        return [reached[k][0] if reached[k] else Data() for k in reached], list(chain.from_iterable(branches))


def label(eqn: Equation) -> str:
    """How an equation is called in paths: its primitive, and the name of a jitted function."""
    name = eqn.params.get("name")
    return f"{eqn.primitive.name}:{name}" if isinstance(name, str) else eqn.primitive.name


def _leaf(number: int) -> Weight:
    return Weight((number,), lambda leaves: [leaves[number]])


def _into(sub: Sub, k: int, eqn: Equation, operands: Sequence[State]) -> State:
    """The state of a sub-jaxpr's input."""
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
    """The state of an equation's result; slices put together again are not followed."""
    together = k in sub.stacked_outputs or sub.role == "shard_map"
    return mix([state], name) if together and isinstance(state, Weight) else state


def _either(states: Sequence[State], predicate: State, name: str) -> State:
    """The state of a cond's result."""
    state = reduce(lambda a, b: join(a, b, name), states)
    by_data = isinstance(predicate, Data) and isinstance(state, Constant)
    return Data() if by_data else state


def _constant(value: Any) -> Constant:
    if np.size(value) > _SHOWN_ZERO or not hasattr(value, "dtype") or value.dtype.kind not in "biuf":
        return Constant(zero=np.isscalar(value) and value == 0)
    return Constant(zero=not np.any(np.asarray(value)))


def _pieces(weight: Weight, outer: tuple[int, ...], inner: tuple[int, ...]) -> Weight:
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


def _results(eqn: Equation, states: Sequence[State]) -> list[State]:
    """The states of the results of an equation without jaxprs."""
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


_ENTRYWISE: dict[Zero, Callable[[Equation, Sequence[State]], State]] = {
    Zero.SAME: _first,
    Zero.FIRST: _first,
    Zero.DIVIDE: _first,
    Zero.ANY: _multiply,
    Zero.CASES: _select,
}
