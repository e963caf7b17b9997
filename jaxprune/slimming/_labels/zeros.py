"""`follow_zeros`: whether removed positions would be zero if masked: the difference between removing and masking.

Masking sets the removed slices of the parameters to zero. The masked function equals the smaller function if removed
positions contribute zero wherever positions meet: in a contraction or a sum. `Zeros` says for each axis of a value
whether the value is zero at masked positions. If it is not zero where positions meet, the labels are marked inexact,
with the reason.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune._jaxprs.walk import Values, walk
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.labels import Labels


class Zeros(NamedTuple):
    """What is known about the zeros of one value.

    Attributes:
      axes: for each axis whether masking a position makes the value zero there.
      value: the number that the value has everywhere; None if unknown.
    """

    axes: tuple[bool, ...]
    value: float | None = None

    @property
    def void(self) -> bool:
        """Whether the value is zero everywhere."""
        return self.value == 0


@dataclasses.dataclass
class ZeroSite:
    """One equation while zeros are followed, with what a rule may use."""

    labels: Labels
    frame: Frame
    index: int
    marks: list[tuple[Axis, str]]

    @property
    def eqn(self) -> Any:
        """The equation."""
        return self.frame.jaxpr.eqns[self.index]

    def operand(self, k: int) -> Axes:
        """The axes of the k-th operand."""
        return self.frame.read(self.eqn.invars[k])

    def rank(self, k: int = 0) -> int:
        """The number of axes of the k-th result."""
        return len(self.eqn.outvars[k].aval.shape)

    def inexact(self, axis: Axis, text: str) -> None:
        """Marks the labels of an axis: removing them is not the same as masking them."""
        if not ax.is_fixed(axis):
            self.marks.append((axis, text))

    def child(self, k: int, inputs: Sequence[Zeros]) -> list[Zeros]:
        """Follows zeros through the k-th jaxpr inside the equation."""
        return follow_zeros(self.labels, self.frame.children[self.index][k], inputs, self.marks)


def follow_zeros(labels: Labels, frame: Frame, inputs: Sequence[Zeros], marks: list[tuple[Axis, str]]) -> list[Zeros]:
    """Follows zeros through a jaxpr whose labels are known.

    Args:
      labels: all labels.
      frame: the axes of its values.
      inputs: the known zeros of each input.
      marks: a list to which inexact axes are added, with the reason.

    Returns:
      The known zeros of each output.
    """

    def equation(index: int, eqn: Any, known: list[Zeros]) -> list[Zeros]:
        rule = frame.rules[index]
        if rule is None:
            return [Zeros((False,) * len(getattr(v.aval, "shape", ()))) for v in eqn.outvars]
        return rule.zero(ZeroSite(labels, frame, index, marks), known)

    return walk(frame.jaxpr, [*map(of_constant, frame.consts), *inputs], Values[Zeros](of_constant), equation)


def of_constant(value: Any) -> Zeros:
    """The known zeros of a constant: a scalar is known by its value, an array is unknown."""
    if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number):
        return Zeros((), float(np.real(value)))
    return Zeros((False,) * np.ndim(value))
