"""`Rule` and the parts that many rules share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite
from jaxprune.slimming._labels.frames import Site
from jaxprune.slimming._labels.zeros import Zeros, ZeroSite


class Rule(NamedTuple):
    """The rule of slimming for a primitive.

    Attributes:
      follow: from the axes of the operands to the axes of the results; couples and freezes labels.
      zero: from the known zeros of the operands to those of the results.
      shrink: runs the primitive on smaller operands.
      ragged: whether operands may be stacked layers that lose different positions.
    """

    follow: Callable[[Site, list[Axes]], list[Axes]]
    zero: Callable[[ZeroSite, list[Zeros]], list[Zeros]]
    shrink: Callable[[ShrinkSite, list[Any]], list[Any]]
    ragged: bool = False


def rebind(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    """For primitives whose parameters do not depend on shapes."""
    return site.bind(*operands)


def together(site: Site, axes: Sequence[Axis]) -> Axis:
    """Couples axes position by position."""
    result = axes[0]
    for axis in axes[1:]:
        result = site.unify(result, axis)
    return result


def whole(shape: Sequence[int]) -> Axes:
    """Axes without removable positions."""
    return tuple(ax.fixed(n) for n in shape)


def no_zeros(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    """For primitives whose results are not known to be zero."""
    del known
    return [Zeros((False,) * site.rank(k)) for k in range(len(site.eqn.outvars))]


def settled(site: ZeroSite, k: int, axis: int, zero: bool) -> bool:
    """Whether an operand's axis is zero at masked positions, or has no removable positions."""
    return zero or ax.is_fixed(site.operand(k)[axis])
