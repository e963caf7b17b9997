"""Names of leaves: `name` for people (`encoder/layer_0/kernel`), `identity` for programs, `with_paths` for a tree.

Globs over these names: `by_where` for the argument `where`, `resolve` for mappings from globs to values.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from jaxprune._tree.arguments import call, is_array, shown

PyTree = Any
_LISTED = 50  # names in an error

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
    """Returns whether a node is a Flax box of one array: AxisMetadata such as `nn.Partitioned`, or an `nnx.Variable`.

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
    """Returns the leaves with their paths, in the order of `jax.tree.leaves`, for `name` and `identity`.

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


def label(name: str) -> str:
    """Returns the name of a leaf for a message; the name is empty if the tree is a single leaf.

    Example:
      >>> label('dense/kernel'), label('')
      ('dense/kernel', '(the tree itself)')
    """
    return name or "(the tree itself)"


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
    """Maps over a tree as `jax.tree.map` does, and passes the leaf's name as the first argument of `fn`.

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


Where = str | Sequence[str] | Callable[[str, Any], bool] | None


def is_floating(leaf: Any) -> bool:
    """Returns whether a leaf is an array (or a ShapeDtypeStruct) of real floating numbers.

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
      ValueError: a glob matches no floating leaf of two axes or more, or the list of globs is empty.

    Example:
      >>> has_two_axes({'embedding': jnp.ones((2, 3)), 'bias': jnp.ones(3)})
      {'bias': False, 'embedding': True}
    """
    named = named_leaves(tree)
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
    return of_names(rules, [name for name, _ in named_leaves(tree)], default=default, what=what)


def of_names(rules: Any, names: list[str], *, default: Any, what: str, kind: str = "leaf") -> list[Any]:
    """Returns one value for each name, as `resolve` does for leaves; errors say that no `kind` matches a glob."""
    if not isinstance(rules, Mapping):
        return [rules] * len(names)
    unmatched = [glob for glob in rules if not any(matches(name, glob) for name in names)]
    if unmatched:
        more = f"\n  and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = "\n".join(f"  {name}" for name in names[:_LISTED]) + more
        raise ValueError(f"{what}: no {kind} matches {', '.join(map(repr, unmatched))}; the names are:\n{listed}")
    return [next((value for glob, value in rules.items() if matches(name, glob)), default) for name in names]


def matches(name: str, glob: str) -> bool:
    """Returns whether a glob matches the name of a leaf or of a group of slices."""
    # Every name matches itself, even with brackets, which a glob reads as a set of characters.
    return name == glob or fnmatchcase(name, glob)
