"""From positions of arrays to the labels that go."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.slimming._labels.labels import Ids, Labels


class Piece(NamedTuple):
    """The labels of one axis of one array, and which of its positions stay.

    Attributes:
      name: the array and the axis, for messages.
      ids: (..., n) labels.
      stay: (..., n) bool; leading axes broadcast with those of `ids`.
      atoms: `labels.atoms(ids)`, where the same labels are asked for again and again.
    """

    name: str
    ids: Ids
    stay: np.ndarray
    atoms: Ids | None = None


def labels_that_go(labels: Labels, pieces: Sequence[Piece]) -> np.ndarray:
    """Which labels have to go so that exactly the given positions go.

    An atom goes if it is at positions that go and at none that stays.

    Args:
      labels: all labels.
      pieces: every axis that may lose positions.

    Returns:
      For each label whether it goes.

    Raises:
      ValueError: some position goes although no label of it goes; the message names the arrays.
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
