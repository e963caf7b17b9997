"""Sensitivity: what a network loses when one leaf, or one group of channels, is pruned alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _tree, criteria, masks
from jaxprune.slimming import Groups, choose

PyTree = Any
Evaluate = Callable[[PyTree], Any]


class Sensitivity(NamedTuple):
    """What a network loses, leaf by leaf and level by level.

    Attributes:
      names: the leaves, or the groups.
      levels: (levels,) the sparsities, ascending; the first is 0.
      values: (leaves, levels) what `evaluate` gave, float64; column 0 is the dense network's value.
    """

    names: tuple[str, ...]
    levels: np.ndarray
    values: np.ndarray

    @property
    def changes(self) -> np.ndarray:
        """(leaves, levels) the values less that of the dense network."""
        return self.values - self.values[:, :1]


def sensitivity(
    evaluate: Evaluate,
    params: PyTree,
    levels: Sequence[float],
    *,
    criterion: Callable[..., PyTree] = criteria.magnitude,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    batch: int | None = None,
    **signals: Any,
) -> Sensitivity:
    """Prunes each leaf alone to several levels, and evaluates the network each time.

    One function is compiled, for all leaves and levels: it is vmapped over levels and runs over the leaves.

    Args:
      evaluate: `params -> value`, a scalar: a loss, or an accuracy; traceable.
      params: the trained parameters.
      levels: sparsities in [0, 1); 0 is added. They are counted as the float32 numbers next to them.
      criterion: as in `jaxprune.prune`.
      pattern: as in `jaxprune.prune`, one that can have any of the levels (`NM` cannot).
      where: which leaves are looked at; the others stay whole.
      batch_axes: as in `jaxprune.prune`.
      batch: how many levels are computed at once; all of them by default, and one needs the least memory.
      **signals: for the criterion: `grads`, `stats`, `key`.

    Returns:
      The values, one row for each leaf that may be pruned.

    Raises:
      ValueError: levels out of range, a value that is no scalar, or what `masks.select` raises.

    Example:
      >>> params = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0, 9.0]])}
      >>> found = sensitivity(lambda p: p['a'].sum() + p['b'].sum(), params, [0.5])
      >>> found.names, found.changes.tolist()
      (('a', 'b'), [[0.0, -1.0], [0.0, -3.0]])
    """
    asked = _levels(levels)
    _check_scalar(evaluate, params)
    chosen = jax.tree.leaves(_tree.prunable(params, where))
    names = [name for (name, _), looked in zip(_tree.named_leaves(params), chosen, strict=True) if looked]
    places = np.cumsum(chosen) - 1
    scores = criterion(params, **signals)
    options = {"where": where, "batch_axes": batch_axes}

    def value(leaf: Any, level: Any, params: PyTree, scores: PyTree) -> Any:
        wanted = [jnp.where((place == leaf) & looked, level, 0.0) for place, looked in zip(places, chosen, strict=True)]
        kept = masks.select(scores, jax.tree.unflatten(jax.tree.structure(scores), wanted), pattern, **options)
        return evaluate(masks.apply(params, kept))

    table = _table(value, np.arange(len(names)), jnp.asarray(asked[1:], jnp.float32), (params, scores), batch)
    dense = np.full((len(names), 1), float(evaluate(params)))
    return Sensitivity(tuple(names), asked, np.concatenate([dense, table], 1))


def group_sensitivity(
    evaluate: Evaluate,
    params: PyTree,
    groups: Groups,
    scores: np.ndarray,
    levels: Sequence[float],
    *,
    batch: int | None = None,
) -> Sensitivity:
    """Masks the lowest units of each group alone, to several levels, and evaluates the network each time.

    Args:
      evaluate: `params -> value`, a scalar, traceable.
      params: the trained parameters.
      groups: from `find_groups`. Groups that cannot lose units exactly are left out, as `choose` leaves them.
      scores: (units,) larger is kept.
      levels: shares of units in [0, 1); 0 is added. A group keeps one unit at least.
      batch: as for `sensitivity`.

    Returns:
      The values, one row for each exact group. One function is compiled.

    Raises:
      ValueError: levels out of range, a value that is no scalar, no exact group, or what `choose` raises.
    """
    asked = _levels(levels)
    _check_scalar(evaluate, params)
    names = [group.name for group in groups if group.exact]
    if not names:
        raise ValueError("there is no group whose units can be removed exactly")
    keep = np.stack([[choose(groups, scores, {name: level}).keep for level in asked[1:]] for name in names])

    def value(group: Any, level: Any, params: PyTree, keep: Any) -> Any:
        return evaluate(masks.apply(params, _unit_masks(groups, params, keep[group, level])))

    columns = jnp.arange(len(asked) - 1)
    table = _table(value, np.arange(len(names)), columns, (params, jnp.asarray(keep)), batch)
    dense = np.full((len(names), 1), float(evaluate(params)))
    return Sensitivity(tuple(names), asked, np.concatenate([dense, table], 1))


def _unit_masks(groups: Groups, params: PyTree, keep: jax.Array) -> PyTree:
    """`Choice.masks` of units that may be traced: (units,) bools to a mask for each leaf."""
    padded = jnp.append(keep, True)
    leaves = []
    for leaf, axes in zip(jax.tree.leaves(params), groups.units, strict=True):
        mask = jnp.ones((), bool)
        for axis, units in enumerate(axes):
            if (units >= 0).any():
                shape = [*units.shape[:-2], *[1] * (jnp.ndim(leaf) - units.ndim + 2)]
                shape[axis] = units.shape[-2]
                mask = mask & padded[units].all(-1).reshape(shape)
        leaves.append(mask)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _table(
    value: Callable[..., Any], rows: np.ndarray, columns: jax.Array, args: tuple[PyTree, PyTree], batch: int | None
) -> np.ndarray:
    size = len(columns) if batch is None else batch
    if size < 1:
        raise ValueError(f"batch must be 1 or more levels; got {batch}")

    @jax.jit
    def table(columns: jax.Array, params: PyTree, scores: PyTree) -> jax.Array:
        of = lambda row: lax.map(lambda column: value(row, column, params, scores), columns, batch_size=size)
        return lax.map(of, jnp.asarray(rows))

    return np.asarray(table(columns, *args), np.float64)


def _levels(levels: Sequence[float]) -> np.ndarray:
    found = sorted({0.0, *map(float, levels)})
    if len(found) < 2 or not all(0 <= level < 1 for level in found):
        raise ValueError(f"levels are sparsities in [0, 1), one above 0 at least; got {list(levels)}")
    return np.asarray(found)


def _check_scalar(evaluate: Evaluate, params: PyTree) -> None:
    shape = getattr(jax.eval_shape(evaluate, params), "shape", None)
    if shape != ():
        raise ValueError(f"evaluate(params) must be a scalar, such as a mean loss; got shape {shape}")
