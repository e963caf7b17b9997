"""What each primitive makes of the views of its operands: the table behind the interpreter."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from jaxprune.calibration import views
from jaxprune.calibration.views import NotFollowed, View

Equation = Any
Views = tuple[View, ...]
Rule = Callable[[Equation, Sequence[Views], Sequence[Any]], list[Views]]

_SAME = frozenset(
    {"convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "neg", "name", "device_put"}
    | {"sharding_constraint", "mesh_cast", "reshard", "pvary", "pcast", "layout_constraint", "optimization_barrier"}
)
# A factor or summand without data in it: a mask, a scale, a low-rank correction. The sum of two weights, or their
# product, meets what each of them meets.
_TOGETHER = frozenset({"mul", "add", "sub", "add_any", "select_n"})


def follow(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
    """The views of an equation's results.

    Args:
      eqn: an equation without sub-jaxprs, none of whose operands depends on data.
      operands: for each operand, its views.
      values: the operands, of which the indices of a slice are looked at.

    Returns:
      For each result, its views.

    Raises:
      NotFollowed: the primitive is not one that moves entries, masks or scales them.
    """
    name = eqn.primitive.name
    if name in _SAME:
        return list(operands)
    if name in _TOGETHER:
        parts = operands[1:] if name == "select_n" else operands
        return [tuple(view for part in parts for view in part)]
    rule = _RULES.get(name)
    if rule is None or (name == "div" and operands[1]):
        raise NotFollowed(name)
    return rule(eqn, operands, values)


def _each(step: Callable[[Equation, View, views.Shape], View | None]) -> Rule:
    def rule(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
        del values
        shape = tuple(eqn.invars[0].aval.shape)
        new = [step(eqn, view, shape) for view in operands[0]]
        return [tuple(view for view in new if view is not None)]

    return rule


def _reshape(eqn: Equation, view: View, shape: views.Shape) -> View:
    if eqn.params.get("dimensions") is not None:
        raise NotFollowed("a reshape in another order")
    return views.reshape(view, shape, tuple(eqn.outvars[0].aval.shape))


def _slice(eqn: Equation, view: View, shape: views.Shape) -> View | None:
    strides = eqn.params["strides"] or (1,) * len(shape)
    return views.slice_(view, shape, tuple(eqn.params["start_indices"]), tuple(eqn.params["limit_indices"]), strides)


def _dynamic_slice(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
    shape, sizes = tuple(eqn.invars[0].aval.shape), tuple(eqn.params["slice_sizes"])
    if any(isinstance(v, Tracer) for v in values[1 : 1 + len(shape)]):
        raise NotFollowed("an index that is computed")
    starts = [int(np.clip(int(i), 0, n - s)) for i, n, s in zip(values[1:], shape, sizes, strict=False)]
    limits = tuple(a + s for a, s in zip(starts, sizes, strict=True))
    new = [views.slice_(view, shape, tuple(starts), limits, (1,) * len(shape)) for view in operands[0]]
    return [tuple(view for view in new if view is not None)]


def _split(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
    del values
    shape, axis, out, begin = tuple(eqn.invars[0].aval.shape), eqn.params["axis"], [], 0
    for size in eqn.params["sizes"]:
        starts = tuple(begin if a == axis else 0 for a in range(len(shape)))
        limits = tuple(begin + size if a == axis else n for a, n in enumerate(shape))
        new = [views.slice_(view, shape, starts, limits, (1,) * len(shape)) for view in operands[0]]
        out.append(tuple(view for view in new if view is not None))
        begin += size
    return out


def _concatenate(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
    del values
    axis, begin, out = eqn.params["dimension"], 0, []
    for var, part in zip(eqn.invars, operands, strict=True):
        out += [_shift(view, axis, begin) for view in part]
        begin += var.aval.shape[axis]
    return [tuple(out)]


def _pad(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
    del values
    if any(low < 0 or high < 0 or inner for low, high, inner in eqn.params["padding_config"]):
        raise NotFollowed("a pad that cuts off or spreads")
    new = operands[0]
    for axis, (low, _, _) in enumerate(eqn.params["padding_config"]):
        new = tuple(_shift(view, axis, low) for view in new)
    return [new]


def _shift(view: View, axis: int, by: int) -> View:
    return view._replace(start=tuple(s + by if a == axis else s for a, s in enumerate(view.start)))


def _broadcast(eqn: Equation, operands: Sequence[Views], values: Sequence[Any]) -> list[Views]:
    del values
    old, new = tuple(eqn.invars[0].aval.shape), tuple(eqn.params["shape"])
    return [tuple(views.broadcast(view, old, new, eqn.params["broadcast_dimensions"]) for view in operands[0])]


_RULES: dict[str, Rule] = {
    "reshape": _each(_reshape),
    "squeeze": _each(lambda eqn, view, _: views.squeeze(view, eqn.params["dimensions"])),
    "expand_dims": _each(lambda eqn, view, shape: views.reshape(view, shape, tuple(eqn.outvars[0].aval.shape))),
    "transpose": _each(lambda eqn, view, _: views.transpose(view, eqn.params["permutation"])),
    "slice": _each(_slice),
    "div": _each(lambda eqn, view, _: view),
    "broadcast_in_dim": _broadcast,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
}
