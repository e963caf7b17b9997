"""SynFlow as its paper has it: score and remove a little, a hundred times."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, masks
from jaxprune.criteria.flow import synflow
from jaxprune.masks._exact import counts

PyTree = Any


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
