"""Names of leaves: `name` for people (`encoder/layer_0/kernel`), `identity` for programs, `with_paths` for a tree."""

import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import keystr

PyTree = Any
Path = tuple[Any, ...]


def name(path: Path) -> str:
    """Returns the name for people: keys joined by `/`, without the `/value` of a box or Variable.

    Two leaves may share a name (`{'a/b': {'c': x}}` and `{'a': {'b/c': x}}`), so programs compare
    `identity(path)` instead.

    Args:
      path: a path from `with_paths`.

    Returns:
      A string; empty for a tree that is a single leaf.

    Example:
      >>> name(with_paths({'dense': {'kernel': 1.0}})[0][0])
      'dense/kernel'
    """
    return keystr(without_box(path), simple=True, separator="/")


def identity(path: Path) -> tuple[str, ...]:
    """Returns the path as a tuple of strings, one for each key, without the key of a box or Variable.

    Unlike `name` it never confuses two leaves of one tree. Unlike the path itself it is the same for a dict entry and
    an attribute of the same spelling, and with or without a Variable around the leaf.

    Args:
      path: a path from `with_paths`.

    Returns:
      A tuple for comparisons and for keys of dicts.

    Example:
      >>> identity(with_paths({'a/b': {'c': 1.0}})[0][0])
      ('a/b', 'c')
    """
    return tuple(keystr((key,), simple=True) for key in without_box(path))


def is_box(node: Any) -> bool:
    """Whether a node is a Flax box around one array: `nn.Partitioned` or another AxisMetadata, or an `nnx.Variable`.

    Args:
      node: anything.

    Returns:
      A Python bool.

    Example:
      >>> import flax.linen as nn
      >>> is_box(nn.Partitioned(1.0, names=())), is_box({'value': 1.0})
      (True, False)
    """
    # If Flax has not been imported, no node is a box.
    kinds = (("flax.core.meta", "AxisMetadata"), ("flax.nnx.variablelib", "Variable"))
    return isinstance(
        node, tuple(getattr(sys.modules[module], kind) for module, kind in kinds if module in sys.modules)
    )


def with_paths(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[Path, Any]]:
    """The leaves with their paths, in the order of `jax.tree.leaves`, for `name` and `identity`.

    It differs from `jax.tree_util.tree_flatten_with_path` for keys called `value`. The key of a Flax box stays an
    attribute, which names omit. A field of a NamedTuple or dataclass becomes a dict key, which names keep.

    Args:
      tree: any pytree; None does not count as a leaf.
      is_leaf: a function that says which nodes are leaves; default None.

    Returns:
      Pairs (path, leaf).

    Example:
      >>> from collections import namedtuple
      >>> Attention = namedtuple('Attention', ['query', 'value'])
      >>> [name(path) for path, _ in with_paths({'attn': Attention(1.0, 2.0)})]
      ['attn/query', 'attn/value']
    """
    stop = is_leaf or (lambda node: False)
    found: list[tuple[Path, Any]] = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: stop(node) or is_box(node))[0]:
        if is_box(node) and not stop(node):
            found += [(path + rest, leaf) for rest, leaf in jax.tree_util.tree_flatten_with_path(node, is_leaf)[0]]
        else:
            field = path and path[-1] == jax.tree_util.GetAttrKey("value")
            found.append(((*path[:-1], jax.tree_util.DictKey("value")) if field else path, node))
    return found


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns the leaves with their names, in the order of `jax.tree.leaves`.

    Args:
      tree: any pytree; None does not count as a leaf.

    Returns:
      Pairs (`name(path)`, leaf).

    Example:
      >>> named_leaves({'b': 2, 'a': {'c': 1}})
      [('a/c', 1), ('b', 2)]
    """
    return [(name(path), leaf) for path, leaf in with_paths(tree)]


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Like `jax.tree.map`, but passes the leaf's name as the first argument of `fn`.

    Args:
      fn: `(name, leaf, *leaves of the rest) -> anything`.
      tree: any pytree, which gives the structure.
      *rest: trees of the same structure, or with subtrees in place of leaves.

    Returns:
      A tree in the structure of `tree`.

    Raises:
      ValueError: a tree has another structure.

    Example:
      >>> map_named(lambda name, x: f'{name}={x}', {'a': {'c': 1}})
      {'a': {'c': 'a/c=1'}}
    """
    names = jax.tree.unflatten(jax.tree.structure(tree), [name(path) for path, _ in with_paths(tree)])
    return jax.tree.map(lambda _, *xs: fn(*xs), tree, names, tree, *rest)


def without_box(path: Path) -> Path:
    # nn.Partitioned and nnx.Variable are nodes with one child, whose key is an attribute called `value`. A dict may
    # have a key `value` too, and `with_paths` turns fields called `value` into dict keys; names keep both.
    boxed = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
    return path[:-1] if boxed else path
