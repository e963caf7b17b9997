"""`select` and `select_global`: from scores to masks, exactly, in each leaf or ranked over all leaves.

`Units` are the options that say which leaves are pruned and how; `leaves` lists the leaves that they select.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune._tree import BatchAxes
from jaxprune.masks._exact import counts, host, ranking, rows
from jaxprune.masks._exact.counts import Count
from jaxprune.masks._exact.shards import Shards, of_leaves
from jaxprune.masks.pattern import Leaf, Pattern
from jaxprune.masks.patterns import UNSTRUCTURED, Patterns

PyTree = Any


class Units(TypedDict, total=False):
    """What is pruned: the keyword arguments that `masks.select` and every allocation take.

    Attributes:
      pattern: what is removed together, `masks.Unstructured()` by default. A mapping from globs over leaf names to
        patterns gives each leaf its own pattern, and `Unstructured()` where no glob matches.
      where: which leaves are pruned. None (the default) selects floating weights: leaves that are multiplied according
        to `roles` or to conventions about names and types, and leaves of unknown use, with two axes or more apart from
        stacked axes. Biases, scales, norms and embeddings are not pruned. A glob, or a list of globs, over names such
        as `encoder/layer_0/kernel` narrows this rule; a predicate `(name, leaf) -> bool` replaces it.
      batch_axes: the axes of a leaf whose positions are ranked separately, such as layers stacked by a scan: the number
        of leading axes, or a tuple of axes such as (1,); 0 by default. A mapping from globs over leaf names gives each
        leaf its axes, and 0 where no glob matches. Axes that `roles` or a framework mark as stacked need no entry.
      specs: None, or inside `jax.shard_map` the `PartitionSpec` of each parameter: a tree in the structure of the
        parameters or a prefix of it, as the `in_specs` of the `shard_map` are. Each device then gets its part of the
        scores, the whole is ranked, and each device gets its part of the masks.
      roles: what `jaxprune.find_roles(fn, params, *inputs)` returned: which leaves are weights, and which of their axes
        are inputs, outputs and stacked. None (the default) uses conventions: `kernel` and `w` have inputs first,
        `weight` has outputs first, and Equinox and NNX modules are recognised by their type. A pattern raises an error
        if it needs axes that neither the roles nor the conventions give.
    """

    pattern: Patterns
    where: _tree.Where
    batch_axes: BatchAxes
    specs: PyTree
    roles: _tree.Roles | None


def leaves(params: PyTree, **units: Unpack[Units]) -> list[Leaf]:
    """Returns the leaves of a tree that are pruned, in the order of `jax.tree.leaves`.

    Use it in your own allocation or criterion, to find the pruned leaves and their sizes.

    Args:
      params: parameters, their shapes, or scores in their structure.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`.

    Returns:
      A list of `Leaf`, empty if `where` selects nothing.

    Raises:
      ValueError: a pattern does not fit its leaf, or the axes of a leaf are not known (the message names all such
        leaves); a glob matches no leaf.
      TypeError: `pattern` is not a pattern; `where` selects a leaf that is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {'bias': jnp.ones(3), 'kernel': jnp.ones((2, 5))}
      >>> [(leaf.name, leaf.entries) for leaf in leaves(params)]
      [('kernel', 10)]
    """
    return _leaves(params, False, **units)


def leaves_together(params: PyTree, **units: Unpack[Units]) -> list[Leaf]:
    """Returns the pruned leaves, for one ranking over all: only batch axes that the caller names are slices."""
    return _leaves(params, True, **units)


def _leaves(params: PyTree, together: bool, **units: Unpack[Units]) -> list[Leaf]:
    if unknown := units.keys() - Units.__annotations__.keys():
        raise TypeError(
            f"{', '.join(sorted(unknown))} is not one of the options {', '.join(Units.__annotations__)}; bind options "
            "of an allocation by functools.partial"
        )
    patterns = _tree.resolve(units.get("pattern", UNSTRUCTURED), params, default=UNSTRUCTURED, what="pattern")
    for pattern in patterns if isinstance(units.get("pattern"), Mapping) else patterns[:1]:
        check_pattern(pattern)
    batch_axes = units.get("batch_axes", 0)
    roles = _tree.leaf_roles(params, units.get("roles"), batch_axes, parts=units.get("specs") is not None)
    explicit = _tree.explicit_axes(params, batch_axes)
    selected = _tree.chosen(params, roles, units.get("where"))
    cut = of_leaves(params, units.get("specs"))
    found, open_axes, wrong = [], [], []
    for i, (role, array) in enumerate(zip(roles, jax.tree.leaves(params), strict=True)):
        if not selected[i]:
            continue
        pattern = patterns[i].along(role)
        if pattern is None:
            open_axes.append(f"  {_tree.label(role.name)}: {patterns[i]!r}: {role.unclear_axes}")
            continue
        stacked = tuple(a for a in role.stacked if a < len(array.shape))
        leaf = Leaf(role.name, i, array, pattern, explicit[i], stacked, cut[i], role)
        if problem := _problem(leaf):
            wrong.append(f"  {_tree.label(leaf.name)}: {problem}")
        found.append(leaf if together else replace(leaf, batch_axes=stacked))
    if open_axes:
        raise ValueError(
            "these patterns need input or output axes; name the axes, by leaf if need be (pattern={'attention/*': "
            "masks.NM(2, 4, axis=0)}), or pass roles=jaxprune.find_roles(fn, params, *inputs):\n" + "\n".join(open_axes)
        )
    if wrong:
        raise ValueError("the pattern does not fit:\n" + "\n".join(wrong))
    return found


def _leaves_to_rank(scores: PyTree, together: bool, **units: Unpack[Units]) -> list[Leaf]:
    """Returns the leaves whose scores are ranked: at least one, and the same scores on every device that shares them.

    Raises:
      ValueError: no leaf is selected; by their types, scores differ between the devices of a shard_map; a leaf is too
        large; the leaves have no ranking together.
    """
    found = _leaves(scores, together, **units)
    if not found:
        _tree.selected(scores, units.get("where"), units.get("roles"), units.get("batch_axes", 0))  # raises, says why
    lines = []
    for leaf in (leaf for leaf in found if isinstance(leaf.array, jax.Array)):
        kind: Any = jax.typeof(leaf.array)
        # The axes of a shard_map along which an array differs. JAX has renamed the attribute.
        varying = getattr(getattr(kind, "manual_axis_type", kind), "varying", None) or getattr(kind, "vma", ())
        if names := set(varying) - set(leaf.shards.all_names):
            lines.append(f"  {leaf.name}: {', '.join(sorted(names))}")
    if lines:
        raise ValueError(
            "these scores differ between the devices of a shard_map, and each device would choose other masks; "
            "average the gradients (jax.lax.pmean), pass specs=in_specs if devices share the leaves, or prune "
            "outside of the shard_map:\n" + "\n".join(lines)
        )
    _check_sizes(found)
    if not together:
        return found
    if grouped := [f"  {_tree.label(leaf.name)}: {leaf.pattern}" for leaf in found if leaf.entries and leaf.group]:
        raise ValueError(
            "NM removes the same number from every group, so it has no global ranking; use select:\n"
            + "\n".join(grouped)
        )
    if len(slices := {leaf.slices for leaf in found if leaf.entries}) > 1:
        raise ValueError(
            "select_global ranks slice by slice over all leaves, so all leaves need the same number of slices, got "
            f"{sorted(slices)} from batch_axes={units.get('batch_axes', 0)!r}; keep batch_axes=0 "
            "for layers stacked by a scan"
        )
    return found


def _check_sizes(leaves: list[Leaf]) -> None:
    """Raises if the entries of a leaf cannot be counted and indexed."""
    lines = []
    for leaf in (leaf for leaf in leaves if leaf.entries >= 1 << 31 and not leaf.group):
        units = jax.eval_shape(lambda scores, leaf=leaf: leaf.pattern.units(scores, leaf), leaf.array).shape
        shape = leaf.unit_shards.whole(units)[leaf.pattern.slice_axes(leaf) :]
        try:
            _ = rows.digits(shape), rows.partial_axes(shape)
        except ValueError as error:
            lines.append(f"  {_tree.label(leaf.name)}: {error}")
    if lines:
        raise ValueError(
            "these leaves are too large to be ranked; split each into several leaves, or name the axes whose positions "
            "are ranked separately by batch_axes or the pattern's axes:\n" + "\n".join(lines)
        )


_QUESTIONS = (
    *("check", "units", "expand", "slice_axes", "fixed_sparsity", "group", "along", "unit_shards", "takes_any_stack"),
)


def check_pattern(pattern: Any) -> None:
    """Raises if the argument is not a pattern: a name, a class without its arguments, a class that lacks a method."""
    answers = [name for name in _QUESTIONS if hasattr(pattern, name)]
    if isinstance(pattern, type) or not {"units", "expand"}.issubset(answers):
        raise TypeError(
            "pattern must be masks.Unstructured(), masks.NM(2, 4), masks.Block(...), masks.Channel(), or a mapping "
            f"from globs to patterns; got {_tree.shown(pattern)}"
        )
    own = [name for name in ("units", "expand") if getattr(type(pattern), name, None) is getattr(Pattern, name)]
    missing = [name for name in _QUESTIONS if name not in answers] + own
    if missing:
        raise TypeError(
            f"pattern {pattern!r} lacks {', '.join(missing)}; derive its class from masks.Pattern, and define units "
            "and expand"
        )


def _problem(leaf: Leaf) -> str | None:
    if len(leaf.batch_axes) == leaf.ndim:
        return f"batch axes {leaf.batch_axes} do not leave an axis of {leaf.shape} to prune"
    if leaf.stacked != tuple(range(len(leaf.stacked))) and not leaf.pattern.takes_any_stack:
        return (
            f"{leaf.pattern!r} expects stacked axes to be the first ones, but axes {leaf.stacked} are stacked; move "
            "them to the front, or answer takes_any_stack in the pattern's class"
        )
    if len(leaf.shards.names) > leaf.ndim:
        return f"specs is for {len(leaf.shards.names)} axes, and the leaf has {leaf.ndim}: {leaf.part}"
    if wrong := leaf.pattern.check(leaf):
        return wrong
    if leaf.shards.is_cut and leaf.pattern.unit_shards(leaf) is None:
        return (
            f"{leaf.pattern} does not say what its units are in a part of an array; prune it outside of the shard_map"
        )
    return None


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
      `Channel`. NaN ranks lowest, -0.0 equals 0.0, denormals count, and if scores are equal, the lowest index is kept.

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

    The scores of all leaves are ranked together. If units have equal scores, the first leaf in the order of
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
    every = _leaves_to_rank(scores, together, **units)
    empty = [leaf for leaf in every if not leaf.entries]
    grouped = [(leaf, leaf.group) for leaf in every if leaf.entries and leaf.group]
    ranked = [leaf for leaf in every if leaf.entries and not leaf.group]
    given, sizes = [wanted[leaf.place] for leaf in ranked], [leaf.units for leaf in ranked]
    slices, names = [leaf.slices for leaf in ranked], [leaf.name for leaf in ranked]
    if together:
        given, sizes, slices, names = [sparsities.sparsity], [sum(sizes)], slices[:1], ["all leaves"]
    kept = counts.kept_in_slices(given, sizes, slices, names) if ranked else None
    kept_in = [counts.kept_in_groups(wanted[x.place], *g[:2], f"{x.name}: {x.pattern}") for x, g in grouped]
    masks = {leaf.place: ones_of(leaf) for leaf in empty}
    masks |= {leaf.place: keep_in_leaf(leaf, number) for (leaf, _), number in zip(grouped, kept_in, strict=True)}
    if kept is not None:
        ways = tuple((leaf.pattern, leaf.batch_axes, leaf.stacked, leaf.shards) for leaf in ranked)
        arrays = [jnp.asarray(leaf.array) for leaf in ranked]
        keep = _keep_on_host if host.suits(arrays, kept, shared=together) else _keep_largest
        found = keep(arrays, kept, ways=ways, together=together)
        masks |= {leaf.place: mask for leaf, mask in zip(ranked, found, strict=True)}
    return assemble(scores, masks)


def assemble(tree: PyTree, masks: Mapping[int, jax.Array]) -> PyTree:
    """Returns the tree of masks, from the masks of leaves by their place; a scalar True for all other leaves."""
    structure = jax.tree.structure(tree)
    return structure.unflatten([masks[i] if i in masks else jnp.ones((), bool) for i in range(structure.num_leaves)])


def ones_of(leaf: Leaf) -> jax.Array:
    """Returns the mask that keeps the whole leaf, in the shape of its pattern."""

    def expanded(x: jax.Array) -> jax.Array:
        return leaf.pattern.expand(jnp.ones_like(leaf.pattern.units(x, leaf), dtype=bool), leaf)

    shape = jax.eval_shape(expanded, leaf.array).shape
    # Made like the leaf where possible, so that it is on the same devices.
    return jnp.ones_like(leaf.array, dtype=bool) if shape == leaf.part else jnp.ones(shape, bool)


def keep_in_leaf(leaf: Leaf, kept: int | jax.Array) -> jax.Array:
    """Returns the mask that keeps a given number of units in each group of a leaf, in place of the pattern's number."""
    way = (leaf.pattern, leaf.batch_axes, leaf.stacked, leaf.shards)
    if isinstance(kept, jax.Array):
        return _keep_in_groups(leaf.array, kept, way=way)
    return _keep_in_groups(leaf.array, None, way=way, number=kept)


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
# the shapes of leaves and on how these are pruned, not on the names and places of leaves.
@partial(jax.jit, static_argnames=("ways", "together"))
def _keep_largest(arrays: list[jax.Array], kept: Count, *, ways: tuple[Way, ...], together: bool) -> list[jax.Array]:
    ranked = _leaves_of(arrays, ways)
    units = [leaf.pattern.units(leaf.array, leaf) for leaf in ranked]
    axes = [leaf.pattern.slice_axes(leaf) for leaf in ranked]
    layouts = [leaf.unit_shards for leaf in ranked]
    masks = ranking.keep_largest(units, kept, batch_axes=axes, shared=together, layouts=layouts)
    return [leaf.pattern.expand(mask, leaf) for mask, leaf in zip(masks, ranked, strict=True)]


def _keep_on_host(arrays: list[jax.Array], kept: Count, *, ways: tuple[Way, ...], together: bool) -> list[jax.Array]:
    """Returns the masks of `_keep_largest` for arrays that NumPy can read; only the patterns are compiled."""
    axes = [leaf.pattern.slice_axes(leaf) for leaf in _leaves_of(arrays, ways)]
    masks = host.keep_largest(_units(arrays, ways=ways), kept, batch_axes=axes, shared=together)
    return _expand(arrays, [_tree.put_like(*pair) for pair in zip(masks, arrays, strict=True)], ways=ways)


@partial(jax.jit, static_argnames="ways")
def _units(arrays: list[jax.Array], *, ways: tuple[Way, ...]) -> list[jax.Array]:
    return [leaf.pattern.units(leaf.array, leaf) for leaf in _leaves_of(arrays, ways)]


@partial(jax.jit, static_argnames="ways")
def _expand(arrays: list[jax.Array], masks: list[jax.Array], *, ways: tuple[Way, ...]) -> list[jax.Array]:
    pairs = zip(masks, _leaves_of(arrays, ways), strict=True)
    return [leaf.pattern.expand(mask, leaf) for mask, leaf in pairs]


def _leaves_of(arrays: list[jax.Array], ways: tuple[Way, ...]) -> list[Leaf]:
    return [Leaf("", 0, array, *way) for array, way in zip(arrays, ways, strict=True)]


@partial(jax.jit, static_argnames=("way", "number"))
def _keep_in_groups(array: jax.Array, kept: jax.Array | None, *, way: Way, number: int = 0) -> jax.Array:
    leaf = Leaf("", 0, array, *way)
    axis = leaf.group.axis if leaf.group else -1
    mask = rows.keep_in_groups(leaf.pattern.units(array, leaf), number if kept is None else kept, axis=axis)
    return leaf.placed(leaf.pattern.expand(mask, leaf))
