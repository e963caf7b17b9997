"""Scores of units from scores of leaves."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from jaxprune import _tree
from jaxprune.slimming.groups import Groups

PyTree = Any
_REDUCE = ("sum", "mean", "l2", "max")
_NORMALISE = (None, "mean", "max", "sum")


def group_scores(
    groups: Groups,
    scores: PyTree,
    *,
    reduce: str = "l2",
    normalise: str | None = "mean",
    where: str | Sequence[str] | Callable[[str], bool] = "*",
) -> np.ndarray:
    """Scores of units from the scores of the entries they hold.

    With |w| for scores and "l2" it is the group norm of DepGraph (Fang et al., 2023, arXiv:2301.12900, eq. 4):
    the root of the sum of squares over all entries that go with the unit. With the scales of normalisation layers
    alone (`where="*scale"`) it is network slimming (Liu et al., 2017, arXiv:1708.06519).

    Args:
      groups: the groups.
      scores: a tree of the parameters' structure, of their shapes or broadcasting to them: what any criterion gives.
        A single number for a leaf that is not single is a leaf without scores.
      reduce: "sum", "mean", "l2" or "max" over the entries of a unit, in all leaves that `where` selects. An entry
        of which a unit holds both row and column counts twice.
      normalise: divides the scores of each group by their "mean", "max" or "sum", so that groups can be compared;
        in stacked layers each layer by its own. None leaves them.
      where: which leaves count: a glob over paths, several, or a predicate.

    Returns:
      (units,) float64 scores of all units of all groups; units without a scored entry have 0.

    Raises:
      ValueError: the scores have another structure or shape, `reduce` or `normalise` is unknown, or `where`
        selects no leaf.
    """
    if reduce not in _REDUCE:
        raise ValueError(f"reduce is one of {_REDUCE}; got {reduce!r}")
    total, count = np.zeros(groups.size), np.zeros(groups.size)
    for k, values in arrays_of(groups, scores, where, "scores").items():
        _add_leaf(total, count, values, groups.units[k], reduce)
    if reduce == "l2":
        total = np.sqrt(total)
    if reduce == "mean":
        total = total / np.maximum(count, 1)
    return normalised(groups, total, normalise)


def _add_leaf(
    total: np.ndarray, count: np.ndarray, values: np.ndarray, axes: Sequence[np.ndarray], reduce: str
) -> None:
    powers = values**2 if reduce == "l2" else values
    for axis, units in enumerate(axes):
        layers = units.ndim - 2
        others = tuple(i for i in range(values.ndim) if i != axis and i >= layers)
        per_position = powers.max(others) if reduce == "max" else powers.sum(others)
        size = values.size // max(per_position.size, 1)
        for column in np.moveaxis(units, -1, 0):
            held = column >= 0
            if reduce == "max":
                np.maximum.at(total, column[held], per_position[held])
            else:
                np.add.at(total, column[held], per_position[held])
            np.add.at(count, column[held], size)


def arrays_of(
    groups: Groups, scores: PyTree, where: str | Sequence[str] | Callable[[str], bool], what: str
) -> dict[int, np.ndarray]:
    """By the place of the leaf the float64 arrays that `where` selects, in the shapes of the parameters.

    A single number for a leaf that is not single, and leaves that are no arrays, are left out.

    Raises:
      ValueError: the tree has another structure or shape, or `where` selects no leaf.
    """
    leaves = groups.analysis.leaves
    given = _tree.named_leaves(scores)
    if len(given) != len(leaves):
        raise ValueError(f"{what} have {len(given)} leaves, the parameters {len(leaves)}")
    other = [(name, leaf.name) for (name, _), leaf in zip(given, leaves, strict=True) if name != leaf.name]
    if other:
        raise ValueError(f"{what} have a leaf {other[0][0]} where the parameters have {other[0][1]}")
    counted = [_selects(where, leaf.name) for leaf in leaves]
    if not any(counted):
        raise ValueError(f"where selects none of: {', '.join(leaf.name for leaf in leaves)}")
    found = {}
    for k, ((name, raw), leaf) in enumerate(zip(given, leaves, strict=True)):
        if not counted[k] or leaf.shape is None or (np.shape(raw) == () and leaf.shape != ()):
            continue
        values = np.asarray(jax.device_get(raw), np.float64)
        if values.ndim != len(leaf.shape) or any(
            a not in (1, b) for a, b in zip(values.shape, leaf.shape, strict=True)
        ):
            raise ValueError(f"{what} of {name} have shape {values.shape}, the parameter {leaf.shape}")
        found[k] = np.broadcast_to(values, leaf.shape)
    return found


def normalised(groups: Groups, total: np.ndarray, normalise: str | None) -> np.ndarray:
    """Scores divided by the mean, maximum or sum of their group, of stacked layers by that of their layer.

    Raises:
      ValueError: `normalise` is unknown.
    """
    if normalise not in _NORMALISE:
        raise ValueError(f"normalise is one of {_NORMALISE}; got {normalise!r}")
    if normalise is None:
        return total
    result = total.copy()
    for group in groups:
        layer = np.zeros(group.count, int) if group.layer is None else group.layer
        for k in range(group.layers):
            own = group.first + np.flatnonzero(layer == k)
            by = getattr(np, normalise)(total[own])
            result[own] = total[own] / by if by else total[own]
    return result


def _selects(where: str | Sequence[str] | Callable[[str], bool], name: str) -> bool:
    if callable(where):
        return bool(where(name))
    return any(fnmatchcase(name, glob) for glob in ([where] if isinstance(where, str) else where))


def unit_scores(groups: Groups, scores: Mapping[str, Any]) -> np.ndarray:
    """Turns scores of the channels of some groups into scores of all units, for `choose`.

    Args:
      groups: the groups of the network, from `find_groups`.
      scores: by the name of a group the scores of its units, in the order of their channels. The units of other groups
        get infinite scores; give `choose` a mapping that prunes only the groups that are scored.

    Returns:
      (units,) float64 scores.

    Raises:
      KeyError: there is no group of that name.
      ValueError: a group has another number of units than scores, or scores are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': jnp.ones((2, 3)), 'b': jnp.ones((3, 1))}
      >>> groups = find_groups(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params, jnp.ones((4, 2)))
      >>> unit_scores(groups, {'a[1]': [0.3, 0.1, 0.2]}).tolist()
      [0.3, 0.1, 0.2]
    """
    units = np.full(groups.size, np.inf)
    for name, own in scores.items():
        group, values = groups[name], np.asarray(own, np.float64)
        if values.shape != (group.count,) or np.isnan(values).any():
            raise ValueError(f"group {name} has {group.count} units; got scores {values.shape}, none may be NaN")
        units[group.span] = values
    return units
