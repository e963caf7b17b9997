"""`Pruned`, pruned parameters with a table of all leaves; `summary`, the sparsities for a log."""

import html
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from jaxprune import _tree
from jaxprune.masks.algebra import count_mask, fitted
from jaxprune.masks.packing import as_bool, is_packed
from jaxprune.masks.pattern import Pattern

PyTree = Any


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
        """The parameters, then the masks."""
        yield self.params
        yield self.masks

    def __str__(self) -> str:
        if jax.tree.structure(self.params) != jax.tree.structure(self.masks, is_leaf=is_packed):  # such as integers
            return f"Pruned({_tree.shown(self.params)}, {_tree.shown(self.masks)})"
        rows, total = self._table()
        return f"{_tree.table(rows)}\n{total}"

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
      params: the parameters, of which only the shapes are read.
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
    """For each leaf the number of removed entries, and of all its entries."""
    shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(params))
    kept = _kept(masks, shapes)
    return [(math.prod(shape) - int(count), math.prod(shape)) for shape, count in zip(shapes, kept, strict=True)]


def _fraction(counted: Iterable[tuple[int, int]]) -> float:
    """The removed entries of some leaves over all their entries; 0 without entries."""
    removed, entries = map(sum, zip((0, 0), *counted, strict=True))
    return removed / entries if entries else 0.0


@partial(jax.jit, static_argnums=1)
def _kept(masks: list[Any], shapes: tuple[tuple[int, ...], ...]) -> list[Any]:
    """The number of kept entries of each leaf: a Count."""
    return [count_mask(jnp.asarray(as_bool(mask)), shape) for mask, shape in zip(masks, shapes, strict=True)]
