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


def grasp(
    loss: Callable[..., Any], *inputs: PyTree, where: _tree.Where = None, roles: _tree.Roles | None = None
) -> Criterion:
    """Gradient signal preservation: keeps the weights that contribute most to the norm of the gradient.

        s = w (H g),    H the Hessian and g the gradient of the loss

    Wang et al. 2020 (GraSP), arXiv 2002.07376, algorithms 1 and 2. The paper's score is -w (H g), and the paper removes
    the LARGEST scores; here a larger score means keep, so the sign is reversed. Scores may be negative. Rank them over
    all leaves (`allocation.one_ranking`). The paper divides the logits by 200 before the softmax; do this in `loss`.

    H g is one forward-over-reverse product (`jax.jvp` of `jax.grad`), at about the cost of two gradients.

    Args:
      loss: (params, *inputs) -> scalar.
      inputs: passed to the loss, such as a batch of examples and their labels.
      where: the leaves that may be pruned: a predicate `(name, leaf) -> bool`, a glob or a list of globs; default:
        every leaf that may be pruned. The gradient is taken for these leaves only; the other leaves are constants.
      roles: what `jaxprune.find_roles` returned, to tell which leaves are weights; None (default) uses conventions.
        Pass the roles that you pass to `prune`.

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
        flags = zip(jax.tree.leaves(params), jax.tree.leaves(_tree.prunable(params, where, roles)), strict=True)
        chosen = [flag for leaf, flag in flags if _tree.is_floating(leaf)]
        gradient = jax.grad(fn)
        tangents = [g if c else jnp.zeros_like(g) for g, c in zip(gradient(leaves), chosen, strict=True)]
        _, products = jax.jvp(gradient, (leaves,), (tangents,))
        scores = [w.astype(wide(w.dtype)) * h.astype(wide(w.dtype)) for w, h in zip(leaves, products, strict=True)]
        return as_tree(scores)

    return criterion


def synflow(fn: Callable[..., Any], *inputs: PyTree) -> Criterion:
    """Synaptic flow: the sum over all paths from input to output that pass through a weight.

        s = |w| dR/d|w|,    R = sum of fn(|params|, 1, ..., 1)

    Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1. The criterion needs no data and no labels: it replaces
    all parameters (biases, normalisation, and running statistics if they are in `params`) by their absolute values and
    all inputs by ones. The paper's guarantee that no layer collapses holds for the iterative form, `synflow_masks`, and
    not for one shot.

    `fn` must run in inference mode: batch statistics of an all-ones batch are degenerate. R is a product over layers
    and may overflow float32 in deep networks without normalisation; scores are then inf or NaN. In this case scale the
    parameters down or use float64 (`jax.enable_x64`).

    Args:
      fn: (params, *inputs) -> an array or a tree of arrays; its floating arrays are summed.
      inputs: arrays or ShapeDtypeStructs. Floating inputs are replaced by ones of their shape; other inputs (token
        indices) are passed unchanged. One example is enough; a batch of n multiplies the scores by n.

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
        # float16 and bfloat16 overflow at once, so the sum over all paths is computed in float32 at least.
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
    roles: _tree.Roles | None = None,
) -> PyTree:
    """Iterative synaptic flow pruning, without data; returns the masks.

        for i = 1..n: score the masked parameters; keep the fraction (1 - s)^(i/n) of all weights together

    Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1. The scores of a layer have a constant sum, so they rise
    as the layer loses weights, and no layer is emptied before it must be. The loop is one `lax.scan` with one gradient
    and one selection in each step. A removed weight stays removed.

    Args:
      fn: (params, *inputs) -> arrays, in inference mode; see `criteria.synflow`.
      params: the parameters at initialisation.
      sparsity: the fraction of the entries of all pruned leaves to remove, in [0, 1): a Python number or a traced
        scalar.
      inputs: arrays or ShapeDtypeStructs; see `criteria.synflow`.
      iterations: n, 1 or more; default 100; 1 prunes in one shot.
      where: the leaves to prune: a predicate `(name, leaf) -> bool`, a glob or a list of globs; default: every leaf
        that may be pruned.
      roles: what `jaxprune.find_roles(fn, params, *inputs)` returned, to tell which leaves are weights; None (default)
        uses conventions.

    Returns:
      Masks that remove exactly floor(s N + 1/2) of all N entries. Of equal scores the first leaf and the lowest index
      are kept.

    Raises:
      ValueError: `sparsity` is outside [0, 1), or `iterations` is below 1.

    Example:
      >>> fn = lambda params, x: x @ params['a'] @ params['b']
      >>> params = {'a': jnp.array([[3.0, 1.0]]), 'b': jnp.array([[-1.0], [2.0]])}
      >>> jax.tree.map(lambda m: m.ravel().tolist(), synflow_masks(fn, params, 0.5, jnp.ones((1, 1))))
      {'a': [True, False], 'b': [True, False]}
    """
    _tree.check_sparsity(sparsity)
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more; got {iterations}")
    _tree.check_function(fn, "fn", "fn(params, *inputs)")
    chosen = jax.tree.leaves(_tree.prunable(params, where, roles))
    entries = sum(math.prod(x.shape) for x, c in zip(jax.tree.leaves(params), chosen, strict=True) if c)
    criterion = synflow(fn, *inputs)

    def remove(kept: PyTree, removed: masks.Count) -> tuple[PyTree, None]:
        scores = criterion(masks.apply(params, kept))
        # Removed weights score 0, like weights on dead paths. Where the flow overflows, inf - inf is NaN.
        scores = jax.tree.map(lambda s, m: jnp.where(m, jnp.nan_to_num(s), -jnp.inf) if m.ndim else s, scores, kept)
        return masks.select_global(scores, removed, where=lambda name, _: name in names), None

    names = {name for (name, _), c in zip(_tree.named_leaves(params), chosen, strict=True) if c}
    start = masks.ones(params, where=where, roles=roles)
    if not entries:
        return start
    return jax.lax.scan(remove, start, _removed(sparsity, iterations, entries))[0]


def _removed(sparsity: Any, iterations: int, entries: int) -> masks.Count:
    """The total number of removed entries after each iteration; the last number follows `sparsity` exactly."""
    parts = np.arange(1, iterations) / iterations
    if isinstance(sparsity, jax.Array):
        way = -jnp.expm1(jnp.log1p(-sparsity) * jnp.asarray(parts, sparsity.dtype))
        return counts.removed(jnp.append(way, sparsity), entries)
    way = [*-np.expm1(np.log1p(-float(sparsity)) * parts), float(sparsity)]
    steps = [counts.removed(float(s), entries) for s in way]
    return masks.Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*steps, strict=True)))
