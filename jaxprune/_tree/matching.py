"""Whether two trees belong together: `check_same`, `check_masks`, `align`; `map_mirrored` finds copies of a tree."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxprune._tree import paths
from jaxprune._tree.arguments import is_array, shown

PyTree = Any
_SHOWN = 10
_REAL, _IMAGINARY = ("real",), ("imaginary",)


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
    # A packed mask is a node, but represents one array. So does an NNX Variable, which has the shape of its array;
    # in masks it may have a Python True in place of the array, and then has no shape.
    one = lambda node: is_array(node) or (paths.is_box(node) and hasattr(node, "get_value"))
    structure, other_structure = (jax.tree.structure(t, is_leaf=one) for t in (tree, other))
    if structure == other_structure:
        return
    names, other_names = (
        [paths.name(path) or "(the tree itself)" for path, _ in paths.with_paths(t, is_array)] for t in (tree, other)
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


def map_mirrored(fn: Callable[[Any, Any, Any], Any], tree: PyTree, names: Sequence[tuple[str, ...]]) -> PyTree:
    """Maps over a tree, such as an optimizer's state, and tells for each leaf which parameter it mirrors.

    A subtree mirrors the parameters if it has a leaf at the path of every parameter, and no other leaves. An
    `optax.MaskedNode` and None stand for the parameters at and below them. The leaves `real` and `imaginary` below the
    path of a parameter, as `optax.contrib.split_real_and_imaginary` makes them, both mirror it.

    A leaf alone is not recognised by the end of its path: for the parameters `w` and `mu/w`, the leaf `mu/w` of Adam's
    state is the moment of `w`.

    Args:
      fn: `(path, leaf, name) -> leaf`, where `name` is the identity of the mirrored parameter, or None.
      tree: any tree.
      names: the `paths.identity` of each parameter.

    Returns:
      A tree in the structure of `tree`.

    Example:
      >>> map_mirrored(lambda path, leaf, name: name, {'mu': {'w': 1.0, 'b': 2.0}, 'count': 3}, [('w',), ('b',)])
      {'count': None, 'mu': {'b': ('b',), 'w': ('w',)}}
    """
    leaves = paths.with_paths(tree, _is_absent)
    keys = [paths.identity(path) for path, _ in leaves]
    absent = {key for key, (_, leaf) in zip(keys, leaves, strict=True) if _is_absent(leaf)}
    below: dict[tuple[str, ...], list[int]] = {}
    for i, key in enumerate(keys):
        for length in range(len(key) + 1):
            below.setdefault(key[:length], []).append(i)
    known = set(names)
    found: list[Any] = [None] * len(leaves)
    for root, places in below.items():
        rest = {keys[i][len(root) :]: i for i in places}
        gone = {path for path, i in rest.items() if keys[i] in absent}
        halves = {path[:-1] for path in rest if path[-1:] == _REAL and path[:-1] + _IMAGINARY in rest}
        own = {path: path[:-1] if path[:-1] in halves and path[-1:] in (_REAL, _IMAGINARY) else path for path in rest}
        present = {own[path] for path in rest.keys() - gone}
        here = lambda name, present=present, gone=gone: (
            name in present or not gone.isdisjoint(name[:length] for length in range(len(name) + 1))
        )
        if present <= known and all(map(here, names)):
            for path in rest.keys() - gone:
                found[rest[path]] = own[path]
    mapped = [
        leaf if _is_absent(leaf) else fn(path, leaf, name) for (path, leaf), name in zip(leaves, found, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=_is_absent), mapped)


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
    own, other = (jax.tree.leaves(t, is_leaf=is_array) for t in (params, masks))
    if own and all(map(_is_mask, own)) and not any(map(_is_mask, other)):
        raise TypeError("params are bool and masks are not: params and masks are swapped")
    pairs = zip(paths.named_leaves(params), jax.tree.leaves(masks, is_leaf=is_array), strict=True)
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
    leaves = paths.with_paths(masks, is_array)
    dtypes = [(paths.name(path), m.dtype if is_array(m) else np.asarray(m).dtype) for path, m in leaves]
    wrong = [f"  {name}: {dtype}" for name, dtype in dtypes if dtype != np.bool_]
    if wrong:
        raise TypeError(f"{what} must be bool (True = kept); use `mask != 0`:\n" + "\n".join(_shorten(wrong)))


def _is_absent(node: Any) -> bool:
    # Optimizers return None for the moments of a leaf whose gradient is None.
    return node is None or isinstance(node, optax.MaskedNode)


def _is_mask(leaf: Any) -> bool:
    return getattr(leaf, "dtype", type(leaf)) in (np.bool_, bool)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def _shorten(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"  and {more} more"] if more > 0 else lines
