"""`Keep` and `keep_of`: the positions of an axis that stay, given the removed labels."""

from typing import NamedTuple

import numpy as np
from jax import export

from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.labels import Ids, Labels


class Keep(NamedTuple):
    """The positions of an axis that stay.

    Attributes:
      full: the size of the whole axis.
      positions: (..., n) ascending positions; leading axes are the layers of the enclosing scans.
    """

    full: int
    positions: np.ndarray

    @property
    def size(self) -> int:
        """The number of positions that stay."""
        return self.positions.shape[-1]


class UnevenError(ValueError):
    """The layers of a scan would need different shapes."""


def keep_of(labels: Labels, axis: Axis, gone: np.ndarray) -> Keep | None:
    """Returns the positions of an axis that stay, or None if all stay.

    Args:
      labels: all labels.
      axis: the axis.
      gone: for each label whether it is removed.

    Raises:
      UnevenError: the layers of a scan keep different numbers of positions.
    """
    stay: np.ndarray | None = None
    parts = [None if factor.of is None else staying(labels, factor.of, gone) for factor in axis]
    if all(part is None for part in parts):
        return None
    for factor, part in zip(axis, parts, strict=True):
        if export.is_symbolic_dim(factor.size):
            raise ValueError(
                f"an axis of symbolic size {factor.size} is merged with one that shrinks; export for a fixed size"
            )
        own = np.ones((factor.size,), bool) if part is None else part
        stay = own if stay is None else _outer(stay, own)
    if stay is None or stay.all():
        return None
    counts = stay.sum(-1)
    if counts.min() != counts.max():
        raise UnevenError(f"the layers keep from {counts.min()} to {counts.max()} of {stay.shape[-1]} positions")
    positions = np.nonzero(stay)[-1].reshape(*stay.shape[:-1], int(counts.flat[0]))
    return Keep(stay.shape[-1], positions)


def staying(labels: Labels, ids: Ids, gone: np.ndarray) -> np.ndarray | None:
    """For each label whether its position stays, or None if all stay."""
    roots = labels.find(ids)
    if not gone[roots].any() and not labels.has_parts(roots).any():
        return None
    return np.asarray(~gone[labels.atoms(ids)].any(-1))


def ranks(keep: Keep | None, full: int, positions: np.ndarray) -> np.ndarray:
    """Converts positions of the whole axis to positions of the smaller axis.

    Args:
      keep: the positions that stay; None if all stay.
      full: the size of the whole axis.
      positions: (..., n) positions that stay.

    Returns:
      (n,) indices into the smaller axis.

    Raises:
      UnevenError: the layers of a scan need different indices.
    """
    if keep is None:
        return single(positions)
    lead = np.broadcast_shapes(keep.positions.shape[:-1], positions.shape[:-1])
    index = np.full((*lead, full), -1)
    kept = np.broadcast_to(keep.positions, (*lead, keep.size))
    np.put_along_axis(index, kept, np.broadcast_to(np.arange(keep.size), kept.shape), -1)
    return single(np.take_along_axis(index, np.broadcast_to(positions, (*lead, positions.shape[-1])), -1))


def single(positions: np.ndarray) -> np.ndarray:
    """The positions, if every layer has the same positions.

    Raises:
      UnevenError: the layers have different positions.
    """
    rows = positions.reshape(-1, positions.shape[-1]) if positions.shape[-1] else positions.reshape(1, 0)
    if (rows != rows[:1]).any():
        raise UnevenError("the layers of a scan keep different positions where the position matters")
    return rows[0]


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    depth = max(a.ndim, b.ndim)
    a = a.reshape((1,) * (depth - a.ndim) + a.shape)
    b = b.reshape((1,) * (depth - b.ndim) + b.shape)
    both = a[..., :, None] & b[..., None, :]
    return both.reshape(*both.shape[:-2], -1)
