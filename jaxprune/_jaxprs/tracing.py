"""`trace`: the jaxpr of a function from shapes alone, and the position of each leaf in it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxprune import _tree

PyTree = Any


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
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def on_arrays(*arrays: Any) -> PyTree:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return _tree.call(fn, "fn", "fn(params, *inputs)", *jax.tree.unflatten(in_tree, filled))

    shapes = [_shape(leaves[place]) for place in places]
    closed, out = jax.make_jaxpr(on_arrays, return_shape=True)(*shapes)
    position = {place: i for i, place in enumerate(places)}
    return Traced(closed, in_tree, jax.tree.structure(out), tuple(position.get(i) for i in range(len(leaves))))


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or a ShapeDtypeStruct.

    Args:
      leaf: anything.

    Returns:
      A Python bool; False for Python numbers.

    Example:
      >>> is_array(jnp.ones(2)), is_array(1.0)
      (True, False)
    """
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))
