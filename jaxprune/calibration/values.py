"""What the interpreter records of a value (`Value`, with the marks `Trail` and `Route`) and of a product (`Meet`).

A mark has the rank of its value and size 1 along axes that it does not depend on, so that a move of the value also
moves its marks (`moved`). A mark that cannot be followed is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxprune._jaxprs import factors
from jaxprune._jaxprs import primitives as mv
from jaxprune._jaxprs.factors import Factor
from jaxprune._jaxprs.primitives import PRIMITIVES, Moves, Product
from jaxprune._jaxprs.views import Meeting, View
from jaxprune.calibration.stats import Samples

Equation = Any
Key = tuple[int, ...]


class Route(NamedTuple):
    """Experts that compute the rows of a value.

    Attributes:
      size: the number of experts.
      owner: for each row the number of its expert plus 1; 0 for a row without a token.
      gate: the factor by which the router multiplies each row; None if the value is not multiplied yet.
      axis: the axis of the value that runs over the experts; None if each row has an expert of its own.
      sites: the products with weights of the experts that computed the rows: the product, the number of the sample of
        each row plus 1, and the factor of the weight that runs over the experts. The numbers are None if the product
        knows its samples.
      chosen: whether a router chooses the rows of each expert; False while all experts compute all rows.
    """

    size: int
    owner: Any
    gate: Any
    axis: int | None
    sites: tuple[tuple[Key, Any, Any], ...]
    chosen: bool


class Trail(NamedTuple):
    """The marks of a value.

    Attributes:
      picked: whether the value is computed from a choice of experts.
      filled: a mask of the rows that contain a token; None if all rows do or if it is unknown.
      routes: the experts that may have computed the rows.
      flat: the axes along which the value is constant.
    """

    picked: bool = False
    filled: Any = None
    routes: tuple[Route, ...] = ()
    flat: frozenset[int] = frozenset()


class Marked(NamedTuple):
    """An operand of an equation: its array, its marks and whether it depends on data."""

    array: Any
    trail: Trail
    data: bool


class Combined(NamedTuple):
    """A sum over the experts: for each entry of `owner` a row of norm `norm`, weighted with `gate`, `times` times."""

    route: Route
    owner: Any
    norm: Any
    times: Any
    gate: Any
    weighted: Any


NOTHING = Trail()


def numbers(size: int, rank: int, axis: int) -> jax.Array:
    """Returns the numbers 1 to `size` along one axis of an array of `rank` axes."""
    return jnp.arange(1, size + 1, dtype=jnp.int32).reshape([size if a == axis else 1 for a in range(rank)])


def flat_after(move: Any, value: Marked) -> frozenset[int]:
    """Returns the axes along which a value is constant, after a move of the value."""
    flat = value.trail.flat
    if isinstance(move, mv.Broadcast):
        kept = {to: k for k, to in enumerate(move.dimensions)}
        shape = value.array.shape
        return frozenset(
            a for a, n in enumerate(move.shape) if a not in kept or kept[a] in flat or (shape[kept[a]] == 1 and n != 1)
        )
    if isinstance(move, mv.Transpose):
        return frozenset(a for a, p in enumerate(move.permutation) if p in flat)
    if isinstance(move, mv.Same | mv.Slice):
        return flat
    if isinstance(move, mv.Squeeze):
        return frozenset(a - sum(d < a for d in move.dimensions) for a in flat if a not in move.dimensions)
    if isinstance(move, mv.Reshape) and move.order is None and 0 not in value.array.shape:
        pairs = factors.blocks(value.array.shape, move.shape)
        return frozenset(out for ins, outs in pairs for out in outs if ins and all(i in flat for i in ins))
    return frozenset()


def moved(move: Any, mark: Any, shape: Sequence[int]) -> Any:
    """Returns a mark after a move of its value.

    Args:
      move: a move of one operand.
      mark: the mark.
      shape: the shape of the value before the move.

    Returns:
      The mark of the result; None if the move is not followed.
    """
    follow = _MOVED.get(type(move))
    return None if follow is None else follow(move, mark, shape)


def _reshaped(move: mv.Reshape, mark: Any, shape: Sequence[int]) -> Any:
    if move.order is not None or 0 in shape:
        return None
    before, after = list(mark.shape), [1] * len(move.shape)
    for ins, outs in factors.blocks(tuple(shape), move.shape):
        if any(mark.shape[i] != 1 for i in ins):
            before = [shape[i] if i in ins else n for i, n in enumerate(before)]
            after = [move.shape[i] if i in outs else n for i, n in enumerate(after)]
    return jnp.broadcast_to(mark, before).reshape(after)


def _broadcast(move: mv.Broadcast, mark: Any, shape: Sequence[int]) -> Any:
    del shape
    return mark.reshape(
        [mark.shape[move.dimensions.index(a)] if a in move.dimensions else 1 for a in range(len(move.shape))]
    )


def _sliced(move: mv.Slice, mark: Any, shape: Sequence[int]) -> Any:
    del shape
    bounds = zip(*move, strict=True)
    return mark[tuple(slice(*b) if n != 1 else slice(None) for b, n in zip(bounds, mark.shape, strict=True))]


def _padded(move: mv.Pad, mark: Any, shape: Sequence[int]) -> Any:
    if any(low < 0 or high < 0 for low, high, _ in move.config):
        return None
    grown = [n if c == (0, 0, 0) else m for n, m, c in zip(mark.shape, shape, move.config, strict=True)]
    return lax.pad(jnp.broadcast_to(mark, grown), jnp.zeros((), mark.dtype), move.config)


_MOVED: dict[type, Callable[[Any, Any, Sequence[int]], Any]] = {
    mv.Same: lambda move, mark, shape: mark,
    mv.Transpose: lambda move, mark, shape: move(mark),
    mv.Squeeze: lambda move, mark, shape: move(mark),
    mv.Reverse: lambda move, mark, shape: jnp.flip(mark, move.dimensions),
    mv.Broadcast: _broadcast,
    mv.Slice: _sliced,
    mv.Pad: _padded,
    mv.Reshape: _reshaped,
}


def axis_after(move: Any, axis: int | None, shape: Sequence[int]) -> int | None:
    """Returns the axis of the experts after a move of the value; None if no axis runs over the experts alone."""
    if axis is None or isinstance(move, mv.Same | mv.Slice | mv.Reverse | mv.Pad):
        return axis
    if isinstance(move, mv.Transpose):
        return move.permutation.index(axis)
    if isinstance(move, mv.Squeeze):
        return axis - sum(a < axis for a in move.dimensions)
    if isinstance(move, mv.Broadcast):
        return move.dimensions[axis]
    if isinstance(move, mv.Reshape) and move.order is None:
        alone = [(i, o) for i, o in factors.blocks(tuple(shape), move.shape) if axis in i]
        return alone[0][1][0] if len(alone[0][0]) == len(alone[0][1]) == 1 else None
    return None


def each_mark(route: Route, change: Callable[[Any], Any], axis: int | None) -> Route | None:
    """Returns the route with all its marks changed; None if one of them cannot be followed."""
    owner, gate = change(route.owner), None if route.gate is None else change(route.gate)
    sites = tuple((key, None if rows is None else change(rows), of) for key, rows, of in route.sites)
    if owner is None or (gate is None) != (route.gate is None):
        return None
    if any(new[1] is None and old[1] is not None for new, old in zip(sites, route.sites, strict=True)):
        return None
    return route._replace(owner=owner, gate=gate, axis=axis, sites=sites)


def placed(mark: Any, to: dict[int, int], rank: int) -> Any:
    """Turns a mark of an operand into a mark of the result: axis `a` becomes axis `to[a]`, other axes are dropped.

    A row is marked if an entry along a dropped axis is marked.
    """
    gone = tuple(a for a in range(mark.ndim) if a not in to)
    mark = (
        mark.max(gone) if any(mark.shape[a] != 1 for a in gone) else mark.reshape([mark.shape[a] for a in sorted(to)])
    )
    order = sorted(range(mark.ndim), key=lambda k: to[sorted(to)[k]])
    shape = [1] * rank
    for k in order:
        shape[to[sorted(to)[k]]] = mark.shape[k]
    return mark.transpose(order).reshape(shape)


class Value(NamedTuple):
    """A value of the jaxpr.

    Attributes:
      array: the computed value.
      views: the views of parameters that the value consists of.
      data: whether the value depends on data.
      name: identifies the computation; two values with the same name are equal.
      mask: whether the value is known to consist of zeros and ones.
      scaled: for a parameter in `views`, the axes along which the factors vary that it was multiplied by; masks do not
        count.
      trail: the experts that computed the value.
      chosen: if the value consists of matrices that data choose from a parameter, the factor that they are chosen from
        and their numbers, an array with the rank of the value.
    """

    array: Any
    views: tuple[View, ...] = ()
    data: bool = False
    name: tuple[object, ...] = ()
    trail: Trail = NOTHING
    chosen: tuple[Factor, Any] | None = None
    mask: bool = False
    scaled: Mapping[int, frozenset[int]] = MappingProxyType({})

    def varying(self) -> frozenset[int]:
        """Returns the axes along which a factor without data may vary; none for a mask."""
        if self.mask:
            return frozenset()
        if self.views:
            own = (a for view in self.views for a, axis in enumerate(view.axes) if any(f.of is not None for f in axis))
            return frozenset(own).union(*self.scaled.values())
        return frozenset(a for a, n in enumerate(jnp.shape(self.array)) if n != 1 and a not in self.trail.flat)


def is_mask(constant: Any) -> bool:
    """Returns whether a constant is known to consist of zeros and ones."""
    if isinstance(constant, Tracer) or not getattr(constant, "is_fully_addressable", True):
        return False
    x = np.asarray(constant)
    return x.dtype == bool or (np.issubdtype(x.dtype, np.number) and bool(((x == 0) | (x == 1)).all()))


def is_mask_after(eqn: Equation, operands: Sequence[Value]) -> bool:
    """Returns whether the result of an equation is known to consist of zeros and ones."""
    name, what = eqn.primitive.name, PRIMITIVES.get(eqn.primitive.name)
    if eqn.outvars[0].aval.dtype == bool:
        return True
    if isinstance(what, Moves) and not what.each:
        return all(v.mask for v in (operands if name in ("concatenate", "stack") else operands[:1]))
    return name in ("convert_element_type", "mul") and all(v.mask for v in operands)


def scaled_after(eqn: Equation, operands: Sequence[Value]) -> dict[int, frozenset[int]]:
    """Returns `Value.scaled` of the results of an equation without jaxprs and without data."""
    what, out = PRIMITIVES.get(eqn.primitive.name), {}
    for k, value in enumerate(operands):
        for leaf in {view.leaf for view in value.views}:
            axes = value.scaled.get(leaf, frozenset())
            if eqn.primitive.name in ("mul", "div"):
                axes = axes.union(*(v.varying() for i, v in enumerate(operands) if i != k))
            elif axes and isinstance(what, Moves) and not what.each:
                axes = _varying_after(what.moves(eqn)[0], value, axes, eqn.outvars[0].aval.shape)
            if axes:
                out[leaf] = out.get(leaf, frozenset()) | axes
    return out


def _varying_after(move: Any, value: Value, axes: frozenset[int], shape: Sequence[int]) -> frozenset[int]:
    if isinstance(move, mv.Concatenate | mv.Reverse | mv.Pad):
        return axes
    if isinstance(move, mv.Stack):
        return frozenset(a + (a >= move.axis) for a in axes)
    flat = frozenset(range(value.array.ndim)) - axes
    still = flat_after(move, Marked(value.array, Trail(flat=flat), False))
    return frozenset(a for a, n in enumerate(shape) if n != 1 and a not in still)


class Meet(NamedTuple):
    """A product of a weight with an activation.

    Attributes:
      eqn: the equation.
      operands: its operands.
      mine: the operand that is the weight.
      meeting: the axes of the weight and of the activation in the product.
      samples: the activation in the order of the site.
      key: identifies the site.
      result: the array of the result.
    """

    eqn: Equation
    operands: list[Value]
    mine: int
    meeting: Meeting
    samples: Samples
    key: Key
    result: Any

    @property
    def weight(self) -> Value:
        """The operand that is the weight."""
        return self.operands[self.mine]

    @property
    def other(self) -> Value:
        """The activation."""
        return self.operands[1 - self.mine]

    def is_whole(self, axis: int) -> bool:
        """Returns whether an axis of the weight is a whole axis of its leaf."""
        axes, shape = self.meeting.view.axes[axis], self.weight.array.shape
        return len(axes) == 1 and axes[0].of is not None and axes[0].size == shape[axis]

    def is_part_of_stack(self, axis: int) -> bool:
        """Returns whether the weight is one of several leaves that are stacked along an axis."""
        return not self.meeting.view.axes[axis] and self.weight.array.shape[axis] != 1

    def is_free(self, axis: int) -> bool:
        """Returns whether the weight is the same at all positions of an axis."""
        return all(f.of is None for f in self.meeting.view.axes[axis])

    def inputs_of_experts(self) -> list[int]:
        """Returns the summed axes of the activation that are whole axes of the weight's leaf, one of several."""
        pairs = self.meeting.contract
        return [b for a, b in pairs if len(pairs) > 1 and self.is_whole(a)]

    def other_axes(self) -> dict[int, int]:
        """Maps the axes of the activation to the axes of the result."""
        return self._to_result(1 - self.mine)

    def weight_axes(self) -> dict[int, int]:
        """Maps the axes of the weight to the axes of the result."""
        return self._to_result(self.mine)

    def row_numbers(self, without: set[int]) -> Any:
        """Returns the number of each sample plus 1, in the shape of the activation."""
        gone = {b for _, b in self.meeting.contract} | without
        shape = [1 if a in gone else n for a, n in enumerate(self.other.array.shape)]
        count = 1
        for n in shape:
            count *= n
        return jnp.arange(1, count + 1, dtype=jnp.int32).reshape(shape)

    def _to_result(self, operand: int) -> dict[int, int]:
        what = PRIMITIVES[self.eqn.primitive.name]
        assert isinstance(what, Product)
        contract, batch = what.numbers(self.eqn)
        places = {a: i for i, a in enumerate(batch[operand])}
        ranks = [v.array.ndim for v in self.operands[:2]]
        start = len(batch[0]) + (ranks[0] - len(batch[0]) - len(contract[0]) if operand else 0)
        free = [a for a in range(ranks[operand]) if a not in (*contract[operand], *batch[operand])]
        return places | {a: start + i for i, a in enumerate(free)}


def one_trail(trails: Sequence[Trail]) -> Trail:
    """Returns the experts of a product with several stacked leaves."""
    if not trails or not trails[0].routes:
        return Trail()
    route, *_ = trails[0].routes
    if len(trails) == 1:
        return trails[0]
    sites = dict.fromkeys(site for trail in trails for r in trail.routes[:1] for site in r.sites if site[1] is None)
    return Trail(routes=(route._replace(sites=tuple(sites)),)) if route.chosen else Trail()
