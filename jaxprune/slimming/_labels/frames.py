"""`follow`: follows labels through a jaxpr; `Frame` stores the labels of each axis of each value."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import export

from jaxprune._jaxprs import Sub, open_jaxpr
from jaxprune._jaxprs.walk import Values, walk
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.labels import Labels

Equation = Any
Jaxpr = Any


@dataclasses.dataclass
class Frame:
    """The axes of every value of one jaxpr in one call, and the frames of its inner jaxprs.

    Attributes:
      jaxpr: an open jaxpr.
      consts: the values of its constvars.
      layers: the lengths of the enclosing scans over stacked parameters; labels have these leading axes.
      rule_of: returns the rule of an equation; None for an unknown primitive.
      axes: the axes of each variable.
      rules: the rule of each equation.
      children: from the index of an equation to the frames of its jaxprs.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    layers: tuple[int, ...]
    rule_of: Callable[[Equation], Any]
    axes: Values[Axes] = dataclasses.field(default_factory=lambda: Values(_of_literal))
    rules: list[Any] = dataclasses.field(default_factory=list)
    children: dict[int, list["Frame"]] = dataclasses.field(default_factory=dict)

    def read(self, var: Any) -> Axes:
        """The axes of a variable or literal."""
        return self.axes[var]


def _of_literal(value: Any) -> Axes:
    return tuple(ax.fixed(n) for n in np.shape(value))


@dataclasses.dataclass
class Site:
    """One equation while labels are followed, with what a rule may use.

    Attributes:
      labels: all labels.
      frame: the frame of the equation.
      index: the index of the equation in the frame.
    """

    labels: Labels
    frame: Frame
    index: int

    @property
    def eqn(self) -> Equation:
        """The equation."""
        return self.frame.jaxpr.eqns[self.index]

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name

    def out_shape(self, k: int = 0) -> tuple[int, ...]:
        """The shape of the k-th result."""
        return tuple(self.eqn.outvars[k].aval.shape)

    def free(self, count: int) -> Axis:
        """A new axis whose positions may be removed, different ones in each layer."""
        if export.is_symbolic_dim(count):
            return ax.fixed(count)
        return ax.labelled(self.labels.fresh((*self.frame.layers, count)))

    def shared(self, count: int) -> Axis:
        """A new axis whose positions may be removed, the same ones in every layer."""
        if export.is_symbolic_dim(count):
            return ax.fixed(count)
        return ax.labelled(self.labels.fresh((count,)))

    def freeze(self, axis: Axis, text: str) -> None:
        """Freezes all positions of an axis, with a reason."""
        if not ax.is_fixed(axis):
            ax.freeze(self.labels, axis, self.labels.reason(text))

    def unify(self, a: Axis, b: Axis) -> Axis:
        """Couples two axes and returns one of them."""
        if a is not b and not (ax.is_fixed(a) and ax.is_fixed(b)):
            # (T, C) + (T, C): position by position; positions coupled with an axis of fixed meaning stay.
            ax.unify(self.labels, a, b, self.labels.reason(f"{self.name} with an axis that cannot shrink"))
        return b if ax.is_fixed(a) else a

    def mark(self, axis: Axis) -> None:
        """Records that an operation selects positions: each layer of a scan must then keep equally many of them."""
        if any(f.of is not None and f.of.ndim > 1 for f in axis):
            self.labels.marks += [f.of for f in axis if f.of is not None]

    def child(self, sub: Sub, inputs: Sequence[Axes], layers: tuple[int, ...] | None = None) -> Frame:
        """Follows labels through a jaxpr inside the equation."""
        depth = self.frame.layers if layers is None else layers
        frame = follow(self.labels, sub.jaxpr, sub.consts, inputs, depth, self.frame.rule_of)
        self.frame.children.setdefault(self.index, []).append(frame)
        return frame


def follow(
    labels: Labels,
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Axes],
    layers: tuple[int, ...],
    rule_of: Callable[[Equation], Any],
) -> Frame:
    """Follows labels through a jaxpr.

    Args:
      labels: all labels, which are coupled as the equations require.
      jaxpr: an open or closed jaxpr.
      consts: the values of its constvars.
      inputs: the axes of each input.
      layers: the lengths of the enclosing scans over stacked parameters.
      rule_of: returns the rule of an equation; None for an unknown primitive.

    Returns:
      The frame with the axes of all values.
    """
    jaxpr, own = open_jaxpr(jaxpr)
    frame = Frame(jaxpr, tuple(consts) or own, layers, rule_of)

    def equation(index: int, eqn: Equation, operands: list[Axes]) -> list[Axes]:
        site, rule = Site(labels, frame, index), rule_of(eqn)
        frame.rules.append(rule)
        if rule is None:
            results = unknown(site, operands)
        else:
            if not rule.ragged:
                operands = [tuple(even(labels, a, len(layers)) for a in axes) for axes in operands]
            results = rule.follow(site, operands)
        for var, axes in zip(eqn.outvars, results, strict=True):
            if tuple(map(ax.size, axes)) != tuple(getattr(var.aval, "shape", ())):
                sizes, shape = tuple(map(ax.size, axes)), var.aval.shape
                raise RuntimeError(
                    f"{site.name}: axes of sizes {sizes} for the shape {shape}; a bug in jaxprune.slimming"
                )
        return results

    constants = [tuple(ax.labelled(labels.fresh((n,))) for n in var.aval.shape) for var in jaxpr.constvars]
    _ = walk(jaxpr, [*constants, *inputs], frame.axes, equation)
    return frame


def unknown(site: Site, operands: list[Axes]) -> list[Axes]:
    """For a primitive without a rule: freezes all its operands."""
    for axis in (axis for axes in operands for axis in axes):
        site.freeze(axis, f"primitive {site.name}, which slimming does not know")
    return [tuple(ax.fixed(n) for n in getattr(v.aval, "shape", ())) for v in site.eqn.outvars]


def even(labels: Labels, axis: Axis, depth: int) -> Axis:
    """Ties the layers of stacked parameters that are used outside the scan over them.

    The layers can then no longer lose different positions.
    """
    if all(f.of is None or f.of.ndim - 1 <= depth for f in axis):
        return axis
    factors = []
    for factor in axis:
        ids = factor.of
        while ids is not None and ids.ndim - 1 > depth:
            labels.unify(ids, ids[..., :1, :])
            ids = ids[..., 0, :]
        factors.append(ax.Factor(factor.size, ids))
    return tuple(factors)
