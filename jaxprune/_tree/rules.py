"""Rules by path: one value for all leaves, a mapping of globs, or a tree of values."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from jaxprune._tree import paths

PyTree = Any


def resolve(rules: Any, tree: PyTree, *, default: Any, what: str) -> list[Any]:
    """One value for each leaf of `tree`, in the order of its leaves.

    Args:
      rules: a mapping from globs over names to values, of which the first that matches counts; or any
        other object, which then is the value of every leaf.
      tree: the tree whose leaves get the values.
      default: the value where no glob matches.
      what: what the values are, for messages.

    Returns:
      A list as long as `jax.tree.leaves(tree)`.

    Raises:
      ValueError: a glob matches no leaf; the message lists the names there are.

    Example:
      >>> resolve({'layers/*': 1}, {'head': 0.0, 'layers': {'kernel': 0.0}}, default=0, what='batch_axes')
      [0, 1]
    """
    names = [name for name, _ in paths.named_leaves(tree)]
    if not isinstance(rules, Mapping):
        return [rules] * len(names)
    unmatched = [glob for glob in rules if not any(fnmatchcase(name, glob) for name in names)]
    if unmatched:
        listed = "\n".join(f"  {name}" for name in names)
        raise ValueError(f"{what}: no leaf matches {', '.join(map(repr, unmatched))}; there are:\n{listed}")
    return [next((value for glob, value in rules.items() if fnmatchcase(name, glob)), default) for name in names]
