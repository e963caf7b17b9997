"""The FLOPs of a traced function, one operation at a time, each with the parameter that it multiplies by."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._jaxprs import counts
from jaxprune._jaxprs.states import Lost, State, Weight
from jaxprune._jaxprs.walk import Met, follow

_ARITHMETIC = frozenset(
    {"add", "add_any", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "pow", "integer_pow", "square"}
    | {"sqrt", "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "tan"}
    | {"asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "clamp"}
    | {"floor", "ceil", "round", "nextafter", "lgamma", "digamma"}
)
_REDUCTIONS = frozenset(
    {"reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
)
_WINDOWS = frozenset({"reduce_window_sum", "reduce_window_max", "reduce_window_min"})
_NO_FLOPS = frozenset(
    {"reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "slice", "rev", "concatenate", "pad"}
    | {"convert_element_type", "bitcast_convert_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "name"}
    | {"gather", "scatter", "scatter-add", "dynamic_slice", "dynamic_update_slice", "select_n", "iota", "split"}
    | {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "is_finite", "reduce_and", "reduce_or"}
    | {"argmax", "argmin", "sort", "top_k", "shift_left", "shift_right_logical", "shift_right_arithmetic"}
    | {"population_count", "clz", "real", "imag", "complex", "conj", "eq_to", "lt_to", "le_to", "reduce_xor"}
    | {"optimization_barrier", "device_put", "sharding_constraint", "mesh_cast", "reshard", "pvary", "pcast"}
    | {"axis_index", "ppermute", "all_gather", "all_to_all", "empty", "create_token", "debug_callback", "debug_print"}
    | {"random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in", "random_split", "threefry2x32"}
    | {"layout_constraint", "random_clone", "tile"}
)


class Operation(NamedTuple):
    """One equation that multiplies, over all its runs.

    Attributes:
      primitive: its name.
      path: the equations it sits in, from the outside.
      flops: 2 for each multiply-add, over all runs.
      repeats: how often it runs when the function runs once.
      weight: the parameter leaves it multiplies by; None if its operands are activations or were lost.
      per_entry: multiply-adds of each entry of the weight in one run, broadcasting to its shape.
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
      elementwise: FLOPs of the other arithmetic, one for each entry; None if it was not asked for.
      uncounted: how often primitives run for which there is no count (an FFT, a decomposition, a kernel).
      unbounded: the `while` loops, by path, whose bodies were counted as running once.
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

    The body of a scan counts as often as it runs, of a cond the branch with the most FLOPs, and the body of a
    `while` once, which `unbounded` then says. What a shard_map does counts on all its devices. Code whose results
    nothing depends on does not count. See `multiply_adds` for what counts in a convolution.

    Args:
      closed: a closed jaxpr, such as `trace(fn, *args).closed`.
      params: positions of the parameters in its invars; operations are attributed to them.
      elementwise: whether other arithmetic counts too: one FLOP for each entry of the result of an elementwise
        function, whatever it costs, and one for each entry that a reduction or a pooling window reads.

    Returns:
      The operations and what was left out, by name.

    Example:
      >>> from jaxprune._jaxprs.tracing import trace
      >>> traced = trace(lambda w, x: jnp.tanh(x @ w), jnp.ones((3, 5)), jnp.ones((2, 3)))
      >>> count_flops(traced.closed).total, count_flops(traced.closed, elementwise=True).total
      (60, 70)
    """
    met = follow(closed, params, choose=_most)
    operations = tuple(_operation(m) for m in met if m.eqn.primitive.name in counts.PRIMITIVES)
    uncounted = Counter[str]()
    for m in met:
        if _is_uncounted(m):
            uncounted[m.eqn.primitive.name] += m.repeats
    rest = sum(map(_elementwise, met)) if elementwise else None
    loops = dict.fromkeys("/".join(m.path) for m in met if "while" in m.path and (_flops(m) or _elementwise(m)))
    return Flops(operations, rest, dict(uncounted), tuple(loops))


def _most(branches: list[list[Met]]) -> list[Met]:
    return max(branches, key=lambda met: (sum(map(_flops, met)), sum(map(_elementwise, met))))


def _flops(met: Met) -> int:
    if met.eqn.primitive.name not in counts.PRIMITIVES:
        return 0
    return 2 * counts.multiply_adds(met.eqn).total * met.repeats


def _operation(met: Met) -> Operation:
    counted = counts.multiply_adds(met.eqn)
    operation = Operation(met.eqn.primitive.name, met.path, 2 * counted.total * met.repeats, met.repeats)
    weights = [k for k, state in enumerate(met.states) if isinstance(state, Weight)]
    if weights:
        k = min(weights, key=lambda k: _preference(met, met.states[k], k))
        weight = met.states[k]
        return operation._replace(weight=weight, per_entry=counted.per_entry[k])
    return operation._replace(lost=next((s for s in met.states if isinstance(s, Lost)), None))


def _preference(met: Met, state: State, k: int) -> tuple[bool, int]:
    # Of two weights the one whose own entries they are, then the larger.
    return isinstance(state, Weight) and state.broadcast, -met.eqn.invars[k].aval.size


def _elementwise(met: Met) -> int:
    name = met.eqn.primitive.name
    out = met.eqn.outvars[0].aval
    if name not in _ARITHMETIC | _REDUCTIONS | _WINDOWS or not jnp.issubdtype(out.dtype, jnp.inexact):
        return 0
    if name in _WINDOWS:
        return met.repeats * math.prod(out.shape) * math.prod(met.eqn.params["window_dimensions"])
    shape = met.eqn.invars[0].aval.shape if name in _REDUCTIONS else out.shape
    return met.repeats * math.prod(shape)


def _is_uncounted(met: Met) -> bool:
    name = met.eqn.primitive.name
    return name not in counts.PRIMITIVES | _ARITHMETIC | _REDUCTIONS | _WINDOWS | _NO_FLOPS
