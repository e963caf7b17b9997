"""Scores of units by how well the others of their group could stand in for them."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxprune.slimming.groups import Groups, Member
from jaxprune.slimming.scores import PyTree, arrays_of, normalised

_ROWS = 256  # units compared at a time with all others


def geometric_median_scores(
    groups: Groups,
    params: PyTree,
    *,
    normalise: str | None = "mean",
    where: str | Sequence[str] | Callable[[str], bool] = "*",
) -> np.ndarray:
    """FPGM: the sum of a unit's distances to the other units of its group (He et al., 2019, arXiv:1811.00250, eq. 5).

    g(u) = sum_v ||w_u - w_v||, with w_u all entries that go with unit u. The unit of the smallest sum is nearest to
    the geometric median of its group: the others can replace it best, however large its norm is.

    Args:
      groups: the groups.
      params: the parameters.
      normalise: as in `group_scores`.
      where: which leaves count: a glob over paths, several, or a predicate. The paper takes the kernels of
        convolutions.

    Returns:
      (units,) float64 scores of all units; 0 in groups without an entry that counts. Units of stacked layers are
      compared within their layer.

    Raises:
      ValueError: the parameters are of another tree, `normalise` is unknown, or `where` selects no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': jnp.asarray([[0.0, 1.0, 5.0]]), 'b': jnp.zeros((3, 2))}
      >>> groups = find_groups(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params, jnp.ones((4, 1)))
      >>> geometric_median_scores(groups, params, normalise=None).tolist()
      [6.0, 5.0, 9.0]
    """
    arrays = arrays_of(groups, params, where, "parameters")
    total = np.zeros(groups.size)
    for group in groups:
        layer = np.zeros(group.count, int) if group.layer is None else group.layer
        for k in range(group.layers):
            units = group.first + np.flatnonzero(layer == k)
            rows = [
                _entries(groups, units, arrays[member.leaf], member)
                for member in group.members
                if member.leaf in arrays
            ]
            if rows:
                total[units] = _distances(np.concatenate(rows, 1))
    return normalised(groups, total, normalise)


def _entries(groups: Groups, units: np.ndarray, values: np.ndarray, member: Member) -> np.ndarray:
    """(units, entries) what each unit holds of one leaf along one axis, in ascending order of the positions."""
    held = groups.units[member.leaf][member.axis]
    lead = held.ndim - 2
    rows = np.moveaxis(values, member.axis, lead).reshape(
        -1, held.shape[-2], values[(0,) * lead].size // held.shape[-2]
    )
    number = np.full(groups.size + 1, -1)
    number[units] = np.arange(units.size)
    row, position, part = np.nonzero(number[held.reshape(len(rows), *held.shape[-2:])] >= 0)
    of = number[held.reshape(len(rows), *held.shape[-2:])[row, position, part]]
    order = np.argsort(of, kind="stable")
    return rows[row[order], position[order]].reshape(units.size, -1)


def _distances(rows: np.ndarray) -> np.ndarray:
    """For each row the sum of its Euclidean distances to all rows."""
    squares = (rows**2).sum(1)
    total = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS):
        some = slice(start, start + _ROWS)
        between = squares[some, None] + squares - 2 * rows[some] @ rows.T
        total[some] = np.sqrt(np.maximum(between, 0)).sum(1)
    return total
