"""Erdos-Renyi: small and square leaves denser than large and flat ones."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import masks
from jaxprune.allocation.leaves import Allocation, allocation, as_sparsity, share

PyTree = Any
Shape = tuple[int, ...]


def er(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """Densities as in a random bipartite graph: each neuron keeps about as many connections.

        1 - s_l = min(1, eps (n_in + n_out) / (n_in n_out))

    Mocanu et al. 2018 (SET), arXiv 1707.04780, eq. 1. n_in and n_out are the last two axes of a kernel. eps is the
    number for which the total comes out; leaves that would be more than dense are dense, and eps is that of the others
    (Evci et al. 2020). For leaves fixed to a sparsity of their own, see `by_path`.

    Args:
      scores: a tree of scores, or of ShapeDtypeStructs: only shapes are read.
      sparsity: the total fraction to remove, in [0, 1): a Python number (computed in float64) or a traced scalar (in
        its own dtype); another value of the latter does not recompile.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`. Layers stacked along `batch_axes`
        count as so many leaves of the shape that is left.

    Returns:
      A sparsity for each pruned leaf and 0.0 for the others, and the total achieved: each leaf's count is rounded on
      its own, so for single entries it differs from the one asked for by at most half an entry in each leaf and slice.

    Raises:
      ValueError: a sparsity outside [0, 1), or a pattern that does not fit a leaf.

    Example:
      >>> sparsities, achieved = er({'a': jnp.ones((10, 90)), 'b': jnp.ones((10, 10))}, 0.76)
      >>> {name: round(s, 3) for name, s in sparsities.items()}, round(achieved, 3)
      ({'a': 0.778, 'b': 0.6}, 0.76)
    """
    return _erdos_renyi(scores, sparsity, _er_density, **units)


def erk(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """ER with the kernel's own size: of convolutions, the small ones are denser.

        1 - s_l = min(1, eps (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w))

    Evci et al. 2020 (RigL), arXiv 1911.11134, section 3: the sum of a leaf's axes over their product. For leaves of two
    axes it is `er`. Dense layers stored with more (attention: inputs, heads, head size) count all of them.

    Args:
      scores: as in `er`.
      sparsity: as in `er`.
      **units: what is pruned: pattern, where, batch_axes, specs; see `masks.Units`.

    Returns:
      As `er`.

    Raises:
      ValueError: as `er`.

    Example:
      >>> sparsities, achieved = erk({'conv': jnp.ones((3, 3, 8, 8)), 'head': jnp.ones((8, 10))}, 0.5)
      >>> {name: round(s, 3) for name, s in sparsities.items()}, round(achieved, 3)
      ({'conv': 0.569, 'head': 0.0}, 0.5)
    """
    return _erdos_renyi(scores, sparsity, _erk_density, **units)


def _er_density(shape: Shape) -> float:
    n_in, n_out = (1, *shape)[-2:]
    return (n_in + n_out) / (n_in * n_out)


def _erk_density(shape: Shape) -> float:
    return sum(shape) / float(np.prod(np.array(shape, float)))


def _erdos_renyi(
    scores: PyTree, sparsity: Any, density: Callable[[Shape], float], **units: Unpack[masks.Units]
) -> Allocation:
    sparsity = as_sparsity(sparsity)
    pruned = masks.leaves(scores, **units)
    raw = np.array([density(leaf.shape[leaf.batch_axes :]) for leaf in pruned])
    sizes = np.array([leaf.entries for leaf in pruned], float)
    return allocation(scores, pruned, _solve(sparsity, raw, sizes, pruned))


def _solve(sparsity: Any, raw: np.ndarray, sizes: np.ndarray, pruned: Sequence[masks.Leaf]) -> list[Any]:
    """1 - min(1, eps raw) for each leaf, with the eps for which the total comes out.

    Sorted by falling raw density, the first m leaves are dense for some m; then eps = (d N - sum_{i<m} n_i) /
    sum_{i>=m} raw_i n_i, with d the total density. The right m is the first whose own leaf would not be more than
    dense: all candidates are computed at once, so a traced sparsity needs no loop.
    """
    if not pruned:
        return []
    order = np.argsort(-raw, kind="stable")
    total = sizes.sum()
    dense_before = np.concatenate([[0.0], np.cumsum(sizes[order])])[:-1] / total
    per_density = total / np.cumsum((raw * sizes)[order][::-1])[::-1]
    if isinstance(sparsity, jax.Array):
        xp, constant = jnp, lambda x: jnp.asarray(x, sparsity.dtype)
    else:
        xp, constant = np, lambda x: x
    scales = ((1 - sparsity) - constant(dense_before)) * constant(per_density)
    fits = scales * constant(raw[order]) <= 1
    # Where rounding leaves none that fits, everything but the last leaf is dense.
    first = xp.where(fits.any(), xp.argmax(fits), len(order) - 1)
    densities = xp.minimum(scales[first] * constant(raw), 1)
    return [share(1 - densities[i]) for i in range(len(pruned))]
