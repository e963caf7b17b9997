r"""`sparsegpt`: one sweep over the inputs that removes weights and updates the later inputs to compensate.

Frantar and Alistarh 2023 (arXiv 2301.00774), Algorithm 1. With $H^{-1} = U^T U$, removing $w_i$ changes the later
weights by $-\frac{w_i}{U_{ii}} U_{i,i+1:}$, and its saliency is $(w_i / U_{ii})^2$. Updates are delayed: a column
updates its panel, a panel its block, a block everything after it, so that nearly all work is matrix products.

`sparse_gptq` also rounds each kept weight to a grid of integers in the same sweep (section 3.5; Frantar et al. 2022,
GPTQ, arXiv 2210.17323): the later inputs then compensate for the weight minus its new value, whether it is removed or
rounded.
"""

import math
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
    mask of a group is chosen when the sweep reaches the group. If saliencies are equal, the lowest index is kept.

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
    factor = gram.inverse_factor(gram.damped(gram_matrix, damping))
    swept, mask, _ = _sweep(weight.astype(factor.dtype), factor, gram_matrix.diagonal() <= 0, plan)
    return gram.no_worse(weight, swept, mask, gram_matrix), mask


class Grid(NamedTuple):
    """The integers that weights are rounded to: -2^(bits - 1) to 2^(bits - 1) - 1 times a scale; static.

    Attributes:
      bits: the number of bits, 2 to 8.
      group: how many consecutive inputs of an output share a scale; the number of inputs for one scale an output.
    """

    bits: int
    group: int

    def scales(self, weight: jax.Array) -> jax.Array:
        """Returns scales, [groups, outputs]: a group's largest magnitude is half a step beyond the integers."""
        largest = jnp.abs(weight).reshape(-1, self.group, weight.shape[1]).max(1)
        return jnp.where(largest > 0, largest, 1.0) / (2 ** (self.bits - 1) - 0.5)

    def rounded(self, weight: jax.Array, scale: jax.Array) -> jax.Array:
        """Returns the nearest multiples of the scale; if two are equally near, the larger in magnitude."""
        half = 2 ** (self.bits - 1)
        # The largest magnitude of a group is half-way between two integers, where the last bit would decide.
        return jnp.clip(jnp.round(weight / scale * (1 + 2**-20)), -half, half - 1) * scale


def sparse_gptq(
    weight: jax.Array,
    gram_matrix: jax.Array,
    target: removal.Target,
    grid: Grid,
    *,
    damping: float | jax.Array = 0.01,
    block: int = 128,
    guard: bool = True,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    r"""Prunes one weight matrix and rounds its kept weights to integers times scales, in one sweep.

    The scale of a group of inputs is fixed when the sweep reaches the group, one scale for all inputs before the sweep.
    Weights that grow beyond their scale later are clipped. With `guard`, the function also rounds the weights of
    `sparsegpt`, with scales that hold them: plainly, and in a second sweep over the same mask. It returns the result of
    the smallest output error (for each output, but between masks of `Entries` for the whole matrix).

    Args:
      weight: float[inputs, outputs]; computed in float32 at least.
      gram_matrix: float[inputs, inputs], $X^T X$ of the inputs, in any scale.
      target: what to remove: `Entries`, `Grouped` or `Given`.
      grid: the integers.
      damping: see `sparsegpt`.
      block: see `sparsegpt`; rounded to a multiple of the grid's groups.
      guard: whether the result must be no worse than pruning first and rounding afterwards; static; default True.

    Returns:
      `((weights, scales), mask)`: float[inputs, outputs], multiples of the scales float[groups, outputs]; and the mask.

    Raises:
      ValueError: shapes do not fit, or groups do not divide the inputs.
    """
    removal.check(weight, gram_matrix, target)
    plan = _plan(weight.shape[0], weight.shape[1], target, block, grid)
    factor = gram.inverse_factor(gram.damped(gram_matrix, damping))
    wide, dead = weight.astype(factor.dtype), gram_matrix.diagonal() <= 0

    def plain(kept: jax.Array, mask: jax.Array) -> Any:
        scales = grid.scales(kept)
        return (grid.rounded(kept, jnp.repeat(scales, grid.group, 0)), scales), mask

    swept, mask, scales = _sweep(wide, factor, dead, plan)
    best = ((swept, scales), mask)
    if not guard:
        return best
    best = gram.better(wide, gram_matrix, best, plain(jnp.where(mask, wide, 0.0), mask))
    kept, mask, _ = _sweep(wide, factor, dead, plan._replace(grid=None))
    rounded = plain(gram.no_worse(wide, kept, mask, gram_matrix), mask)
    again = _plan(weight.shape[0], weight.shape[1], removal.Given(mask), block, grid)
    swept, _, scales = _sweep(wide, factor, dead, again, rounded[0][1])
    other = gram.better(wide, gram_matrix, rounded, ((swept, scales), mask))
    return gram.better(wide, gram_matrix, best, other, whole=isinstance(target, removal.Entries))


class _Plan(NamedTuple):
    # The scan over blocks passes for_block to choose_block: counts, or pieces of a given mask.
    block: int
    panel: int
    for_block: Any
    choose_block: Callable[[Any, jax.Array], jax.Array]
    choose_panel: Callable[[jax.Array, jax.Array], jax.Array]
    grid: Grid | None
    regroups: bool  # whether scales are fixed during the sweep


def _plan(inputs: int, outputs: int, target: removal.Target, block: int, grid: Grid | None = None) -> _Plan:
    # A block holds whole groups of N:M and of the grid, a group of the grid holds whole panels.
    regroups = grid is not None and grid.group < inputs
    whole = grid.group if grid is not None and regroups else 1
    of_block = lambda mask, _: mask
    if isinstance(target, removal.Grouped):
        if regroups and whole % target.m:
            raise ValueError(f"groups of {whole} inputs with a scale must hold whole groups of m = {target.m}")
        whole = max(whole, target.m)
        block = min(max(block // whole, 1) * whole, inputs)
        nothing = lambda _, saliency: jnp.ones(saliency.shape, bool)
        choose = lambda _, saliency: removal.keep(saliency, target)
        return _Plan(block, target.m, None, nothing, choose, grid, regroups)
    if regroups:
        panel, block = math.gcd(_PANEL, whole), max(block // whole, 1) * whole
    else:
        panel = min(_PANEL, block, inputs)
        block = -(-min(block, inputs) // panel) * panel
    if isinstance(target, removal.Given):
        pieces = _padded(target.mask, block).reshape(-1, block, outputs)
        return _Plan(block, panel, pieces, lambda mask, _: mask, of_block, grid, regroups)
    kept = removal.kept_by_block(target.removed, inputs, outputs, block)
    choose = lambda kept, saliency: removal.keep_largest(saliency, kept)
    return _Plan(block, panel, kept, choose, of_block, grid, regroups)


def _padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(x, [(0, -x.shape[0] % block)] + [(0, 0)] * (x.ndim - 1))


def _sweep(
    weight: jax.Array, factor: jax.Array, dead: jax.Array, plan: _Plan, first: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the sweep over the blocks of inputs.

    Args:
      weight: [inputs, outputs].
      factor: [inputs, inputs], the upper triangular V that `gram.inverse_factor` returns.
      dead: bool [inputs], whether an input is always zero.
      plan: the sizes of blocks and panels, and how masks and scales are chosen.
      first: [1, outputs], the scales if each output has one scale; by default the scales of the weights before the
        sweep.

    Returns:
      The swept weights, the mask, both [inputs, outputs], and the scales [groups, outputs]; ones without a grid.
    """
    inputs, outputs, block, grid = *weight.shape, plan.block, plan.grid
    padded = _padded(weight, block)
    extra, blocks = padded.shape[0] - inputs, padded.shape[0] // block
    piece = block * next((d for d in range(8, 3, -1) if blocks % d == 0), blocks)  # rows updated together
    # Padding rows have infinite saliency and do not affect other rows; dead inputs have saliency 0.
    scale = jnp.where(dead, 0.0, 1.0 / factor.diagonal()[::-1])
    factor = jnp.pad(factor, ((extra, 0), (extra, 0)))
    scale = jnp.pad(scale, (0, extra), constant_values=jnp.inf)
    if grid is None or plan.regroups:
        scales = jnp.ones((1, outputs), weight.dtype)
    else:
        scales = grid.scales(weight) if first is None else first

    def step(current: jax.Array, at: tuple[jax.Array, Any]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        start, given = at
        rows = lax.dynamic_slice_in_dim(current, start, block)
        # Rows of U, from columns of the factor.
        u = jnp.flip(lax.dynamic_slice_in_dim(factor, padded.shape[0] - start - block, block, 1)).T
        own_u, own_scale = (lax.dynamic_slice_in_dim(x, start, block, axis) for x, axis in ((u, 1), (scale, 0)))
        mask = plan.choose_block(given, _saliency(rows, own_scale))
        rows, errors, mask, steps = _block(rows, own_u, own_scale, mask, scales[0], plan)

        # The product u.T @ errors would be as large as the weights: it is subtracted piece by piece. Pieces that end
        # before the next block have zeros in u, and are skipped. The rows of the block are overwritten.
        def update(i: jax.Array, x: jax.Array) -> jax.Array:
            columns, later = (lax.dynamic_slice_in_dim(of, i * piece, piece, axis) for of, axis in ((u, 1), (x, 0)))
            return lax.dynamic_update_slice_in_dim(x, later - gram.matmul(columns.T, errors), i * piece, 0)

        current = lax.fori_loop((start + block) // piece, padded.shape[0] // piece, update, current)
        return lax.dynamic_update_slice_in_dim(current, rows, start, 0), (mask, steps)

    starts = jnp.arange(0, padded.shape[0], block)
    swept, (mask, steps) = lax.scan(step, padded, (starts, plan.for_block))
    if grid is not None and plan.regroups:
        scales = steps.reshape(-1, outputs)[:: grid.group // plan.panel][: inputs // grid.group]
    return swept[:inputs], mask.reshape(-1, outputs)[:inputs], scales


def _block(
    rows: jax.Array, u: jax.Array, scale: jax.Array, mask: jax.Array, first: jax.Array, plan: _Plan
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    panel, grid = plan.panel, plan.grid

    def step(
        state: tuple[jax.Array, jax.Array], start: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        current, steps = state
        own, own_u, own_scale, own_mask = (lax.dynamic_slice_in_dim(x, start, panel) for x in (current, u, scale, mask))
        own_mask = plan.choose_panel(own_mask, _saliency(own, own_scale))
        if grid is not None and plan.regroups:
            fresh = grid.scales(lax.dynamic_slice_in_dim(current, start, grid.group))[0]
            steps = jnp.where(start % grid.group == 0, fresh, steps)
        own, errors = _panel(own, lax.dynamic_slice_in_dim(own_u, start, panel, 1), own_mask, steps, grid)
        current = current - gram.matmul(own_u.T, errors)
        return (lax.dynamic_update_slice_in_dim(current, own, start, 0), steps), (errors, own_mask, steps)

    (rows, _), (errors, mask, steps) = lax.scan(step, (rows, first), jnp.arange(0, plan.block, panel))
    return rows, errors.reshape(rows.shape), mask.reshape(rows.shape), steps


def _panel(
    rows: jax.Array, u: jax.Array, mask: jax.Array, steps: jax.Array, grid: Grid | None
) -> tuple[jax.Array, jax.Array]:
    def column(current: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, u_row, kept = at
        pivot = jnp.where(u_row[i] == 0, 1.0, u_row[i])  # 0 on padding only
        lost = current[i] if grid is None else current[i] - grid.rounded(current[i], steps)
        error = jnp.where(kept, 0.0 if grid is None else lost, current[i]) / pivot
        return current - u_row[:, None] * error, error

    rows, errors = lax.scan(column, rows, (jnp.arange(rows.shape[0]), u, mask))
    # A rounded row holds its rounded weights but for the last bits of the subtraction.
    return jnp.where(mask, rows if grid is None else grid.rounded(rows, steps), 0.0), errors


def _saliency(rows: jax.Array, scale: jax.Array) -> jax.Array:
    # |w / U_ii| ranks like its square, which may under- or overflow. 0 * inf on padding must not become NaN.
    return jnp.where(jnp.isinf(scale)[:, None], jnp.inf, jnp.abs(rows) * scale[:, None])
