"""Axes with labels: each factor of an axis (`_jaxprs.factors`) stores the labels of its positions.

A factor's `of` is an array of labels of shape (..., size), or None if no position can be removed. The leading axes are
the layers of the enclosing scans, each of which may lose different positions. An axis that merges heads and dimensions
keeps its two factors, so splitting it again is free; to split an axis of one factor, its labels become conjunctions.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxprune._jaxprs import factors
from jaxprune._jaxprs.factors import Axis as Axis
from jaxprune._jaxprs.factors import Factor as Factor
from jaxprune._jaxprs.factors import merge as merge
from jaxprune._jaxprs.factors import size as size
from jaxprune.slimming._labels.labels import Ids, Labels

Axes: TypeAlias = tuple[Axis, ...]


def fixed(size: Any) -> Axis:
    """Returns an axis without removable positions; its size is an int or a symbolic dimension."""
    return (Factor(size, None),)


def labelled(ids: Ids) -> Axis:
    """Returns an axis with labels of shape (..., size)."""
    return (Factor(ids.shape[-1], ids),)


def is_fixed(axis: Axis) -> bool:
    """Returns whether the axis has no labels (labels may still be frozen)."""
    return all(factor.of is None for factor in axis)


def flat(labels: Labels, axis: Axis) -> Ids | None:
    """Returns the labels of all positions of an axis; None if it has no labels."""
    if is_fixed(axis):
        return None
    total: Ids | None = None
    for factor in axis:
        ids = np.full((factor.size,), Labels.FIXED) if factor.of is None else labels.find(factor.of)
        if total is not None:
            total, ids = _same_depth(total, ids)
            ids = labels.both(total[..., :, None], ids[..., None, :])
            ids = ids.reshape(*ids.shape[:-2], -1)
        total = ids
    return total


def split(labels: Labels, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Splits an axis into several, the last one fastest.

    Args:
      labels: all labels; the labels of the axis may become conjunctions.
      axis: the axis.
      sizes: the sizes of the new axes; their product is the axis' size.

    Returns:
      One axis for each size.
    """
    found = factors.split(axis, sizes, lambda factor, fast: _cut(labels, factor, fast))
    if found is not None:
        return found
    ids = flat(labels, axis)
    if ids is None:
        return [fixed(count) for count in sizes]
    rest, found = Factor(ids.shape[-1], ids), []
    for count in reversed(sizes[1:]):
        rest, fast = _cut(labels, rest, count)
        found.insert(0, (fast,))
    return [(rest,), *found]


def unify(labels: Labels, a: Axis, b: Axis, why: int) -> None:
    """Makes two axes of one size lose the same positions; partners of fixed positions are frozen (`why`)."""
    if a is b:
        return
    left, right = list(a), list(b)
    while left and right:
        f, g = left.pop(), right.pop()
        if f.size == g.size:
            _unify_factors(labels, f, g, why)
        elif f.size % g.size == 0:
            slow, fast = _cut(labels, f, g.size)
            left.append(slow)
            _unify_factors(labels, fast, g, why)
        elif g.size % f.size == 0:
            slow, fast = _cut(labels, g, f.size)
            right.append(slow)
            _unify_factors(labels, f, fast, why)
        else:
            ids, others = flat(labels, a), flat(labels, b)
            _unify_factors(labels, Factor(size(a), ids), Factor(size(b), others), why)
            return
    for factor in left + right:
        if factor.of is not None and factor.size == 1:
            labels.freeze(factor.of, why)


def freeze(labels: Labels, axis: Axis, why: int) -> None:
    """Freezes every label of an axis."""
    for factor in axis:
        if factor.of is not None:
            labels.freeze(factor.of, why)


def take(labels: Labels, axis: Axis, positions: slice | np.ndarray) -> Axis:
    """Returns the axis with only some of its positions."""
    if isinstance(positions, slice) and len(axis) > 1:
        # Whole runs of the slowest factor leave the other factors unchanged.
        start, stop, step = positions.indices(size(axis))
        inner = size(axis) // axis[0].size
        if step == 1 and start % inner == 0 and stop % inner == 0:
            return merge([take(labels, axis[:1], slice(start // inner, stop // inner)), axis[1:]])
    ids = flat(labels, axis)
    if ids is None:
        return fixed(len(np.arange(size(axis))[positions]))
    return labelled(ids[..., positions])


def concatenate(labels: Labels, axes: Sequence[Axis]) -> Axis:
    """Returns the concatenation of the axes."""
    if all(is_fixed(axis) for axis in axes):
        return fixed(sum(size(axis) for axis in axes))
    parts = [flat(labels, axis) for axis in axes]
    ids = [np.full((size(axis),), Labels.FIXED) if p is None else p for axis, p in zip(axes, parts, strict=True)]
    depth = max(p.ndim for p in ids)
    ids = [p.reshape((1,) * (depth - p.ndim) + p.shape) for p in ids]
    lead = np.broadcast_shapes(*(p.shape[:-1] for p in ids))
    return labelled(np.concatenate([np.broadcast_to(p, (*lead, p.shape[-1])) for p in ids], -1))


def _unify_factors(labels: Labels, a: Factor, b: Factor, why: int) -> None:
    if a.of is None and b.of is None:
        return
    if a.of is None or b.of is None:
        labels.freeze(b.of if a.of is None else a.of, why)  # pyright: ignore[reportArgumentType]
        return
    labels.unify(a.of, b.of)


def _cut(labels: Labels, factor: Factor, fast: int) -> tuple[Factor, Factor]:
    """Splits a factor into (size / fast, fast), with conjunctions if a position depends on both parts."""
    slow = factor.size // fast
    if factor.of is None:
        return Factor(slow, None), Factor(fast, None)
    if slow == 1 or fast == 1:
        one = Factor(1, None)
        return (one, factor) if slow == 1 else (factor, one)
    grid = factor.of.reshape(*factor.of.shape[:-1], slow, fast)
    atoms = labels.atoms(grid)
    lead = grid.shape[:-2]
    rows = np.full((*lead, slow), Labels.FIXED)
    columns = np.full((*lead, fast), Labels.FIXED)
    uneven = []
    for atom in np.moveaxis(atoms, -1, 0):
        if (atom == atom[..., :, :1]).all():
            rows = labels.both(rows, atom[..., :, 0])
        elif (atom == atom[..., :1, :]).all():
            columns = labels.both(columns, atom[..., 0, :])
        else:
            uneven.append(atom)
    if len(uneven) > 1 and any((atom == Labels.FIXED).any() for atom in uneven):
        # A concatenation of an axis of one factor and an axis of several: only all labels of a position together say
        # which row and which column it needs.
        uneven = [functools.reduce(labels.both, uneven)]
    for ids in uneven:
        row, column = labels.fresh((*lead, slow)), labels.fresh((*lead, fast))
        labels.unify(ids, labels.both(row[..., :, None], column[..., None, :]))
        rows, columns = labels.both(rows, row), labels.both(columns, column)
    return _simple(slow, rows), _simple(fast, columns)


def _simple(count: int, ids: Ids) -> Factor:
    """Returns a factor with labels, or without if no position can be removed."""
    return Factor(count, None if (ids == Labels.FIXED).all() else ids)


def _same_depth(a: Ids, b: Ids) -> tuple[Ids, Ids]:
    depth = max(a.ndim, b.ndim)
    return a.reshape((1,) * (depth - a.ndim) + a.shape), b.reshape((1,) * (depth - b.ndim) + b.shape)
