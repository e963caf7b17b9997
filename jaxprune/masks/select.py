"""Trees of scores to trees of masks: exactly so many removed, leaf by leaf or ranked over all leaves."""

from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.masks._exact import counts
from jaxprune.masks._exact.axes import place_like
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import Layout
from jaxprune.masks._rank import keep_in_groups, keep_largest
from jaxprune.masks.leaves import Units, assemble, leaves
from jaxprune.masks.patterns import UNSTRUCTURED, BatchAxes, Group, Leaf, Pattern, Patterns

PyTree = Any
Way = tuple[Pattern, int, Layout]


class Global(NamedTuple):
    """A sparsity of all leaves together: one ranking, in place of a sparsity for each leaf."""

    sparsity: Any


def select(
    scores: PyTree,
    sparsities: PyTree,
    pattern: Patterns = UNSTRUCTURED,
    *,
    where: _tree.Where = None,
    batch_axes: BatchAxes = 0,
    specs: PyTree = None,
) -> PyTree:
    r"""Masks that remove exactly $\lfloor s n + 1/2 \rfloor$ of the n units of each leaf, those of lowest score.

    Args:
      scores: floating arrays in the structure of the parameters, larger = more worth keeping; the leaves that are not
        pruned may hold anything.
      sparsities: a sparsity in [0, 1) for every leaf, or a tree of them in the structure of `scores`. A Python number
        is counted in float64; a floating array, which may be traced, as the exact binary fraction that it is; a
        `Count` is the number of units removed itself. Or `Global(sparsity)`: see `select_global`.
      pattern: what is removed together; a mapping from globs to patterns gives each leaf its own (and `Unstructured()`
        where no glob matches). NM(n, m) needs the sparsity 1 - n/m; where that is an array, a schedule say, it keeps
        m - floor(s m + 1/2) of each m, and never fewer than n.
      where: which leaves are pruned (`_tree.prunable`). The others get a scalar True.
      batch_axes: how many leading axes of a leaf are slices of their own (layers stacked by a scan), each of which gets
        the exact count; a mapping from globs gives it by path (and 0 where none matches).
      specs: inside `jax.shard_map`, the `PartitionSpec` of each leaf, as in its `in_specs`: scores are then parts
        of arrays that are ranked whole, and each device gets its part of the masks.

    Returns:
      bool masks, True = kept, in the structure of `scores`; each has the shape of its leaf, or broadcasts to it for
      `Channel`. NaN ranks lowest, -0.0 equals 0.0, denormals count, and of equal scores the lowest index is kept.

    Raises:
      ValueError: nothing to prune, a sparsity outside [0, 1), a leaf that a pattern does not divide, trees that do not
        match; the message names the leaves. Inside `jax.shard_map`, scores that differ between its devices, if
        `specs` does not say how they share them; groups of N:M or blocks that lie on several devices.
      TypeError: a score that is not floating.

    Under jit, patterns, `where` and `batch_axes` are static; scores and sparsities may be traced, and another sparsity
    does not recompile.

    Example:
      >>> select({'w': jnp.array([[3.0, 1.0], [2.0, 4.0]])}, 0.5)['w'].tolist()
      [[True, False], [False, True]]
    """
    if isinstance(sparsities, Global):
        return select_global(
            scores, sparsities.sparsity, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs
        )
    chosen = _chosen(scores, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs)
    wanted = _per_leaf(scores, sparsities)
    ranked, masks = [], {}
    for leaf in chosen:
        group = leaf.pattern.group(leaf)
        if group is None:
            ranked.append(leaf)
        else:
            masks[leaf.place] = keep_in_leaf(leaf, _kept_of_group(leaf, group, wanted[leaf.place]))
    if ranked:
        sizes, slices = [leaf.units for leaf in ranked], [leaf.slices for leaf in ranked]
        kept = _kept([wanted[leaf.place] for leaf in ranked], sizes, slices, [leaf.name for leaf in ranked])
        masks |= _keep_largest(ranked, kept, shared=False)
    return assemble(scores, masks)


def select_global(scores: PyTree, sparsity: Any, **units: Unpack[Units]) -> PyTree:
    r"""Masks that remove exactly $\lfloor s N + 1/2 \rfloor$ of the N units of all leaves together.

    The scores of all leaves are ranked together; of equal scores those of the first leaf, in the order of
    `jax.tree.leaves`, and there of the lowest index, are kept. Leaves are never concatenated. With `Block` or
    `Channel`, units of different size count one each.

    Args:
      scores: as in `select`.
      sparsity: in [0, 1): a Python number, a floating scalar array, or the `Count` removed.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`. The pattern must not be NM, which
        removes the same number of every group. Each slice along `batch_axes` is ranked on its own over all leaves
        (members of an ensemble, say), so all leaves need the same number of slices; layers stacked by a scan are
        ranked with the rest if `batch_axes` is 0.

    Returns:
      Masks, as `select`.

    Raises:
      ValueError: as `select`; and for NM.

    Example:
      >>> scores = {'a': jnp.array([[1.0, 5.0]]), 'b': jnp.array([[2.0, 6.0]])}
      >>> {name: mask.tolist() for name, mask in select_global(scores, 0.5).items()}
      {'a': [[False, True]], 'b': [[False, True]]}
    """
    chosen = _chosen(scores, **units)
    wrong = [f"  {leaf.name}: {leaf.pattern}" for leaf in chosen if leaf.pattern.group(leaf) is not None]
    if wrong:
        raise ValueError(
            "NM removes the same of every group, so it has no global ranking; use select:\n" + "\n".join(wrong)
        )
    slices = sorted({leaf.slices for leaf in chosen})
    if len(slices) > 1:
        raise ValueError(
            "select_global ranks slice by slice over all leaves, so all leaves need the same number of slices, got "
            f"{slices} from batch_axes={units.get('batch_axes', 0)!r}; for layers stacked by a scan leave it at 0"
        )
    kept = _kept([sparsity], [sum(leaf.units for leaf in chosen)], slices, ["all leaves"])
    return assemble(scores, _keep_largest(chosen, kept, shared=True))


def _chosen(scores: PyTree, **units: Unpack[Units]) -> list[Leaf]:
    # An allocation may share nothing among no leaf; a selection is asked to prune.
    _tree.selected(scores, units.get("where"))
    chosen = leaves(scores, **units)
    _check_alike(chosen)
    return chosen


def _check_alike(chosen: list[Leaf]) -> None:
    """Raises where types tell that a score is another one on each device of a shard_map."""
    arrays = [own for own in chosen if isinstance(own.array, jax.Array)]
    varying = [(own.name, set(_varying(own.array)) - set(own.shards.all_names)) for own in arrays]
    lines = [f"  {name}: {', '.join(sorted(names))}" for name, names in varying if names]
    if lines:
        raise ValueError(
            "these scores differ between the devices of a shard_map, each of which would choose masks of its own; "
            "average the gradients (jax.lax.pmean); of leaves that devices share say how, specs=in_specs, or prune "
            "outside of it:\n" + "\n".join(lines)
        )


def _varying(x: jax.Array) -> Any:
    """The axes of a shard_map that an array differs along. JAX has called them by more than one name."""
    found = jax.typeof(x)
    return getattr(getattr(found, "manual_axis_type", found), "varying", None) or getattr(found, "vma", ())


def _per_leaf(scores: PyTree, sparsities: PyTree) -> list[Any]:
    size = len(jax.tree.leaves(scores))
    if isinstance(sparsities, Count) or jax.tree.structure(sparsities) == jax.tree.structure(0):
        return [sparsities] * size
    structure = jax.tree.structure(scores)
    try:
        return structure.flatten_up_to(sparsities)
    except (ValueError, TypeError):
        _tree.check_same(scores, sparsities, what="sparsities", of="scores")
        raise


def _kept(sparsities: list[Any], entries: list[int], slices: list[int], names: list[str]) -> Count:
    """How many units of each slice stay: a Count of int32[slices of all]."""
    for sparsity, name in zip(sparsities, names, strict=True):
        if not isinstance(sparsity, Count):
            counts.check_sparsity(sparsity, f"{name}: sparsity")
    each = counts.removed_from_each([0.0 if isinstance(s, Count) else s for s in sparsities], entries)
    row = np.repeat(np.arange(len(slices)), slices)
    gone = Count(each.high[row], each.low[row])
    if any(isinstance(s, Count) for s in sparsities):
        given = np.repeat([isinstance(s, Count) for s in sparsities], slices)
        gone = counts.where(given, _given(sparsities, slices), gone)
    all_of_them = Count(*(np.array(limbs, np.int32)[row] for limbs in zip(*map(Count.of, entries), strict=True)))
    return Count(*(jnp.asarray(limb) for limb in counts.subtract(all_of_them, gone)))


def _given(sparsities: list[Any], slices: list[int]) -> Count:
    """The Counts among the sparsities, each a number for all slices of its leaf or one for each; zeros elsewhere."""
    given = [s if isinstance(s, Count) else counts.zeros() for s in sparsities]
    limbs = zip(*given, strict=True)
    if not any(isinstance(limb, jax.Array) for s in given for limb in s):
        return Count(
            *(np.concatenate([np.broadcast_to(x, n) for x, n in zip(xs, slices, strict=True)]) for xs in limbs)
        )
    return Count(*(jnp.concatenate([jnp.broadcast_to(x, n) for x, n in zip(xs, slices, strict=True)]) for xs in limbs))


def _kept_of_group(leaf: Leaf, group: Group, sparsity: Any) -> int | jax.Array:
    """How many of each group stay: the pattern's own number, or more where the sparsity is traced."""
    if isinstance(sparsity, jax.Array):
        return jnp.maximum(group.kept, group.size - counts.removed(sparsity, group.size).low)
    if isinstance(sparsity, Count):
        raise ValueError(f"{leaf.name}: a Count does not go with {leaf.pattern}, which removes the same of every group")
    counts.check_sparsity(sparsity, f"{leaf.name}: sparsity")
    exact = 1 - group.kept / group.size
    if abs(float(sparsity) - exact) > 1e-6:
        raise ValueError(
            f"{leaf.name}: {leaf.pattern} removes exactly {exact:g}, but the sparsity of this leaf is {sparsity}; pass "
            f"{exact:g}, and share it by allocation.uniform, which gives every leaf the same"
        )
    return group.kept


def keep_in_leaf(leaf: Leaf, kept: int | jax.Array) -> jax.Array:
    """The mask that keeps so many of each of a leaf's groups, whatever number its pattern keeps."""
    if isinstance(kept, jax.Array):
        return _keep_groups(leaf.array, kept, way=_way(leaf))
    return _keep_groups(leaf.array, None, way=_way(leaf), number=kept)


def _keep_largest(ranked: list[Leaf], kept: Count, *, shared: bool) -> dict[int, jax.Array]:
    """The masks by the places of the leaves."""
    masks = _keep([leaf.array for leaf in ranked], kept, ways=tuple(map(_way, ranked)), shared=shared)
    return {leaf.place: mask for leaf, mask in zip(ranked, masks, strict=True)}


def _way(leaf: Leaf) -> Way:
    """What a compiled selection depends on, beside shapes: not the name of the leaf, or its place."""
    return leaf.pattern, leaf.batch_axes, leaf.shards


def _leaf(array: jax.Array, way: Way) -> Leaf:
    return Leaf("", 0, array, *way)


# Jitted here, so that a call outside jit is one program and makes no temporary arrays.
@partial(jax.jit, static_argnames=("ways", "shared"))
def _keep(arrays: list[jax.Array], kept: Count, *, ways: tuple[Way, ...], shared: bool) -> list[jax.Array]:
    ranked = [_leaf(array, way) for array, way in zip(arrays, ways, strict=True)]
    units = [leaf.pattern.units(leaf.array, leaf) for leaf in ranked]
    axes = [leaf.pattern.slice_axes(leaf) for leaf in ranked]
    masks = keep_largest(units, kept, batch_axes=axes, shared=shared, layouts=[leaf.unit_shards for leaf in ranked])
    return [leaf.pattern.expand(mask, leaf) for mask, leaf in zip(masks, ranked, strict=True)]


@partial(jax.jit, static_argnames=("way", "number"))
def _keep_groups(array: jax.Array, kept: jax.Array | None, *, way: Way, number: int = 0) -> jax.Array:
    leaf = _leaf(array, way)
    group = leaf.pattern.group(leaf)
    axis = -1 if group is None else group.axis
    mask = keep_in_groups(leaf.pattern.units(array, leaf), number if kept is None else kept, axis=axis)
    return place_like(leaf.pattern.expand(mask, leaf), array)
