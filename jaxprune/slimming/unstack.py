"""`unstack`: runs the layers of a scan one after the other, so that each layer may keep another width."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxprune import _tree
from jaxprune._jaxprs import Sub, sub_jaxprs, trace
from jaxprune._jaxprs.walk import Values, bind, walk
from jaxprune.slimming._labels.analysis import traced_from_shapes

PyTree = Any
Equation = Any


def unstack(fn: Callable[..., PyTree], params: PyTree, *inputs: Any) -> tuple[Callable[..., PyTree], PyTree]:
    """Returns a function that runs a scan over layers one layer after the other, with parameters for each layer.

    In a scan all layers have the same shapes. Unstack them to give each layer its own width, number of heads or nothing
    at all: `find_groups` of the new function has groups for each layer. The program grows with the number of layers.

    Args:
      fn: a function `fn(params, *inputs)` with one or several scans over layers, also inside jit or remat.
      params: arrays or ShapeDtypeStructs.
      *inputs: arrays or ShapeDtypeStructs, to find the scans with.

    Returns:
      The function, and parameters in which each leaf that a scan runs over directly, or after a change of its dtype, is
      a tuple of its layers. Other leaves stay as they are: if a scan runs over a part of a leaf, or over a value
      computed from it, the layers of this leaf still lose the same units.

    Raises:
      ValueError: no scan runs over a leaf of the parameters; in the returned function, the layers of a leaf have
        different shapes or numbers.

    Example:
      >>> step = lambda x, w: (x + jnp.tanh(x @ w['up']) @ w['down'], None)
      >>> fn = lambda p, x: jax.lax.scan(step, x, p)[0]
      >>> params, x = {'up': jnp.ones((3, 2, 8)), 'down': jnp.ones((3, 8, 2))}, jnp.ones((5, 2))
      >>> layered, layers = unstack(fn, params, x)
      >>> len(layers['up']), layers['up'][0].shape, bool((layered(layers, x) == fn(params, x)).all())
      (3, (2, 8), True)
      >>> from jaxprune.slimming import slim
      >>> small = slim(layered, layers, {'up/0[1]': [0, 1], 'up/2[1]': [0, 1, 2, 3]}, x)
      >>> [leaf.shape[1] for leaf in small.params['up']]
      [6, 8, 4]
    """
    leaves, structure = jax.tree.flatten(params)
    traced = traced_from_shapes(fn, params, inputs)
    variables = traced.closed.jaxpr.invars
    places = {variables[place]: k for k, place in enumerate(traced.inputs[: len(leaves)]) if place is not None}
    layers = {k: leaves[k].shape[0] for k in sorted(_scanned(traced.closed.jaxpr, places))}
    if not layers:
        raise ValueError("no scan runs over the first axis of a leaf of params: there are no layers to unstack")
    names = [name for name, _ in _tree.named_leaves(params)]

    def unstacked(params: PyTree, *inputs: Any) -> PyTree:
        own = structure.flatten_up_to(params)
        whole = list(own)
        for k, count in layers.items():
            shapes = [tuple(layer.shape) for layer in own[k]]
            if len(shapes) != count or len(set(shapes)) > 1:
                raise ValueError(
                    f"{names[k]}: expected {count} layers of one shape, got {shapes}; call the function that slim "
                    "returns with smaller layers"
                )
            whole[k] = jax.ShapeDtypeStruct((count, *shapes[0]), own[k][0].dtype)
            own[k] = list(own[k])
        traced = trace(fn, jax.tree.unflatten(structure, whole), *inputs)
        values = [*own, *jax.tree.leaves(inputs)]
        given = [value for value, place in zip(values, traced.inputs, strict=True) if place is not None]
        results = _run(traced.closed.jaxpr, traced.closed.consts, given)
        return jax.tree.unflatten(traced.out_tree, [_whole(value) for value in results])

    split = [tuple(_row(leaf, i) for i in range(layers[k])) if k in layers else leaf for k, leaf in enumerate(leaves)]
    return unstacked, jax.tree.unflatten(structure, split)


def _row(leaf: Any, i: int) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf[i]


def _scanned(jaxpr: Any, source: Mapping[Any, int]) -> set[int]:
    """Returns the leaves over which scans run, from the leaf of each variable."""
    known, found = dict(source), set()
    for eqn in jaxpr.eqns:
        operands = [None if isinstance(v, Literal) else known.get(v) for v in eqn.invars]
        if all(leaf is None for leaf in operands):
            continue
        for sub in sub_jaxprs(eqn):
            own = {k: operands[place] for k, place in enumerate(sub.inputs) if place is not None}
            if sub.role == "scan":
                found |= {leaf for k, leaf in own.items() if k in sub.stacked_inputs and leaf is not None}
            elif _is_call(eqn, sub):
                found |= _scanned(sub.jaxpr, {sub.jaxpr.invars[k]: leaf for k, leaf in own.items() if leaf is not None})
        if eqn.primitive.name == "convert_element_type" and operands[0] is not None:
            known[eqn.outvars[0]] = operands[0]
    return found


def _is_call(eqn: Equation, sub: Sub) -> bool:
    """Returns whether a jaxpr may run in place of its equation: custom derivatives would be lost."""
    return sub.role == "call" and not eqn.primitive.name.startswith("custom_")


def _run(jaxpr: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """Runs a jaxpr; a value that is a list has one entry for each layer."""

    def equation(index: int, eqn: Equation, operands: list[Any]) -> list[Any]:
        del index
        if not any(isinstance(value, list) for value in operands):
            return bind(eqn, operands)
        for sub in sub_jaxprs(eqn):
            if sub.role == "scan":
                return _layer_by_layer(sub, operands)
            if _is_call(eqn, sub):
                results = _run(sub.jaxpr, sub.consts, [operands[place] for place in sub.inputs if place is not None])
                return [results[sub.outputs.index(k)] for k in range(len(eqn.outvars))]
        if eqn.primitive.name == "convert_element_type":
            return [[bind(eqn, [layer])[0] for layer in operands[0]]]
        return bind(eqn, [_whole(value) for value in operands])

    return walk(jaxpr, [*consts, *given], Values[Any](lambda value: value), equation)


def _layer_by_layer(sub: Sub, operands: Sequence[Any]) -> list[Any]:
    inputs = [value if k in sub.stacked_inputs else _whole(value) for k, value in enumerate(operands)]
    stacked = {k: inputs[k] for k in sub.stacked_inputs}
    made: dict[int, dict[int, Any]] = {k: {} for k in sub.stacked_outputs}
    rounds = range(sub.length or 0)
    for i in reversed(rounds) if sub.reverse else rounds:
        for k, value in stacked.items():
            inputs[k] = value[i]
        outs = _run(sub.jaxpr, sub.consts, inputs)
        for out, into in sub.carried:
            inputs[into] = outs[out]
        for k, found in made.items():
            found[i] = outs[k]
    results = {k: jnp.stack([found[i] for i in rounds]) for k, found in made.items()}
    results |= {out: inputs[into] for out, into in sub.carried}
    return [results[k] for k in range(len(results))]


def _whole(value: Any) -> Any:
    return jnp.stack(value) if isinstance(value, list) else value
