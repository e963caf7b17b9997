"""Which leaves of a tree are pruned, and how: `Units`, the options that say so, and `leaves`, which resolves them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import jax

from jaxprune import _tree
from jaxprune._tree import BatchAxes
from jaxprune.masks._exact.shards import of_leaves
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
        parameters or a prefix of it, as the `in_specs` of the `shard_map` are. Each device then sees its part of the
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
    """Like `leaves`, for one ranking over all leaves: only the batch axes that the caller names are slices."""
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
            open_axes.append(f"  {role.name or '(the tree itself)'}: {patterns[i]!r}: {role.unclear_axes}")
            continue
        stacked = tuple(a for a in role.stacked if a < len(array.shape))
        leaf = Leaf(role.name, i, array, pattern, explicit[i], stacked, cut[i], role)
        if problem := _problem(leaf):
            wrong.append(f"  {leaf.name}: {problem}")
        found.append(leaf if together else replace(leaf, batch_axes=stacked))
    if open_axes:
        raise ValueError(
            "these patterns need input or output axes; name the axes, by leaf if need be (pattern={'attention/*': "
            "masks.NM(2, 4, axis=0)}), or pass roles=jaxprune.find_roles(fn, params, *inputs):\n" + "\n".join(open_axes)
        )
    if wrong:
        raise ValueError("the pattern does not fit:\n" + "\n".join(wrong))
    return found


def leaves_to_rank(scores: PyTree, together: bool = False, **units: Unpack[Units]) -> list[Leaf]:
    """Returns the leaves whose scores are ranked: at least one, and the same scores on every device that shares them.

    Raises:
      ValueError: no leaf is selected; by their types, scores differ between the devices of a shard_map.
    """
    found = leaves_together(scores, **units) if together else leaves(scores, **units)
    if not found:
        _tree.selected(scores, units.get("where"), units.get("roles"), units.get("batch_axes", 0))  # raises, says why
    arrays = [leaf for leaf in found if isinstance(leaf.array, jax.Array)]
    varying = [(leaf.name, set(_varying(leaf.array)) - set(leaf.shards.all_names)) for leaf in arrays]
    lines = [f"  {name}: {', '.join(sorted(names))}" for name, names in varying if names]
    if lines:
        raise ValueError(
            "these scores differ between the devices of a shard_map, and each device would choose other masks; "
            "average the gradients (jax.lax.pmean), pass specs=in_specs if devices share the leaves, or prune "
            "outside of the shard_map:\n" + "\n".join(lines)
        )
    return found


def _varying(x: jax.Array) -> Any:
    """Returns the axes of a shard_map along which an array differs. JAX has renamed the attribute."""
    found = jax.typeof(x)
    return getattr(getattr(found, "manual_axis_type", found), "varying", None) or getattr(found, "vma", ())


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
