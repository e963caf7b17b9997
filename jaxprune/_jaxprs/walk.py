"""Following parameters through a jaxpr to the equations that they meet.

Every value is a `Weight` (a parameter leaf in another shape), `Lost` (made of parameters in a way that cannot be
followed), `Data` or `Constant`. Equations are met in order, inside sub-jaxprs too; a loop's body is gone through
until the states that go round no longer change.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

import jax.extend.core as jec
import numpy as np

from jaxprune._jaxprs import rules
from jaxprune._jaxprs.states import Constant, Data, State, Weight, following, join, mix
from jaxprune._jaxprs.subs import Sub, sub_jaxprs

Equation = Any
Jaxpr = Any
_SHOWN_ZERO = 1 << 16  # larger constants are not searched for something else than zeros


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
    states = [following(i) if i in chosen else Data() for i in range(len(jaxpr.invars))]
    walk = _Walk(choose or (lambda branches: list(chain.from_iterable(branches))))
    return walk.run(jaxpr, closed.consts, states, 1, ())[1]


class _Walk(NamedTuple):
    choose: Choose

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[Any], states: Sequence[State], repeats: int, path: tuple[str, ...]
    ) -> tuple[list[State], list[Met]]:
        """The states of a jaxpr's results, and the equations met on the way."""
        env: dict[Any, State] = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
        env.update(zip(jaxpr.invars, states, strict=True))
        read = lambda v: _constant(v.val) if isinstance(v, jec.Literal) else env[v]
        met: list[Met] = []
        for eqn in _live(jaxpr):
            operands = tuple(map(read, eqn.invars))
            subs = sub_jaxprs(eqn)
            if not subs or subs[0].role == "unknown":
                met.append(Met(eqn, operands, repeats, path))
                results = rules.result(eqn, operands)
            else:
                results, inside = self._enter(eqn, subs, operands, repeats, (*path, label(eqn)))
                met += inside
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars], met

    def _enter(
        self, eqn: Equation, subs: Sequence[Sub], operands: Sequence[State], repeats: int, path: tuple[str, ...]
    ) -> tuple[list[State], list[Met]]:
        name, branches = eqn.primitive.name, []
        reached: dict[int, list[State]] = {k: [] for k in range(len(eqn.outvars))}
        for sub in subs:
            states = [_into(sub, k, eqn, operands) for k in range(len(sub.inputs))]
            times = 1 if sub.length is None else sub.length
            outs, met = self._settle(sub, states, repeats * times, path, name)
            branches.append(met)
            for k, place in enumerate(sub.outputs):
                if place is not None:
                    reached[place].append(_out_of(sub, k, outs[k], name))
        if subs[0].role == "branch":
            return [_either(reached[k], operands[0], name) for k in reached], self.choose(branches)
        return [reached[k][0] if reached[k] else Data() for k in reached], list(chain.from_iterable(branches))

    def _settle(
        self, sub: Sub, states: list[State], repeats: int, path: tuple[str, ...], name: str
    ) -> tuple[list[State], list[Met]]:
        # States only ever go up (constant, weight, lost, data), so this ends.
        while True:
            outs, met = self.run(sub.jaxpr, sub.consts, states, repeats, path)
            after = list(states)
            for out, inp in sub.carried:
                after[inp] = join(states[inp], outs[out], name)
            if all(a is b or a == b for a, b in zip(after, states, strict=True)):
                for out, inp in sub.carried:  # no round at all leaves what came in
                    outs[out] = states[inp]
                return outs, met
            states = after


def label(eqn: Equation) -> str:
    """How an equation is called in paths: its primitive, and the name of a jitted function."""
    name = eqn.params.get("name")
    return f"{eqn.primitive.name}:{name}" if isinstance(name, str) else eqn.primitive.name


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
        return rules.pieces(state, eqn.invars[place].aval.shape, sub.jaxpr.invars[k].aval.shape)
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


def _live(jaxpr: Jaxpr) -> Iterator[Equation]:
    needed = {v for v in jaxpr.outvars if not isinstance(v, jec.Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            live.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, jec.Literal))
    return reversed(live)
