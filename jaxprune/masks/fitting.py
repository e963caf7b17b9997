"""Which leaves of a tree are pruned, and how: the patterns and batch axes of each, checked against its shape."""

from typing import Any, NamedTuple

import jax

from jaxprune import tree
from jaxprune.masks.patterns import BatchAxes, Pattern, Patterns, Unstructured

PyTree = Any


class Fitted(NamedTuple):
    """A leaf that is pruned, with what is asked of it.

    Attributes:
      place: its place among all leaves.
      name: its name.
      leaf: an array, or a ShapeDtypeStruct.
      pattern: how it is pruned; it fits.
      batch_axes: how many leading axes are slices of their own.
    """

    place: int
    name: str
    leaf: Any
    pattern: Pattern
    batch_axes: int


def fitted(params: PyTree, pattern: Patterns, where: tree.Where, batch_axes: BatchAxes) -> list[Fitted]:
    """The leaves that are pruned, in the order of `jax.tree.leaves`.

    Args:
      params: parameters, or scores in their structure.
      pattern: as in `masks.select`.
      where: as in `masks.select`.
      batch_axes: as in `masks.select`.

    Raises:
      ValueError: leaves that their pattern does not fit, all of them named; globs that match nothing.
      TypeError: what is no pattern.
    """
    patterns = tree.resolve(pattern, params, default=Unstructured(), what="pattern")
    axes = tree.resolve(batch_axes, params, default=0, what="batch_axes")
    selected = jax.tree.leaves(tree.prunable(params, where))
    check_patterns(patterns)
    found, wrong = [], []
    for i, (name, leaf) in enumerate(tree.named_leaves(params)):
        if not selected[i]:
            continue
        if not 0 <= axes[i] < len(leaf.shape):
            wrong.append(f"  {name}: {axes[i]} batch axes do not leave an axis of {leaf.shape} to prune")
        elif problem := patterns[i].check(tuple(leaf.shape), axes[i]):
            wrong.append(f"  {name}: {problem}")
        else:
            found.append(Fitted(i, name, leaf, patterns[i], axes[i]))
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
