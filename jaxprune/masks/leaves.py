"""Which leaves of a tree are pruned, and how: `Units`, the options that say so, and `leaves`, which resolves them."""

from numbers import Integral
from typing import Any, TypedDict, Unpack

import jax

from jaxprune import _tree
from jaxprune.masks._exact.shards import of_leaves
from jaxprune.masks.patterns import BatchAxes, Leaf, Pattern, Patterns, Unstructured

PyTree = Any


class Units(TypedDict, total=False):
    """What is pruned: the keyword arguments that `masks.select` and every allocation take.

    Attributes:
      pattern: what is removed together, `masks.Unstructured()` by default. A mapping from globs over leaf names to
        patterns gives each leaf its own pattern, and `Unstructured()` where no glob matches.
      where: which leaves are pruned. None (the default) takes floating leaves of two axes or more. A glob, or a list
        of globs, over names such as `encoder/layer_0/kernel` narrows that rule; a predicate `(name, leaf) -> bool`
        replaces it.
      batch_axes: how many leading axes of a leaf are slices of their own, such as layers stacked by a scan; 0 by
        default. A mapping from globs gives the number by leaf name, and 0 where no glob matches.
      specs: None, or inside `jax.shard_map` the `PartitionSpec` of each parameter: a tree in the structure of the
        parameters or a prefix of it, as the `in_specs` of the `shard_map` are. Each device then sees its part of the
        scores, the whole is ranked, and each device gets its part of the masks.
    """

    pattern: Patterns
    where: _tree.Where
    batch_axes: BatchAxes
    specs: PyTree


def leaves(params: PyTree, **units: Unpack[Units]) -> list[Leaf]:
    """The leaves of a tree that are pruned, in the order of `jax.tree.leaves`.

    For allocations and criteria of one's own that need the sizes of leaves, and which leaves count.

    Args:
      params: parameters, their shapes, or scores in their structure.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`.

    Returns:
      A list of `Leaf`, empty if `where` selects nothing.

    Raises:
      ValueError: leaves that their pattern does not fit, all of them named; globs that match nothing.
      TypeError: an object that is not a pattern; `where` selects a leaf that is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {'bias': jnp.ones(3), 'kernel': jnp.ones((2, 5))}
      >>> [(leaf.name, leaf.entries) for leaf in leaves(params)]
      [('kernel', 10)]
    """
    if unknown := units.keys() - Units.__annotations__.keys():
        raise TypeError(
            f"{', '.join(sorted(unknown))} is not one of the options {', '.join(Units.__annotations__)}; bind options "
            "of an allocation by functools.partial"
        )
    patterns = _tree.resolve(units.get("pattern", Unstructured()), params, default=Unstructured(), what="pattern")
    axes = _tree.resolve(units.get("batch_axes", 0), params, default=0, what="batch_axes")
    for pattern in patterns:
        check_pattern(pattern)
    selected = jax.tree.leaves(_tree.prunable(params, units.get("where")))
    cut = of_leaves(params, units.get("specs"))
    found = [
        Leaf(name, i, leaf, patterns[i], axes[i], cut[i])
        for i, (name, leaf) in enumerate(_tree.named_leaves(params))
        if selected[i]
    ]
    wrong = [f"  {leaf.name}: {problem}" for leaf in found if (problem := _problem(leaf))]
    if wrong:
        raise ValueError("the pattern does not fit:\n" + "\n".join(wrong))
    return found


def leaves_to_rank(scores: PyTree, **units: Unpack[Units]) -> list[Leaf]:
    """The leaves whose scores are ranked: at least one, and the same scores on every device that shares them.

    Raises:
      ValueError: no leaf is selected; types tell that a score is another one on each device of a shard_map.
    """
    found = leaves(scores, **units)
    if not found:
        _tree.selected(scores, units.get("where"))  # raises, and says why nothing is selected
    arrays = [leaf for leaf in found if isinstance(leaf.array, jax.Array)]
    varying = [(leaf.name, set(_varying(leaf.array)) - set(leaf.shards.all_names)) for leaf in arrays]
    lines = [f"  {name}: {', '.join(sorted(names))}" for name, names in varying if names]
    if lines:
        raise ValueError(
            "these scores differ between the devices of a shard_map, each of which would choose masks of its own; "
            "average the gradients (jax.lax.pmean); of leaves that devices share say how, specs=in_specs, or prune "
            "outside of it:\n" + "\n".join(lines)
        )
    return found


def _varying(x: jax.Array) -> Any:
    """The axes of a shard_map that an array differs along. JAX has called them by more than one name."""
    found = jax.typeof(x)
    return getattr(getattr(found, "manual_axis_type", found), "varying", None) or getattr(found, "vma", ())


_QUESTIONS = ("check", "units", "expand", "slice_axes", "fixed_sparsity", "group", "along", "unit_shards")


def check_pattern(pattern: Any) -> None:
    """Raises for something that is no pattern: its name, the class without its numbers, a class that lacks a part."""
    answers = [name for name in _QUESTIONS if hasattr(pattern, name)]
    if isinstance(pattern, type) or not {"units", "expand"}.issubset(answers):
        raise TypeError(
            "pattern must be masks.Unstructured(), masks.NM(2, 4), masks.Block(...), masks.Channel(), or a mapping "
            f"from globs to such; got {_tree.shown(pattern)}"
        )
    own = [name for name in ("units", "expand") if getattr(type(pattern), name, None) is getattr(Pattern, name)]
    missing = [name for name in _QUESTIONS if name not in answers] + own
    if missing:
        raise TypeError(
            f"pattern {pattern!r} lacks {', '.join(missing)}; derive its class from masks.Pattern, and define units "
            "and expand"
        )


def _problem(leaf: Leaf) -> str | None:
    if not isinstance(leaf.batch_axes, Integral) or isinstance(leaf.batch_axes, bool):
        return f"batch_axes must be an integer, the number of leading axes that are slices; got {leaf.batch_axes!r}"
    if not 0 <= leaf.batch_axes < leaf.ndim:
        return f"{leaf.batch_axes} batch axes do not leave an axis of {leaf.shape} to prune"
    if len(leaf.shards.names) > leaf.ndim:
        return f"specs is for {len(leaf.shards.names)} axes, and the leaf has {leaf.ndim}: {leaf.part}"
    if wrong := leaf.pattern.check(leaf):
        return wrong
    if leaf.shards.is_cut and leaf.pattern.unit_shards(leaf) is None:
        return (
            f"{leaf.pattern} does not say what its units are in a part of an array; prune it outside of the shard_map"
        )
    return None
