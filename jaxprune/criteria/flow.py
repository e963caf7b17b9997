"""Criteria for pruning before training that need the function itself: GraSP and SynFlow."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.criteria.signals import differentiable, wide

PyTree = Any
Criterion = Callable[..., PyTree]


def grasp(loss: Callable[..., Any], *inputs: PyTree, where: _tree.Where = None) -> Criterion:
    """Gradient signal preservation: keep what the norm of the gradient owes most to.

        s = w (H g),    H the Hessian and g the gradient of the loss

    Wang et al. 2020 (GraSP), arXiv 2002.07376, algorithms 1 and 2. The paper's score is -w (H g), of which the
    LARGEST are removed; here larger means keep, so the sign is the other. Scores may be negative: they are ranked as
    they are, best over all leaves (`allocation.one_ranking`). The paper divides the logits by 200 before the
    softmax, in the loss: that is for the caller to do.

    H g is one forward-over-reverse product (`jax.jvp` of `jax.grad`), at about the cost of two gradients.

    Args:
      loss: (params, *inputs) -> scalar.
      inputs: passed on to the loss, such as a batch of examples and their labels.
      where: the leaves that may be pruned; as in the paper the gradient is that of these leaves alone, the others
        being constants.

    Returns:
      A criterion: params -> scores in float32 at least; a scalar zero for leaves that are not floating.

    Example:
      >>> loss = lambda params: (params['kernel'] ** 3).sum()
      >>> grasp(loss)({'kernel': jnp.array([[1.0, -2.0]])})  # w H g = w 6w 3w^2
      {'kernel': Array([[ 18., 288.]], dtype=float32)}
    """

    def criterion(params: PyTree, **signals: Any) -> PyTree:
        del signals
        fn, leaves, as_tree = differentiable(lambda p: loss(p, *inputs), params)
        flags = zip(jax.tree.leaves(params), jax.tree.leaves(_tree.prunable(params, where)), strict=True)
        chosen = [flag for leaf, flag in flags if _tree.is_floating(leaf)]
        gradient = jax.grad(fn)
        tangents = [g if c else jnp.zeros_like(g) for g, c in zip(gradient(leaves), chosen, strict=True)]
        _, products = jax.jvp(gradient, (leaves,), (tangents,))
        scores = [w.astype(wide(w.dtype)) * h.astype(wide(w.dtype)) for w, h in zip(leaves, products, strict=True)]
        return as_tree(scores)

    return criterion


def synflow(fn: Callable[..., Any], *inputs: PyTree) -> Criterion:
    """Synaptic flow: the part of all paths from input to output that goes through a weight.

        s = |w| dR/d|w|,    R = sum of fn(|params|, 1, ..., 1)

    Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1: no data and no labels; all parameters (biases,
    normalisation, running statistics if they are in `params`) by their absolute value, all inputs one. The paper's
    guarantee against the collapse of a layer holds for the iterative form, `synflow_masks`, not for one shot.

    `fn` must run in inference mode: batch statistics of an all-ones batch are degenerate. R is a product over
    layers and may overflow float32 in deep networks without normalisation; scores are then inf or NaN. Scale the
    parameters down or use float64 (`jax.enable_x64`) there.

    Args:
      fn: (params, *inputs) -> an array, or a tree of arrays of which the floating ones are summed.
      inputs: arrays or ShapeDtypeStructs, for their shapes: floating ones are replaced by ones. Others (token
        indices) are passed as they are. One example is enough; a batch of n gives n times the score.

    Returns:
      A criterion: params -> scores, 0 or more, in float32 at least; a scalar zero for leaves that are not floating.

    Example:
      >>> fn = lambda params, x: x @ params['a'] @ params['b']
      >>> params = {'a': jnp.array([[1.0, -2.0]]), 'b': jnp.array([[3.0], [0.0]])}
      >>> synflow(fn, jnp.zeros((1, 1)))(params)['a']
      Array([[3., 0.]], dtype=float32)
    """
    ones = jax.tree.map(_ones, inputs)

    def criterion(params: PyTree, **signals: Any) -> PyTree:
        del signals
        total, leaves, as_tree = differentiable(lambda p: _sum_floating(fn(p, *ones)), params)
        # 16 bits overflow at once: the sum over all paths is computed in float32 at least.
        absolute = [jnp.abs(w.astype(wide(w.dtype))) for w in leaves]
        slopes = jax.grad(total)(absolute)
        return as_tree([jnp.abs(w * slope) for w, slope in zip(absolute, slopes, strict=True)])

    return criterion


def _ones(x: Any) -> Any:
    return jnp.ones(x.shape, wide(x.dtype)) if _tree.is_floating(x) else x


def _sum_floating(outputs: PyTree) -> jax.Array:
    sums = [y.astype(wide(y.dtype)).sum() for y in jax.tree.leaves(outputs) if _tree.is_floating(y)]
    if not sums:
        raise ValueError("criteria.synflow: fn returns no floating array, so there is no flow to measure")
    return functools.reduce(jnp.add, sums)
