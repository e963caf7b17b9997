"""Indexing by values that are known only at run time, and top-k, which returns such values.

Integers that point into an axis (`pointing`) tie the axis that they index to it. Other indexed axes are frozen.
"""

from typing import Any

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels import pointing
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite, rebind
from jaxprune.slimming._labels.frames import Rule, Site, Zeros, ZeroSite, no_zeros, settled


def _window_dims(rank: int, *gone: tuple[int, ...]) -> list[int]:
    taken = {i for group in gone for i in group}
    return [i for i in range(rank) if i not in taken]


def _gather_axes(eqn: Any) -> tuple[list[int], dict[int, int], dict[int, int], dict[int, int]]:
    """Operand axes that are indexed; out axis -> operand axis; out axis -> indices axis; operand -> indices batch."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = eqn.invars[0].aval.shape
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    window = _window_dims(len(shape), numbers.collapsed_slice_dims, numbers.operand_batching_dims)
    indexed = [d for d in range(len(shape)) if d not in batching and (d not in window or sizes[d] != shape[d])]
    offset = dict(zip(numbers.offset_dims, window, strict=True))
    rest = [i for i in range(len(eqn.outvars[0].aval.shape)) if i not in offset]
    return indexed, offset, dict(zip(rest, range(len(rest)), strict=True)), batching


def _pointed(site: Any, dims: Any, *, losing: bool = True) -> dict[int, pointing.Points]:
    """Returns the operand axes that are indexed by integers that point."""
    found = zip(dims, pointing.columns(site, 1, len(dims), losing=losing), strict=True)
    return {d: point for d, point in found if point is not None}


def _follow_gather(site: Site, operands: list[Axes]) -> list[Axes]:
    operand, indices = operands
    indexed, offset, batch, batching = _gather_axes(site.eqn)
    pointed = _pointed(site, site.eqn.params["dimension_numbers"].start_index_map)
    for d in indexed:
        point = pointed.get(d)
        if point is not None and site.eqn.params["slice_sizes"][d] == 1:
            site.unify(operand[d], point.axis)
        else:
            site.freeze(operand[d], "a gather by position")
    site.freeze(indices[-1], "the index of a gather")
    for d, b in batching.items():
        site.unify(operand[d], indices[b])
    result: list[Axis] = []
    for i, n in enumerate(site.out_shape()):
        source = indices[batch[i]] if i in batch else operand[offset[i]]
        result.append(ax.fixed(n) if i in offset and offset[i] in indexed else source)
    return [tuple(result)]


def _zero_gather(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    _, offset, batch, batching = _gather_axes(site.eqn)
    by_index = {b: d for d, b in batching.items()}
    result = []
    for i in range(site.rank()):
        source = offset.get(i, by_index.get(batch.get(i, -1)))
        result.append(source is not None and known[0].axes[source])
    return [Zeros(tuple(result), 0.0 if known[0].void else None)]


def _shrink_gather(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    full, small = site.eqn.invars[0].aval.shape, operands[0].shape
    sizes = tuple(
        new if size == old else size for size, old, new in zip(site.eqn.params["slice_sizes"], full, small, strict=True)
    )
    return site.bind(*operands, slice_sizes=sizes)


def _follow_scatter(site: Site, operands: list[Axes]) -> list[Axes]:
    operand, indices, updates = operands
    numbers = site.eqn.params["dimension_numbers"]
    site.freeze(indices[-1], "the index of a scatter")
    pointed = _pointed(site, numbers.scatter_dims_to_operand_dims)
    for d in numbers.inserted_window_dims:
        if d in pointed:
            site.unify(operand[d], pointed[d].axis)
        else:
            site.freeze(operand[d], "a scatter by position")
    for d, b in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        site.unify(operand[d], indices[b])
    window = _window_dims(len(operand), numbers.inserted_window_dims, numbers.operand_batching_dims)
    for d, u in zip(window, numbers.update_window_dims, strict=True):
        if ax.size(operand[d]) == ax.size(updates[u]):
            site.unify(operand[d], updates[u])
        else:
            site.freeze(operand[d], "a scatter by position")
            site.freeze(updates[u], "a scatter by position")
    rest = [u for u in range(len(updates)) if u not in numbers.update_window_dims]
    for u, b in zip(rest, range(len(indices) - 1), strict=True):
        site.unify(updates[u], indices[b])
    return [operand]


def _zero_scatter(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    numbers = site.eqn.params["dimension_numbers"]
    window = _window_dims(site.rank(), numbers.inserted_window_dims, numbers.operand_batching_dims)
    zero = [False] * site.rank()
    for d, u in zip(window, numbers.update_window_dims, strict=True):
        zero[d] = known[0].axes[d] and known[2].axes[u]
    for d in _pointed(site, numbers.scatter_dims_to_operand_dims, losing=False):
        zero[d] = d in numbers.inserted_window_dims and known[0].axes[d]  # nothing points to a removed position
    return [Zeros(tuple(zero))]


def _follow_dynamic_slice(site: Site, operands: list[Axes]) -> list[Axes]:
    result = []
    for axis, n in zip(operands[0], site.eqn.params["slice_sizes"], strict=True):
        if n == ax.size(axis):
            result.append(axis)
        else:
            site.freeze(axis, "a slice that starts where the data say")
            result.append(ax.fixed(n))
    return [tuple(result)]


def _zero_dynamic_slice(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    del site
    return [known[0]]


def _shrink_dynamic_slice(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    return site.bind(*operands, slice_sizes=site.out_shape())


def _follow_update(site: Site, operands: list[Axes]) -> list[Axes]:
    result = []
    for axis, piece in zip(operands[0], operands[1], strict=True):
        if ax.size(axis) == ax.size(piece):
            result.append(site.unify(axis, piece))
        else:
            site.freeze(axis, "an update that starts where the data say")
            site.freeze(piece, "an update that starts where the data say")
            result.append(axis)
    return [tuple(result)]


def _zero_update(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    zero = [
        settled(site, 0, i, a) and settled(site, 1, i, b)
        for i, (a, b) in enumerate(zip(known[0].axes, known[1].axes, strict=True))
    ]
    return [Zeros(tuple(zero))]


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
    "dynamic_update_slice": Rule(_follow_update, _zero_update, rebind),
}
TABLE |= dict.fromkeys(
    [f"scatter{sep}{kind}" for kind in ("add", "sub", "mul", "min", "max") for sep in "-_"] + ["scatter"],
    Rule(_follow_scatter, _zero_scatter, rebind),
)
