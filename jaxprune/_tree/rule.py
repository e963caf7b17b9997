"""`prunable` and `selected`: which leaves of a tree are pruned, by default and by `where`."""

from typing import Any

import jax

from jaxprune._tree import paths
from jaxprune._tree.arguments import is_array, kind, shown
from jaxprune._tree.conventions import BatchAxes, leaf_roles
from jaxprune._tree.globs import Where, by_where, is_floating
from jaxprune._tree.roles import LeafRole, Roles

PyTree = Any


def prunable(tree: PyTree, where: Where = None, roles: Roles | None = None, batch_axes: BatchAxes = 0) -> PyTree:
    """Returns which leaves are pruned.

    The default rule takes floating leaves that are multiplied: by their role if a function is known, else by the
    conventions of `leaf_roles`. It leaves biases, scales, embeddings and leaves of fewer than two axes alone, where
    stacked axes do not count.

    Args:
      tree: parameters, or any tree with the structure, shapes and dtypes of parameters.
      where: None for the default rule; a glob over names such as `encoder/*/kernel` (`*` also crosses `/`), or a
        sequence of globs, which narrow the rule: `*` never selects a bias; or a predicate `(name, leaf) -> bool`, which
        replaces the rule.
      roles: the result of `find_roles`; None for the conventions.
      batch_axes: the stacked axes that the caller names; see `masks.Units`.

    Returns:
      A tree of Python bools with the structure of `tree`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches no prunable leaf, or the list of globs is empty; the role of a leaf could not be told.
        The message names the leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> prunable({'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}})
      {'dense': {'bias': False, 'kernel': True}}
    """
    return jax.tree.unflatten(
        jax.tree.structure(tree), chosen(tree, leaf_roles(tree, roles, batch_axes, parts=True), where)
    )


def chosen(tree: PyTree, known: tuple[LeafRole, ...], where: Where) -> list[bool]:
    """Like `prunable`, from the roles of the leaves; returns a list in the order of `jax.tree.leaves`."""
    leaves = jax.tree.leaves(tree)
    own = [(role.name, leaf) for role, leaf in zip(known, leaves, strict=True)]
    usual, unclear = [], []
    for role, leaf in zip(known, leaves, strict=True):
        there = is_floating(leaf) and len(leaf.shape) == len(role.shape)
        usual.append(there and (role.is_weight or role.is_unclear))
        unclear.append(there and role.is_unclear)
    found = by_where(own, usual, where, lambda name: next(r.why_left_alone for r in known if r.name == name))
    if any(unclear) and not callable(where):
        lines = [f"  {role.name}: {role.note}" for role, a, b in zip(known, found, unclear, strict=True) if a and b]
        if lines:
            raise ValueError(
                "the function uses these leaves in a way that does not tell whether they are weights; say which leaves "
                "are pruned by a predicate, where=lambda name, leaf: ..., or leave them out by globs:\n"
                + "\n".join(lines[:10])
            )
    return found


def selected(tree: PyTree, where: Where = None, roles: Roles | None = None, batch_axes: BatchAxes = 0) -> list[bool]:
    """Returns which leaves are pruned; like `prunable`, but raises if no leaf is selected.

    Args:
      tree: parameters, or any tree with the structure, shapes and dtypes of parameters.
      where: None, a predicate `(name, leaf) -> bool`, a glob, or a list of globs; see `prunable`.
      roles: the result of `find_roles`; None for the conventions.
      batch_axes: the stacked axes that the caller names; see `masks.Units`.

    Returns:
      A list of Python bools, in the order of `jax.tree.leaves`.

    Raises:
      TypeError: `where` has another type, or its predicate selects a leaf that is not floating.
      ValueError: a glob matches no prunable leaf; no leaf is selected. The message lists the leaves of the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> selected({'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}})
      [False, True]
    """
    known = leaf_roles(tree, roles, batch_axes, parts=True)
    found = chosen(tree, known, where)
    if any(found):
        return found
    if tree is None or (jax.tree.structure(tree) == jax.tree.structure(0) and not is_array(tree)):
        raise ValueError(
            f"there is nothing to prune: params must be a tree of arrays, such as variables['params'] of a Flax model; "
            f"got {shown(tree)}"
        )
    said = lambda leaf, role: f", {role.why_left_alone}" if where is None and is_floating(leaf) else ""
    lines = [
        f"  {name or '(the tree itself)'}: {kind(leaf)}{said(leaf, role)}"
        for (name, leaf), role in zip(paths.named_leaves(tree), known, strict=True)
    ]
    lines = lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else [])
    rule = (
        "where=None takes floating weights of two axes or more" if where is None else "the predicate is False for all"
    )
    raise ValueError(
        f"there is nothing to prune: {rule}; pass a predicate where=lambda name, leaf: ... that is True for a floating "
        "leaf. The leaves are:\n" + ("\n".join(lines) or "  (none: the tree is empty)")
    )
