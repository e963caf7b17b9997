"""The kernels on stacks of matrices, chosen by name: compiled once for each shape, whatever the sparsity."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.reconstruction import elimination, masked, repair, sweep, targets
from jaxprune.reconstruction.asked import Leaf, Wanted

Kernel = Callable[[jax.Array, jax.Array, targets.Target], tuple[jax.Array, jax.Array]]

_TOGETHER = 1 << 24  # entries of all the Gram matrices that are worked on at once
_DAMPING = {"sparsegpt": 0.01, "obs": 1e-4, "least_squares": 1e-4, "magnitude": 0.0, "wanda": 0.0}
METHODS = tuple(_DAMPING)


def needs(method: str | Kernel) -> str:
    """Which field of the statistics a method cannot do without."""
    return {"wanda": "square", "magnitude": "layout"}.get(method, "gram") if isinstance(method, str) else "gram"


def kernel_of(method: str | Kernel, damping: float | None, block: int) -> Callable:
    """A method with its options, as `prune_leaf` calls it.

    Raises:
      ValueError: there is no such method, or the damping is negative.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)} or a function, got {method!r}")
    if damping is None:
        damping = _DAMPING[method] if isinstance(method, str) else 0.0
    if damping < 0:
        raise ValueError(f"damping must not be negative, got {damping}")
    return partial(_run, method=method, damping=float(damping), block=block)


def prune_leaf(leaf: Leaf, wanted: Wanted, kernel: Callable, batch: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Runs a kernel on the matrices of a leaf, or on one of them.

    Args:
      leaf: the leaf.
      wanted: what to remove.
      kernel: one that `kernel_of` made.
      batch: which matrix; None for all of them.

    Returns:
      The leaf and its mask, with the other matrices as they are (and all kept).
    """
    layout = leaf.inputs.layout
    matrices = layout.matrices(jnp.asarray(leaf.array))
    at = slice(None) if batch is None else slice(batch, batch + 1)
    values = jax.tree.map(lambda x: x[at], wanted.values)
    matrix = leaf.inputs.gram if leaf.inputs.gram is not None else leaf.inputs.square
    matrix = jnp.zeros(matrices.shape[:2]) if matrix is None else matrix
    found = kernel(matrices[at], matrix[at], values, wanted.groups, wanted.make)
    new, mask = matrices.at[at].set(found[0]), jnp.ones(matrices.shape, bool).at[at].set(found[1])
    return layout.leaf(new), layout.leaf(mask)


@partial(jax.jit, static_argnames=("groups", "make", "method", "block"))
def _run(
    matrices: jax.Array,
    moments: jax.Array,
    values: Any,
    groups: targets.Grouped | None,
    make: Callable[[Any], targets.Target],
    *,
    method: str | Kernel,
    damping: jax.Array,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    def one(of: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        weight, moment, value = of
        return _apply(method, weight, moment, groups or make(value), damping, block)

    return _stacked(one, (matrices, moments, values))


def _stacked(one: Callable, of: tuple) -> tuple[jax.Array, jax.Array]:
    # All matrices by vmap, or so many at a time that their Gram matrices stay within bounds.
    n, size = len(of[0]), of[1].shape[1] ** 2
    chunk = max(d for d in range(1, n + 1) if n % d == 0 and (d == 1 or d * size <= _TOGETHER))
    return jax.vmap(one)(of) if chunk == n else lax.map(one, of, batch_size=chunk)


def _apply(
    method: str | Kernel, weight: jax.Array, moment: jax.Array, target: targets.Target, damping: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    if callable(method):
        return method(weight, moment, target)
    square = moment if moment.ndim == 1 else moment.diagonal()
    if method == "magnitude":
        return masked.magnitude(weight, target)
    if method == "wanda":
        return masked.wanda(weight, square, target)
    if method == "least_squares":
        mask = masked.wanda(weight, square, target)[1]
        return repair.least_squares(weight, moment, mask, damping=damping), mask
    if method == "obs":
        return elimination.obs(weight, moment, target, damping=damping)
    return sweep.sparsegpt(weight, moment, target, damping=damping, block=block)
