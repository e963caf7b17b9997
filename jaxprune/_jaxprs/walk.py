"""Jaxprs: `trace` makes one from a function, `sub_jaxprs` finds the ones inside an equation, `walk` visits equations.

To walk a jaxpr one must know which operand of `scan` is which input of its body, which parameter contains the branches
of `cond`, and that JAX renames such things. `sub_jaxprs` returns avals and positions instead:

    for sub in sub_jaxprs(eqn):
        inner = {v: outer[eqn.invars[i]] for v, i in zip(sub.jaxpr.invars, sub.inputs) if i is not None}
        for _ in range(sub.length or 1): ...     # stacked inputs are sliced, carried outputs go round

`walk` visits equations in order; `settle` repeats a loop's body until the carried values no longer change; `scan_again`
rebuilds a scan with another body; `live` leaves out equations without an effect on the results.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import jax
import jax.extend.core as jec
import numpy as np
from jax import lax

from jaxprune import _tree

PyTree = Any
Equation = Any  # jax.extend.core.JaxprEqn, which has no types for pyright
Jaxpr = Any  # jax.extend.core.Jaxpr
V = TypeVar("V")
Role = Literal["call", "scan", "while_cond", "while_body", "branch", "shard_map", "unknown"]

# Their jaxprs say how two scalars are combined, not what happens to the operands.
COMBINERS = frozenset(
    {"reduce", "reduce_window", "select_and_scatter", "scatter", "scatter-add", "scatter_add", "scatter_mul"}
    | {"scatter-mul", "scatter-sub", "scatter_sub", "scatter_min", "scatter-min", "scatter_max", "scatter-max"}
)


class Traced(NamedTuple):
    """A traced function.

    Attributes:
      closed: the closed jaxpr; `closed.jaxpr.invars` are the leaves that are arrays, in the order of the leaves.
      in_tree: the structure of the tuple of arguments.
      out_tree: the structure of the result.
      inputs: for each leaf of the arguments its position in `invars`, or None for a leaf that is not an array.
    """

    closed: Any
    in_tree: Any
    out_tree: Any
    inputs: tuple[int | None, ...]


def trace(fn: Callable[..., PyTree], *args: PyTree) -> Traced:
    """Traces `fn(*args)` without computing or allocating anything.

    Args:
      fn: a function of trees; it may be jitted.
      *args: arrays or ShapeDtypeStructs in any tree. Other leaves (Python numbers, functions, static leaves of Equinox
        modules) are constants of the jaxpr.

    Returns:
      The jaxpr and the position of each leaf.

    Example:
      >>> traced = trace(lambda p, x: x @ p['w'], {'w': jax.ShapeDtypeStruct((3, 2), jnp.float32)}, jnp.ones(3))
      >>> traced.inputs, traced.closed.out_avals[0].shape
      ((0, 1), (2,))
    """
    leaves, in_tree = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if _tree.is_array(leaf)]

    def on_arrays(*arrays: Any) -> PyTree:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return _tree.call(fn, "fn", "fn(params, *inputs)", *jax.tree.unflatten(in_tree, filled))

    # JAX makes float32 of a NumPy array of float64 without a warning, but warns of a shape of float64.
    shapes = [x if isinstance(x, np.ndarray) else _shape(x) for x in (leaves[place] for place in places)]
    closed, out = jax.make_jaxpr(on_arrays, return_shape=True)(*shapes)
    position = {place: i for i, place in enumerate(places)}
    return Traced(closed, in_tree, jax.tree.structure(out), tuple(position.get(i) for i in range(len(leaves))))


def bind(eqn: Any, operands: Sequence[Any], **params: Any) -> list[Any]:
    """Runs the primitive of an equation on operands.

    Args:
      eqn: the equation.
      operands: arrays, one for each operand of the equation.
      **params: values that replace parameters of the equation.

    Returns:
      The results, one for each variable of the equation.
    """
    found = eqn.primitive.bind(*operands, **{**eqn.primitive.get_bind_params(eqn.params), **params})
    return list(found) if eqn.primitive.multiple_results else [found]


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


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
    """Returns whether a value is a jaxpr, open or closed.

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


def _unstack(eqn: Equation) -> tuple[Sub, ...]:
    # In jax 0.12 `q, k, v = x` is one equation. It runs as slices, as jax 0.10 traces it.
    operand = eqn.invars[0].aval
    jaxpr = _slices(operand.shape, operand.dtype, eqn.params["axis"])
    return (Sub(jaxpr, (), "call", _upto(1), _upto(len(eqn.outvars))),)


@functools.lru_cache(maxsize=256)
def _slices(shape: tuple[Any, ...], dtype: Any, axis: int) -> Jaxpr:
    parts = lambda x: [lax.squeeze(lax.slice_in_dim(x, i, i + 1, axis=axis), [axis]) for i in range(shape[axis])]
    return open_jaxpr(jax.make_jaxpr(parts)(jax.ShapeDtypeStruct(shape, dtype)))[0]


_RULES: dict[str, Callable[[Equation], tuple[Sub, ...]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "custom_linear_solve": _custom_linear_solve,
    "unstack": _unstack,
}


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
        """Returns the values of several variables."""
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
    """Returns the equations on which the results of a jaxpr depend, or that have effects, each with its index."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, jec.Literal)}
    found = []
    for index, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if eqn.effects or any(v in needed for v in eqn.outvars):
            found.append((index, eqn))
            needed.update(v for v in eqn.invars if not isinstance(v, jec.Literal))
    return reversed(found)
