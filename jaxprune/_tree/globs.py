"""Globs over leaf names: `prunable` and `selected` for `where`, `resolve` for mappings from globs to values."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._tree import paths
from jaxprune._tree.arguments import call, shown

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
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_prunable(path: str, leaf: Any) -> bool:
    """The default rule: a leaf may be pruned if it is floating and has two axes or more.

    The rule excludes biases, normalisation scales, counters, keys, and the static leaves of Equinox modules.

    Args:
      path: the leaf's name, which the rule ignores.
      leaf: anything.

    Returns:
      A Python bool.

    Example:
      >>> is_prunable('kernel', jnp.ones((2, 3))), is_prunable('bias', jnp.ones(3))
      (True, False)
    """
    del path
    return is_floating(leaf) and len(leaf.shape) >= 2


def prunable(tree: PyTree, where: Where = None) -> PyTree:
    """Returns which leaves `where` selects.

    Args:
      tree: parameters, or any tree with the structure, shapes and dtypes of parameters.
      where: None for the default rule (`is_prunable`); a predicate `(name, leaf) -> bool`; a glob over
        names such as `encoder/*/kernel` (`*` also crosses `/`); or a sequence of globs, any of which
        may match. A glob narrows the default rule: `*` never selects a bias. A predicate replaces the rule.

    Returns:
      A tree of Python bools with the structure of `tree`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches no prunable leaf (the message lists the names), or the list of globs is empty.

    Example:
      >>> params = {'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}}
      >>> prunable(params)
      {'dense': {'bias': False, 'kernel': True}}
    """
    named = paths.named_leaves(tree)
    if where is None:
        chosen = [is_prunable(name, leaf) for name, leaf in named]
    elif callable(where):
        chosen = [bool(call(where, "where", "where(name, leaf)", name, leaf)) for name, leaf in named]
        _check_floating(named, chosen)
    else:
        globs = _as_globs(where)
        _check_globs(named, globs)
        chosen = [is_prunable(name, leaf) and any(_matches(name, g) for g in globs) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(tree), chosen)


def selected(tree: PyTree, where: Where = None) -> list[bool]:
    """Returns which leaves are pruned; like `prunable`, but raises if no leaf is selected.

    Args:
      tree: parameters, or any tree with the structure, shapes and dtypes of parameters.
      where: None, a predicate `(name, leaf) -> bool`, a glob, or a list of globs; see `prunable`.

    Returns:
      A list of Python bools, in the order of `jax.tree.leaves`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches no prunable leaf; no leaf is selected. The message lists the leaves of the tree.

    Example:
      >>> selected({'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}})
      [False, True]
    """
    chosen = jax.tree.leaves(prunable(tree, where))
    if any(chosen):
        return chosen
    if tree is None or (jax.tree.structure(tree) == jax.tree.structure(0) and not _is_array(tree)):
        raise ValueError(
            f"there is nothing to prune: params must be a tree of arrays, such as variables['params'] of a Flax model; "
            f"got {shown(tree)}"
        )
    lines = [f"  {name or '(the tree itself)'}: {_described(leaf)}" for name, leaf in paths.named_leaves(tree)]
    lines = lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else [])
    rule = "where=None takes floating leaves of two axes or more" if where is None else "the predicate is False for all"
    raise ValueError(
        f"there is nothing to prune: {rule}; pass a predicate where=lambda name, leaf: ... that is True for a floating "
        "leaf. The leaves are:\n" + ("\n".join(lines) or "  (none: the tree is empty)")
    )


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


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if _is_array(leaf) else type(leaf).__name__


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


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


def _check_globs(named: list[tuple[str, Any]], globs: list[str]) -> None:
    names = [name for name, leaf in named if is_prunable(name, leaf)]
    unmatched = [g for g in globs if not any(_matches(name, g) for name in names)]
    if unmatched:
        listed = "\n".join(f"  {name}" for name in names) or "  (none: no leaf is floating with two axes or more)"
        raise ValueError(f"where: no prunable leaf matches {', '.join(map(repr, unmatched))}; the names are:\n{listed}")


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
    unmatched = [glob for glob in rules if not any(_matches(name, glob) for name in names)]
    if unmatched:
        listed = "\n".join(f"  {name}" for name in names)
        raise ValueError(f"{what}: no leaf matches {', '.join(map(repr, unmatched))}; the names are:\n{listed}")
    return [next((value for glob, value in rules.items() if _matches(name, glob)), default) for name in names]


def _matches(name: str, glob: str) -> bool:
    # Every name matches itself, even with brackets, which a glob reads as a set of characters.
    return name == glob or fnmatchcase(name, glob)
