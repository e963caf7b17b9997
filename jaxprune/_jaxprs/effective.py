"""Effective FLOPs: those that a network does not save by leaving out its removed weights."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxprune._jaxprs.flops import Operation


class Share(NamedTuple):
    """What one parameter leaf has to do with one operation.

    Attributes:
      leaf: its position among the inputs of the jaxpr.
      dense: the operation's FLOPs that multiply by this leaf.
      effective: those of them that multiply by a kept entry.
    """

    leaf: int
    dense: int
    effective: int


def shares(
    operation: Operation, shapes: Mapping[int, tuple[int, ...]], masks: Mapping[int, np.ndarray]
) -> tuple[Share, ...]:
    """An operation's FLOPs by parameter leaf, dense and effective.

    Every kept entry counts with the multiply-adds that it takes part in: all alike in a matrix product, in a
    convolution those at the border of a SAME kernel less often. A leaf that a scan slices counts slice by slice.

    Args:
      operation: one of `count_flops(...).operations`.
      shapes: the shape of each input of the jaxpr that is a parameter.
      masks: bool arrays that broadcast to these shapes, True = kept; a leaf without one is kept whole.

    Returns:
      One share for each leaf of the operation's weight; none if it has no weight.

    Example:
      >>> import jax
      >>> from jaxprune._jaxprs.flops import count_flops
      >>> closed = jax.make_jaxpr(lambda w, x: x @ w)(jnp.ones((3, 5)), jnp.ones((2, 3)))
      >>> shares(count_flops(closed, [0]).operations[0], {0: (3, 5)}, {0: np.eye(3, 5, dtype=bool)})
      (Share(leaf=0, dense=60, effective=12),)
    """
    if operation.weight is None:
        return ()
    leaves = operation.weight.leaves
    whole = {leaf: np.broadcast_to(np.True_, shapes[leaf]) for leaf in leaves}
    found = []
    for leaf in leaves:
        # Of a concatenation the other leaves count as absent.
        others = {other: np.broadcast_to(np.False_, shapes[other]) for other in leaves if other != leaf}
        dense = operation.flops if len(leaves) == 1 else _flops(operation, {**others, leaf: whole[leaf]})
        mask = masks.get(leaf)
        kept = dense if mask is None else _flops(operation, {**others, leaf: np.broadcast_to(mask, shapes[leaf])})
        found.append(Share(leaf, dense, kept))
    return tuple(found)


def _flops(operation: Operation, present: Mapping[int, np.ndarray]) -> int:
    weight, per_entry = operation.weight, operation.per_entry
    if weight is None or per_entry is None:
        return 0
    alike = tuple(axis for axis, size in enumerate(per_entry.shape) if size == 1)
    met = 0
    for view in weight.view(present):
        counted = np.count_nonzero(view, axis=alike, keepdims=True) if alike else view
        met += int((counted * per_entry).sum())
    return 2 * met * operation.repeats // weight.slices
