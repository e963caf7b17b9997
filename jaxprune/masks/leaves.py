"""The leaves of a tree that are pruned: `Leaf`, `leaves`, and `Units`, the options that say what is pruned in them."""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypedDict, Unpack

import jax

from jaxprune import _tree
from jaxprune.masks import cutting
from jaxprune.masks.patterns import NM, BatchAxes, Pattern, Patterns, Unstructured
from jaxprune.masks.shards import WHOLE, Layout, layouts

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


@dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf that is pruned. All sizes are those of the whole array, also where devices hold parts of it.

    Attributes:
      name: its name, `encoder/layer_0/kernel`.
      place: its index among all leaves of the tree.
      array: an array or a `jax.ShapeDtypeStruct`; inside `jax.shard_map` the part that this device holds.
      pattern: how it is pruned.
      batch_axes: how many leading axes are slices of their own.
      shards: how the devices of a `jax.shard_map` share the array.
    """

    name: str
    place: int
    array: Any
    pattern: Pattern
    batch_axes: int
    shards: Layout = WHOLE

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self.shards.whole(tuple(self.array.shape))

    @property
    def entries(self) -> int:
        """How many entries the whole array has."""
        return math.prod(self.shape)

    @property
    def slices(self) -> int:
        """How many slices the array has, each of which is ranked on its own and loses the same number of units."""
        return self._sizes[0]

    @property
    def units(self) -> int:
        """How many units each slice has."""
        return self._sizes[1]

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        if isinstance(self.pattern, NM):
            return self.entries // self.pattern.m, self.pattern.m
        whole = jax.ShapeDtypeStruct(self.shape, self.array.dtype)
        shape = jax.eval_shape(partial(self.pattern.units, batch_axes=self.batch_axes), whole).shape
        axes = self.batch_axes
        if isinstance(self.pattern, Unstructured):
            axes = self.pattern.batch_axes(self.shape, axes)
        return math.prod(shape[:axes]), math.prod(shape[axes:])


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
    patterns = _tree.resolve(units.get("pattern", Unstructured()), params, default=Unstructured(), what="pattern")
    axes = _tree.resolve(units.get("batch_axes", 0), params, default=0, what="batch_axes")
    selected = jax.tree.leaves(_tree.prunable(params, units.get("where")))
    check_patterns(patterns)
    cut = layouts(params, units.get("specs"))
    found = [
        Leaf(name, i, leaf, patterns[i], axes[i], cut[i])
        for i, (name, leaf) in enumerate(_tree.named_leaves(params))
        if selected[i]
    ]
    wrong = [f"  {leaf.name}: {problem}" for leaf in found if (problem := _problem(leaf))]
    if wrong:
        raise ValueError("the pattern does not fit:\n" + "\n".join(wrong))
    return found


def check_patterns(patterns: list[Any]) -> None:
    """Raises where something else was given for a pattern: its name, or the class without its numbers."""
    for pattern in patterns:
        if isinstance(pattern, type) or not hasattr(pattern, "check"):
            raise TypeError(
                "pattern must be masks.Unstructured(), masks.NM(2, 4), masks.Block(...), masks.Channel(), or a mapping "
                f"from globs to such; got {pattern!r}"
            )


def _problem(leaf: Leaf) -> str | None:
    part = tuple(leaf.array.shape)
    if not 0 <= leaf.batch_axes < len(part):
        return f"{leaf.batch_axes} batch axes do not leave an axis of {leaf.shape} to prune"
    if len(leaf.shards.names) > len(part):
        return f"specs is for {len(leaf.shards.names)} axes, and the leaf has {len(part)}: {part}"
    wrong = leaf.pattern.check(leaf.shape, leaf.batch_axes)
    return wrong or cutting.problem(leaf.pattern, part, leaf.batch_axes, leaf.shards)
