"""`evaluate`: runs a traced program again with smaller shapes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._jaxprs.walk import Values, walk
from jaxprune.slimming._labels.axes import Axis
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.keeps import Keep, UnevenError, keep_of, ranks, single
from jaxprune.slimming._labels.labels import Labels

Keeps = tuple[Keep | None, ...]


class Decision:
    """All labels, and which of them are removed.

    Attributes:
      labels: all labels.
      gone: for each label whether it is removed.
    """

    def __init__(self, labels: Labels, gone: np.ndarray) -> None:
        self.labels = labels
        self.gone = np.pad(gone, (0, max(0, labels.size - gone.size)))
        self._known: dict[int, tuple[Axis, Keep | None]] = {}

    def keep(self, axis: Axis) -> Keep | None:
        """The positions of an axis that stay; None if all stay."""
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
        """The positions that stay, for each axis of the k-th operand."""
        return tuple(self.decision.keep(axis) for axis in self.frame.read(self.eqn.invars[k]))

    def out_keeps(self, k: int = 0) -> Keeps:
        """The positions that stay, for each axis of the k-th result."""
        return tuple(self.decision.keep(axis) for axis in self.frame.read(self.eqn.outvars[k]))

    def out_shape(self, k: int = 0) -> tuple[int, ...]:
        """The smaller shape of the k-th result."""
        return small_shape(self.eqn.outvars[k].aval.shape, self.out_keeps(k))

    def bind(self, *operands: Any, **params: Any) -> list[Any]:
        """Runs the equation's primitive on other operands, with some parameters replaced."""
        original = self.eqn.primitive.get_bind_params(self.eqn.params)
        result = self.eqn.primitive.bind(*operands, **{**original, **params})
        return list(result) if self.eqn.primitive.multiple_results else [result]

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
        take(const, [decision.keep(axis) for axis in frame.axes[var]])
        for var, const in zip(frame.jaxpr.constvars, frame.consts, strict=True)
    ]
    run = lambda index, eqn, operands: _run(ShrinkSite(decision, frame, index), operands)
    return walk(frame.jaxpr, [*constants, *inputs], Values[Any](lambda number: number), run)


def _run(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    eqn = site.eqn
    try:
        touched = any(k is not None for i in range(len(eqn.invars)) for k in site.keeps(i))
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
    """A shape after slimming."""
    return tuple(n if keep is None else keep.size for n, keep in zip(shape, keeps, strict=True))


def take(array: Any, keeps: Sequence[Keep | None]) -> Any:
    """The positions of an array that stay, the same in every layer."""
    for axis, keep in enumerate(keeps):
        if keep is not None:
            array = select(array, axis, single(keep.positions))
    return array


def select(array: Any, axis: int, index: np.ndarray) -> jax.Array:
    """The entries of an axis at known positions, by a slice if possible."""
    array = jnp.asarray(array)
    steps = np.unique(np.diff(index))
    if index.size and (steps.size == 0 or (steps.size == 1 and steps[0] > 0)):
        step = int(steps[0]) if steps.size else 1
        return lax.slice_in_dim(array, int(index[0]), int(index[-1]) + 1, step, axis)
    return jnp.take(array, jnp.asarray(index, jnp.int32), axis=axis, mode="clip")


def move(site: ShrinkSite, array: Any, axis: int, source: np.ndarray, out: Keep | None) -> Any:
    """The kept entries of a result axis whose positions come from known positions of an operand's axis.

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
