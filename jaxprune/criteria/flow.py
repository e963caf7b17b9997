"""Criteria for pruning before training that need the function itself: `grasp`, `synflow` and `synflow_masks`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, masks
from jaxprune.criteria._scores import wide
from jaxprune.masks._exact import counts

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
    loss = _tree.scalar(loss, "loss", "loss(params, *inputs)")

    def criterion(params: PyTree, **signals: Any) -> PyTree:
        del signals
        fn, leaves, as_tree = _tree.differentiable(lambda p: loss(p, *inputs), params)
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
    _tree.check_function(fn, "fn", "fn(params, *inputs)")
    ones = jax.tree.map(_ones, inputs)
    call = lambda params: _tree.call(fn, "fn", "fn(params, *inputs)", params, *ones)

    def criterion(params: PyTree, **signals: Any) -> PyTree:
        del signals
        total, leaves, as_tree = _tree.differentiable(lambda p: _sum_floating(call(p)), params)
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


def synflow_masks(
    fn: Callable[..., Any],
    params: PyTree,
    sparsity: Any,
    *inputs: PyTree,
    iterations: int = 100,
    where: _tree.Where = None,
) -> PyTree:
    """The masks of iterative synaptic flow pruning, without data.

        for i = 1..n: scores of the masked parameters; of all weights together keep the fraction (1 - s)^(i/n)

    Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1. The score of a layer is conserved, so the fewer weights
    it has left the higher they score, and no layer loses its last weight before it must. One `lax.scan`, with one
    gradient and one selection in each step. What was removed stays removed, whatever ties.

    Args:
      fn: (params, *inputs) -> arrays, in inference mode: see `criteria.synflow`.
      params: the parameters, at initialisation.
      sparsity: the fraction to remove of all pruned leaves together, in [0, 1): a Python number or a traced scalar.
      inputs: arrays or ShapeDtypeStructs: see `criteria.synflow`.
      iterations: n, 1 or more; 1 is one-shot.
      where: the leaves that are pruned.

    Returns:
      Masks that remove exactly floor(s N + 1/2) of all N entries; ties by the first leaf and the lowest index kept.

    Raises:
      ValueError: a sparsity outside [0, 1), or fewer iterations than one.

    Example:
      >>> fn = lambda params, x: x @ params['a'] @ params['b']
      >>> params = {'a': jnp.array([[3.0, 1.0]]), 'b': jnp.array([[-1.0], [2.0]])}
      >>> jax.tree.map(lambda m: m.ravel().tolist(), synflow_masks(fn, params, 0.5, jnp.ones((1, 1))))
      {'a': [True, False], 'b': [True, False]}
    """
    counts.check_sparsity(sparsity)
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more; got {iterations}")
    _tree.check_function(fn, "fn", "fn(params, *inputs)")
    chosen = jax.tree.leaves(_tree.prunable(params, where))
    entries = sum(math.prod(x.shape) for x, c in zip(jax.tree.leaves(params), chosen, strict=True) if c)
    criterion = synflow(fn, *inputs)

    def remove(kept: PyTree, removed: masks.Count) -> tuple[PyTree, None]:
        scores = criterion(masks.apply(params, kept))
        # Removed weights score 0, as weights on dead paths do; and where the flow overflows, inf - inf is NaN.
        scores = jax.tree.map(lambda s, m: jnp.where(m, jnp.nan_to_num(s), -jnp.inf) if m.ndim else s, scores, kept)
        return masks.select_global(scores, removed, where=lambda name, _: name in names), None

    names = {name for (name, _), c in zip(_tree.named_leaves(params), chosen, strict=True) if c}
    start = masks.ones(params, where=where)
    if not entries:
        return start
    return jax.lax.scan(remove, start, _removed(sparsity, iterations, entries))[0]


def _removed(sparsity: Any, iterations: int, entries: int) -> masks.Count:
    """How many entries each iteration leaves removed; the last of them exactly as `sparsity` says."""
    parts = np.arange(1, iterations) / iterations
    if isinstance(sparsity, jax.Array):
        way = -jnp.expm1(jnp.log1p(-sparsity) * jnp.asarray(parts, sparsity.dtype))
        return counts.removed(jnp.append(way, sparsity), entries)
    way = [*-np.expm1(np.log1p(-float(sparsity)) * parts), float(sparsity)]
    steps = [counts.removed(float(s), entries) for s in way]
    return masks.Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*steps, strict=True)))
