"""Shuffles of channels: a reshape that cuts an axis, a transpose of the parts, a reshape that merges them again.

Alone, the first reshape would make rows and columns the units of the axis, and the next split of the shuffled axis
would tie them further. Together the three are a permutation of the axis, so every unit may go by itself: while the axis
is cut it is whole, with zeros at removed positions, and the last reshape takes the positions that stay. An axis that is
a grid already, such as the channels of a grouped convolution, is cut into its rows and columns.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Literal

from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import Decision, ShrinkSite, select, single
from jaxprune.slimming._labels.frames import Frame, Site, Zeros, ZeroSite, even, whole


class _Shuffle(NamedTuple):
    """A shuffle.

    Attributes:
      axis: the axis.
      parts: the sizes of its parts.
      order: for each position after the shuffle its position before.
      swap: the order of the parts after the shuffle.
      places: for each axis its number while the axis is cut.
    """

    axis: int
    parts: tuple[int, ...]
    order: np.ndarray
    swap: tuple[int, ...]
    places: tuple[int, ...]

    def built(self, size: int) -> list[np.ndarray]:
        """Returns the orders of a shuffle of fewer channels; any one of the parts may have become smaller."""
        found = []
        for i, part in enumerate(self.parts):
            rest = self.order.size // part
            if size % rest == 0:
                parts = [size // rest if j == i else n for j, n in enumerate(self.parts)]
                found.append(np.arange(size).reshape(parts).transpose(self.swap).reshape(-1))
        return found


class _Roll(NamedTuple):
    """A roll of an axis, `jnp.roll(x, -start, axis)`, with the axis and for each position its position before."""

    axis: int
    order: np.ndarray

    def built(self, size: int) -> list[np.ndarray]:
        """Returns the order of a roll of fewer channels: halves stay halves, other rolls move by the same number."""
        start, full = int(self.order[0]), self.order.size
        if 2 * start == full:
            return [np.roll(np.arange(size), size // 2)] if size % 2 == 0 else []
        return [np.roll(np.arange(size), -start if 2 * start < full else full - start)]


def follow(site: Site, axes: Axes) -> Axes | None:
    """Returns the axes after a reshape that begins or ends a shuffle; None for any other reshape."""
    begun = _shuffle(site.frame, site.index)
    if begun is not None and _is_uneven(site, axes[begun.axis], begun.parts):
        return (*axes[: begun.axis], *whole(begun.parts), *axes[begun.axis + 1 :])
    ended = _followed(site.frame, site.index - 2)
    if ended is None:
        return None
    source = site.frame.read(site.frame.jaxpr.eqns[site.index - 2].invars[0])[ended.axis]
    shuffled = ax.take(site.labels, even(site.labels, source, 0), ended.order)
    return tuple(shuffled if i == ended.axis else axes[place] for i, place in enumerate(ended.places))


def zero(site: ZeroSite, known: list[Zeros]) -> Zeros | None:
    """Returns the known zeros after a reshape that ends a shuffle: the parts have those of the axis that was cut."""
    ended = _followed(site.frame, site.index - 2)
    return None if ended is None else Zeros(tuple(known[0].axes[place] for place in ended.places), known[0].value)


def shrink(site: ShrinkSite, array: Any, k: int) -> Any:
    """Runs a reshape that begins or ends a shuffle; returns None for any other reshape."""
    begun, ended = _followed(site.frame, site.index), _followed(site.frame, site.index - 2)
    if begun is not None:
        keep = site.keeps(0)[begun.axis]
        if keep is not None:
            places = np.full(begun.order.size, keep.size)  # a removed position reads a zero that is added at the end
            places[single(keep.positions)] = np.arange(keep.size)
            added = [(0, int(i == begun.axis), 0) for i in range(array.ndim)]
            array = select(lax.pad(array, np.zeros((), array.dtype), added), begun.axis, places)
        return lax.reshape(array, site.out_shape(k))
    if ended is not None:
        keep, shape = site.out_keeps(k)[ended.axis], list(site.out_shape(k))
        shape[ended.axis] = ended.order.size
        merged = lax.reshape(array, shape)
        return merged if keep is None else select(merged, ended.axis, single(keep.positions))
    return None


def _shuffle(frame: Frame, index: int) -> _Shuffle | None:
    """Returns the shuffle whose first equation has this index; None if none begins there."""
    eqns = frame.jaxpr.eqns[index : index + 3] if index >= 0 else []
    if [eqn.primitive.name for eqn in eqns] != ["reshape", "transpose", "reshape"]:
        return None
    cut, swap, merge = eqns
    before, wide = cut.invars[0].aval.shape, cut.outvars[0].aval.shape
    count, permutation = len(wide) - len(before) + 1, swap.params["permutation"]
    axis = next((i for i, (a, b) in enumerate(zip(before, wide, strict=False)) if a != b), len(before) - 1)
    parts, own = wide[axis : axis + count], permutation[axis : axis + count]
    inner = [cut.outvars[0], swap.outvars[0]]
    plain = all(eqn.params["dimensions"] is None for eqn in (cut, merge)) and all(isinstance(n, int) for n in parts)
    others = [i for i in range(len(wide)) if not axis <= i < axis + count]
    if (
        count < 2
        or not plain
        or [swap.invars[0], merge.invars[0]] != inner
        or wide != (*before[:axis], *parts, *before[axis + 1 :])
        or merge.outvars[0].aval.shape != before
        or any(permutation[i] != i for i in others)
    ):
        return None
    used = [*(v for eqn in frame.jaxpr.eqns for v in eqn.invars), *frame.jaxpr.outvars]
    if sum(v in inner for v in used if not isinstance(v, Literal)) > 2:  # the parts are read elsewhere too
        return None
    turned = tuple(i - axis for i in own)
    order = np.arange(before[axis]).reshape(parts).transpose(turned).reshape(-1)
    places = tuple(i if i <= axis else i + count - 1 for i in range(len(before)))
    return _Shuffle(axis, parts, order, turned, places)


def _is_uneven(site: Site, axis: Axis, parts: tuple[int, ...]) -> bool:
    """Returns whether some units of an axis are neither rows nor columns when it is cut into parts."""
    ids = ax.flat(site.labels, axis) if len(axis) == 1 else None
    if ids is None:
        return False
    atoms = np.moveaxis(site.labels.atoms(ids), -1, 0).reshape(-1, *parts)
    varies = lambda atom: sum(bool((atom != atom.take([0], i)).any()) for i in range(atom.ndim))
    return any(varies(atom) > 1 for atom in atoms)


def _followed(frame: Frame, index: int) -> _Shuffle | None:
    """Returns the shuffle that begins at this index if it has been followed as one: its parts have no labels."""
    shuffle = _shuffle(frame, index)
    if shuffle is None:
        return None
    cut = frame.jaxpr.eqns[index]
    parts = frame.read(cut.outvars[0])[shuffle.axis : shuffle.axis + len(shuffle.parts)]
    return (
        shuffle if all(map(ax.is_fixed, parts)) and not ax.is_fixed(frame.read(cut.invars[0])[shuffle.axis]) else None
    )


def misplaced(decision: Decision, frame: Frame) -> Iterator[str]:
    """Names shuffles and rolls by which a network built with fewer channels would move what stays elsewhere."""
    for index, eqn in enumerate(frame.jaxpr.eqns):
        for child in frame.children.get(index, ()):
            yield from misplaced(decision, child)
        moved = _followed(frame, index - 2) or _roll(frame, eqn)
        keep = None if moved is None else decision.keep(frame.read(eqn.outvars[0])[moved.axis])
        if moved is None or keep is None:
            continue
        built = moved.built(keep.size)
        for stays in keep.positions.reshape(-1, keep.size):
            source = moved.order[stays]
            if not any(np.array_equal(np.searchsorted(np.sort(source), source), order) for order in built):
                yield f"  {source_info_util.summarize(eqn.source_info)}: {keep.size} of {keep.full} channels stay"
                break


def _roll(frame: Frame, eqn: Any) -> _Roll | None:
    """Returns the roll that a concatenation of two slices ends; None for any other equation."""
    if eqn.primitive.name != "concatenate" or len(eqn.invars) != 2:
        return None
    made = {id(v): other for other in frame.jaxpr.eqns for v in other.outvars}
    cuts, axis = [made[id(v)] for v in eqn.invars if id(v) in made], eqn.params["dimension"]
    if [cut.primitive.name for cut in cuts] != ["slice", "slice"]:
        return None
    (source, other), shape = (cut.invars[0] for cut in cuts), eqn.outvars[0].aval.shape
    (start, zero), (size, stop) = ([cut.params[of][axis] for cut in cuts] for of in ("start_indices", "limit_indices"))
    plain = all(cut.params["strides"] is None or set(cut.params["strides"]) == {1} for cut in cuts)
    if source is not other or source.aval.shape != shape or not plain or (zero, size, stop) != (0, shape[axis], start):
        return None
    return _Roll(axis, np.roll(np.arange(size), -start))
