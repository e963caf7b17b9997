"""`sub_jaxprs`: the jaxprs inside an equation, in the same form for every primitive and every JAX version.

To walk a jaxpr one must know which operand of `scan` is which input of its body, which parameter contains the branches
of `cond`, and that JAX renames such things. `sub_jaxprs` returns avals and positions instead:

    for sub in sub_jaxprs(eqn):
        inner = {v: outer[eqn.invars[i]] for v, i in zip(sub.jaxpr.invars, sub.inputs) if i is not None}
        for _ in range(sub.length or 1): ...     # stacked inputs are sliced, carried outputs go round
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.extend.core as jec

Equation = Any  # jax.extend.core.JaxprEqn, which has no types for pyright
Jaxpr = Any  # jax.extend.core.Jaxpr
Role = Literal["call", "scan", "while_cond", "while_body", "branch", "shard_map", "unknown"]

# Their jaxprs say how two scalars are combined, not what happens to the operands.
COMBINERS = frozenset(
    {"reduce", "reduce_window", "select_and_scatter", "scatter", "scatter-add", "scatter_add", "scatter_mul"}
    | {"scatter-mul", "scatter-sub", "scatter_sub", "scatter_min", "scatter-min", "scatter_max", "scatter-max"}
)


class Sub(NamedTuple):
    """One jaxpr inside an equation, and how its inputs and outputs correspond to the equation's.

    Attributes:
      jaxpr: the open jaxpr.
      consts: the values of `jaxpr.constvars`.
      role: how the equation uses the jaxpr; "unknown" if the positions are not known, and are all None.
      inputs: for each of `jaxpr.invars` the position of its operand in `eqn.invars`, or None.
      outputs: for each of `jaxpr.outvars` the position of its result in `eqn.outvars`, or None.
      stacked_inputs: positions in `jaxpr.invars` that get one slice of their operand's axis 0 (scan's xs).
      stacked_outputs: positions in `jaxpr.outvars` that are stacked on axis 0 (scan's ys).
      carried: pairs (position in `jaxpr.outvars`, position in `jaxpr.invars`): this output is the next round's input.
      length: how often the jaxpr runs each time the equation runs; None if data decide (while).
      reverse: whether the slices are taken in reverse order.
      branch: the index of this branch of a cond, else None.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    role: Role
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    stacked_inputs: frozenset[int] = frozenset()
    stacked_outputs: frozenset[int] = frozenset()
    carried: tuple[tuple[int, int], ...] = ()
    length: int | None = 1
    reverse: bool = False
    branch: int | None = None


def sub_jaxprs(eqn: Equation) -> tuple[Sub, ...]:
    """Returns the jaxprs that run when an equation runs.

    For a custom_linear_solve this is the solver, not the matrix. Jaxprs that combine two scalars (in `reduce`,
    `scatter` and similar primitives) are left out.

    Args:
      eqn: an equation of a jaxpr.

    Returns:
      One `Sub` for each jaxpr; empty for a primitive without jaxprs.

    Example:
      >>> from jax import lax
      >>> fn = lambda c, xs: lax.scan(lambda c, x: (c + x, c), c, xs)
      >>> [sub] = sub_jaxprs(jax.make_jaxpr(fn)(0.0, jnp.ones(5)).jaxpr.eqns[0])
      >>> sub.role, sub.length, sub.carried, sorted(sub.stacked_inputs)
      ('scan', 5, ((0, 0),), [1])
    """
    name = eqn.primitive.name
    if name in COMBINERS:
        return ()
    return _RULES.get(name, _call)(eqn)


def open_jaxpr(jaxpr: Any) -> tuple[Jaxpr, tuple[Any, ...]]:
    """Returns the open jaxpr and its constants, from an open or a closed jaxpr (they are one class from jax 0.11 on).

    Args:
      jaxpr: an open or a closed jaxpr.

    Returns:
      The open jaxpr; the values of its constants, which are empty for an open jaxpr.

    Example:
      >>> opened, constants = open_jaxpr(jax.make_jaxpr(jnp.sin)(1.0))
      >>> [equation.primitive.name for equation in opened.eqns], constants
      (['sin'], ())
    """
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def is_jaxpr(value: Any) -> bool:
    """Whether a value is a jaxpr, open or closed.

    Args:
      value: anything, such as a parameter of an equation.

    Returns:
      A Python bool.

    Example:
      >>> is_jaxpr(jax.make_jaxpr(jnp.sin)(1.0)), is_jaxpr(jnp.sin)
      (True, False)
    """
    return isinstance(value, (jec.Jaxpr, jec.ClosedJaxpr))


def _call(eqn: Equation) -> tuple[Sub, ...]:
    # jit, closed_call, custom_jvp_call, custom_vjp_call, remat2, linear_call ...: operands in order.
    found = [open_jaxpr(value) for value in _values(eqn) if is_jaxpr(value)]
    if len(found) == 1:
        [(jaxpr, consts)] = found
        if len(jaxpr.invars) == len(eqn.invars) and len(jaxpr.outvars) == len(eqn.outvars):
            return (Sub(jaxpr, consts, "call", _upto(len(eqn.invars)), _upto(len(eqn.outvars))),)
    return tuple(_unknown(jaxpr, consts) for jaxpr, consts in found)


def _scan(eqn: Equation) -> tuple[Sub, ...]:
    jaxpr, consts = open_jaxpr(eqn.params["jaxpr"])
    # An operand with one axis more than the body's input is sliced; the same holds for results. The other results are
    # the carry. This does not depend on the names of the primitive's counts (they changed in jax 0.11).
    stacked_in = _deeper(eqn.invars, jaxpr.invars)
    stacked_out = _deeper(eqn.outvars, jaxpr.outvars)
    n_carry = len(eqn.outvars) - len(stacked_out)
    n_consts = len(eqn.invars) - len(stacked_in) - n_carry
    sub = Sub(jaxpr, consts, "scan", _upto(len(eqn.invars)), _upto(len(eqn.outvars)), stacked_in, stacked_out)
    carried = tuple((i, n_consts + i) for i in range(n_carry))
    return (sub._replace(carried=carried, length=int(eqn.params["length"]), reverse=bool(eqn.params["reverse"])),)


def _while(eqn: Equation) -> tuple[Sub, ...]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = tuple(range(n_cond + n_body, len(eqn.invars)))
    cond, cond_consts = open_jaxpr(eqn.params["cond_jaxpr"])
    body, body_consts = open_jaxpr(eqn.params["body_jaxpr"])
    body_inputs = (*range(n_cond, n_cond + n_body), *carry)
    carried = tuple((i, n_body + i) for i in range(len(carry)))
    return (
        Sub(cond, cond_consts, "while_cond", (*range(n_cond), *carry), (None,), length=None),
        Sub(body, body_consts, "while_body", body_inputs, _upto(len(carry)), carried=carried, length=None),
    )


def _cond(eqn: Equation) -> tuple[Sub, ...]:
    inputs, outputs = tuple(range(1, len(eqn.invars))), _upto(len(eqn.outvars))
    branches = enumerate(open_jaxpr(branch) for branch in eqn.params["branches"])
    return tuple(Sub(jaxpr, consts, "branch", inputs, outputs, branch=i) for i, (jaxpr, consts) in branches)


def _shard_map(eqn: Equation) -> tuple[Sub, ...]:
    # The body sees one block; it runs once on each device of the manual axes.
    [sub] = _call(eqn)
    shape, manual = eqn.params["mesh"].shape, eqn.params["newly_manual_axes"]
    return (sub._replace(role="shard_map", length=math.prod(shape[axis] for axis in manual)),)


def _custom_linear_solve(eqn: Equation) -> tuple[Sub, ...]:
    lengths = tuple(eqn.params["const_lengths"])  # of matvec, vecmat, solve, transpose_solve
    jaxpr, consts = open_jaxpr(tuple(eqn.params["jaxprs"])[2])
    first = sum(lengths[:2])
    inputs = (*range(first, first + lengths[2]), *range(sum(lengths), len(eqn.invars)))
    if len(inputs) != len(jaxpr.invars):
        return (_unknown(jaxpr, consts),)
    return (Sub(jaxpr, consts, "call", inputs, _upto(len(jaxpr.outvars))),)


def _unknown(jaxpr: Jaxpr, consts: tuple[Any, ...]) -> Sub:
    return Sub(jaxpr, consts, "unknown", (None,) * len(jaxpr.invars), (None,) * len(jaxpr.outvars), length=None)


def _values(eqn: Equation) -> list[Any]:
    nested = [value if isinstance(value, (tuple, list)) else (value,) for value in eqn.params.values()]
    return [value for values in nested for value in values]


def _deeper(outer: Sequence[Any], inner: Sequence[Any]) -> frozenset[int]:
    ranks = [(o.aval.ndim, i.aval.ndim) for o, i in zip(outer, inner, strict=True)]
    return frozenset(k for k, (o, i) in enumerate(ranks) if o == i + 1)


def _upto(n: int) -> tuple[int, ...]:
    return tuple(range(n))


_RULES: dict[str, Callable[[Equation], tuple[Sub, ...]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "custom_linear_solve": _custom_linear_solve,
}
