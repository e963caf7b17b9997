"""Helpers of the criteria: scores of floating leaves, checked signals, and `within_outputs`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree

PyTree = Any
_MARK = "_compares_within_outputs"


def wide(dtype: Any) -> Any:
    """Returns the dtype for scores that are products: at least float32, because 16 bits under- and overflow.

    Example:
      >>> wide(jnp.bfloat16).name
      'float32'
    """
    return jnp.promote_types(dtype, jnp.float32)


def within_outputs(criterion: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Marks a criterion whose scores can be compared only within one output, such as Wanda's.

    `prune` and `reconstruct` then remove the same number of weights from each output of a leaf; the statistics tell
    which axes are inputs. A `pattern` with axes and `allocation.one_ranking` override the mark.

    Args:
      criterion: any criterion; `wanda` is already marked.

    Returns:
      The same function.

    Example:
      >>> @within_outputs
      ... def squares(params, **signals):
      ...     return jax.tree.map(jnp.square, params)
      >>> is_within_outputs(squares), is_within_outputs(jnp.abs)
      (True, False)
    """
    _tree.check_function(criterion, "criterion", "criteria.wanda")
    setattr(criterion, _MARK, True)
    return criterion


def is_within_outputs(criterion: Any) -> bool:
    """Returns whether a criterion, or the function that a `functools.partial` binds, is marked by `within_outputs`."""
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    return getattr(criterion, _MARK, False)


def map_scores(score: Callable[..., Any], params: PyTree, *signals: PyTree) -> PyTree:
    """Applies `score(leaf, *signals)` to each floating leaf; every other leaf scores a scalar zero.

    Args:
      score: a function of arrays that returns an array in the shape of its first argument. Pass the same object in
        every call: outside of jit many leaves are one program, which is compiled for each object.
      params: any tree.
      signals: trees of the same structure, checked by `need`.

    Returns:
      A tree of scores with the structure of `params`.
    """
    leaves, structure = jax.tree.flatten(params)
    floating = [k for k, leaf in enumerate(leaves) if _tree.is_floating(leaf)]
    given = [[jnp.asarray(xs[k]) for k in floating] for xs in (leaves, *map(structure.flatten_up_to, signals))]
    found = dict(zip(floating, _tree.each(score, *given), strict=True))
    return structure.unflatten([found[k] if k in found else jnp.zeros(()) for k in range(len(leaves))])


def score_leaf(score: Callable[..., Any], leaf: Any, *signals: Any) -> jax.Array:
    """Returns `score(leaf, *signals)` for a floating leaf, and a scalar zero for any other leaf."""
    if not _tree.is_floating(leaf):
        return jnp.zeros(())
    return score(jnp.asarray(leaf), *map(jnp.asarray, signals))


def need(signal: PyTree, params: PyTree, *, criterion: str, argument: str, hint: str) -> PyTree:
    """Returns the signal after checking that it was passed and fits the parameters.

    Args:
      signal: a tree of arrays in the shapes of the parameters, or None.
      params: the parameters.
      criterion: the name of the criterion, for messages.
      argument: the name of the argument, for messages.
      hint: an expression that the user can pass, for messages.

    Returns:
      `signal`.

    Raises:
      ValueError: the signal is None, or its structure or the shape of a floating leaf differs from the parameters'.
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
