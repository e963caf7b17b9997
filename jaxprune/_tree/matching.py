"""Checks whether two trees belong together: structures and masks; messages name all differences."""

from typing import Any

import jax
import numpy as np

from jaxprune._tree import paths
from jaxprune._tree.arguments import shown

PyTree = Any
_SHOWN = 10


def check_same(tree: PyTree, other: PyTree, *, what: str, of: str = "params") -> None:
    """Raises unless both trees have the same structure.

    Args:
      tree: the tree that sets the structure.
      other: the tree that must follow it.
      what: the name of `other` in the message.
      of: the name of `tree` in the message; default "params".

    Raises:
      ValueError: the structures differ; the message names the leaves that only one of them has.

    Example:
      >>> check_same({'a': 1, 'b': 2}, {'a': 3}, what='masks')
      Traceback (most recent call last):
      ValueError: masks must have the structure of params; they differ:
        b: in params, not in masks
    """
    # A packed mask is a node, but represents one array.
    structure, other_structure = (jax.tree.structure(t, is_leaf=_is_array) for t in (tree, other))
    if structure == other_structure:
        return
    names, other_names = (
        [paths.name(path) or "(the tree itself)" for path, _ in paths.with_paths(t, _is_array)] for t in (tree, other)
    )
    missing = [f"  {name}: in {of}, not in {what}" for name in names if name not in other_names]
    extra = [f"  {name}: in {what}, not in {of}" for name in other_names if name not in names]
    if not other_names or other_names == ["(the tree itself)"]:
        extra = [f"  {what} is {shown(other)}"]
    nodes = [f"  {of}: {structure}", f"  {what}: {other_structure}"]
    detail = _shorten(missing) + _shorten(extra) if len(extra) == 1 else _shorten(missing + extra)
    detail = detail or ["  same names, different containers (such as dict and FrozenDict):", *nodes]
    hints = [
        f"; of this {type(t).__name__} pass its .{field}"
        for t, field in ((tree, of), (other, what))
        if field in getattr(t, "_fields", getattr(t, "__dataclass_fields__", ()))
    ]
    raise ValueError(f"{what} must have the structure of {of}; they differ{''.join(hints)}:\n" + "\n".join(detail))


def align(tree: PyTree, other: PyTree, *, what: str, is_leaf: Any = None) -> PyTree:
    """Returns `other` with the containers of `tree`, if both have the same leaves by `paths.identity`.

    A dict and a FrozenDict, or Variables and their values, differ in structure but contain the same leaves.

    Args:
      tree: the tree that gives the structure.
      other: the tree that gives the leaves.
      what: the name of `other` in the message.
      is_leaf: a function that says which nodes of `other` are leaves; default None.

    Returns:
      The leaves of `other` in the structure of `tree`; `other` itself if it already has this structure.

    Raises:
      ValueError: the leaves differ; the message names the leaves that only one tree has.

    Example:
      >>> from flax.core import FrozenDict
      >>> align({'a': 1.0}, FrozenDict({'a': True}), what='masks')
      {'a': True}
    """
    if jax.tree.structure(tree) == jax.tree.structure(other, is_leaf=is_leaf):
        return other
    leaves = {paths.identity(p): x for p, x in paths.with_paths(other, is_leaf)}
    order = [paths.identity(path) for path, _ in paths.with_paths(tree)]
    if leaves.keys() != set(order) or len(leaves) != len(order):
        check_same(tree, other, what=what)
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in order])


def check_masks(params: PyTree, masks: PyTree) -> None:
    """Raises unless `masks` are masks of `params`: of the same structure, bool, each broadcasting to its parameter.

    Args:
      params: arrays, ShapeDtypeStructs, and leaves that are not arrays.
      masks: bool arrays; True for a leaf that is not pruned.

    Raises:
      ValueError: structure or shapes do not fit; the message names each leaf with both shapes.
      TypeError: a mask is not bool; 0 and 1 are not accepted.

    Example:
      >>> check_masks({'w': jnp.ones((2, 3)), 'b': jnp.ones(3)}, {'w': jnp.ones((1, 3), bool), 'b': True})
    """
    check_same(params, masks, what="masks")
    own, other = (jax.tree.leaves(t, is_leaf=_is_array) for t in (params, masks))
    if own and all(map(_is_mask, own)) and not any(map(_is_mask, other)):
        raise TypeError("params are bool and masks are not: params and masks are swapped")
    pairs = zip(paths.named_leaves(params), jax.tree.leaves(masks, is_leaf=_is_array), strict=True)
    check_bool(masks)
    shapes = []
    for (name, leaf), mask in pairs:
        expected, got = np.shape(leaf) if hasattr(leaf, "shape") else (), tuple(np.shape(mask))
        if not _broadcasts(got, expected):
            shapes.append(f"  {name}: mask {got}, parameter {expected}")
    if shapes:
        raise ValueError("each mask must broadcast to its parameter:\n" + "\n".join(_shorten(shapes)))


def check_bool(masks: PyTree, *, what: str = "masks") -> None:
    """Raises unless each leaf is a bool or packed mask of any shape.

    Args:
      masks: any tree.
      what: the name of the tree in the message; default "masks".

    Raises:
      TypeError: a leaf is not bool; 0 and 1 are not accepted. The message names the leaves.

    Example:
      >>> check_bool({'w': jnp.array([True, False]), 'b': True})
    """
    leaves = paths.with_paths(masks, _is_array)
    dtypes = [(paths.name(path), m.dtype if _is_array(m) else np.asarray(m).dtype) for path, m in leaves]
    wrong = [f"  {name}: {dtype}" for name, dtype in dtypes if dtype != np.bool_]
    if wrong:
        raise TypeError(f"{what} must be bool (True = kept); use `mask != 0`:\n" + "\n".join(_shorten(wrong)))


def _is_mask(leaf: Any) -> bool:
    return getattr(leaf, "dtype", type(leaf)) in (np.bool_, bool)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape") and hasattr(node, "dtype")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def _shorten(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"  and {more} more"] if more > 0 else lines
