"""Control experiments to compare with a ticket: `reinitialised` weights, `random_masks` and `shuffled_masks`."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import _tree, criteria
from jaxprune import masks as masks_

PyTree = Any
# `(start, masks, key of the round, key of the search) -> (start, masks)`
Control = Callable[[PyTree, PyTree, Any, Any], tuple[PyTree, PyTree]]


def reinitialised(init: Callable[[Any], PyTree]) -> Control:
    """The ticket's masks with new initial weights (Frankle and Carbin 2019, arXiv 1803.03635, section 2).

    Args:
      init: `key -> params`, the initialisation of the network.

    Returns:
      A control for `iterative_pruning(..., controls={...})`. It draws new weights in every round.

    Example:
      >>> control = reinitialised(lambda key: {'w': jax.random.normal(key, (2, 2))})
    """
    return lambda start, masks, key, search_key: (init(key), masks)


def random_masks() -> Control:
    """The ticket's weights with random masks of the same count in each leaf, nested from round to round.

    Returns:
      A control for `iterative_pruning(..., controls={...})`.

    Example:
      >>> controls = {'random masks': random_masks()}
    """
    return lambda start, masks, key, search_key: (start, shuffle(masks, search_key))


def shuffled_masks() -> Control:
    """The ticket's weights with its masks shuffled within each leaf, newly in every round.

    Frankle et al. 2021, arXiv 2009.08576, section 5.

    Returns:
      A control for `iterative_pruning(..., controls={...})`.

    Example:
      >>> controls = {'shuffled masks': shuffled_masks()}
    """
    return lambda start, masks, key, search_key: (start, shuffle(masks, key))


def shuffle(masks: PyTree, key: Any) -> PyTree:
    """Draws random masks with the same number of True in each leaf.

    The masks of one key are nested: masks with fewer True are subsets. Channels stay channels. N:M groups and blocks do
    not stay groups and blocks, and layers stacked in one leaf are shuffled together.

    Args:
      masks: bool masks.
      key: a JAX key.

    Returns:
      bool masks in the same shapes.

    Raises:
      ValueError: every mask is a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> int(shuffle({'w': jnp.array([[True, False, False, True]])}, jax.random.key(0))['w'].sum())
      2
    """
    _tree.check_bool(masks)
    _tree.check_key(key, needed_by="shuffle")
    zeros = jax.tree.map(lambda mask: jax.numpy.zeros(mask.shape, "float32"), masks)
    removed = jax.tree.map(lambda mask: ~mask, masks)
    counts = masks_.count_kept(removed, removed)
    sparsities = jax.tree.map(lambda mask, count: count if mask.ndim else 0.0, masks, counts)
    return masks_.select(criteria.random(zeros, key=key), sparsities, where=lambda name, leaf: leaf.ndim > 0)
