"""Reads by index: gather and dynamic_slice; and top_k, which returns indices. `writing` has the writes.

Three kinds of indices are told apart. Integers that point into an axis (`pointing`) tie the axis that they index to it.
Constant indices (`constants`) are known positions: labels are taken and put as in a slice or a concatenation, and the
smaller program has the new positions. Axes that other integers index are frozen.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.constants import constant_of
from jaxprune.slimming._labels.evaluate import ShrinkSite, move, ranks, rebind, select
from jaxprune.slimming._labels.frames import Rule, Site, Zeros, ZeroSite, even, no_zeros
from jaxprune.slimming._labels.rules.moving import parts


def window_dims(rank: int, *gone: tuple[int, ...]) -> list[int]:
    taken = {i for group in gone for i in group}
    return [i for i in range(rank) if i not in taken]


def _gather_axes(eqn: Any) -> tuple[list[int], dict[int, int], dict[int, int], dict[int, int]]:
    """Returns which axes of a gather belong together.

    Returns:
      The indexed axes of the operand; from axes of the result to axes of the operand; from axes of the result to axes
      of the indices; from batch axes of the operand to batch axes of the indices.
    """
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = eqn.invars[0].aval.shape
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    window = window_dims(len(shape), numbers.collapsed_slice_dims, numbers.operand_batching_dims)
    indexed = [d for d in range(len(shape)) if d not in batching and (d not in window or sizes[d] != shape[d])]
    offset = dict(zip(numbers.offset_dims, window, strict=True))
    rest = [i for i in range(len(eqn.outvars[0].aval.shape)) if i not in offset]
    return indexed, offset, dict(zip(rest, range(len(rest)), strict=True)), batching


def pointed_axes(site: Any, dims: Any, *, losing: bool = True) -> dict[int, pointing.Points]:
    """Returns the operand axes that are indexed by integers that point."""
    found = zip(dims, pointing.columns(site, 1, len(dims), losing=losing), strict=True)
    return {d: point for d, point in found if point is not None}


def _constant_index(site: Any) -> tuple[int, np.ndarray] | None:
    """Returns the axis that a gather indexes and the constant positions; None for any other gather."""
    params, operand = site.eqn.params, site.eqn.invars[0].aval.shape
    numbers = params["dimension_numbers"]
    if len(numbers.start_index_map) != 1 or numbers.start_index_map != numbers.collapsed_slice_dims:
        return None
    [axis] = numbers.start_index_map
    if numbers.operand_batching_dims or ax.is_fixed(site.frame.read(site.eqn.invars[0])[axis]):
        return None
    index = constant_of(site.frame, site.eqn.invars[1])
    if index is None or index.ndim < 2 or (index < 0).any() or (index >= operand[axis]).any():
        return None
    return axis, index[..., 0]


def _follow_gather(site: Site, operands: list[Axes]) -> list[Axes]:
    """Returns the labels of the result of a gather; labels that a computed index points into are frozen or followed."""
    operand, indices = operands
    indexed, offset, batch, batching = _gather_axes(site.eqn)
    constant = _constant_index(site)
    if constant is not None:
        axis, index = constant
        taken = axis_at(site, operand[axis], index.reshape(-1))
        if _repeats(index):
            site.freeze(taken, "a table whose entries a grid of constant indices reads several times")
        parts = ax.split(site.labels, taken, index.shape) if index.ndim > 1 else [taken]
        return [tuple(parts[batch[i]] if i in batch else operand[offset[i]] for i in range(len(site.out_shape())))]
    pointed = pointed_axes(site, site.eqn.params["dimension_numbers"].start_index_map)
    for d in indexed:
        point = pointed.get(d)
        if point is not None and site.eqn.params["slice_sizes"][d] == 1:
            site.unify(operand[d], point.axis)
        else:
            site.freeze(operand[d], "a gather at indices that the function computes; constant indices are followed")
    site.freeze(indices[-1], "the index of a gather")
    for d, b in batching.items():
        site.unify(operand[d], indices[b])
    result: list[Axis] = []
    for i, n in enumerate(site.out_shape()):
        source = indices[batch[i]] if i in batch else operand[offset[i]]
        result.append(ax.fixed(n) if i in offset and offset[i] in indexed else source)
    return [tuple(result)]


def _repeats(index: np.ndarray) -> bool:
    """Returns whether a grid of positions has some of them more than once, and not only in equal rows or columns."""
    for axis in range(index.ndim):
        first = index.take([0], axis) if index.shape[axis] else index
        index = first if (index == first).all() else index
    return index.ndim > 1 and np.unique(index).size < index.size


def _zero_gather(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    _, offset, batch, batching = _gather_axes(site.eqn)
    by_index = {b: d for d, b in batching.items()}
    constant = _constant_index(site)
    if constant is not None:
        by_index |= dict.fromkeys(range(constant[1].ndim), constant[0])
    sources = [offset.get(i, by_index.get(batch.get(i, -1))) for i in range(site.rank())]
    zero = tuple(source is not None and known[0].axes[source] for source in sources)
    low = frozenset(i for i, source in enumerate(sources) if source in known[0].low)
    return [Zeros(zero, 0.0 if known[0].void else None, low)]


def _shrink_gather(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    constant = _constant_index(site)
    if constant is not None:
        return [_gathered(site, operands[0], *constant)]
    full, small = site.eqn.invars[0].aval.shape, operands[0].shape
    sizes = tuple(
        new if size == old else size for size, old, new in zip(site.eqn.params["slice_sizes"], full, small, strict=True)
    )
    return site.bind(*operands, slice_sizes=sizes)


def _gathered(site: ShrinkSite, array: Any, axis: int, index: np.ndarray) -> Any:
    """Returns the kept entries of a gather at constant positions of an axis."""
    _, offset, batch, _ = _gather_axes(site.eqn)
    places, kept = list(batch), np.zeros(1, int)  # kept: positions of the flat index, (layers..., n)
    for place, n in zip(places, index.shape, strict=True):
        keep = site.out_keeps()[place]
        own = np.arange(n) if keep is None else keep.positions
        kept = kept[..., :, None] * n + own[..., None, :]
        kept = kept.reshape(*kept.shape[:-2], -1)
    wanted = ranks(site.keeps(0)[axis], site.eqn.invars[0].aval.shape[axis], index.reshape(-1)[kept])
    taken = jnp.moveaxis(select(array, axis, wanted), axis, 0)
    shape = site.out_shape()
    taken = taken.reshape(*(shape[i] for i in places), *taken.shape[1:])
    return jnp.moveaxis(taken, range(len(places)), places) if offset else taken


def starts_of(site: Any, first: int, sizes: Sequence[int]) -> dict[int, int]:
    """Returns the constant starts of a window on axes of the first operand that have labels and that it does not fill.

    Args:
      site: the equation.
      first: the number of the operand that has the start on the first axis.
      sizes: the sizes of the window.
    """
    found = {}
    for i, (axis, n) in enumerate(zip(site.frame.read(site.eqn.invars[0]), sizes, strict=True)):
        start = constant_of(site.frame, site.eqn.invars[first + i])
        if start is not None and not ax.is_fixed(axis) and n != ax.size(axis):
            found[i] = int(np.clip(start, 0, ax.size(axis) - n))
    return found


def _follow_dynamic_slice(site: Site, operands: list[Axes]) -> list[Axes]:
    result, starts = [], starts_of(site, 1, site.eqn.params["slice_sizes"])
    for i, (axis, n) in enumerate(zip(operands[0], site.eqn.params["slice_sizes"], strict=True)):
        if n == ax.size(axis):
            result.append(axis)
        elif i in starts:
            result.append(parts(site, axis, starts[i], starts[i] + n)[1])
        else:
            site.freeze(axis, "a slice whose start the function computes; a constant start is followed")
            result.append(ax.fixed(n))
    return [tuple(result)]


def _zero_dynamic_slice(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    del site
    return [known[0]]


def _shrink_dynamic_slice(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    array, *starts = operands
    sizes, out, shape = site.eqn.params["slice_sizes"], site.out_keeps(), site.out_shape()
    for i, start in starts_of(site, 1, sizes).items():
        array, starts[i] = move(site, array, i, np.arange(start, start + sizes[i]), out[i]), 0
    return [array] if array.shape == shape else site.bind(array, *starts, slice_sizes=shape)


def axis_at(site: Site, axis: Axis, positions: np.ndarray) -> Axis:
    """Returns an axis at some positions, whose new numbers must be the same in each layer of a scan."""
    return ax.take(site.labels, even(site.labels, axis, 0), positions)


def _follow_top_k(site: Site, operands: list[Axes]) -> list[Axes]:
    axes, count = operands[0], site.eqn.params["k"]
    axis = site.eqn.params.get("axis", -1) % len(axes)
    site.choose(0, axis, count)
    site.frame.points[site.eqn.outvars[1]] = pointing.Points(axes[axis])
    return [tuple(ax.fixed(count) if i == axis else a for i, a in enumerate(axes))] * 2


TABLE = {
    "top_k": Rule(_follow_top_k, no_zeros, rebind),
    "gather": Rule(_follow_gather, _zero_gather, _shrink_gather),
    "dynamic_slice": Rule(_follow_dynamic_slice, _zero_dynamic_slice, _shrink_dynamic_slice),
}
