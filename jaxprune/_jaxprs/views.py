"""`View`: a parameter leaf after moves, axis by axis. `results` applies primitives to views; `meeting` finds products.

Views are symbolic, while `weights.follow` looks at entries: finding the summed axes of a leaf must not cost an array of
the leaf's size. A factor of a view's axis is a `Run` along one axis of the leaf; a factor without a run repeats
entries.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxprune._jaxprs import factors as fx
from jaxprune._jaxprs.factors import Axis, Factor, NotFollowed, Run, Site, position, run
from jaxprune._jaxprs.primitives import (
    PRIMITIVES,
    Broadcast,
    Concatenate,
    Entrywise,
    Move,
    Moves,
    Pad,
    Product,
    Ragged,
    Reshape,
    Reverse,
    Same,
    Slice,
    Squeeze,
    Stack,
    Tile,
    Transpose,
)

Equation = Any
Shape = tuple[int, ...]
Pairs = Sequence[tuple[int, int]]  # (axis of the weight, axis of the other operand)


class View(NamedTuple):
    """Part of a value that is a parameter leaf or part of one.

    Attributes:
      leaf: the number of the leaf.
      axes: for each axis of the value, the factors that it runs along, the slowest first; its length is their product.
      start: for each axis of the value, where the part starts (in a concatenation, parts start at different positions).
      offset: for each axis of the leaf, where the view starts.
      scanned: the factors along which enclosing loops take one entry: pairs (loop, factor), outermost first.
    """

    leaf: int
    axes: tuple[Axis, ...]
    start: Shape
    offset: Shape
    scanned: tuple[tuple[tuple[int, ...], Factor], ...] = ()


class Meeting(NamedTuple):
    """A weight in a product.

    Attributes:
      view: the weight. For the kernel of a convolution the output axis is last, and is (groups, outputs) if grouped.
      batch: pairs of batch axes, of the weight and of the other operand.
      contract: pairs of axes that are summed over. The other operand of a kernel is patches, with axes (batch,
        *positions, groups if more than one, channels, *kernel positions).
    """

    view: View
    batch: Pairs
    contract: Pairs


def whole(leaf: int, shape: Shape) -> View:
    """Returns the view of a whole leaf.

    Example:
      >>> whole(0, (3, 1)).axes
      ((Factor(size=3, of=Run(axis=0, stride=1)),), ())
    """
    axes = tuple((run(a, n),) if n != 1 else () for a, n in enumerate(shape))
    return View(leaf, axes, (0,) * len(shape), (0,) * len(shape))


def results(eqn: Equation, operands: Sequence[Sequence[View]], numbers: Sequence[Any]) -> list[tuple[View, ...]]:
    """Returns the views of the results of an equation without jaxprs and without data.

    A weight stays a weight if it is multiplied by or added to something else (a mask, a scale, a low-rank correction).
    The result of a sum or product of two weights has the views of both.

    Args:
      eqn: the equation.
      operands: the views of each operand.
      numbers: the integers that an operand is known to be, else None; slices need them.

    Returns:
      The views of each result.

    Raises:
      NotFollowed: the primitive neither moves entries nor is linear in them.
    """
    name = eqn.primitive.name
    what = PRIMITIVES.get(name)
    if isinstance(what, Moves) and what.each:
        return [tuple(views) for views in operands]
    shape = tuple(eqn.invars[0].aval.shape)
    if isinstance(what, Moves):
        moves = what.moves(eqn)
    elif name == "dynamic_slice":
        moves = [_known_slice(eqn, shape, numbers[1 : 1 + len(shape)])]
    elif isinstance(what, Entrywise) and any(operands[what.linear]):
        if sum(map(len, operands)) > sum(map(len, operands[what.linear])):
            raise NotFollowed(name)
        shape = tuple(eqn.outvars[0].aval.shape)
        return [tuple(stretched(view, shape) for views in operands[what.linear] for view in views)] * len(eqn.outvars)
    else:
        raise NotFollowed(name)
    if isinstance(moves[0], (Concatenate, Stack)):
        return [_joined(eqn, moves[0], operands)]
    return [tuple(v for view in operands[0] if (v := moved(view, move, shape)) is not None) for move in moves]


def moved(view: View, move: Move, shape: Shape) -> View | None:
    """Returns the view of a moved value.

    Args:
      view: a view of the value.
      move: any move of one operand.
      shape: the shape of the value.

    Returns:
      The view; None if the result contains nothing of the leaf.

    Raises:
      NotFollowed: the result cannot be expressed as a view.
    """
    return _MOVED[type(move)](view, move, shape)


def stretched(view: View, shape: Shape) -> View:
    """Returns the view of an operand of an entrywise function, which broadcasts axes of size 1 and scalars.

    Args:
      view: a view of the operand.
      shape: the shape of the result.
    """
    if not view.axes:
        return view._replace(axes=tuple((Factor(n),) if n != 1 else () for n in shape), start=(0,) * len(shape))
    axes = tuple(axis if axis or n == 1 else (Factor(n),) for axis, n in zip(view.axes, shape, strict=True))
    return view._replace(axes=axes)


def one_of(view: View, loop: tuple[int, ...], length: int | None) -> View:
    """Returns the view of one entry along the first axis, which a round of a scan receives.

    Args:
      view: a view of the scanned value.
      loop: identifies the scan.
      length: the number of rounds.

    Raises:
      NotFollowed: the view does not have one entry for each round.
    """
    outer = view.axes[0]
    if fx.size(outer) != length or len(outer) > 1:
        raise NotFollowed("a scan over a part of it")
    loops = tuple((loop, f) for f in outer if f.of is not None)
    return view._replace(axes=view.axes[1:], start=view.start[1:], scanned=(*view.scanned, *loops))


def of_round(
    views: Sequence[View], loop: tuple[int, ...], length: int | None
) -> tuple[tuple[View, ...], list[tuple[View, str]]]:
    """Returns the views that a round of a scan receives, and the views that cannot be followed, with the reasons."""
    kept, lost = [], []
    for view in views:
        try:
            kept.append(one_of(view, loop, length))
        except NotFollowed as reason:
            lost.append((view, str(reason)))
    return tuple(kept), lost


def meeting(eqn: Equation, view: View, operand: int) -> Meeting:
    """Describes the product of a weight with another operand, or the convolution with the weight as its kernel.

    Args:
      eqn: the equation.
      view: a view of one operand.
      operand: the number of this operand, 0 or 1.

    Raises:
      NotFollowed: the weight is the image of a convolution, the convolution has batch_group_count, or the view of the
        kernel has only some outputs of a group.
    """
    what = PRIMITIVES[eqn.primitive.name]
    if isinstance(what, Product):
        contract, batch = what.numbers(eqn)
        pair = lambda axes: list(zip(axes[operand], axes[1 - operand], strict=True))
        return Meeting(view, pair(batch), pair(contract))
    if isinstance(what, Ragged):
        if operand == 0 or not is_sorted_product(eqn):
            raise NotFollowed("a ragged product of another form than rows [rows, inputs] by [groups, inputs, outputs]")
        return Meeting(view, [], [(1, 1)])
    if operand == 0:
        raise NotFollowed("a convolution as its image")
    if eqn.params["batch_group_count"] != 1:
        raise NotFollowed("a convolution with batch_group_count")
    groups, numbers = eqn.params["feature_group_count"], eqn.params["dimension_numbers"]
    shape = tuple(eqn.invars[1].aval.shape)
    out_axis, in_axis, *spatial = numbers.rhs_spec
    order = [a for a in range(len(shape)) if a != out_axis] + [out_axis]
    view = _transpose(view, Transpose(tuple(order)), shape)
    if groups > 1:
        kept = tuple(shape[a] for a in order)
        view = _reshape(view, Reshape((*kept[:-1], groups, kept[-1] // groups)), kept)
    channels = len(shape) - 1 + (groups > 1)
    contract = [(order.index(a), channels + i) for i, a in enumerate([in_axis, *spatial])]
    return Meeting(view, [(len(shape) - 1, channels - 1)] if groups > 1 else [], contract)


def contracted(eqn: Equation, operand: int) -> tuple[int, ...]:
    """Returns the axes of an operand that a product sums over, or that a convolution sums over in its kernel."""
    what = PRIMITIVES[eqn.primitive.name]
    if isinstance(what, Product):
        return tuple(what.numbers(eqn)[0][operand])
    return (1,) if isinstance(what, Ragged) else tuple(eqn.params["dimension_numbers"].rhs_spec[1:])


def is_sorted_product(eqn: Equation) -> bool:
    """Returns whether a ragged product multiplies rows [rows, inputs] by matrices [groups, inputs, outputs]."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (left, right), (left_batch, _) = numbers.dot_dimension_numbers
    ragged, groups = tuple(numbers.lhs_ragged_dimensions), tuple(numbers.rhs_group_dimensions)
    return (tuple(left), tuple(right), tuple(left_batch), ragged, groups) == ((1,), (1,), (), (0,), (0,))


def site_of(meeting: Meeting) -> Site:
    """Returns the site of a leaf, from the view of it that takes part in a product.

    Raises:
      NotFollowed: no axis of the leaf is summed over.
    """
    view, batch, contract = meeting
    runs = lambda axes: tuple(f for a in axes for f in view.axes[a] if f.of is not None)
    inputs = sorted(runs(mine for mine, _ in contract), key=position)
    if not inputs:
        raise NotFollowed("a product that sums over no axis of it")
    used = {mine for mine, _ in (*batch, *contract)}
    along_batch = runs(mine for mine, _ in sorted(batch, key=lambda pair: pair[1]))
    outputs = runs(a for a in range(len(view.axes)) if a not in used)
    return Site(view.leaf, along_batch, tuple(inputs), outputs, view.offset)


def _known_slice(eqn: Equation, shape: Shape, starts: Sequence[Any]) -> Slice:
    if any(start is None for start in starts):
        raise NotFollowed("a computed index")
    sizes = tuple(eqn.params["slice_sizes"])
    first = tuple(min(max(int(i), 0), n - s) for i, n, s in zip(starts, shape, sizes, strict=True))
    return Slice(first, tuple(a + s for a, s in zip(first, sizes, strict=True)), (1,) * len(shape))


def _joined(eqn: Equation, move: Concatenate | Stack, operands: Sequence[Sequence[View]]) -> tuple[View, ...]:
    begin, out = 0, []
    for var, views in zip(eqn.invars, operands, strict=True):
        for view in views:
            if isinstance(move, Stack):
                axes, start = list(view.axes), list(view.start)
                axes.insert(move.axis, ())
                start.insert(move.axis, begin)
                out.append(view._replace(axes=tuple(axes), start=tuple(start)))
            else:
                out.append(_shift(view, move.axis, begin))
        begin += 1 if isinstance(move, Stack) else var.aval.shape[move.axis]
    return tuple(out)


def _same(view: View, move: Same, shape: Shape) -> View:
    del move, shape
    return view


def _transpose(view: View, move: Transpose, shape: Shape) -> View:
    del shape
    order = move.permutation
    return view._replace(axes=tuple(view.axes[p] for p in order), start=tuple(view.start[p] for p in order))


def _squeeze(view: View, move: Squeeze, shape: Shape) -> View:
    return _transpose(view, Transpose(tuple(a for a in range(len(shape)) if a not in move.dimensions)), shape)


def _broadcast(view: View, move: Broadcast, shape: Shape) -> View:
    axes: list[Axis] = [(Factor(n),) if n != 1 else () for n in move.shape]
    start = [0] * len(axes)
    for i, to in enumerate(move.dimensions):
        if shape[i] == move.shape[to]:
            axes[to], start[to] = view.axes[i], view.start[i]
    return view._replace(axes=tuple(axes), start=tuple(start))


def _tile(view: View, move: Tile, shape: Shape) -> View:
    axes = list(view.axes)
    for axis, n in enumerate(move.reps):
        if n != 1:
            if fx.size(axes[axis]) != shape[axis]:
                raise NotFollowed("a repetition of a concatenation")
            axes[axis] = fx.merge([(Factor(n),), axes[axis]])
    return view._replace(axes=tuple(axes))


def _reverse(view: View, move: Reverse, shape: Shape) -> View:
    if any(view.axes[a] for a in move.dimensions):
        raise NotFollowed("rev")
    return view._replace(start=tuple(shape[a] - 1 - s if a in move.dimensions else s for a, s in enumerate(view.start)))


def _pad(view: View, move: Pad, shape: Shape) -> View:
    del shape
    if any(low < 0 or high < 0 or inner for low, high, inner in move.config):
        raise NotFollowed("a pad that cuts off or spreads")
    for axis, (low, _, _) in enumerate(move.config):
        view = _shift(view, axis, low)
    return view


def _shift(view: View, axis: int, by: int) -> View:
    return view._replace(start=_put(view.start, axis, view.start[axis] + by))


def _reshape(view: View, move: Reshape, shape: Shape) -> View:
    if move.order is not None:  # as vmap writes the kernel of a convolution
        view, shape = _transpose(view, Transpose(move.order), shape), tuple(shape[a] for a in move.order)
    if 0 in shape:
        raise NotFollowed("a reshape of an empty array")
    axes: list[Axis] = []
    start: list[int] = []
    for old, new in fx.blocks(shape, move.shape):
        if len(old) == len(new) == 1:
            axes.append(view.axes[old[0]])
            start.append(view.start[old[0]])
            continue
        if any(fx.size(view.axes[a]) != shape[a] for a in old):
            raise NotFollowed("a reshape of a concatenation")
        pieces = fx.split(fx.merge([view.axes[a] for a in old]), [move.shape[a] for a in new], cut_run)
        if pieces is None:
            raise NotFollowed("a reshape that splits an axis unevenly")
        axes += pieces
        start += [0] * len(new)
    return view._replace(axes=tuple(axes), start=tuple(start))


def cut_run(factor: Factor, fast: int) -> tuple[Factor, Factor]:
    """Cuts a factor in two, of which the second has `fast` positions; see `factors.split`."""
    slow = factor.size // fast
    if factor.of is None:
        return Factor(slow), Factor(fast)
    return Factor(slow, Run(factor.of.axis, factor.of.stride * fast)), Factor(fast, factor.of)


def _slice(view: View, move: Slice, shape: Shape) -> View | None:
    for axis, (begin, end, step) in enumerate(zip(*move, strict=True)):
        if (begin, end, step) == (0, shape[axis], 1):
            continue
        cut = _slice_axis(view, axis, begin, end, step)
        if cut is None:
            return None
        view = cut
    return view


def _slice_axis(view: View, axis: int, begin: int, end: int, step: int) -> View | None:
    factors, first = view.axes[axis], view.start[axis]
    have = fx.size(factors)
    low, high = max(begin, first), min(end, first + have)
    if low >= high:
        return None
    if step != 1 and (first != 0 or have < end):
        raise NotFollowed("a strided slice of a concatenation")
    skip, count = low - first, -(-(high - low) // step)
    view = view._replace(start=_put(view.start, axis, max(first - begin, 0)))
    if skip == 0 and count == have:
        return view
    outer, inner = factors[0], fx.size(factors[1:])
    if inner > 1 and (step != 1 or skip % inner or count % inner):
        raise NotFollowed("a slice through merged axes")
    skip, count = skip // inner, count // inner
    kept: Axis = ()
    if outer.of is not None:
        at = outer.of.axis
        view = view._replace(offset=_put(view.offset, at, view.offset[at] + skip * outer.of.stride))
        kept = (run(at, count, outer.of.stride * step),)
    elif count != 1:
        kept = (Factor(count),)
    return view._replace(axes=_put(view.axes, axis, (kept if count != 1 else ()) + factors[1:]))


def _put(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


_MOVED: dict[type, Callable[[View, Any, Shape], View | None]] = {
    Same: _same,
    Transpose: _transpose,
    Reshape: _reshape,
    Squeeze: _squeeze,
    Broadcast: _broadcast,
    Slice: _slice,
    Reverse: _reverse,
    Tile: _tile,
    Pad: _pad,
}
