"""`evaluate`: runs a traced program again with smaller shapes.

`labels_that_go` turns removed positions of leaves into removed labels, `keep_of` turns labels into the positions of an
axis that stay (`Keep`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from jaxprune._jaxprs.walk import Values, bind, walk
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.labels import Ids, Labels
from jaxprune.slimming._labels.pointing import Points


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


Keeps = tuple[Keep | None, ...]
# For each equation (the id of its frame, its index) the new numbers of the operands that change.
Numbers = dict[tuple[int, int], dict[int, float]]


class Decision:
    """All labels, and which labels are removed.

    Attributes:
      labels: all labels.
      gone: for each label whether it is removed.
      numbers: the numbers of a network built with the smaller width (`counts.numbers_after`); None to keep all numbers,
        so that the smaller program equals the masked one.
    """

    def __init__(self, labels: Labels, gone: np.ndarray) -> None:
        self.labels = labels
        self.numbers: Numbers | None = None
        self.gone = np.pad(gone, (0, max(0, labels.size - gone.size)))
        self._known: dict[int, tuple[Axis, Keep | None]] = {}

    def keep(self, axis: Axis) -> Keep | None:
        """Returns the positions of an axis that stay; None if all stay."""
        # Values share axes, so results are cached by id. The axis is cached too, so that its id is not reused.
        if id(axis) not in self._known:
            self._known[id(axis)] = (axis, keep_of(self.labels, axis, self.gone))
        return self._known[id(axis)][1]


@dataclasses.dataclass
class ShrinkSite:
    """One equation of the smaller program, with what a rule may use."""

    decision: Decision
    frame: Frame
    index: int

    @property
    def eqn(self) -> Any:
        """The equation."""
        return self.frame.jaxpr.eqns[self.index]

    def keeps(self, k: int) -> Keeps:
        """Returns the positions that stay, for each axis of the k-th operand."""
        return tuple(self.decision.keep(axis) for axis in self.frame.read(self.eqn.invars[k]))

    def out_keeps(self, k: int = 0) -> Keeps:
        """Returns the positions that stay, for each axis of the k-th result."""
        return tuple(self.decision.keep(axis) for axis in self.frame.read(self.eqn.outvars[k]))

    def out_shape(self, k: int = 0) -> tuple[int, ...]:
        """Returns the smaller shape of the k-th result."""
        return small_shape(self.eqn.outvars[k].aval.shape, self.out_keeps(k))

    def bind(self, *operands: Any, **params: Any) -> list[Any]:
        """Runs the equation's primitive on other operands, with some parameters replaced."""
        return bind(self.eqn, operands, **params)

    def child(self, k: int, operands: Sequence[Any]) -> list[Any]:
        """Runs the k-th jaxpr inside the equation."""
        return evaluate(self.decision, self.frame.children[self.index][k], operands)


def evaluate(decision: Decision, frame: Frame, inputs: Sequence[Any]) -> list[Any]:
    """Runs a jaxpr with smaller shapes.

    Args:
      decision: the labels to remove.
      frame: the jaxpr and the labels of its values.
      inputs: arrays of the smaller shapes.

    Returns:
      The outputs, smaller along removed labels.

    Raises:
      RuntimeError: the shape of a result differs from that of its labels; a bug in a rule.
      UnevenError: layers of a scan would need different shapes.
    """
    constants = [
        _constant(decision, frame, var, const) for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True)
    ]
    run = lambda index, eqn, operands: _run(ShrinkSite(decision, frame, index), operands)
    return walk(frame.jaxpr, [*constants, *inputs], Values[Any](lambda number: number), run)


def _constant(decision: Decision, frame: Frame, var: Any, const: Any) -> Any:
    """Returns a smaller constant; positions on an axis that indices point into are renumbered."""
    keeps, point = [decision.keep(axis) for axis in frame.axes[var]], frame.points.get(var)
    if isinstance(point, Points) and point.origin is not None and point.origin.ranks and keeps[0] is not None:
        return jnp.arange(keeps[0].size, dtype=jnp.asarray(const).dtype)
    return take(const, keeps)


def _run(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """Runs an equation: unchanged if all its axes keep all positions, else by its rule."""
    eqn = site.eqn
    try:
        changed = (site.decision.numbers or {}).get((id(site.frame), site.index))
        if changed is not None:
            operands = list(operands)
            for k, number in changed.items():
                operands[k] = jnp.full(np.shape(operands[k]), number, eqn.invars[k].aval.dtype)
        touched = changed is not None or any(k is not None for i in range(len(eqn.invars)) for k in site.keeps(i))
        touched = touched or any(k is not None for i in range(len(eqn.outvars)) for k in site.out_keeps(i))
        if not touched:
            return site.bind(*operands)
        results = site.frame.rules[site.index].shrink(site, operands)
    except UnevenError as error:
        error.add_note(f"at the primitive {eqn.primitive.name}")
        raise
    for k, result in enumerate(results):
        if np.shape(result) != site.out_shape(k):
            raise RuntimeError(
                f"{eqn.primitive.name} gave shape {np.shape(result)} where the smaller function expects "
                f"{site.out_shape(k)}; this is a bug in jaxprune.slimming"
            )
    return results


def small_shape(shape: Sequence[int], keeps: Sequence[Keep | None]) -> tuple[int, ...]:
    """Returns the shape after slimming."""
    return tuple(n if keep is None else keep.size for n, keep in zip(shape, keeps, strict=True))


def take(array: Any, keeps: Sequence[Keep | None]) -> Any:
    """Returns the array with only the positions that stay, which must be the same in every layer."""
    for axis, keep in enumerate(keeps):
        if keep is not None:
            array = select(array, axis, single(keep.positions))
    return array


def select(array: Any, axis: int, index: np.ndarray) -> jax.Array:
    """Returns the entries of an axis at known positions, by a slice if possible."""
    array = jnp.asarray(array)
    steps = np.unique(np.diff(index))
    if index.size and (steps.size == 0 or (steps.size == 1 and steps[0] > 0)):
        step = int(steps[0]) if steps.size else 1
        return lax.slice_in_dim(array, int(index[0]), int(index[-1]) + 1, step, axis)
    return jnp.take(array, jnp.asarray(index, jnp.int32), axis=axis, mode="clip")


def move(site: ShrinkSite, array: Any, axis: int, source: np.ndarray, out: Keep | None) -> Any:
    """Returns the kept entries of a result axis whose positions come from known positions of an operand's axis.

    Args:
      site: the equation; its first operand is the array.
      array: the smaller operand.
      axis: the operand's axis.
      source: for each position of the whole result axis, its position on the whole operand's axis.
      out: the positions that stay of the result axis.
    """
    keep = site.keeps(0)[axis]
    full = site.eqn.invars[0].aval.shape[axis]
    wanted = source if out is None else source[out.positions]
    return select(array, axis, ranks(keep, full, wanted))


def rebind(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """Runs a primitive whose parameters do not depend on shapes."""
    return site.bind(*operands)


class Piece(NamedTuple):
    """The labels of one axis of one array, and the positions that stay.

    Attributes:
      name: the array and the axis, for messages.
      ids: (..., n) labels.
      stay: (..., n) bool; its leading axes broadcast with the leading axes of `ids`.
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
    """Returns the first eight different positions as text."""
    shown = ", ".join(map(str, np.unique(positions)[:8]))
    return shown + (", ..." if np.unique(positions).size > 8 else "")


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
        raise UnevenError(
            f"the layers of a scan, or the shards of a mesh axis, keep from {counts.min()} to {counts.max()} of "
            f"{stay.shape[-1]} positions; remove equally many from each"
        )
    positions = np.nonzero(stay)[-1].reshape(*stay.shape[:-1], int(counts.flat[0]))
    return Keep(stay.shape[-1], positions)


def staying(labels: Labels, ids: Ids, gone: np.ndarray) -> np.ndarray | None:
    """Returns for each label whether its position stays; None if all stay."""
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
    """Returns the positions, if every layer has the same positions.

    Raises:
      UnevenError: the layers have different positions.
    """
    rows = positions.reshape(-1, positions.shape[-1]) if positions.shape[-1] else positions.reshape(1, 0)
    if (rows != rows[:1]).any():
        raise UnevenError("layers of a scan, or shards, keep different positions where the position matters")
    return rows[0]


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the positions that stay of an axis of two factors, from the positions that stay of each factor."""
    depth = max(a.ndim, b.ndim)
    a = a.reshape((1,) * (depth - a.ndim) + a.shape)
    b = b.reshape((1,) * (depth - b.ndim) + b.shape)
    both = a[..., :, None] & b[..., None, :]
    return both.reshape(*both.shape[:-2], -1)
