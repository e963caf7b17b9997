"""Control experiments: what a ticket is without its weights, or without its masks."""

from collections.abc import Callable
from typing import Any

import jax

from jaxprune import criteria, masks

PyTree = Any
Control = Callable[[PyTree, PyTree, Any, Any], tuple[PyTree, PyTree]]


def reinitialised(init: Callable[[Any], PyTree]) -> Control:
    """The ticket's masks with other first weights (Frankle and Carbin 2019, arXiv 1803.03635, section 2).

    Args:
      init: `key -> params`, as the network was initialised.

    Returns:
      A control; it draws anew in every round.

    Example:
      >>> control = reinitialised(lambda key: {'w': jax.random.normal(key, (2, 2))})
    """

    def control(start: PyTree, held: PyTree, key: Any, fixed: Any) -> tuple[PyTree, PyTree]:
        del start, fixed
        return init(key), held

    return control


def random_masks() -> Control:
    """The ticket's weights with random masks of the same number in each leaf, nested from round to round.

    Returns:
      A control for `iterative_pruning(..., controls={...})`.
    """

    def control(start: PyTree, held: PyTree, key: Any, fixed: Any) -> tuple[PyTree, PyTree]:
        del key
        return start, shuffle(held, fixed)

    return control


def shuffled_masks() -> Control:
    """The ticket's weights with its masks shuffled within each leaf, anew in every round.

    Frankle et al. 2021, arXiv 2009.08576, section 5.

    Returns:
      A control for `iterative_pruning(..., controls={...})`.
    """

    def control(start: PyTree, held: PyTree, key: Any, fixed: Any) -> tuple[PyTree, PyTree]:
        del fixed
        return start, shuffle(held, key)

    return control


def shuffle(held: PyTree, key: Any) -> PyTree:
    """Random masks with exactly as many True in each leaf as `held` has.

    Those of one key are nested: fewer True are a subset of more. Channels stay channels; N:M and blocks do not stay
    such, and layers stacked in one leaf are shuffled as one.

    Args:
      held: bool masks.
      key: a JAX key.

    Returns:
      bool masks in the same shapes.

    Raises:
      ValueError: no leaf of `held` has axes.

    Example:
      >>> import jax.numpy as jnp
      >>> int(shuffle({'w': jnp.array([[True, False, False, True]])}, jax.random.key(0))['w'].sum())
      2
    """
    like = jax.tree.map(lambda mask: jax.ShapeDtypeStruct(mask.shape, "float32"), held)
    scores = criteria.random(jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), like), key=key)
    removed = jax.tree.map(lambda mask, count: count if mask.ndim else 0.0, held, _removed(held))
    return masks.select(scores, removed, where=lambda name, leaf: leaf.ndim > 0)


def _removed(held: PyTree) -> PyTree:
    gone = jax.tree.map(lambda mask: ~mask, held)
    return masks.count_kept(gone, gone)
