"""Reconstruction of whole trees: leaves to matrices by their layouts, kernels on these, and back."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.calibration import Stats
from jaxprune.masks import Pruned
from jaxprune.reconstruction import asked, gram, matrices

PyTree = Any


def reconstruct(
    params: PyTree,
    stats: Stats | None,
    sparsity: Any = None,
    *,
    method: str | matrices.Kernel = "sparsegpt",
    pattern: Any = None,
    masks: PyTree | None = None,
    where: _tree.Where = None,
    damping: float | None = None,
    block: int = 128,
) -> Pruned:
    r"""Prunes parameters in one shot and changes the weights that are kept so that outputs move little.

    Each leaf is one matrix [inputs, outputs] or a stack of them, as calibration found it to be used: dense kernels,
    convolutions (inputs are height x width x channels of the kernel), groups of a convolution, attention projections
    with head axes, scanned layers. Matrices are pruned each by itself; no output of one ever moves farther from its
    old values, on the activations seen, than with the same mask and no repair.

    Methods:
      "sparsegpt": Frantar and Alistarh 2023 (arXiv 2301.00774); see `sparsegpt`.
      "obs": exact OBS, Frantar, Singh and Alistarh 2022 (arXiv 2208.11580), for small layers; see `obs`.
      "least_squares": the mask of "wanda", the kept weights at their least squares optimum; see `least_squares`.
      "wanda": Sun et al. 2023 (arXiv 2306.11695), no repair; entries are removed from each output alike.
      "magnitude": the smallest weights of each matrix, no repair; needs no Gram matrices.
      A function `(weight [inputs, outputs], gram, target) -> (weight, mask)`: yours, traced by jit and vmap.

    Args:
      params: any tree; the ones that were calibrated.
      stats: what `calibrate` returned for them: with Gram matrices, for "wanda" squares, for "magnitude" anything.
      sparsity: the fraction removed from each leaf: a number, a mapping from globs to numbers (leaves that match none
        are not pruned), or a tree of numbers or `masks.Count` in the structure of `params`, such as an allocation's
        `sparsities`. Exactly $\lfloor s n + 1/2 \rfloor$ of a leaf's n entries are removed, spread evenly over its
        matrices ("wanda": and over outputs, rounded for each). May be None with `masks` and with n of m.
      method: one of the above.
      pattern: `masks.Unstructured()` (None) or `masks.NM(n, m)`, whose groups lie along the inputs in the order of the
        leaf's axes; a mapping from globs gives each leaf its own. For other structures, select masks and pass them.
      masks: masks to use as they are, for instance from `masks.select`; a leaf whose mask is a scalar True is left
        alone. Excludes `sparsity` and `pattern`.
      where: which leaves, see `_tree.prunable`; an error if one of them was not calibrated. By default all that were
        (`stats.uncovered` names those that could not be).
      damping: added to the Gram matrices' diagonal, in units of its mean; by default 0.01 for "sparsegpt", 1e-4 for
        "obs" and "least_squares".
      block: how many inputs "sparsegpt" takes at a time.

    Returns:
      `Pruned(params, masks)`; dtypes are kept, and a leaf that is not pruned is the same array.

    Raises:
      ValueError: a leaf has no statistics, or not those the method needs; m does not divide the inputs; a Gram matrix
        is not positive definite (raise `damping`); parameters are not finite; arguments exclude each other. The
        message names the leaves.
      TypeError: a sparsity is not a number.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> params = {'dense': {'kernel': jax.random.normal(jax.random.key(0), (8, 4)), 'bias': jnp.zeros(4)}}
      >>> fn = lambda p, x: x @ p['dense']['kernel'] + p['dense']['bias']
      >>> stats = calibrate(fn, params, [jax.random.normal(jax.random.key(1), (100, 8))])
      >>> new = reconstruct(params, stats, 0.5)
      >>> int(new.masks['dense']['kernel'].sum()), bool(new.masks['dense']['bias'])
      (16, True)
    """
    kernel = matrices.kernel_of(method, damping, block)
    leaves = asked.leaves_of(params, stats, matrices.needs(method), where)
    wanted = asked.targets_of(params, leaves, sparsity, pattern, masks)
    new, treedef = jax.tree.flatten(params)
    kept = [jnp.ones((), bool)] * len(new)
    for leaf, target in zip(leaves, wanted, strict=True):
        if target is not None:
            new[leaf.position], kept[leaf.position] = matrices.prune_leaf(leaf, target, kernel)
    check_finite(leaves, [new[leaf.position] for leaf in leaves])
    return Pruned(jax.tree.unflatten(treedef, new), jax.tree.unflatten(treedef, kept))


def relative_errors(params: PyTree, new: PyTree, stats: Stats) -> dict[str, float]:
    r"""How far each calibrated leaf's outputs moved, $\|X (W - W')\|^2 / \|X W\|^2$, by the leaf's name.

    Args:
      params: the parameters that were calibrated.
      new: others of the same structure and shapes.
      stats: with Gram matrices.

    Returns:
      A number for each leaf that was calibrated; 0 where the outputs were zero and still are.

    Raises:
      ValueError: there are no Gram matrices.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> stats = calibrate(lambda w, x: x @ w, jnp.ones((2, 2)), [jnp.eye(2)])
      >>> relative_errors(jnp.ones((2, 2)), jnp.zeros((2, 2)), stats)
      {'': 1.0}
    """
    _tree.check_same(params, new, what="new")
    other = jax.tree.leaves(new)
    errors = {}
    for leaf in asked.leaves_of(params, stats, "gram", None):
        old, now = leaf.inputs.layout.matrices(leaf.array), leaf.inputs.layout.matrices(other[leaf.position])
        change = jnp.asarray(old, jnp.float32) - jnp.asarray(now, jnp.float32)
        moved, size = (jax.vmap(gram.output_errors)(x, leaf.inputs.gram).sum() for x in (change, old))
        errors[leaf.name] = float(moved / jnp.where(size > 0, size, 1.0))
    return errors


def check_finite(leaves: Sequence[asked.Leaf], new: Sequence[jax.Array]) -> None:
    """Raises unless leaves and what became of them are finite; NaN is how a kernel tells a matrix it cannot invert."""
    finite = jax.device_get(
        [(jnp.isfinite(leaf.array).all(), jnp.isfinite(x).all()) for leaf, x in zip(leaves, new, strict=True)]
    )
    before = [leaf.name for leaf, (old, _) in zip(leaves, finite, strict=True) if not old]
    if before:
        raise ValueError("parameters are not finite:\n" + "\n".join(f"  {name}" for name in before))
    after = [leaf.name for leaf, (_, now) in zip(leaves, finite, strict=True) if not now]
    if after:
        raise ValueError(
            "the Gram matrix is not positive definite: raise `damping`, or calibrate on more data:\n"
            + "\n".join(f"  {name}" for name in after)
        )
