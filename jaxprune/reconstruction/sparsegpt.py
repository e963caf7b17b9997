r"""`sparsegpt`: one sweep over the inputs that removes weights and updates the later inputs to compensate.

Frantar and Alistarh 2023 (arXiv 2301.00774), Algorithm 1. With $H^{-1} = U^T U$, removing $w_i$ changes the later
weights by $-\frac{w_i}{U_{ii}} U_{i,i+1:}$, and its saliency is $(w_i / U_{ii})^2$. Updates are delayed: a column
updates its panel, a panel its block, a block everything after it, so that nearly all work is matrix products.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.reconstruction import gram, removal

_PANEL = 16


def sparsegpt(
    weight: jax.Array,
    gram_matrix: jax.Array,
    target: removal.Target,
    *,
    damping: float | jax.Array = 0.01,
    block: int = 128,
) -> tuple[jax.Array, jax.Array]:
    r"""Prunes one weight matrix and repairs it in the same sweep (Frantar and Alistarh 2023, arXiv 2301.00774).

    The sweep runs over the inputs in order. With `Entries`, the mask of a block of inputs is chosen when the sweep
    reaches the block, by $(w_i / U_{ii})^2$ among all entries of the block. After a block that ends at row $r$,
    $\lfloor k r / \text{inputs} + 1/2 \rfloor$ entries are removed, so the total is exactly $k$. With `Grouped`, the
    mask of a group is chosen when the sweep reaches the group. Of equal saliencies the lowest index is kept.

    A dead input (always zero) has saliency 0, and its kept weights are not changed. An output whose error after the
    sweep is larger than with the mask alone (damping can cause this) keeps its masked weights.

    Args:
      weight: float[inputs, outputs]; computed in float32 at least.
      gram_matrix: float[inputs, inputs], $X^T X$ of the inputs, in any scale.
      target: what to remove: `Entries`, `Grouped` or `Given`.
      damping: added to the diagonal of the Gram matrix, relative to the diagonal's mean; 0 or more; default 0.01.
      block: the number of inputs whose mask is chosen together and whose updates are delayed together; static; default
        128. With `Grouped` it is rounded to a multiple of m.

    Returns:
      `(weights, mask)`: weights in the dtype of `weight`, exact zeros where the bool mask is False. Kept
      weights are NaN if the damped Gram matrix is not positive definite.

    Raises:
      ValueError: shapes do not fit, m does not divide the inputs, or `block` is not positive.

    Example:
      >>> w, x = jax.random.normal(jax.random.key(0), (8, 3)), jax.random.normal(jax.random.key(1), (50, 8))
      >>> new, mask = sparsegpt(w, x.T @ x, removal.Grouped(2, 4))
      >>> int(mask.sum()), bool(jnp.linalg.norm(x @ new - x @ w) < jnp.linalg.norm(x @ jnp.where(mask, w, 0) - x @ w))
      (12, True)
    """
    removal.check(weight, gram_matrix, target)
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    plan = _plan(weight.shape[0], weight.shape[1], target, block)
    dead = gram_matrix.diagonal() <= 0
    upper = gram.inverse_factor(gram.damped(gram_matrix, damping))
    swept, mask = _sweep(weight.astype(upper.dtype), upper, dead, plan)
    return gram.no_worse(weight, swept, mask, gram_matrix), mask


class _Plan(NamedTuple):
    # The scan over blocks passes for_block to choose_block: counts, or pieces of a given mask.
    block: int
    panel: int
    for_block: Any
    choose_block: Callable[[Any, jax.Array], jax.Array]
    choose_panel: Callable[[jax.Array, jax.Array], jax.Array]


def _plan(inputs: int, outputs: int, target: removal.Target, block: int) -> _Plan:
    of_block = lambda mask, _: mask
    if isinstance(target, removal.Grouped):
        block = min(max(block // target.m, 1) * target.m, inputs)
        nothing = lambda _, saliency: jnp.ones(saliency.shape, bool)
        return _Plan(block, target.m, None, nothing, lambda _, saliency: removal.keep(saliency, target))
    panel = min(_PANEL, block, inputs)
    block = -(-min(block, inputs) // panel) * panel
    if isinstance(target, removal.Given):
        pieces = _padded(target.mask, block).reshape(-1, block, outputs)
        return _Plan(block, panel, pieces, lambda mask, _: mask, of_block)
    kept = removal.kept_by_block(target.removed, inputs, outputs, block)
    choose = lambda kept, saliency: removal.keep_largest(saliency, kept)
    return _Plan(block, panel, kept, choose, of_block)


def _padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(x, [(0, -x.shape[0] % block)] + [(0, 0)] * (x.ndim - 1))


def _sweep(weight: jax.Array, upper: jax.Array, dead: jax.Array, plan: _Plan) -> tuple[jax.Array, jax.Array]:
    inputs, block = weight.shape[0], plan.block
    padded = _padded(weight, block)
    extra = padded.shape[0] - inputs
    # Padding rows have infinite saliency and do not affect other rows; dead inputs have saliency 0.
    upper = jnp.pad(upper, ((0, extra), (0, extra)))
    scale = jnp.where(dead, 0.0, 1.0 / upper.diagonal()[:inputs])
    scale = jnp.pad(scale, (0, extra), constant_values=jnp.inf)

    def step(current: jax.Array, at: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        start, given = at
        rows = lax.dynamic_slice_in_dim(current, start, block)
        u = lax.dynamic_slice_in_dim(upper, start, block)
        own_u, own_scale = (lax.dynamic_slice_in_dim(x, start, block, axis) for x, axis in ((u, 1), (scale, 0)))
        mask = plan.choose_block(given, _saliency(rows, own_scale))
        rows, errors, mask = _block(rows, own_u, own_scale, mask, plan)
        # Rows before this block have zeros in u; the rows of the block are overwritten.
        current = current - gram.matmul(u.T, errors)
        return lax.dynamic_update_slice_in_dim(current, rows, start, 0), mask

    starts = jnp.arange(0, padded.shape[0], block)
    swept, mask = lax.scan(step, padded, (starts, plan.for_block))
    return swept[:inputs], mask.reshape(-1, weight.shape[1])[:inputs]


def _block(
    rows: jax.Array, u: jax.Array, scale: jax.Array, mask: jax.Array, plan: _Plan
) -> tuple[jax.Array, jax.Array, jax.Array]:
    panel = plan.panel

    def step(current: jax.Array, start: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        own, own_u, own_scale, own_mask = (lax.dynamic_slice_in_dim(x, start, panel) for x in (current, u, scale, mask))
        own_mask = plan.choose_panel(own_mask, _saliency(own, own_scale))
        own, errors = _panel(own, lax.dynamic_slice_in_dim(own_u, start, panel, 1), own_mask)
        current = current - gram.matmul(own_u.T, errors)
        return lax.dynamic_update_slice_in_dim(current, own, start, 0), (errors, own_mask)

    rows, (errors, mask) = lax.scan(step, rows, jnp.arange(0, plan.block, panel))
    return rows, errors.reshape(rows.shape), mask.reshape(rows.shape)


def _panel(rows: jax.Array, u: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    def column(current: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, u_row, kept = at
        pivot = jnp.where(u_row[i] == 0, 1.0, u_row[i])  # 0 on padding only
        error = jnp.where(kept, 0.0, current[i]) / pivot
        return current - u_row[:, None] * error, error

    rows, errors = lax.scan(column, rows, (jnp.arange(rows.shape[0]), u, mask))
    return jnp.where(mask, rows, 0.0), errors


def _saliency(rows: jax.Array, scale: jax.Array) -> jax.Array:
    # |w / U_ii| ranks like its square, which may under- or overflow. 0 * inf on padding must not become NaN.
    return jnp.where(jnp.isinf(scale)[:, None], jnp.inf, jnp.abs(rows) * scale[:, None])
