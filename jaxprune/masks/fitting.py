"""Which leaves of a tree are pruned, and how: the patterns and batch axes of each, checked against its shape."""

from typing import Any, NamedTuple

import jax

from jaxprune import _tree
from jaxprune.masks import cutting
from jaxprune.masks.patterns import BatchAxes, Pattern, Patterns, Unstructured
from jaxprune.masks.shards import Layout, layouts

PyTree = Any


class Fitted(NamedTuple):
    """A leaf that is pruned, with what is asked of it.

    Attributes:
      place: its place among all leaves.
      name: its name.
      leaf: an array, or a ShapeDtypeStruct.
      pattern: how it is pruned; it fits.
      batch_axes: how many leading axes are slices of their own.
      layout: how devices of a shard_map share it, of which `leaf` is then a part.
    """

    place: int
    name: str
    leaf: Any
    pattern: Pattern
    batch_axes: int
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole."""
        return self.layout.whole(tuple(self.leaf.shape))


def fitted(
    params: PyTree, pattern: Patterns, where: _tree.Where, batch_axes: BatchAxes, specs: PyTree = None
) -> list[Fitted]:
    """The leaves that are pruned, in the order of `jax.tree.leaves`.

    Args:
      params: parameters, or scores in their structure.
      pattern: as in `masks.select`.
      where: as in `masks.select`.
      batch_axes: as in `masks.select`.
      specs: as in `masks.select`.

    Raises:
      ValueError: leaves that their pattern does not fit, all of them named; globs that match nothing.
      TypeError: what is no pattern.
    """
    patterns = _tree.resolve(pattern, params, default=Unstructured(), what="pattern")
    axes = _tree.resolve(batch_axes, params, default=0, what="batch_axes")
    selected = jax.tree.leaves(_tree.prunable(params, where))
    check_patterns(patterns)
    cut = layouts(params, specs)
    found, wrong = [], []
    for i, (name, leaf) in enumerate(_tree.named_leaves(params)):
        if not selected[i]:
            continue
        own = Fitted(i, name, leaf, patterns[i], axes[i], cut[i])
        if problem := _problem(own):
            wrong.append(f"  {name}: {problem}")
        else:
            found.append(own)
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


def _problem(own: Fitted) -> str | None:
    part = tuple(own.leaf.shape)
    if not 0 <= own.batch_axes < len(part):
        return f"{own.batch_axes} batch axes do not leave an axis of {own.shape} to prune"
    if len(own.layout.names) > len(part):
        return f"specs is for {len(own.layout.names)} axes, and the leaf has {len(part)}: {part}"
    wrong = own.pattern.check(own.shape, own.batch_axes)
    return wrong or cutting.problem(own.pattern, part, own.batch_axes, own.layout)
