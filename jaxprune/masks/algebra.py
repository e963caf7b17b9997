"""Functions of masks: `apply` sets weights to zero, `unite` and others combine, `sparsity` and `count_kept` count.

`Pruned` holds pruned parameters with their masks and prints a table of all leaves; `summary` returns sparsities for a
log.
"""

import html
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from jaxprune import _tree
from jaxprune.masks._exact import counts
from jaxprune.masks._exact.counts import Count
from jaxprune.masks.packing import as_bool, is_packed
from jaxprune.masks.pattern import Pattern
from jaxprune.masks.select import Units, assemble, leaves, ones_of

PyTree = Any


def apply(params: PyTree, masks: PyTree) -> PyTree:
    """Returns the parameters with exact zeros where the masks are False.

    The function selects and does not multiply, so infinite and NaN entries become 0 where they are removed. Leaves that
    are not pruned are returned unchanged, and every leaf keeps its dtype.

    Args:
      params: any pytree.
      masks: bool or packed masks in the structure of `params`; each mask broadcasts to its leaf. The containers may
        differ from the containers of `params`, such as the Variables in an `nnx.Optimizer`.

    Returns:
      A tree in the structure of `params`.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> apply({'w': jnp.array([[1.0, 2.0]])}, {'w': jnp.array([[True, False]])})['w'].tolist()
      [[1.0, 0.0]]
    """
    masks = fitted(params, masks)
    leaves, treedef = jax.tree.flatten(params)
    given = treedef.flatten_up_to(masks)
    # A True that is known now needs no computation, and its leaf need not be an array.
    places = [k for k, mask in enumerate(given) if not _is_known_true(mask)]
    zeroed = _tree.each(_zero, [leaves[k] for k in places], [given[k] for k in places], on_host=_zero_on_host)
    for k, leaf in zip(places, zeroed, strict=True):
        leaves[k] = leaf
    return treedef.unflatten(leaves)


def ones(params: PyTree, **units: Unpack[Units]) -> PyTree:
    """Returns masks that keep all weights, in the shapes of `select`: a scalar True for a leaf that is not pruned.

    Args:
      params: any pytree, or its shapes.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. `where` may select nothing.

    Returns:
      bool masks, all True, in the structure of `params`.

    Raises:
      ValueError: a glob matches no leaf; a pattern does not fit its leaf.
      TypeError: `pattern` is not a pattern; `where` selects a leaf that is not floating.

    Example:
      >>> ones({'w': jnp.zeros((1, 2)), 'b': jnp.zeros(2)})
      {'b': Array(True, dtype=bool), 'w': Array([[ True,  True]], dtype=bool)}
    """
    return assemble(params, {leaf.place: ones_of(leaf) for leaf in leaves(params, **units)})


def invert(masks: PyTree, params: PyTree) -> PyTree:
    """Returns masks that are True at removed weights, and False in full shape for a leaf that is not pruned.

    Use the result to count or to look at removed entries. Do not prune with it: it keeps no entry of a leaf that is
    not pruned.

    Args:
      masks: bool or packed masks.
      params: the parameters; only their shapes are read.

    Returns:
      bool arrays in the shapes of the parameters.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> params = {'w': jnp.ones((1, 2)), 'b': jnp.ones(2)}
      >>> {name: x.tolist() for name, x in invert({'w': jnp.array([[True, False]]), 'b': True}, params).items()}
      {'b': [False, False], 'w': [[False, True]]}
    """
    masks = fitted(params, masks)
    return jax.tree.map(lambda leaf, mask: jnp.broadcast_to(~jnp.asarray(as_bool(mask)), _shape(leaf)), params, masks)


def intersect(masks: PyTree, *others: PyTree) -> PyTree:
    """Returns the masks that keep the entries which all given masks keep.

    Args:
      masks: bool or packed masks.
      *others: masks of the same parameters, bool or packed; shapes may differ where they broadcast.

    Returns:
      bool masks in the structure of `masks`.

    Raises:
      ValueError, TypeError: the trees are not masks of the same parameters; the message names the leaves.

    Example:
      >>> intersect(jnp.array([True, True]), jnp.array([True, False])).tolist()
      [True, False]
    """
    return _fold(operator.and_, masks, *others)


def unite(masks: PyTree, *others: PyTree) -> PyTree:
    """Returns the masks that keep the entries which any of the given masks keeps.

    Args:
      masks: bool or packed masks.
      *others: masks of the same parameters, bool or packed; shapes may differ where they broadcast.

    Returns:
      bool masks in the structure of `masks`.

    Raises:
      ValueError, TypeError: the trees are not masks of the same parameters; the message names the leaves.

    Example:
      >>> unite(jnp.array([True, False]), jnp.array([False, False])).tolist()
      [True, False]
    """
    return _fold(operator.or_, masks, *others)


def difference(masks: PyTree, other: PyTree) -> PyTree:
    """Returns the masks that keep the entries which `masks` keeps and `other` removes.

    A leaf that `other` does not prune has no entry left.

    Args:
      masks: bool or packed masks.
      other: masks of the same parameters, bool or packed; shapes may differ where they broadcast.

    Returns:
      bool masks in the structure of `masks`.

    Raises:
      ValueError, TypeError: the trees are not masks of the same parameters; the message names the leaves.

    Example:
      >>> difference(jnp.array([True, True]), jnp.array([True, False])).tolist()
      [False, True]
    """
    return _fold(lambda a, b: a & ~b, masks, other)


def overlap(params: PyTree, masks: PyTree, other: PyTree) -> jax.Array:
    r"""Returns the intersection over union of two mask trees, $|A \cap B| / |A \cup B|$, over all pruned leaves.

    Args:
      params: the parameters; only their shapes are read.
      masks: bool or packed masks of `params`.
      other: bool or packed masks of `params`.

    Returns:
      float32 in [0, 1]; 1 if neither keeps an entry, or no leaf is pruned.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> a, b = {'w': jnp.array([[True, True]])}, {'w': jnp.array([[True, False]])}
      >>> float(overlap({'w': jnp.ones((1, 2))}, a, b))
      0.5
    """
    masks, other = fitted(params, masks), fitted(params, other)
    pruned = [
        (np.shape(leaf), as_bool(a), as_bool(b))
        for leaf, a, b in zip(jax.tree.leaves(params), _leaves(params, masks), _leaves(params, other), strict=True)
        if np.ndim(a) or np.ndim(b)
    ]
    if not pruned:
        return jnp.float32(1)
    shapes = tuple(shape for shape, _, _ in pruned)
    both = _total(_kept([a & b for _, a, b in pruned], shapes))
    either = _total(_kept([a | b for _, a, b in pruned], shapes))
    ratio = counts.as_float(both) / counts.as_float(either)
    return jnp.where(counts.equal(either, Count.of(0)), jnp.float32(1), ratio)


def count_kept(params: PyTree, masks: PyTree) -> PyTree:
    """Returns the number of kept entries of each leaf, exactly.

    Args:
      params: any pytree, or its shapes.
      masks: bool or packed masks of `params`.

    Returns:
      A tree in the structure of `params` with a `Count` for each leaf; `int(count)` is a Python integer.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> kept = count_kept({'w': jnp.ones((2, 2))}, {'w': jnp.array([[True, False]])})
      >>> int(kept['w'])
      2
    """
    masks = fitted(params, masks)
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(_kept(structure.flatten_up_to(masks), tuple(map(_shape, leaves))))


def sparsity(params: PyTree, masks: PyTree, *, where: _tree.Where = None) -> jax.Array:
    """Returns the fraction of removed entries, among the leaves that are pruned.

    Args:
      params: any pytree.
      masks: bool or packed masks of `params`.
      where: which leaves count: a predicate, a glob or a list of globs; see `masks.Units`. None counts the leaves whose
        mask is not a scalar.

    Returns:
      float32 in [0, 1], counted exactly and rounded once; 0 if no leaf counts.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> float(sparsity({'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}, {'w': jnp.array([[True, False]]), 'b': True}))
      0.5
    """
    masks = fitted(params, masks)
    mask_leaves = _leaves(params, masks)
    chosen = [np.ndim(m) > 0 for m in mask_leaves] if where is None else jax.tree.leaves(_tree.prunable(params, where))
    triples = zip(jax.tree.leaves(params), mask_leaves, chosen, strict=True)
    pairs = [(_shape(leaf), mask) for leaf, mask, yes in triples if yes]
    if not pairs:
        return jnp.float32(0)
    entries = Count.of(sum(math.prod(shape) for shape, _ in pairs))
    kept = _total(_kept([mask for _, mask in pairs], tuple(shape for shape, _ in pairs)))
    return counts.as_float(counts.subtract(entries, kept)) / jnp.maximum(counts.as_float(entries), 1)


def _is_known_true(mask: Any) -> bool:
    return not is_packed(mask) and not isinstance(mask, core.Tracer) and not np.ndim(mask) and bool(mask)


def _zero(leaf: Any, mask: Any) -> Any:
    return jnp.where(as_bool(mask, leaf), leaf, jnp.zeros((), leaf.dtype))


def _zero_on_host(leaf: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, leaf, np.zeros_like(leaf))  # NumPy is slower with a scalar zero


def _fold(combine: Callable[[Any, Any], Any], masks: PyTree, *others: PyTree) -> PyTree:
    _tree.check_bool(masks)
    for other in others:
        _tree.check_same(masks, other, what="the other masks", of="masks")
        _tree.check_bool(other, what="the other masks")
        _check_shapes(masks, other)
    combined = masks
    for other in others:
        combined = jax.tree.map(
            lambda a, b: combine(jnp.asarray(as_bool(a)), jnp.asarray(as_bool(b))), combined, other, is_leaf=is_packed
        )
    return combined


def _check_shapes(masks: PyTree, other: PyTree) -> None:
    """Raises unless both trees can be masks of the same parameters."""
    wrong = []
    named = _tree.with_paths(masks, is_packed)
    for (path, a), b in zip(named, jax.tree.leaves(other, is_leaf=is_packed), strict=True):
        one, two = np.shape(a), np.shape(b)
        alike = len(one) == len(two) and all(m == n or 1 in (m, n) for m, n in zip(one, two, strict=True))
        if one and two and not alike:
            wrong.append(f"  {_tree.name(path)}: {one} and {two}")
    if wrong:
        raise ValueError(
            "the two trees must be masks of the same parameters; these shapes do not match:\n" + "\n".join(wrong)
        )


def count_mask(mask: Any, shape: tuple[int, ...]) -> Count:
    """Returns the number of kept entries of a leaf: the number in the mask, times how often the mask repeats."""
    repeats = math.prod(shape) // max(1, math.prod(np.shape(mask)))
    mask = jnp.asarray(mask)
    entries = counts.total(mask.astype(jnp.int32).reshape(-1)) if mask.ndim < 2 else _count_rows(mask)
    return _times(entries, repeats)


def _count_rows(mask: jax.Array) -> Count:
    # Axis by axis from the last, so that no part exceeds 31 bits, and no axis is merged with another.
    partial = Count(jnp.zeros(mask.shape[:-1], jnp.int32), mask.sum(-1, dtype=jnp.int32))
    partial = counts.normalise(partial)
    while partial.low.ndim:
        partial = counts.sum_counts(partial, partial.low.ndim - 1)
    return partial


def _times(value: Count, factor: int) -> Count:
    if factor == 1:
        return value
    high, low = divmod(factor, 1 << 16)
    # (vh B + vl)(h B + l) with B = 2^16; a product below 2^47 has no room for vh h B^2.
    product = value.low.astype(jnp.uint32) * jnp.uint32(low)
    carry = (product >> 16).astype(jnp.int32)
    return Count(value.high * low + value.low * high + carry, (product & 0xFFFF).astype(jnp.int32))


def _total(parts: list[Count]) -> Count:
    return counts.sum_counts(Count(*(jnp.stack(limbs) for limbs in zip(*parts, strict=True))))


def fitted(params: PyTree, masks: PyTree) -> PyTree:
    """Checks masks, and returns them in the containers of the parameters; `nnx.Optimizer` wraps masks in Variables."""
    aligned = _tree.align(params, masks, what="masks", is_leaf=is_packed)
    _tree.check_masks(params, aligned)
    return aligned


def _leaves(params: PyTree, masks: PyTree) -> list[Any]:
    return jax.tree.structure(params).flatten_up_to(masks)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) if hasattr(leaf, "shape") else ()


@partial(
    jax.tree_util.register_dataclass, data_fields=["params", "masks"], meta_fields=["roles", "patterns", "reasons"]
)
@dataclass(frozen=True, repr=False)
class Pruned:
    """Pruned parameters, which unpack as `params, masks = pruned`.

    `print` shows a table with a row for each leaf: its shape, role and axes, its pattern and sparsity, or the reason
    why it was not pruned. A notebook shows the same table.

    Attributes:
      params: the parameters, exactly zero where the masks are False.
      masks: bool arrays in the structure of `params`, True = kept, each broadcasting to its leaf; a scalar True for a
        leaf that was not pruned.
      roles: the role of each leaf, for the table; empty for the conventions about names and types.
      patterns: the pattern of each leaf, with its axes, for the table; None for a leaf that was not pruned.
      reasons: for each leaf why it was not pruned, for the table, if its role does not tell; otherwise "".
    """

    params: PyTree
    masks: PyTree
    roles: tuple[_tree.LeafRole, ...] = ()
    patterns: tuple[Pattern | None, ...] = ()
    reasons: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[PyTree]:
        """Returns the parameters, then the masks."""
        yield self.params
        yield self.masks

    def __str__(self) -> str:
        if jax.tree.structure(self.params) != jax.tree.structure(self.masks, is_leaf=is_packed):  # such as integers
            return f"Pruned({_tree.shown(self.params)}, {_tree.shown(self.masks)})"
        (header, *rows), total = self._table()
        return f"{_tree.table(header, rows, numbers=False)}\n{total}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if jax.tree.structure(self.params) != jax.tree.structure(self.masks, is_leaf=is_packed):
            return html.escape(str(self))
        rows, total = self._table()
        head, *body = [[html.escape(cell) for cell in row] for row in rows]
        lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body]
        top = "".join(f"<th>{cell}</th>" for cell in head)
        return f"<table><tr>{top}</tr>{''.join(lines)}</table><p>{html.escape(total)}</p>"

    def _table(self) -> tuple[list[tuple[str, ...]], str]:
        masks = jax.tree.leaves(fitted(self.params, self.masks), is_leaf=is_packed)
        roles = self.roles or _tree.leaf_roles(self.params)
        patterns, reasons = self.patterns or (None,) * len(masks), self.reasons or ("",) * len(masks)
        traced = any(isinstance(x, core.Tracer) for x in jax.tree.leaves(masks))
        counted = [None] * len(masks) if traced else _removed(self.params, masks)
        rows = [("leaf", "shape", "role", "axes", "pattern", "sparsity")]
        for leaf, role, pattern, reason, mask, own in zip(
            jax.tree.leaves(self.params), roles, patterns, reasons, masks, counted, strict=True
        ):
            said = "traced" if own is None else f"{_fraction([own]):.4g}"
            if not np.ndim(mask):
                why = reason or ("not selected" if role.is_weight else role.why_left_alone)
                said = f"left alone: {why}" if _tree.is_floating(leaf) else "left alone: not floating"
            shown = repr(pattern) if pattern is not None and np.ndim(mask) else ""
            shape = "x".join(map(str, role.shape))
            rows.append((role.name, shape, role.role, ", ".join(role.axes), shown, said))
        if traced:
            return rows, "sparsity of the pruned leaves: traced"
        total = _fraction(own for own, mask in zip(counted, masks, strict=True) if own is not None and np.ndim(mask))
        return rows, f"sparsity of the pruned leaves: {total:.4g}"


def summary(params: PyTree, masks: PyTree) -> dict[str, float]:
    """Returns the sparsity of each pruned leaf and of all pruned leaves together, for TensorBoard, W&B or clu.

    Log it in one line: `wandb.log(masks.summary(params, jaxprune.get_masks(opt_state)))`.

    Args:
      params: the parameters; only their shapes are read.
      masks: bool or packed masks of `params`, such as the masks of `jaxprune.prune` or of an optimizer state.

    Returns:
      A flat dict of Python floats: "sparsity" for all pruned leaves together, and "sparsity/<name>" for each.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> summary({'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}, {'w': jnp.array([[True, False]]), 'b': jnp.array(True)})
      {'sparsity': 0.5, 'sparsity/w': 0.5}
    """
    listed = jax.tree.leaves(fitted(params, masks), is_leaf=is_packed)
    named = zip(_tree.named_leaves(params), listed, _removed(params, listed), strict=True)
    pruned = [(name, counted) for (name, _), mask, counted in named if np.ndim(mask)]
    each = {f"sparsity/{name}": _fraction([counted]) for name, counted in pruned}
    return {"sparsity": _fraction(counted for _, counted in pruned), **each}


def _removed(params: PyTree, masks: list[Any]) -> list[tuple[int, int]]:
    """Returns for each leaf the number of removed entries and the number of all entries."""
    shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(params))
    kept = _kept(masks, shapes)
    return [(math.prod(shape) - int(count), math.prod(shape)) for shape, count in zip(shapes, kept, strict=True)]


def _fraction(counted: Iterable[tuple[int, int]]) -> float:
    """Returns the removed entries of some leaves over all their entries; 0 without entries."""
    removed, entries = map(sum, zip((0, 0), *counted, strict=True))
    return removed / entries if entries else 0.0


def _kept(masks: list[Any], shapes: tuple[tuple[int, ...], ...]) -> list[Count]:
    """Returns the number of kept entries of each leaf."""
    if not all(isinstance(mask, bool | np.bool | np.ndarray) or _tree.at_hand(mask) for mask in masks):
        return _kept_compiled(masks, shapes)
    # NumPy counts without compiling a program for every shape.
    repeats = [math.prod(shape) // max(1, np.size(mask)) for mask, shape in zip(masks, shapes, strict=True)]
    found = [Count.of(int(np.count_nonzero(mask)) * n) for mask, n in zip(masks, repeats, strict=True)]
    return [Count(*(jnp.asarray(np.int32(limb)) for limb in count)) for count in found]


@partial(jax.jit, static_argnums=1)
def _kept_compiled(masks: list[Any], shapes: tuple[tuple[int, ...], ...]) -> list[Count]:
    return [count_mask(jnp.asarray(as_bool(mask)), shape) for mask, shape in zip(masks, shapes, strict=True)]
