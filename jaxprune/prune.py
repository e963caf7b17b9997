"""Criterion, allocation and selection in one call."""

from typing import Any

from jaxprune import _tree, criteria, masks
from jaxprune import allocation as allocations

PyTree = Any


def prune(
    params: PyTree,
    sparsity: Any,
    *,
    criterion: criteria.Criterion = criteria.magnitude,
    allocation: allocations.Allocate = allocations.uniform,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    grads: PyTree | None = None,
    stats: PyTree | None = None,
    key: Any = None,
    specs: PyTree = None,
) -> masks.Pruned:
    """Removes the lowest-scoring weights: the parameters with exact zeros, and the masks.

    Args:
      params: any pytree of parameters. Of Flax variables pass `variables["params"]`: other collections, such as
        batch statistics, are leaves like others here.
      sparsity: the fraction to remove, in [0, 1), of the leaves that `where` selects; a number, or a floating scalar
        array that may be traced.
      criterion: `(params, *, grads, stats, key, **signals) -> scores`, larger = more worth keeping.
      allocation: `(scores, sparsity, *, where, pattern, batch_axes) -> Allocation`: how the leaves share the sparsity.
      pattern: what is removed together; a mapping from globs gives each leaf its own.
      where: which leaves are pruned: None (floating, two axes or more), a predicate, a glob or a list of globs.
      batch_axes: leading axes that are slices of their own; a mapping from globs gives them by path.
      grads: gradients in the structure of `params`, for criteria that need them.
      stats: what `jaxprune.calibrate` returned, for criteria on activations.
      key: a JAX key, for random criteria.
      specs: inside `jax.shard_map`, the `PartitionSpec` of each leaf, as in its `in_specs`: all of this then sees
        whole parameters, and each device gets its part of the result (`masks.sharded`).

    Returns:
      `Pruned(params, masks)`.

    Raises:
      ValueError: a sparsity outside [0, 1), a signal that the criterion misses, a pattern that does not fit a leaf, no
        leaf to prune.
      TypeError: `where` selects what is not floating; a criterion, allocation or pattern that is none.

    Works under jit with all but params, arrays and keys static; the counts are exact, ties fall to the lowest index.
    Scores that are NaN, of gradients that diverged say, rank lowest and so fall like ties: look at them first.

    Example:
      >>> import jax.numpy as jnp
      >>> pruned = prune({'w': jnp.array([[3.0, -1.0], [2.0, -4.0]])}, 0.5)
      >>> pruned.params['w'].tolist()
      [[3.0, 0.0], [0.0, -4.0]]
    """
    _tree.selected(params, where)  # here, for scores are floating where parameters may not be
    _tree.check_function(criterion, "criterion", "criteria.magnitude")
    _tree.check_function(allocation, "allocation", "allocation.erk")
    with masks.sharded(specs):
        scores = criterion(params, grads=grads, stats=stats, key=key)
        shares = allocation(scores, sparsity, where=where, pattern=pattern, batch_axes=batch_axes)
        found = masks.select(scores, shares.sparsities, pattern, where=where, batch_axes=batch_axes)
    return masks.Pruned(masks.apply(params, found), found)
