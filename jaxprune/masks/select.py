"""Trees of scores to trees of masks: exactly so many removed, leaf by leaf or ranked over all leaves."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.masks import _rank
from jaxprune.masks._exact import counts
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import Shards
from jaxprune.masks.leaves import Units, leaves_to_rank
from jaxprune.masks.pattern import Leaf, Pattern
from jaxprune.masks.patterns import UNSTRUCTURED, Patterns

PyTree = Any
Way = tuple[Pattern, tuple[int, ...], tuple[int, ...], Shards]


class Global(NamedTuple):
    """A sparsity of all leaves together: one ranking, in place of a sparsity for each leaf."""

    sparsity: Any


def select(
    scores: PyTree,
    sparsities: PyTree,
    pattern: Patterns = UNSTRUCTURED,
    *,
    where: _tree.Where = None,
    batch_axes: _tree.BatchAxes = 0,
    specs: PyTree = None,
    roles: _tree.Roles | None = None,
) -> PyTree:
    r"""Returns masks that remove the $\lfloor s n + 1/2 \rfloor$ lowest-scoring units of the n units of each leaf.

    Args:
      scores: floating arrays in the structure of the parameters, larger = more worth keeping; the leaves that are not
        pruned may hold anything.
      sparsities: the fraction of units to remove, in [0, 1): one number for all leaves, or a tree of numbers in the
        structure of `scores`. A Python number is evaluated in float64; a floating scalar array, which may be traced, is
        the exact binary fraction that it holds. A `Count` is the number of units to remove. `Global(sparsity)` ranks
        all leaves together; see `select_global`.
      pattern: what is removed together; see `masks.Units`. NM(n, m) needs the sparsity 1 - n/m. If the sparsity is an
        array, such as the result of a schedule, NM keeps m - floor(s m + 1/2) of each m, and never fewer than n.
      where: which leaves are pruned; see `masks.Units`. The other leaves get a scalar True.
      batch_axes: the axes of a leaf whose positions are ranked separately; see `masks.Units`. Each slice loses exactly
        the same number of units.
      specs: the `PartitionSpec`s of the leaves inside `jax.shard_map`; see `masks.Units`.
      roles: the roles of the leaves and their axes, from `jaxprune.find_roles`; see `masks.Units`.

    Returns:
      bool masks, True = kept, in the structure of `scores`. A mask has the shape of its leaf, or broadcasts to it for
      `Channel`. NaN ranks lowest, -0.0 equals 0.0, denormals count, and of equal scores the lowest index is kept.

    Raises:
      ValueError: `where` selects no leaf; a sparsity is outside [0, 1); a pattern does not fit a leaf; `sparsities` has
        another structure. Inside `jax.shard_map`: the scores differ between devices and `specs` does not say how the
        devices share them; blocks or groups of N:M extend over several devices. The message names the leaves.
      TypeError: a score is not floating.

    Under jit, patterns, `where` and `batch_axes` are static; scores and sparsities may be traced, and another sparsity
    does not recompile.

    Example:
      >>> select({'w': jnp.array([[3.0, 1.0], [2.0, 4.0]])}, 0.5)['w'].tolist()
      [[True, False], [False, True]]
    """
    units: Units = {"pattern": pattern, "where": where, "batch_axes": batch_axes, "specs": specs, "roles": roles}
    return _select(scores, sparsities, **units)


def select_global(scores: PyTree, sparsity: Any, **units: Unpack[Units]) -> PyTree:
    r"""Returns masks that remove exactly $\lfloor s N + 1/2 \rfloor$ of the N units of all leaves together.

    The scores of all leaves are ranked together. Of units with equal scores, the first leaf in the order of
    `jax.tree.leaves` keeps its units, and within a leaf the lowest index is kept. Leaves are never concatenated. A
    block or a channel of any size counts as one unit.

    Args:
      scores: floating arrays in the structure of the parameters, larger = more worth keeping; the leaves that are not
        pruned may hold anything.
      sparsity: the fraction of all units to remove, in [0, 1): a Python number, a floating scalar array, or a `Count`
        of the units to remove.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. The pattern must not be NM,
        which removes the same number from every group. Each slice along `batch_axes` (such as a member of an ensemble)
        is ranked separately, over all leaves, so all leaves need the same number of slices. Stacked layers that `roles`
        or a framework mark are ranked together with all other leaves.

    Returns:
      bool masks, True = kept, in the structure of `scores`; a scalar True for a leaf that is not pruned.

    Raises:
      ValueError: `where` selects no leaf; the sparsity is outside [0, 1); a pattern does not fit a leaf, or is NM; the
        leaves have different numbers of slices. The message names the leaves.
      TypeError: a score is not floating.

    Example:
      >>> scores = {'a': jnp.array([[1.0, 5.0]]), 'b': jnp.array([[2.0, 6.0]])}
      >>> {name: mask.tolist() for name, mask in select_global(scores, 0.5).items()}
      {'a': [[False, True]], 'b': [[False, True]]}
    """
    return _select(scores, Global(sparsity), **units)


def _select(scores: PyTree, sparsities: PyTree, **units: Unpack[Units]) -> PyTree:
    wanted = _per_leaf(scores, sparsities)
    together = isinstance(sparsities, Global)
    every = leaves_to_rank(scores, together, **units)
    chosen = [leaf for leaf in every if leaf.entries]
    empty = {leaf.place: ones_of(leaf) for leaf in every if not leaf.entries}
    grouped = [(leaf, leaf.group) for leaf in chosen if leaf.group]
    ranked = [leaf for leaf in chosen if not leaf.group]
    given, sizes = [wanted[leaf.place] for leaf in ranked], [leaf.units for leaf in ranked]
    slices, names = [leaf.slices for leaf in ranked], [leaf.name for leaf in ranked]
    if together:
        _check_global(slices, [leaf for leaf, _ in grouped], units)
        given, sizes, slices, names = [sparsities.sparsity], [sum(sizes)], slices[:1], ["all leaves"]
    kept = counts.kept_in_slices(given, sizes, slices, names) if ranked else None
    kept_in = [counts.kept_in_groups(wanted[x.place], *g[:2], f"{x.name}: {x.pattern}") for x, g in grouped]
    masks = {leaf.place: keep_in_leaf(leaf, number) for (leaf, _), number in zip(grouped, kept_in, strict=True)}
    if kept is not None:
        ways = tuple((leaf.pattern, leaf.batch_axes, leaf.stacked, leaf.shards) for leaf in ranked)
        found = _keep_largest([leaf.array for leaf in ranked], kept, ways=ways, together=together)
        masks |= {leaf.place: mask for leaf, mask in zip(ranked, found, strict=True)}
    return assemble(scores, masks | empty)


def assemble(tree: PyTree, masks: Mapping[int, jax.Array]) -> PyTree:
    """Returns the tree of masks, from the masks of leaves by their place; a scalar True for all other leaves."""
    structure = jax.tree.structure(tree)
    return structure.unflatten([masks[i] if i in masks else jnp.ones((), bool) for i in range(structure.num_leaves)])


def ones_of(leaf: Leaf) -> jax.Array:
    """Returns the mask that keeps the whole leaf, in the shape of its pattern."""

    def expanded(x: jax.Array) -> jax.Array:
        return leaf.pattern.expand(jnp.ones_like(leaf.pattern.units(x, leaf), dtype=bool), leaf)

    shape = jax.eval_shape(expanded, leaf.array).shape
    # Made like the leaf where it can be, to lie on the same devices.
    return jnp.ones_like(leaf.array, dtype=bool) if shape == leaf.part else jnp.ones(shape, bool)


def keep_in_leaf(leaf: Leaf, kept: int | jax.Array) -> jax.Array:
    """Returns the mask that keeps a given number of units in each group of a leaf, in place of the pattern's number."""
    way = (leaf.pattern, leaf.batch_axes, leaf.stacked, leaf.shards)
    if isinstance(kept, jax.Array):
        return _keep_in_groups(leaf.array, kept, way=way)
    return _keep_in_groups(leaf.array, None, way=way, number=kept)


def _check_global(slices: list[int], grouped: list[Leaf], units: Units) -> None:
    if grouped:
        raise ValueError(
            "NM removes the same of every group, so it has no global ranking; use select:\n"
            + "\n".join(f"  {leaf.name}: {leaf.pattern}" for leaf in grouped)
        )
    if len(set(slices)) > 1:
        raise ValueError(
            "select_global ranks slice by slice over all leaves, so all leaves need the same number of slices, got "
            f"{sorted(set(slices))} from batch_axes={units.get('batch_axes', 0)!r}; for layers stacked by a scan leave "
            "it at 0"
        )


def _per_leaf(scores: PyTree, sparsities: PyTree) -> list[Any]:
    size = len(jax.tree.leaves(scores))
    if isinstance(sparsities, Count | Global) or jax.tree.structure(sparsities) == jax.tree.structure(0):
        return [sparsities] * size
    structure = jax.tree.structure(scores)
    try:
        return structure.flatten_up_to(sparsities)
    except (ValueError, TypeError):
        _tree.check_same(scores, sparsities, what="sparsities", of="scores")
        raise


# The kernels are jitted here, so that a call outside jit is one program and makes no temporary arrays. They depend on
# shapes and ways, not on the names and places of leaves.
@partial(jax.jit, static_argnames=("ways", "together"))
def _keep_largest(arrays: list[jax.Array], kept: Count, *, ways: tuple[Way, ...], together: bool) -> list[jax.Array]:
    ranked = [Leaf("", 0, array, *way) for array, way in zip(arrays, ways, strict=True)]
    units = [leaf.pattern.units(leaf.array, leaf) for leaf in ranked]
    axes = [leaf.pattern.slice_axes(leaf) for leaf in ranked]
    layouts = [leaf.unit_shards for leaf in ranked]
    masks = _rank.keep_largest(units, kept, batch_axes=axes, shared=together, layouts=layouts)
    return [leaf.pattern.expand(mask, leaf) for mask, leaf in zip(masks, ranked, strict=True)]


@partial(jax.jit, static_argnames=("way", "number"))
def _keep_in_groups(array: jax.Array, kept: jax.Array | None, *, way: Way, number: int = 0) -> jax.Array:
    leaf = Leaf("", 0, array, *way)
    axis = leaf.group.axis if leaf.group else -1
    mask = _rank.keep_in_groups(leaf.pattern.units(array, leaf), number if kept is None else kept, axis=axis)
    return leaf.placed(leaf.pattern.expand(mask, leaf))
