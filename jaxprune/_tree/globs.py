"""Globs over leaf names: `by_where` for the argument `where`, `resolve` for mappings from globs to values."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._tree import paths
from jaxprune._tree.arguments import call, is_array, shown

PyTree = Any
Where = str | Sequence[str] | Callable[[str, Any], bool] | None


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array (or a ShapeDtypeStruct) of real floating numbers.

    Args:
      leaf: anything.

    Returns:
      A Python bool; False for integers, bools, complex numbers, keys and Python's own floats.

    Example:
      >>> is_floating(jnp.ones(2, jnp.bfloat16)), is_floating(jnp.ones(2, int)), is_floating(1.0)
      (True, False, False)
    """
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def has_two_axes(tree: PyTree, where: Where = None) -> PyTree:
    """Returns which floating leaves of two axes or more `where` selects, independent of their roles.

    Args:
      tree: parameters.
      where: None for all of them; a predicate, a glob or a list of globs; see `prunable`.

    Returns:
      A tree of Python bools with the structure of `tree`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches none of these leaves, or the list of globs is empty.

    Example:
      >>> has_two_axes({'embedding': jnp.ones((2, 3)), 'bias': jnp.ones(3)})
      {'bias': False, 'embedding': True}
    """
    named = paths.named_leaves(tree)
    usual = [is_floating(leaf) and len(leaf.shape) >= 2 for _, leaf in named]
    chosen = by_where(named, usual, where, lambda name: "fewer than two axes, or not floating")
    return jax.tree.unflatten(jax.tree.structure(tree), chosen)


def by_where(
    named: list[tuple[str, Any]], usual: list[bool], where: Where, why_not: Callable[[str], str]
) -> list[bool]:
    """Returns which leaves `where` selects: None the default leaves, globs part of the default leaves, a predicate any.

    Args:
      named: names and leaves.
      usual: for each leaf, whether the default rule selects it.
      where: None, a predicate `(name, leaf) -> bool`, a glob, or a list of globs.
      why_not: from the name of a leaf to the reason why the default rule does not select it.
    """
    if where is None:
        return usual
    if callable(where):
        chosen = [bool(call(where, "where", "where(name, leaf)", name, leaf)) for name, leaf in named]
        _check_floating(named, chosen)
        return chosen
    globs = _as_globs(where)
    _check_globs([name for (name, _), yes in zip(named, usual, strict=True) if yes], globs, named, why_not)
    return [yes and any(matches(name, g) for g in globs) for (name, _), yes in zip(named, usual, strict=True)]


def differentiable(fn: Callable[[PyTree], Any], params: PyTree) -> tuple[Callable[[list], Any], list, Callable]:
    """Rewrites a function of a tree as a function of the tree's floating leaves, which have gradients.

    Args:
      fn: a function of params.
      params: any tree.

    Returns:
      Three values: `fn` as a function of the list of floating leaves; that list; and a function that takes one array
      for each floating leaf and returns a tree of them, with a scalar zero for every other leaf.

    Example:
      >>> fn, leaves, as_tree = differentiable(lambda p: (p['w'] * p['n']).sum(), {'w': jnp.ones(2), 'n': 3})
      >>> as_tree(jax.grad(fn)(leaves))
      {'n': Array(0., dtype=float32), 'w': Array([3., 3.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(params)
    at = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def put(values: list, rest: list) -> PyTree:
        filled = list(rest)
        for i, value in zip(at, values, strict=True):
            filled[i] = value
        return jax.tree.unflatten(treedef, filled)

    def as_tree(values: list) -> PyTree:
        return put(values, [jnp.zeros(())] * len(leaves))

    return lambda values: fn(put(values, leaves)), [jnp.asarray(leaves[i]) for i in at], as_tree


def _as_globs(where: Any) -> list[str]:
    if isinstance(where, str):
        return [where]
    if isinstance(where, Sequence) and all(isinstance(g, str) for g in where):
        if not where:
            raise ValueError("where=[] selects no leaf: pass globs over leaf names, or None for all kernels")
        return list(where)
    raise TypeError(
        f"where must be None, a predicate (name, leaf) -> bool, a glob or a list of globs; got {shown(where)}"
    )


def _check_floating(named: list[tuple[str, Any]], chosen: list[bool]) -> None:
    wrong = [
        f"  {name}: {getattr(leaf, 'dtype', type(leaf).__name__)}"
        for (name, leaf), selected in zip(named, chosen, strict=True)
        if selected and not is_floating(leaf)
    ]
    if wrong:
        raise TypeError(
            "where selects leaves that are not floating arrays, which cannot be pruned; narrow the predicate:\n"
            + "\n".join(wrong)
        )


def _check_globs(
    usual: list[str], globs: list[str], named: list[tuple[str, Any]], why_not: Callable[[str], str]
) -> None:
    unmatched = [g for g in globs if not any(matches(name, g) for name in usual)]
    if not unmatched:
        return
    said = f"where: no prunable leaf matches {', '.join(map(repr, unmatched))}"
    others = [name for name, _ in named if name not in usual and any(matches(name, g) for g in unmatched)]
    if others:
        lines = "\n".join(f"  {name}: {why_not(name)}" for name in others[:10])
        raise ValueError(
            f"{said}; a glob narrows the default rule, which leaves these leaves alone; to prune them pass a "
            f"predicate, where=lambda name, leaf: ...:\n{lines}"
        )
    listed = "\n".join(f"  {name}" for name in usual) or "  (none: no leaf is floating with two axes or more)"
    raise ValueError(f"{said}; the names are:\n{listed}")


def resolve(rules: Any, tree: PyTree, *, default: Any, what: str) -> list[Any]:
    """Returns one value for each leaf of `tree`, in the order of its leaves.

    Args:
      rules: a mapping from globs over names to values (the first glob that matches counts), or any other object, which
        is the value of every leaf.
      tree: the tree whose leaves get the values.
      default: the value of a leaf that no glob matches.
      what: the name of the values, for messages.

    Returns:
      A list as long as `jax.tree.leaves(tree)`.

    Raises:
      ValueError: a glob matches no leaf; the message lists the names.

    Example:
      >>> resolve({'layers/*': 1}, {'head': 0.0, 'layers': {'kernel': 0.0}}, default=0, what='batch_axes')
      [0, 1]
    """
    names = [name for name, _ in paths.named_leaves(tree)]
    if not isinstance(rules, Mapping):
        return [rules] * len(names)
    unmatched = [glob for glob in rules if not any(matches(name, glob) for name in names)]
    if unmatched:
        listed = "\n".join(f"  {name}" for name in names)
        raise ValueError(f"{what}: no leaf matches {', '.join(map(repr, unmatched))}; the names are:\n{listed}")
    return [next((value for glob, value in rules.items() if matches(name, glob)), default) for name in names]


def matches(name: str, glob: str) -> bool:
    """Returns whether a glob matches the name of a leaf or of a group of slices."""
    # Every name matches itself, even with brackets, which a glob reads as a set of characters.
    return name == glob or fnmatchcase(name, glob)
