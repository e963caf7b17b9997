"""`labels_that_go`: from removed positions of arrays to removed labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.slimming._labels.labels import Ids, Labels


class Piece(NamedTuple):
    """The labels of one axis of one array, and the positions that stay.

    Attributes:
      name: the array and the axis, for messages.
      ids: (..., n) labels.
      stay: (..., n) bool; leading axes broadcast with those of `ids`.
      atoms: `labels.atoms(ids)`, cached if the same labels are used repeatedly; else None.
    """

    name: str
    ids: Ids
    stay: np.ndarray
    atoms: Ids | None = None


def labels_that_go(labels: Labels, pieces: Sequence[Piece]) -> np.ndarray:
    """Finds the labels to remove so that exactly the given positions are removed.

    An atom is removed if it belongs to removed positions and to no position that stays.

    Args:
      labels: all labels.
      pieces: every axis that may lose positions.

    Returns:
      For each label whether it is removed.

    Raises:
      ValueError: a position must be removed although none of its labels can be; the message names the arrays.
    """
    going, staying = np.zeros(labels.size, bool), np.zeros(labels.size, bool)
    held = []
    for piece in pieces:
        atoms = labels.atoms(piece.ids) if piece.atoms is None else piece.atoms
        if piece.stay.all():
            staying[atoms] = True
            continue
        lead = np.broadcast_shapes(piece.ids.shape, piece.stay.shape)
        stay, atoms = np.broadcast_to(piece.stay, lead), np.broadcast_to(atoms, (*lead, atoms.shape[-1]))
        staying[atoms[stay]] = True
        going[atoms[~stay]] = True
        held.append((piece, stay, atoms))
    going &= ~staying
    going[Labels.FIXED] = False
    wrong = [
        f"  {piece.name}: positions {_shorten(np.nonzero(cut)[-1])}"
        for piece, stay, atoms in held
        if (cut := ~stay & ~going[atoms].any(-1)).any()
    ]
    if wrong:
        raise ValueError(
            "these positions cannot be removed: they are frozen, or coupled with positions that stay:\n"
            + "\n".join(wrong[:20])
        )
    return going


def _shorten(positions: np.ndarray) -> str:
    shown = ", ".join(map(str, np.unique(positions)[:8]))
    return shown + (", ..." if np.unique(positions).size > 8 else "")
