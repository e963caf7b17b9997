"""`shard_map`, and the collectives inside it: psum, pmax, ppermute, all_gather, psum_scatter, all_to_all.

A mesh axis that cuts an axis with labels is one more layer of the inner frame (`Shards`): each device has its own
block of the labels, as each round of a scan over stacked layers has its own. Shards may thus lose different positions,
but equally many, so that the smaller axis is cut into equal blocks again (`Labels.shards`; `units` reads it). A mesh
axis of size 1, or one that cuts axes without labels only (a batch), adds no layer.

A collective joins the labels of the shards in the order of the blocks, where its result has the blocks side by side.
Where it mixes the values of several shards in one position, they lose the same positions.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune._jaxprs import sub_jaxprs
from jaxprune._jaxprs.primitives import PSUM
from jaxprune.slimming._labels import axes as ax
from jaxprune.slimming._labels.axes import Axes, Axis
from jaxprune.slimming._labels.evaluate import ShrinkSite, rebind
from jaxprune.slimming._labels.frames import Rule, Shards, Site, Zeros, ZeroSite, whole
from jaxprune.slimming._labels.labels import Ids
from jaxprune.slimming._labels.rules.control import typed


def _follow_map(site: Site, operands: list[Axes]) -> list[Axes]:
    [sub] = sub_jaxprs(site.eqn)
    outer, sizes, params = site.frame.layers, site.eqn.params["mesh"].shape, site.eqn.params
    specs = [_names(spec, len(axes)) for spec, axes in zip(params["in_specs"], operands, strict=True)]
    cuts = zip((own for names in specs for own in names), (a for axes in operands for a in axes), strict=True)
    cutting = {name for own, axis in cuts if not ax.is_fixed(axis) for name in own} | _cut_inside(sub.jaxpr)
    layers = (*outer, *(Shards(sizes[name], name) for name in sizes if name in cutting and sizes[name] > 1))
    inputs = []
    for names, axes, var in zip(specs, operands, sub.jaxpr.invars, strict=True):
        deeper = [_deeper(axis, len(outer), layers) for axis in axes]
        blocks = zip(deeper, names, var.aval.shape, strict=True)
        inputs.append(tuple(_cut(site, axis, own, n, layers) for axis, own, n in blocks))
    frame = site.child(sub, inputs, layers)
    results: list[Axes] = []
    for var, spec in zip(frame.jaxpr.outvars, params["out_specs"], strict=True):
        axes = frame.read(var)
        names = dict(enumerate(_names(spec, len(axes))))
        joined = [_tied(site, axis, cutting, layers) for axis in _joined(site, axes, names, layers, sizes)]
        results.append(tuple(_shallower(axis, len(outer), layers) for axis in joined))
    return results


def _names(spec: Any, rank: int) -> list[tuple[str, ...]]:
    """Returns for each axis of an array the mesh axes that cut it, the slowest first."""
    entries = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return [*entries, *[()] * (rank - len(entries))]


def _cut_inside(jaxpr: Any) -> set[str]:
    """Returns the mesh axes along which collectives cut axes."""
    own = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ("reduce_scatter", "all_to_all")]
    found = {name for eqn in own for name in _mesh_axes(eqn)}
    return found.union(*(_cut_inside(sub.jaxpr) for eqn in jaxpr.eqns for sub in sub_jaxprs(eqn)))


def _changed(axis: Axis, change: Callable[[Ids], Ids]) -> Axis:
    return tuple(factor if factor.of is None else factor._replace(of=change(factor.of)) for factor in axis)


def _deeper(axis: Axis, depth: int, layers: tuple[int, ...]) -> Axis:
    """Returns an axis whose labels have one more place for each mesh layer, behind the `depth` outer layers."""

    def widened(ids: Ids) -> Ids:
        at = min(depth, ids.ndim - 1)
        return ids.reshape(*ids.shape[:at], *(1,) * (len(layers) - depth), *ids.shape[at:])

    return axis if len(layers) == depth else _changed(axis, widened)


def _shallower(axis: Axis, depth: int, layers: tuple[int, ...]) -> Axis:
    """Returns an axis without places for the layers of the mesh, along which its labels are equal."""
    inside = tuple(range(depth, len(layers)))
    return _changed(axis, lambda ids: _padded(ids, layers).squeeze(inside)) if inside else axis


def _padded(ids: Ids, layers: tuple[int, ...]) -> Ids:
    """Returns labels with a place for each layer: their axis k is layer k."""
    return ids.reshape((1,) * (len(layers) - (ids.ndim - 1)) + ids.shape)


def _places(names: Iterable[str], layers: tuple[int, ...]) -> list[int]:
    """Returns the layers of some mesh axes, in the order of the names; mesh axes that are no layer are left out."""
    own = {layer.name: k for k, layer in enumerate(layers) if isinstance(layer, Shards)}
    return [own[name] for name in names if name in own]


def _tied(site: Site, axis: Axis, names: Iterable[str], layers: tuple[int, ...]) -> Axis:
    """Makes all shards along some mesh axes lose the same positions."""
    places = _places(names, layers)

    def same(ids: Ids) -> Ids:
        ids = _padded(ids, layers)
        for k in places:
            if ids.shape[k] > 1:
                site.labels.unify(ids, ids.take([0], k))
                ids = ids.take([0], k)
        return ids

    return _changed(axis, same) if places and not ax.is_fixed(axis) else axis


def _cut(site: Site, axis: Axis, names: tuple[str, ...], size: int, layers: tuple[int, ...]) -> Axis:
    """Returns the `size` positions of a device, of an axis that is cut along mesh axes and equal along them before."""
    full = ax.size(axis)
    if full == size:
        return axis
    if ax.is_fixed(axis):
        return ax.fixed(size)
    at = next(i for i, factor in enumerate(axis) if factor.size != 1)
    slow, parts, places = axis[at], full // size, _places(names, layers)
    if slow.size % parts:
        why = (
            f"a cut of its {slow.size} units into {parts} shards; a mesh axis whose size divides {slow.size} cuts none"
        )
        site.freeze(axis, why)
        return ax.fixed(size)
    if slow.of is None:
        return ax.merge([axis[:at], ax.fixed(slow.size // parts), axis[at + 1 :]])
    if math.prod(layers[k] for k in places) != parts:
        why = (
            f"{site.name} inside another shard_map than that of {', '.join(names)}; one shard_map over both is followed"
        )
        site.freeze(axis, why)
        return ax.fixed(size)
    ids = _padded(slow.of, layers).squeeze(tuple(places))
    ids = ids.reshape(*ids.shape[:-1], *(layers[k] for k in places), slow.size // parts)
    ids = np.moveaxis(ids, range(ids.ndim - 1 - len(places), ids.ndim - 1), places)
    _note(site, ids, places)
    return (*axis[:at], ax.Factor(slow.size // parts, ids), *axis[at + 1 :])


def _note(site: Site, ids: Ids, places: Sequence[int]) -> None:
    """Records that equally many positions of each shard stay."""
    first = np.moveaxis(ids, places, range(len(places)))
    site.labels.shards.append(first.reshape(math.prod(first.shape[: len(places)]), -1))


def _joined(
    site: Site,
    axes: Axes,
    along: Mapping[int, tuple[str, ...]],
    layers: tuple[int, ...],
    sizes: Mapping[str, int],
) -> Axes:
    """Puts the shards of an array side by side; `along` says along which axes, and of which mesh axes.

    Along a mesh axis whose shards are put side by side on one axis, the other axes are the same in all shards.
    """
    result = []
    for i, axis in enumerate(axes):
        others = [name for k, names in along.items() if k != i for name in names]
        result.append(_side_by_side(site, _tied(site, axis, others, layers), along.get(i, ()), layers, sizes))
    return tuple(result)


def _side_by_side(
    site: Site, axis: Axis, names: tuple[str, ...], layers: tuple[int, ...], sizes: Mapping[str, int]
) -> Axis:
    count, places = math.prod(sizes[name] for name in names), _places(names, layers)
    if count == 1:
        return axis
    at = next((i for i, factor in enumerate(axis) if factor.size != 1), 0)
    ids = _padded(axis[at].of, layers) if axis and axis[at].of is not None else None
    others = [_tied(site, part, names, layers) for part in (axis[:at], axis[at + 1 :])]
    varies = ids is not None and any(ids.shape[k] > 1 for k in places)
    if ids is None or not varies or len(places) < len(names):
        same = _tied(site, axis[at : at + 1], names, layers)
        return ax.merge([others[0], ax.fixed(count), same, others[1]])
    ids = np.broadcast_to(ids, [layers[k] if k in places else n for k, n in enumerate(ids.shape)])
    _note(site, ids, places)
    ids = np.moveaxis(ids, places, range(ids.ndim - 1 - len(places), ids.ndim - 1))
    ids = np.expand_dims(ids.reshape(*ids.shape[: -len(places) - 1], -1), tuple(sorted(places)))
    return (*others[0], ax.Factor(ids.shape[-1], ids), *others[1])


def _zero_map(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    return site.child(0, known)


def _shrink_map(site: ShrinkSite, operands: list[Any]) -> list[Any]:
    params = site.eqn.params
    run = jax.shard_map(
        lambda *args: tuple(site.child(0, args)),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return list(run(*typed(site, operands)))


def _mesh_axes(eqn: Any) -> tuple[str, ...]:
    names = eqn.params.get("axes", eqn.params.get("axis_name"))
    return tuple(names) if isinstance(names, tuple | list) else (names,)


def _whole_mesh(site: Site, operands: list[Axes]) -> bool:
    """Returns whether a collective is among all devices of mesh axes; freezes its operands if it is not."""
    grouped = site.eqn.params.get("axis_index_groups") is not None
    if grouped or not all(isinstance(name, str) for name in _mesh_axes(site.eqn)):
        for axis in (axis for axes in operands for axis in axes):
            site.freeze(axis, f"{site.name} among some of the devices of a mesh axis")
        return False
    return True


def _follow_same(site: Site, operands: list[Axes]) -> list[Axes]:
    if not _whole_mesh(site, operands):
        return [whole(v.aval.shape) for v in site.eqn.outvars]
    names = _mesh_axes(site.eqn)
    return [tuple(_tied(site, axis, names, site.frame.layers) for axis in axes) for axes in operands]


def _zero_same(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    low = site.eqn.primitive.name in ("pmax", "ppermute")
    return [Zeros(z.axes, 0.0 if z.void else None, z.low if low else frozenset()) for z in known]


def _follow_gather(site: Site, operands: list[Axes]) -> list[Axes]:
    params = site.eqn.params
    if not _whole_mesh(site, operands):
        return [whole(v.aval.shape) for v in site.eqn.outvars]
    names, at, layers = _mesh_axes(site.eqn), params["all_gather_dimension"], site.frame.layers
    if not params["tiled"]:
        axes = [_tied(site, axis, names, layers) for axis in operands[0]]
        return [(*axes[:at], ax.fixed(params["axis_size"]), *axes[at:])]
    return [_joined(site, operands[0], {at: names}, layers, _sizes(names, layers, params["axis_size"]))]


def _sizes(names: tuple[str, ...], layers: tuple[int, ...], count: int) -> Mapping[str, int]:
    """Returns the sizes of mesh axes, whose product is `count`; where not all are layers, only the product is right."""
    places = _places(names, layers)
    if len(places) == len(names):
        return {name: layers[k] for name, k in zip(names, places, strict=True)}
    return {name: count if k == 0 else 1 for k, name in enumerate(names)}


def _zero_gather(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    params, [zeros] = site.eqn.params, known
    at = params["all_gather_dimension"]
    if params["tiled"]:
        return [Zeros(zeros.axes, 0.0 if zeros.void else None)]
    return [Zeros((*zeros.axes[:at], zeros.void, *zeros.axes[at:]), 0.0 if zeros.void else None)]


def _follow_scatter(site: Site, operands: list[Axes]) -> list[Axes]:
    params, [axes] = site.eqn.params, operands
    if not _whole_mesh(site, operands):
        return [whole(v.aval.shape) for v in site.eqn.outvars]
    names, at, layers = _mesh_axes(site.eqn), params["scatter_dimension"], site.frame.layers
    result = [_tied(site, axis, names, layers) for axis in axes]
    if params["tiled"]:
        result[at] = _cut(site, result[at], names, site.out_shape()[at], layers)
    else:
        site.freeze(result.pop(at), "the axis that psum_scatter spreads over devices")
    return [tuple(result)]


def _zero_scatter(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    [zeros], at = known, site.eqn.params["scatter_dimension"]
    axes = zeros.axes if site.eqn.params["tiled"] else (*zeros.axes[:at], *zeros.axes[at + 1 :])
    return [Zeros(axes, 0.0 if zeros.void else None)]


def _follow_exchange(site: Site, operands: list[Axes]) -> list[Axes]:
    params, [axes] = site.eqn.params, operands
    names, layers = _mesh_axes(site.eqn), site.frame.layers
    out, into = params["split_axis"], params["concat_axis"]
    if not _whole_mesh(site, operands) or not params["tiled"] or out == into:
        for axis in axes:
            site.freeze(axis, "all_to_all of this form; all_to_all(..., tiled=True) between two axes is followed")
        return [whole(site.out_shape())]
    result = [axis if i == into else _tied(site, axis, names, layers) for i, axis in enumerate(axes)]
    count = ax.size(axes[out]) // site.out_shape()[out]
    result[out] = _cut(site, result[out], names, site.out_shape()[out], layers)
    result[into] = _side_by_side(site, axes[into], names, layers, _sizes(names, layers, count))
    return [tuple(result)]


def _zero_exchange(site: ZeroSite, known: list[Zeros]) -> list[Zeros]:
    tiled = site.eqn.params["tiled"]
    return [Zeros(known[0].axes if tiled else (False,) * site.rank(), 0.0 if known[0].void else None)]


_SAME = Rule(_follow_same, _zero_same, rebind)
_GATHER = Rule(_follow_gather, _zero_gather, rebind)
TABLE = {
    "shard_map": Rule(_follow_map, _zero_map, _shrink_map, ragged=True),
    **dict.fromkeys((*PSUM, "pmax", "pmin", "ppermute"), _SAME),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), _GATHER),
    "reduce_scatter": Rule(_follow_scatter, _zero_scatter, rebind),
    "all_to_all": Rule(_follow_exchange, _zero_exchange, rebind),
}
