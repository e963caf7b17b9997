"""What criteria share: scores for floating leaves only, and errors that say which signal is missing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree

PyTree = Any


def wide(dtype: Any) -> Any:
    """The dtype of scores that are products: float32 at least, for in 16 bits they would under- and overflow.

    Example:
      >>> wide(jnp.bfloat16).name
      'float32'
    """
    return jnp.promote_types(dtype, jnp.float32)


def map_scores(score: Callable[..., Any], params: PyTree, *signals: PyTree) -> PyTree:
    """The tree of scores: `score(leaf, *signals' leaves)` where the leaf is floating, else a scalar zero.

    Args:
      score: arrays -> an array in the shape of the first.
      params: any tree.
      signals: trees of the same structure, as `need` returns them.

    Returns:
      A tree of arrays with the structure of `params`.
    """
    return _tree.map_named(lambda name, *xs: of_leaf(score, *xs), params, *signals)


def of_leaf(score: Callable[..., Any], leaf: Any, *signals: Any) -> jax.Array:
    """`score(leaf, *signals)` of a floating leaf, else the zero that stands for no score."""
    if not _tree.is_floating(leaf):
        return jnp.zeros(())
    return score(jnp.asarray(leaf), *map(jnp.asarray, signals))


def need(signal: PyTree, params: PyTree, *, criterion: str, argument: str, hint: str) -> PyTree:
    """The signal, if it was passed and fits the parameters.

    Args:
      signal: a tree of arrays in the shapes of the params, or None.
      params: the parameters.
      criterion: the name of the criterion, for messages.
      argument: the name of the argument.
      hint: what to pass.

    Returns:
      `signal`.

    Raises:
      ValueError: it is None, has another structure, or a floating leaf of another shape.
    """
    if signal is None:
        raise ValueError(f"criteria.{criterion} needs {argument}: pass {argument}={hint}")
    _tree.check_same(params, signal, what=argument)
    pairs = zip(_tree.named_leaves(params), jax.tree.leaves(signal), strict=True)
    wrong = [
        f"  {name}: {argument} {np.shape(given)}, parameter {np.shape(leaf)}"
        for (name, leaf), given in pairs
        if _tree.is_floating(leaf) and np.shape(given) != np.shape(leaf)
    ]
    if wrong:
        raise ValueError(f"criteria.{criterion}: {argument} must have the shapes of params:\n" + "\n".join(wrong))
    return signal


def differentiable(fn: Callable[[PyTree], Any], params: PyTree) -> tuple[Callable[[list], Any], list, Callable]:
    """A function of the floating leaves alone, for integers and static leaves have no gradient.

    Args:
      fn: a function of params.
      params: any tree.

    Returns:
      `fn` as a function of the list of floating leaves; that list; and a function that takes one score for each
      of them and returns the tree of scores.
    """
    leaves, treedef = jax.tree.flatten(params)
    at = [i for i, leaf in enumerate(leaves) if _tree.is_floating(leaf)]

    def put(values: list, rest: list) -> PyTree:
        filled = list(rest)
        for i, value in zip(at, values, strict=True):
            filled[i] = value
        return jax.tree.unflatten(treedef, filled)

    def scores(values: list) -> PyTree:
        return put(values, [jnp.zeros(())] * len(leaves))

    return lambda values: fn(put(values, leaves)), [jnp.asarray(leaves[i]) for i in at], scores
