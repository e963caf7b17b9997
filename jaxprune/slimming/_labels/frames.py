"""Follows labels (`follow`), then zeros (`follow_zeros`), through a jaxpr; `Frame` stores the labels of its values.

Masking sets the removed slices of the parameters to zero. The masked function equals the smaller function if the
removed positions add zero to every sum and every contraction over them. `Zeros` says for each axis of a value whether
the value is zero at removed positions. If a sum or a contraction runs over an axis whose removed positions are not
zero, the labels of the axis are marked inexact, with the reason.

Units from which a softmax, a top-k or an argmax chooses are not masked: to remove one means that its logit is minus
infinity. The value that the operation chooses from is then minus infinity at removed positions.

A `Rule` says for one kind of primitive how labels and zeros pass, and how the primitive runs with smaller arrays.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import export
from jax.extend.core import Literal

from jaxprune._jaxprs import Sub, open_jaxpr
from jaxprune._jaxprs.walk import Values, walk
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.constants import constant_of
from jaxprune.slimming._labels.labels import Labels

Equation = Any
Jaxpr = Any


class Shards(int):
    """The number of shards along a mesh axis that cuts axes with labels: a layer of the frame inside a shard_map.

    Attributes:
      name: the mesh axis.
    """

    name: str

    def __new__(cls, count: int, name: str) -> "Shards":
        """Returns the number of shards, with the name of the mesh axis."""
        self = super().__new__(cls, count)
        self.name = name
        return self


@dataclasses.dataclass
class Frame:
    """The axes of every value of one jaxpr in one call, and the frames of its inner jaxprs.

    Attributes:
      jaxpr: an open jaxpr.
      consts: the values of its constvars.
      layers: the lengths of the enclosing scans over stacked parameters, and the `Shards` of enclosing shard_maps;
        labels have these leading axes.
      rule_of: returns the rule of an equation; None for an unknown primitive.
      axes: the axes of each variable.
      rules: the rule of each equation.
      children: from the index of an equation to the frames of its jaxprs.
      points: what integers point into.
      logits: the axes of each variable from which an operation chooses positions.
      sources: for each input that always equals a value outside the jaxpr, the frame and the variable of that value.
      known: the integers that `constants.constant_of` has computed; None for a variable that is not constant.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    layers: tuple[int, ...]
    rule_of: Callable[[Equation], Any]
    axes: Values[Axes] = dataclasses.field(default_factory=lambda: Values(_of_literal))
    rules: list[Any] = dataclasses.field(default_factory=list)
    children: dict[int, list["Frame"]] = dataclasses.field(default_factory=dict)
    points: dict[Any, pointing.Meaning] = dataclasses.field(default_factory=dict)
    logits: dict[Any, set[int]] = dataclasses.field(default_factory=dict)
    sources: dict[Any, tuple["Frame", Any]] = dataclasses.field(default_factory=dict)
    known: dict[Any, np.ndarray | None] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def makers(self) -> dict[Any, int]:
        """The index of the equation that makes each variable."""
        return {var: index for index, eqn in enumerate(self.jaxpr.eqns) for var in eqn.outvars}

    def read(self, var: Any) -> Axes:
        """Returns the axes of a variable or literal."""
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
        """Returns the shape of the k-th result."""
        return tuple(self.eqn.outvars[k].aval.shape)

    def free(self, count: int) -> Axis:
        """Returns a new axis whose positions may be removed, different ones in each layer."""
        if export.is_symbolic_dim(count):
            return ax.fixed(count)
        return ax.labelled(self.labels.fresh((*self.frame.layers, count)))

    def shared(self, count: int) -> Axis:
        """Returns a new axis whose positions may be removed, the same ones in every layer."""
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
            # Positions that are coupled with an axis without labels are frozen.
            ax.unify(self.labels, a, b, self.labels.reason(f"{self.name} with an axis that cannot shrink"))
        return b if ax.is_fixed(a) else a

    def choose(self, operand: int, axis: int, count: int) -> None:
        """Records that the operation chooses the `count` positions of an axis with the largest values."""
        var, ids = self.eqn.invars[operand], ax.flat(self.labels, self.frame.read(self.eqn.invars[operand])[axis])
        if ids is not None and not isinstance(var, Literal):
            self.labels.chosen.append((ids, count, self.name))
            self.frame.logits.setdefault(var, set()).add(axis)

    def mark(self, axis: Axis) -> None:
        """Records that an operation selects the positions of an axis: each layer of a scan keeps equally many."""
        if any(f.of is not None and f.of.ndim > 1 for f in axis):
            self.labels.marks += [f.of for f in axis if f.of is not None]

    def child(self, sub: Sub, inputs: Sequence[Axes], layers: tuple[int, ...] | None = None) -> Frame:
        """Follows labels through a jaxpr inside the equation."""
        depth = self.frame.layers if layers is None else layers
        carried = {into for _, into in sub.carried}
        renumbers = sub.role.startswith("while") or (sub.role == "shard_map" and depth != self.frame.layers)
        points: list[pointing.Meaning] = []
        sources: list[tuple[Frame, Any] | None] = []
        for k, (place, inner) in enumerate(zip(sub.inputs, sub.jaxpr.invars, strict=True)):
            outer = None if place is None else self.eqn.invars[place]
            meaning = None if outer is None else pointing.read(self.frame, outer)
            points.append(pointing.entering(meaning) if k in carried or renumbers else meaning)
            # A layer of a scan and a shard have another shape than the value outside.
            same = outer is not None and np.shape(outer.aval) == getattr(inner.aval, "shape", None)
            varies = k in carried or sub.role == "while_cond"
            sources.append((self.frame, outer) if same and not varies else None)
        frame = follow(self.labels, sub.jaxpr, sub.consts, inputs, depth, self.frame.rule_of, points, sources)
        self.frame.children.setdefault(self.index, []).append(frame)
        return frame


def follow(
    labels: Labels,
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Axes],
    layers: tuple[int, ...],
    rule_of: Callable[[Equation], Any],
    points: Sequence[pointing.Meaning] = (),
    sources: Sequence[tuple[Frame, Any] | None] = (),
) -> Frame:
    """Follows labels through a jaxpr.

    Args:
      labels: all labels, which are coupled as the equations require.
      jaxpr: an open or closed jaxpr.
      consts: the values of its constvars.
      inputs: the axes of each input.
      layers: the lengths of the enclosing scans over stacked parameters.
      rule_of: returns the rule of an equation; None for an unknown primitive.
      points: what the integers of each input point into. Default: nothing.
      sources: for each input the frame and the variable outside that it always equals, or None. Default: none.

    Returns:
      The frame with the axes of all values.
    """
    jaxpr, own = open_jaxpr(jaxpr)
    frame = Frame(jaxpr, tuple(consts) or own, layers, rule_of)
    frame.sources |= {var: source for var, source in zip(jaxpr.invars, sources, strict=False) if source is not None}

    def equation(index: int, eqn: Equation, operands: list[Axes]) -> list[Axes]:
        site, rule = Site(labels, frame, index), rule_of(eqn)
        frame.rules.append(rule)
        if rule is None:
            results = unknown(site, operands)
        else:
            if not rule.ragged:
                operands = [tuple(even(labels, a, len(layers)) for a in axes) for axes in operands]
            results = rule.follow(site, operands)
        pointing.follow(site)
        for var, axes in zip(eqn.outvars, results, strict=True):
            if tuple(map(ax.size, axes)) != tuple(getattr(var.aval, "shape", ())):
                sizes, shape = tuple(map(ax.size, axes)), var.aval.shape
                raise RuntimeError(
                    f"{site.name}: axes of sizes {sizes} for the shape {shape}; a bug in jaxprune.slimming"
                )
        return results

    constants = [tuple(ax.labelled(labels.fresh((n,))) for n in var.aval.shape) for var in jaxpr.constvars]
    for var, axes, const in zip(jaxpr.constvars, constants, frame.consts, strict=True):
        value = constant_of(frame, var) if np.ndim(const) == 1 else None
        if value is not None and value.dtype.kind in "iu" and np.array_equal(value, np.arange(value.size)):
            frame.points[var] = pointing.of_iota(labels, axes[0])
    frame.points |= {var: meaning for var, meaning in zip(jaxpr.invars, points, strict=False) if meaning is not None}
    _ = walk(jaxpr, [*constants, *inputs], frame.axes, equation)
    return frame


def unknown(site: Site, operands: list[Axes]) -> list[Axes]:
    """Freezes all operands of a primitive without a rule."""
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


class Zeros(NamedTuple):
    """Where one value is zero or minus infinity because units are removed.

    Attributes:
      axes: for each axis whether the value is zero at removed positions.
      value: the number that the value has everywhere; None if unknown.
      low: the axes along which the value is minus infinity at removed positions.
    """

    axes: tuple[bool, ...]
    value: float | None = None
    low: frozenset[int] = frozenset()

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
        """Returns the axes of the k-th operand."""
        return self.frame.read(self.eqn.invars[k])

    def rank(self, k: int = 0) -> int:
        """Returns the number of axes of the k-th result."""
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
        results = rule.zero(ZeroSite(labels, frame, index, marks), known)
        return [_lowered(frame, var, zeros) for var, zeros in zip(eqn.outvars, results, strict=True)]

    given = [_lowered(frame, var, zeros) for var, zeros in zip(frame.jaxpr.invars, inputs, strict=True)]
    return walk(frame.jaxpr, [*map(of_constant, frame.consts), *given], Values[Zeros](of_constant), equation)


def _lowered(frame: Frame, var: Any, zeros: Zeros) -> Zeros:
    """Adds the axes from which an operation chooses to those along which a value is minus infinity.

    An axis along which the value is zero at removed positions is left out: a softmax has been applied to it already.
    """
    low = {axis for axis in frame.logits.get(var, ()) if not zeros.axes[axis]}
    return zeros._replace(low=zeros.low | low) if low else zeros


def of_constant(value: Any) -> Zeros:
    """Returns the known zeros of a constant: a scalar is known by its value, an array is unknown."""
    if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number):
        return Zeros((), float(np.real(value)))
    return Zeros((False,) * np.ndim(value))


class Rule(NamedTuple):
    """The rule of slimming for a primitive.

    Attributes:
      follow: from the axes of the operands to the axes of the results; couples and freezes labels.
      zero: from the known zeros of the operands to the known zeros of the results.
      shrink: runs the primitive on smaller operands, from an `evaluate.ShrinkSite`.
      ragged: whether operands may be stacked layers that lose different positions.
    """

    follow: Callable[[Site, list[Axes]], list[Axes]]
    zero: Callable[[ZeroSite, list[Zeros]], list[Zeros]]
    shrink: Callable[[Any, list[Any]], list[Any]]
    ragged: bool = False


def together(site: Site, axes: Sequence[Axis]) -> Axis:
    """Couples axes position by position and returns one of them."""
    result = axes[0]
    for axis in axes[1:]:
        result = site.unify(result, axis)
    return result


def whole(shape: Sequence[int]) -> Axes:
    """Returns axes without removable positions."""
    return tuple(ax.fixed(n) for n in shape)


def no_zeros(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    """Returns for each result that it may differ from zero at every removed position."""
    del known
    return [Zeros((False,) * site.rank(k)) for k in range(len(site.eqn.outvars))]


def settled(site: ZeroSite, k: int, axis: int, zero: bool) -> bool:
    """Returns whether an operand's axis is zero at masked positions, or has no removable positions."""
    return zero or ax.is_fixed(site.operand(k)[axis])
