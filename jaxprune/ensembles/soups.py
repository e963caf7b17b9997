"""`soup`: averages the weights of members that share their masks into one network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree
from jaxprune import masks as masks_
from jaxprune.ensembles.members import Members, check_members

PyTree = Any


def soup(members: Members, weights: Any = None) -> masks_.Pruned:
    """The weighted mean of the members' parameters, sum_m a_m w_m / sum_m a_m: Zimmer et al. 2024, arXiv 2306.16788.

    Members that were fine-tuned from one pruned network, with different seeds or learning rates, are in one basin, and
    their mean is about as good as each member. Members from different initialisations are not. The members must share
    their masks, because the mean of networks with different masks is denser than each network.

    Sparse Model Soups prune the mean further, train copies of it and average again. Use this `train` for
    `lottery.iterative_pruning(..., rewind=lottery.learning_rate_only())`:

        def train(params, masks, key):
            tuned = jax.vmap(lambda key: fine_tune(params, masks, key))(jax.random.split(key, 3))
            return soup(from_stacked(tuned, jax.tree.map(lambda mask: jnp.stack([mask] * 3), masks))).params

    Args:
      members: members that share their masks.
      weights: a_m, (members,), non-negative, with a positive sum; None (default) for equal weights.

    Returns:
      `Pruned(params, masks)`. Leaves that are not floating are taken from the first member.

    Raises:
      ValueError: concrete masks differ (the message names the leaves); weights are negative, sum to zero, or are not
        one for each member.

    Example:
      >>> from jaxprune.ensembles import from_stacked
      >>> mask = jnp.array([[True, False]] * 2)
      >>> soup(from_stacked({'w': jnp.array([[1.0, 9.0], [3.0, 0.0]])}, {'w': mask})).params['w'].tolist()
      [2.0, 0.0]
    """
    check_members(members)
    size = members.size
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (size,):
        raise ValueError(f"weights must be one number for each member, {(size,)}; got {weights.shape}")
    if not isinstance(weights, Tracer) and (np.any(np.asarray(weights) < 0) or not 0 < float(weights.sum()) < np.inf):
        raise ValueError(f"weights must be non-negative with a positive sum; got {np.asarray(weights).tolist()}")
    _check_shared(members.masks)
    shared = jax.tree.map(lambda mask: mask[0], members.masks)
    params = jax.tree.map(lambda leaf: _mean(leaf, weights / weights.sum()), members.params)
    return masks_.Pruned(masks_.apply(params, shared), shared)


def _mean(leaf: Any, shares: jax.Array) -> Any:
    if not _tree.is_floating(leaf):
        return leaf[0]
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return jnp.tensordot(shares.astype(dtype), leaf.astype(dtype), 1).astype(leaf.dtype)


def _check_shared(stacked: PyTree) -> None:
    if any(isinstance(mask, Tracer) for mask in jax.tree.leaves(stacked)):
        return
    differing = {name: np.asarray(mask != mask[:1]).sum() for name, mask in _tree.named_leaves(stacked)}
    wrong = [f"  {name}: {count} places" for name, count in differing.items() if count]
    if wrong:
        raise ValueError(
            "members must share one mask, or the soup is denser than each member; masks differ from the first "
            "member's in\n"
            + "\n".join(wrong)
            + "\nfine-tune copies of one pruned network, or combine predictions with `predictor`"
        )
