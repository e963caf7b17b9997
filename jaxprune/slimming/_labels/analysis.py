"""A function traced, with the labels of its parameters' axes."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxprune import _tree
from jaxprune._jaxprs import Traced, is_array, sub_jaxprs, trace
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes
from jaxprune.slimming._labels.frames import Frame, follow
from jaxprune.slimming._labels.labels import Ids, Labels
from jaxprune.slimming._labels.rules import RULES

PyTree = Any
_NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the parameters.

    Attributes:
      name: its path.
      identity: its path as a tuple.
      shape: its shape; None for a leaf that is not an array.
      dtype: its dtype.
      ids: for each axis its labels; (layers..., n) where a scan over layers takes it apart.
    """

    name: str
    identity: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: Any
    ids: tuple[Ids, ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A traced function and the labels in it.

    Attributes:
      labels: all labels, coupled as the function demands.
      traced: the jaxpr, and where each leaf of (params, *inputs) goes.
      frame: the axes of every value.
      leaves: the leaves of the parameters.
    """

    labels: Labels
    traced: Traced
    frame: Frame
    leaves: tuple[Leaf, ...]


def analyse(fn: Callable[..., PyTree], params: PyTree, inputs: Sequence[Any], *, fix_outputs: bool) -> Analysis:
    """Traces `fn(params, *inputs)` from shapes and couples the labels of the parameters.

    Args:
      fn: the function.
      params: arrays or ShapeDtypeStructs; leaves that are neither are constants.
      inputs: arrays or ShapeDtypeStructs.
      fix_outputs: whether the outputs have to keep their shapes.

    Raises:
      TypeError: the function needs numbers where there are only shapes.
    """
    return couple(traced_from_shapes(fn, params, inputs), params, fix_outputs=fix_outputs)


def traced_from_shapes(fn: Callable[..., PyTree], params: PyTree, inputs: Sequence[Any]) -> Traced:
    """Traces `fn(params, *inputs)`.

    Raises:
      TypeError: the function needs numbers where there are only shapes; the message names the leaves they depend on.
    """
    try:
        return trace(fn, params, *inputs)
    except _NEEDS_NUMBERS as error:
        paths = [path for path, leaf in jax.tree_util.tree_flatten_with_path((params, *inputs))[0] if is_array(leaf)]
        asked = {int(k) for k in re.findall(r"arrays\[(\d+)\]", str(error))}  # as JAX calls what it was given
        leaves = ", ".join(_argument(paths[k]) for k in sorted(asked)) or "params or inputs"
        raise TypeError(
            f"{getattr(fn, '__name__', repr(fn))} cannot be traced from shapes: it asks for a number that depends on "
            f"{leaves}. Write branches with jnp.where or lax.cond; what has to be a Python number must not be an "
            f"array leaf of params or inputs. JAX says: {str(error).splitlines()[0]}"
        ) from error


def _argument(path: Any) -> str:
    # The arguments are (params, *inputs).
    name = _tree.name(path[1:])
    return name if path[0].idx == 0 else f"input {path[0].idx - 1}" + (f", leaf {name}" if name else "")


def couple(traced: Traced, params: PyTree, *, fix_outputs: bool) -> Analysis:
    """Couples the labels of the parameters of a traced function."""
    labels = Labels()
    jaxpr = traced.closed.jaxpr
    layers, used = _layers(jaxpr), _used(jaxpr)
    given: list[Axes] = [tuple(ax.fixed(n) for n in v.aval.shape) for v in jaxpr.invars]
    leaves = []
    for k, (path, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        place = traced.inputs[k]
        ids: tuple[Ids, ...] = ()
        if place is not None:
            ids = _label(labels, leaf, layers.get(place, ()), place in used)
            given[place] = tuple(ax.labelled(i) for i in ids)
        shape = tuple(leaf.shape) if is_array(leaf) else None
        leaves.append(Leaf(_tree.name(path), _tree.identity(path), shape, getattr(leaf, "dtype", None), ids))
    frame = follow(labels, jaxpr, traced.closed.consts, given, (), RULES)
    if fix_outputs:
        for k, var in enumerate(jaxpr.outvars):
            for axis in frame.read(var):
                ax.freeze(labels, axis, labels.reason(f"output {k} of the function"))
    return Analysis(labels, traced, frame, tuple(leaves))


def _label(labels: Labels, leaf: Any, layers: tuple[int, ...], used: bool) -> tuple[Ids, ...]:
    depth = len(layers)
    ids = tuple(labels.fresh((n,) if i < depth else (*layers, n)) for i, n in enumerate(leaf.shape))
    if not used:
        for axis in ids:
            labels.freeze(axis, labels.reason("not used by the function"))
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        for axis in ids:
            labels.freeze(axis, labels.reason("random keys"))
    return ids


def _layers(jaxpr: Any) -> dict[int, tuple[int, ...]]:
    """For each input that goes straight into a scan as what it runs over: the lengths of the scans."""
    source = {v: i for i, v in enumerate(jaxpr.invars)}
    found: dict[int, tuple[int, ...]] = {}
    for eqn in jaxpr.eqns:
        rule = RULES.get(eqn.primitive.name)
        if rule is None or not rule.ragged:
            continue
        for sub in sub_jaxprs(eqn):
            inner = _layers(sub.jaxpr)
            for k, place in enumerate(sub.inputs):
                var = None if place is None else eqn.invars[place]
                if isinstance(var, Literal) or var not in source:
                    continue
                lengths = inner.get(k, ())
                if k in sub.stacked_inputs:
                    lengths = (int(eqn.params["length"]), *lengths)
                if len(lengths) > len(found.get(source[var], ())):
                    found[source[var]] = lengths
        [*operands] = [v for v in eqn.invars if not isinstance(v, Literal)]
        if len(eqn.invars) == len(operands) == 1 and operands[0] in source and not sub_jaxprs(eqn):
            source[eqn.outvars[0]] = source[operands[0]]
    return found


def _used(jaxpr: Any) -> set[int]:
    """The inputs that something is computed from, or that are returned."""
    used = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in jaxpr.eqns:
        operands = [None if isinstance(v, Literal) else v for v in eqn.invars]
        subs = sub_jaxprs(eqn)
        if subs and all(sub.role == "call" for sub in subs):
            places = [sub.inputs[k] for sub in subs for k in _used(sub.jaxpr)]
            used |= {operands[place] for place in places if place is not None}
        else:
            used |= set(operands)
    return {i for i, v in enumerate(jaxpr.invars) if v in used}
