"""`quantise`: sparse integers and scales in place of weights, by one sweep of SparseGPT and GPTQ; `Quantised`."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.calibration import Stats
from jaxprune.masks import Pruned
from jaxprune.prune import How
from jaxprune.reconstruction.plan import Leaf, plan
from jaxprune.reconstruction.reconstruct import check_finite, run_matrices
from jaxprune.reconstruction.removal import Given, Target
from jaxprune.reconstruction.sparsegpt import Grid, sparse_gptq

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """A parameter as integers times scales; a pytree whose two arrays any library reads.

    `values * scale` are the weights if each output has one scale. Otherwise each entry of `scale` holds for
    `values.shape[i] / scale.shape[i]` consecutive positions of axis i, as in `qwix.QArray(qvalue, scale)`. A removed
    weight is the integer 0, so it is exactly 0.

    Attributes:
      values: int8, in the shape of the parameter; with 4 bits from -8 to 7, so that `values.astype(jnp.int4)` is exact.
      scale: float32, as many axes as the parameter.
    """

    values: jax.Array
    scale: jax.Array

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        """Returns the weights as floating numbers.

        Example:
          >>> Quantised(jnp.array([[2], [-1]], jnp.int8), jnp.array([[0.5]])).dense().tolist()
          [[1.0], [-0.5]]
        """
        scale = self.scale
        for axis, (size, parts) in enumerate(zip(self.values.shape, scale.shape, strict=True)):
            scale = jnp.repeat(scale, size // parts, axis)
        return (self.values * scale).astype(dtype)


def quantise(
    params: PyTree,
    stats: Stats | None,
    sparsity: Any = None,
    *,
    bits: int = 8,
    group: int | None = None,
    damping: float = 0.01,
    block: int = 128,
    masks: PyTree | None = None,
    **how: Unpack[How],
) -> Pruned:
    r"""Prunes parameters and rounds the kept weights to integers, in one sweep on the same inverse Gram matrix.

    Each weight is removed or rounded in turn, and the later weights of its output compensate for the error (Frantar and
    Alistarh 2023, arXiv 2301.00774, section 3.5; Frantar et al. 2022, GPTQ, arXiv 2210.17323, Algorithm 1). The outputs
    change less than by pruning first and rounding afterwards, because pruning no longer relies on weights that rounding
    moves. Rounding is symmetric: with b bits the scale is the largest magnitude divided by $2^{b-1} - 1/2$, and zero is
    an integer.

    Args:
      params: the parameters that were calibrated, any pytree.
      stats: the result of `jaxprune.calibrate`, with Gram matrices.
      sparsity: the fraction removed from each leaf, in [0, 1): a number, a mapping from globs or a tree; 0.0 for
        rounding alone; None with an N:M pattern or masks. See `reconstruct`.
      bits: the number of bits of an integer, 2 to 8; default 8.
      group: how many consecutive inputs of an output share a scale. It must divide the number of inputs, and it needs
        leaves whose inputs have a single axis of their own. Default None: one scale for each output.
      damping: added to the diagonal of the Gram matrix, relative to the diagonal's mean; default 0.01.
      block: the number of inputs whose mask is chosen together; default 128; see `sparsegpt`.
      masks: masks to use unchanged, or None (default): then a criterion, if one is passed, or the sweep chooses masks.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key; see `reconstruct`.

    Returns:
      `Pruned(params, masks)`. Each leaf that `where` selects is a `Quantised`; `dequantise` returns plain arrays. A
      kept weight may round to 0 as well.

    Raises:
      ValueError: `bits` is out of range, `group` does not fit a leaf, or an error of `reconstruct`; the message names
        the leaves.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> weight = jax.random.normal(jax.random.key(0), (8, 4))
      >>> stats = calibrate(lambda w, x: x @ w, weight, [jax.random.normal(jax.random.key(1), (100, 8))])
      >>> new = quantise(weight, stats, 0.5, bits=4)
      >>> new.params.values.dtype.name, new.params.scale.shape, int((new.params.values == 0).sum())
      ('int8', (1, 4), 16)
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, got {bits}")
    wanted = plan(params, stats, sparsity, masks, how, "quantise", "gram")
    wrong = [problem for leaf in wanted.leaves if (problem := _problem(leaf, group))]
    if wrong:
        raise ValueError(f"groups of {group} inputs do not fit these leaves:\n" + "\n".join(f"  {x}" for x in wrong))
    new, treedef = jax.tree.flatten(params)
    kept, swept = [jnp.ones((), bool)] * len(new), []
    for leaf, target in wanted.of(params, stats, wanted.leaves):
        dense, scale, mask = _quantise(leaf, target, bits, group, damping=damping, block=block)
        swept.append(dense)
        new[leaf.position] = Quantised(jnp.round(dense / scale).astype(jnp.int8), _short(leaf, scale, group))
        kept[leaf.position] = kept[leaf.position] if target is None else mask
    check_finite(wanted.leaves, swept)
    return Pruned(jax.tree.unflatten(treedef, new), jax.tree.unflatten(treedef, kept))


def dequantise(params: PyTree, dtype: Any = jnp.float32) -> PyTree:
    """Returns the tree with each `Quantised` replaced by its weights; other leaves are unchanged.

    Args:
      params: a tree that may contain `Quantised`.
      dtype: the floating dtype of the weights; default float32.

    Returns:
      A tree in the structure of the parameters that were quantised.

    Example:
      >>> dequantise({'w': Quantised(jnp.array([[2]], jnp.int8), jnp.array([[0.5]])), 'b': jnp.ones(1)})['w'].tolist()
      [[1.0]]
    """
    is_quantised = lambda x: isinstance(x, Quantised)
    return jax.tree.map(lambda x: x.dense(dtype) if is_quantised(x) else x, params, is_leaf=is_quantised)


def _problem(leaf: Leaf, group: int | None) -> str | None:
    label, layout, inputs = _tree.label(leaf.name), leaf.inputs.layout, leaf.inputs.layout.sizes[1]
    if any(factor.size != layout.shape[factor.of.axis] for factor in layout.inputs):
        return f"{label}: its inputs are a part of an axis of {layout.shape}; exclude this leaf by where"
    if group is None:
        return None
    if len(layout.input_axes) > 1:
        return f"{label}: its inputs have the axes {layout.input_axes}; leave group out for one scale for each output"
    return f"{label}: {inputs} inputs are not a multiple" if group < 1 or inputs % group else None


def _quantise(
    leaf: Leaf, target: Target | None, bits: int, group: int | None, **options: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the rounded weights, their scales and the mask, each in the shape of the leaf."""
    layout = leaf.inputs.layout
    matrices = layout.matrices(jnp.asarray(leaf.array))
    grid = Grid(bits, group or matrices.shape[1])
    target = Given(jnp.ones(matrices.shape, bool)) if target is None else target
    kernel = partial(_kernel, grid, tuple(sorted(options.items())))
    (new, scales), mask = run_matrices(matrices, leaf.inputs.gram, target, kernel)
    return layout.leaf(new), layout.leaf(jnp.repeat(scales, grid.group, 1)), layout.leaf(mask)


def _kernel(grid: Grid, options: tuple[tuple[str, Any], ...], weight: Any, gram_matrix: Any, target: Target) -> Any:
    return sparse_gptq(weight, gram_matrix, target, grid, **dict(options))


def _short(leaf: Leaf, scale: jax.Array, group: int | None) -> jax.Array:
    """Returns the scales without repetition along the inputs."""
    layout = leaf.inputs.layout
    strides = [slice(None)] * scale.ndim
    for axis in layout.input_axes:
        strides[axis] = slice(None, None, group or layout.shape[axis])
    return scale[tuple(strides)]
