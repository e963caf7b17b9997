"""`walk`, `settle`, `scan_again` and `live`: the loop over the equations of a jaxpr, and helpers for inner loops.

`walk` visits equations in order; `settle` repeats a loop's body until the carried values no longer change; `scan_again`
rebuilds a scan with another body.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax.extend.core as jec
from jax import lax

from jaxprune._jaxprs.subs import Sub

Equation = Any
Jaxpr = Any
V = TypeVar("V")


class Values(Generic[V]):
    """The client's value of each variable of a jaxpr: arrays, labels, views, zeros."""

    def __init__(self, literal: Callable[[Any], V]):
        """Makes an empty environment; `literal` returns the value of a literal's number."""
        self._literal = literal
        self._known: dict[Any, V] = {}

    def __getitem__(self, var: Any) -> V:
        return self._literal(var.val) if isinstance(var, jec.Literal) else self._known[var]

    def update(self, variables: Sequence[Any], values: Sequence[V]) -> None:
        """Stores the values of several variables."""
        known = self._known
        for variable, value in zip(variables, values, strict=True):
            known[variable] = value

    def of(self, variables: Sequence[Any]) -> list[V]:
        """The values of several variables."""
        known, literal = self._known, self._literal
        return [literal(v.val) if isinstance(v, jec.Literal) else known[v] for v in variables]


def walk(
    jaxpr: Jaxpr,
    given: Sequence[V],
    values: Values[V],
    equation: Callable[[int, Equation, list[V]], Sequence[V]],
    *,
    only_live: bool = False,
) -> list[V]:
    """Visits the equations of a jaxpr in order.

    Args:
      jaxpr: an open jaxpr.
      given: the values of the constvars, then of the invars.
      values: an empty environment; afterwards it contains every variable.
      equation: `equation(index, eqn, operands)` returns the values of the results.
      only_live: whether to skip equations without an effect on the results, as the compiler does; default False.

    Returns:
      The values of the results.

    Example:
      >>> import jax
      >>> jaxpr = jax.make_jaxpr(lambda x: (x + 1) * x)(2.0).jaxpr
      >>> text = lambda index, eqn, operands: [f"{eqn.primitive.name}({', '.join(operands)})"]
      >>> walk(jaxpr, ["x"], Values(str), text)
      ['mul(add(x, 1.0), x)']
    """
    values.update([*jaxpr.constvars, *jaxpr.invars], given)
    equations = live(jaxpr) if only_live else enumerate(jaxpr.eqns)
    for index, eqn in equations:
        values.update(eqn.outvars, equation(index, eqn, values.of(eqn.invars)))
    return values.of(jaxpr.outvars)


def settle(
    sub: Sub, inputs: Sequence[V], run: Callable[[list[V]], Sequence[V]], join: Callable[[V, V], V]
) -> tuple[list[V], list[V]]:
    """Repeats the body of a loop until the carried values no longer change.

    Args:
      sub: the body; without carried values it runs once.
      inputs: the values of its inputs in the first round.
      run: a function from the values of the inputs to the values of the results.
      join: the common value of two rounds; it must be monotone, so that the loop ends.

    Returns:
      Values of the inputs and results that hold for every round; carried results also hold for zero rounds.
    """
    now = list(inputs)
    while True:
        outs, after = list(run(now)), list(now)
        for out, into in sub.carried:
            after[into] = join(now[into], outs[out])
        if all(a is b or a == b for a, b in zip(after, now, strict=True)):
            for out, into in sub.carried:
                outs[out] = now[into]
            return now, outs
        now = after


def scan_again(
    sub: Sub,
    operands: Sequence[Any],
    body: Callable[[list[Any], Any], tuple[Sequence[Any], Any, Any]],
    carry: Any = None,
    *,
    length: int | None,
    unroll: int = 1,
) -> tuple[list[Any], Any, Any]:
    """Runs a scan with another body, an additional carry and additional stacked results.

    Args:
      sub: the scan.
      operands: the operands of the equation, one array for each input of the body.
      body: `body(inputs, carry)` returns the results of a round, the additional carry and the values to stack.
      carry: the additional carry of the first round.
      length: the number of rounds.
      unroll: how many rounds the compiler unrolls.

    Returns:
      The results of the equation, the last additional carry, the additional stacked results.
    """
    turning, stacked = [into for _, into in sub.carried], sorted(sub.stacked_inputs)

    def one(state: tuple[list[Any], Any], xs: list[Any]) -> tuple[tuple[list[Any], Any], tuple[list[Any], Any]]:
        inputs = list(operands)
        for place, value in [*zip(turning, state[0], strict=True), *zip(stacked, xs, strict=True)]:
            inputs[place] = value
        outs, more, each = body(inputs, state[1])
        return ([outs[out] for out, _ in sub.carried], more), ([outs[k] for k in sorted(sub.stacked_outputs)], each)

    start = ([operands[i] for i in turning], carry)
    (last, more), (ys, each) = lax.scan(
        one, start, [operands[i] for i in stacked], length=length, reverse=sub.reverse, unroll=unroll
    )
    found = dict(zip([out for out, _ in sub.carried], last, strict=True))
    found |= dict(zip(sorted(sub.stacked_outputs), ys, strict=True))
    return [found[k] for k in range(len(found))], more, each


def live(jaxpr: Jaxpr) -> Iterator[tuple[int, Equation]]:
    """The equations on which the results of a jaxpr depend, or that have effects, each with its index."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, jec.Literal)}
    found = []
    for index, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            found.append((index, eqn))
            needed.update(v for v in eqn.invars if not isinstance(v, jec.Literal))
    return reversed(found)
