"""The parts of a rule that many primitives share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


class Rule(NamedTuple):
    """What slimming knows of a primitive.

    Attributes:
      follow: from the axes of the operands to those of the results; couples and freezes labels.
      zero: from what is known to be zero of the operands to the results.
      shrink: runs the primitive on smaller operands.
      ragged: whether operands may be stacked layers of which each loses other positions.
    """

    follow: Callable[[Site, list[Axes]], list[Axes]]
    zero: Callable[[ZeroSite, list[Zeros]], list[Zeros]]
    shrink: Callable[[ShrinkSite, list[Any]], list[Any]]
    ragged: bool = False


def rebind(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """For primitives whose parameters say nothing of the shapes."""
    return site.bind(*operands)


def together(site: Site, axes: Sequence[Axis]) -> Axis:
    """Couples axes position by position."""
    result = axes[0]
    for axis in axes[1:]:
        result = site.unify(result, axis)
    return result


def whole(shape: Sequence[int]) -> Axes:
    """Axes of which nothing can be removed."""
    return tuple(ax.fixed(n) for n in shape)


def no_zeros(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    """For primitives after which nothing is known to be zero."""
    del known
    return [Zeros((False,) * site.rank(k)) for k in range(len(site.eqn.outvars))]


def settled(site: ZeroSite, k: int, axis: int, zero: bool) -> bool:
    """Whether an operand's axis is zero where masked, or has nothing that can be masked."""
    return zero or ax.is_fixed(site.operand(k)[axis])
