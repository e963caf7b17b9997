"""`flops_of`: the FLOPs of the smaller program, counted from the remaining sizes of the traced axes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune._jaxprs import count_flops, is_product, live, multiply_adds, sub_jaxprs
from jaxprune._jaxprs.primitives import PRIMITIVES, Product, Ragged
from jaxprune.slimming._labels.analysis import Analysis, decided, whole_pieces
from jaxprune.slimming._labels.axes import Axis, is_fixed
from jaxprune.slimming._labels.evaluate import Decision, Piece, labels_that_go
from jaxprune.slimming._labels.frames import Frame
from jaxprune.slimming._labels.labels import Labels

Count = Callable[[Decision], int]


def flops_of(analysis: Analysis) -> Callable[[Any], int]:
    """Makes a function from a `Choice` to the FLOPs of matrix products and convolutions, 2 for each multiply-add.

    Args:
      analysis: the function, traced.

    Returns:
      The function. It raises a ValueError if the choice cannot be carried out.
    """
    whole, count = whole_pieces(analysis), _counter(analysis.frame, _one_of_equal(analysis.labels))
    distinct: dict[Any, list[tuple[Piece, np.ndarray]] | None] = {}

    def flops(choice: Any) -> int:
        groups = choice.groups
        if groups not in distinct:
            distinct.clear()  # one choice after another has the same groups
            distinct[groups] = _distinct_pieces(groups.units, whole)
        pieces, keep = distinct[groups], np.append(choice.keep, True)
        try:
            if pieces is not None:
                decided_pieces = [piece._replace(stay=keep[units].all(-1)) for piece, units in pieces]
                return count(Decision(analysis.labels, labels_that_go(analysis.labels, decided_pieces)))
        except ValueError:  # `decided` raises it again, and names all leaves
            pass
        return count(decided(analysis, choice.manifest(), whole))

    return flops


def _distinct_pieces(
    of_axes: Sequence[Sequence[np.ndarray]], whole: Sequence[tuple[int, int, Piece]]
) -> list[tuple[Piece, np.ndarray]] | None:
    """Returns one of all axes with the same labels and units, and its units: (n, k), -1 where a unit cannot be removed.

    The leaves of a network have far more axes than distinct ones: a kernel, its bias, its norm and the next kernel
    share theirs. Returns None if layers of stacked leaves have their own units.
    """
    found: dict[Any, tuple[Piece, np.ndarray]] = {}
    for k, axis, piece in whole:
        units = of_axes[k][axis]
        if not (units >= 0).any():
            units = np.full((piece.stay.size, 1), -1)
        elif units.ndim > 2 or piece.ids.ndim > 1 or len(units) != piece.stay.size:
            return None
        atoms = np.asarray(piece.atoms)
        found.setdefault((atoms.shape, atoms.tobytes(), units.shape, units.tobytes()), (piece, units))
    return list(found.values())


def _one_of_equal(labels: Labels) -> Callable[[Axis], Axis]:
    """Returns a function from an axis to the first axis it saw with the same labels, so that each is sized once."""
    known: dict[Any, Axis] = {}

    def one(axis: Axis) -> Axis:
        roots = [None if factor.of is None else labels.find(factor.of) for factor in axis]
        key = tuple((f.size, r if r is None else (r.shape, r.tobytes())) for f, r in zip(axis, roots, strict=True))
        return known.setdefault(key, axis)

    return one


def _counter(frame: Frame, one: Callable[[Axis], Axis]) -> Count:
    """Counts the FLOPs of a traced program from the remaining sizes, in the same way as `count_flops`."""
    parts: list[Count] = []
    for index, eqn in live(frame.jaxpr):
        if is_product(eqn):
            parts.append(_product(frame, eqn, one))
            continue
        subs, children = sub_jaxprs(eqn), frame.children.get(index)
        if children is None:  # nothing shrinks in what slimming does not enter
            known = [sub for sub in subs if sub.role != "unknown"]
            flops = sum(count_flops(sub).total * (1 if sub.length is None else sub.length) for sub in known)
            parts += [lambda decision, flops=flops: flops] if flops else []
            continue
        inside = [_counter(child, one) for child in children]
        if subs[0].role == "branch":
            parts.append(lambda decision, inside=inside: max(count(decision) for count in inside))
        elif subs[0].role == "scan":
            turns = [one(frame.read(eqn.invars[k])[0]) for k in sorted(subs[0].stacked_inputs)[:1]]
            parts.append(_times(inside[0], subs[0].length or 0, turns))
        else:
            parts += [count for count in inside if count is not _nothing]
    return (lambda decision: sum(count(decision) for count in parts)) if parts else _nothing


def _product(frame: Frame, eqn: Any, one: Callable[[Axis], Axis]) -> Count:
    """Counts a matrix product or a convolution: 2 for each multiply-add of the remaining part of each axis."""
    primitive = PRIMITIVES[eqn.primitive.name]
    if isinstance(primitive, Product):
        (_, contracted), (_, batch) = primitive.numbers(eqn)
        left = range(eqn.invars[0].aval.ndim)
        right = [axis for axis in range(eqn.invars[1].aval.ndim) if axis not in (*contracted, *batch)]
    elif isinstance(primitive, Ragged):  # each row meets one matrix, whatever the number of matrices
        left, right = range(2), (2,)
    else:  # samples and features of a convolution; windows do not shrink
        numbers = eqn.params["dimension_numbers"]
        left, right = numbers.lhs_spec[:1], numbers.rhs_spec[:2]
    lhs, rhs = map(frame.read, eqn.invars[:2])
    axes = [one(lhs[axis]) for axis in left] + [one(rhs[axis]) for axis in right]
    flops = 2 * multiply_adds(eqn).total
    return _times(lambda decision: flops, 1, axes)


def _times(count: Count, length: int, axes: Sequence[Axis]) -> Count:
    """Returns a count times a length; each axis of the length may shrink."""
    shrinking = [axis for axis in axes if not is_fixed(axis)]

    def counted(decision: Decision) -> int:
        total = count(decision) * length
        for keep in map(decision.keep, shrinking):
            if keep is not None:
                total = total // keep.full * keep.size
        return total

    return _nothing if count is _nothing else counted


def _nothing(decision: Decision) -> int:
    del decision
    return 0
