"""`constant_of`: integer arrays that a program computes from constants alone, such as the index of a permutation.

Values are computed only if a rule asks for them, and a frame stores them. A value that depends on an input of the
program, on the carry or the turn of a loop, or on the place of a device is not constant.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal

from jaxprune._jaxprs import sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, Concatenate, Entrywise, Mix, Moves, Pad, Pick, Reduce, Stack, Zero
from jaxprune._jaxprs.walk import bind

_LARGEST = 2**20  # entries of an array


def constant_of(frame: Any, var: Any) -> np.ndarray | None:
    """Returns the value of an integer variable or literal that is constant; None for any other value.

    Args:
      frame: the frame of the variable.
      var: a variable or a literal.
    """
    if isinstance(var, Literal):
        return _integers(var.val)
    if var not in frame.known:
        dtype, size = getattr(var.aval, "dtype", None), getattr(var.aval, "size", None)
        fits = isinstance(dtype, np.dtype) and dtype.kind in "iub" and isinstance(size, int) and size <= _LARGEST
        frame.known[var] = _computed(frame, var) if fits else None
    return frame.known[var]


def _integers(value: Any) -> np.ndarray | None:
    if isinstance(value, Tracer) or np.asarray(value).dtype.kind not in "iub":
        return None
    return np.asarray(value)


def _computed(frame: Any, var: Any) -> np.ndarray | None:
    if var in frame.jaxpr.constvars:
        return _integers(frame.consts[frame.jaxpr.constvars.index(var)])
    if var in frame.sources:
        return constant_of(*frame.sources[var])
    if var not in frame.makers:
        return None
    index = frame.makers[var]
    eqn = frame.jaxpr.eqns[index]
    result = eqn.outvars.index(var)
    subs = sub_jaxprs(eqn)
    if subs:
        if [sub.role for sub in subs] != ["call"] or index not in frame.children:
            return None
        child = frame.children[index][-1]
        return constant_of(child, child.jaxpr.outvars[subs[0].outputs.index(result)])
    if eqn.primitive.name == "iota":
        along = np.arange(eqn.params["shape"][eqn.params["dimension"]], dtype=eqn.params["dtype"])
        rest = (1,) * (len(eqn.params["shape"]) - 1 - eqn.params["dimension"])
        return np.broadcast_to(along.reshape(-1, *rest), eqn.params["shape"])
    given = [constant_of(frame, v) for v in eqn.invars]
    if not given or any(value is None for value in given):
        return None
    return _value(eqn, given, result)


def _value(eqn: Any, given: list[Any], result: int) -> np.ndarray | None:
    """Returns a result of an equation without inner jaxprs, from the values of its operands."""
    what, aval = PRIMITIVES.get(eqn.primitive.name), eqn.outvars[result].aval
    if isinstance(what, Moves):
        move: Any = what.moves(eqn)[result]
        if isinstance(move, Pad):
            return None
        every = isinstance(move, Concatenate | Stack)
        return np.asarray(move(*given) if every else move(given[result if what.each else 0]))
    if isinstance(what, Entrywise) and what.zero is Zero.SAME:
        return given[0].astype(aval.dtype)
    if isinstance(what, Entrywise | Mix | Pick | Reduce):
        with jax.ensure_compile_time_eval():
            return np.asarray(bind(eqn, given)[result])
    return None
