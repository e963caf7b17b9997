"""Experiments with a ticket: controls (`random_masks`, `shuffled_masks`, `reinitialised`) and stability to SGD noise.

`error_barrier` and `instability` look at the straight line between two trained networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree, criteria
from jaxprune import masks as masks_
from jaxprune.lottery.search import Control, Train

PyTree = Any


def reinitialised(init: Callable[[Any], PyTree]) -> Control:
    """Returns a control that keeps the ticket's masks and draws new initial weights.

    Frankle and Carbin 2019, arXiv 1803.03635, section 2.

    Args:
      init: `key -> params`, the initialisation of the network.

    Returns:
      A control for `iterative_pruning(..., controls={...})`. It draws new weights in every round.

    Example:
      >>> control = reinitialised(lambda key: {'w': jax.random.normal(key, (2, 2))})
    """
    return lambda start, masks, key, search_key: (init(key), masks)


def random_masks() -> Control:
    """Returns a control that keeps the ticket's weights and draws random masks with the same counts in each leaf.

    The masks of each round are within the masks of the round before. Channels stay channels; N:M groups and blocks do
    not stay groups and blocks.

    Returns:
      A control for `iterative_pruning(..., controls={...})`.

    Example:
      >>> controls = {'random masks': random_masks()}
    """
    return lambda start, masks, key, search_key: (start, _shuffle(masks, search_key))


def shuffled_masks() -> Control:
    """Returns a control that keeps the ticket's weights and shuffles its masks within each leaf, anew in every round.

    Frankle et al. 2021, arXiv 2009.08576, section 5.

    Returns:
      A control for `iterative_pruning(..., controls={...})`.

    Example:
      >>> controls = {'shuffled masks': shuffled_masks()}
    """
    return lambda start, masks, key, search_key: (start, _shuffle(masks, key))


class Line(NamedTuple):
    """The error along the straight line between two networks.

    Attributes:
      positions: float32 (points,), 0 at the first network and 1 at the second.
      errors: (points,), the error at each position.
      barrier: the largest error minus the mean of the errors at both ends; a scalar, 0 or more.
    """

    positions: jax.Array
    errors: jax.Array
    barrier: jax.Array


def _interpolate(params: PyTree, other: PyTree, position: Any) -> PyTree:
    """Interpolates two networks: `(1 - a) params + a other` for floating leaves.

    Other leaves are taken from `params`. Zeros of both networks stay exactly zero.

    Args:
      params: the network at position 0, which is returned bit for bit for a = 0.
      other: the network at position 1, in the same structure.
      position: a, a number or a traced scalar.

    Returns:
      A tree in the structure of `params`, with its dtypes.

    Raises:
      ValueError: the structures differ.

    Example:
      >>> _interpolate({'w': jnp.array([0.0, 1.0])}, {'w': jnp.array([0.0, 3.0])}, 0.5)['w'].tolist()
      [0.0, 2.0]
    """
    _tree.check_same(params, other, what="the other params")

    def between(a: Any, b: Any) -> Any:
        if not _tree.is_floating(a):
            return a
        share = jnp.asarray(position, jnp.promote_types(a.dtype, jnp.float32))
        return ((1 - share) * a + share * b).astype(a.dtype)

    return jax.tree.map(between, params, other)


def error_barrier(error: Callable[[PyTree], Any], params: PyTree, other: PyTree, *, points: int = 11) -> Line:
    """Returns the error barrier between two networks trained from the same weights with different SGD noise.

        barrier = max_a error((1 - a) W_1 + a W_2) - (error(W_1) + error(W_2)) / 2

    Frankle et al. 2020, arXiv 1912.05671, section 2: a ticket trains to full accuracy if training is stable to SGD
    noise, that is if the barrier is about 0. Batch statistics in the trees are interpolated like weights. A network
    with batch normalisation needs new statistics at each point; `error` must compute them.

    Args:
      error: `params -> scalar`, such as the error on test data; traceable.
      params: W_1.
      other: W_2, in the same structure.
      points: the number of evenly spaced positions including both ends, 2 or more; default 11.

    Returns:
      A `Line`.

    Raises:
      ValueError: `points` is below 2, or the structures differ.

    Example:
      >>> hill = lambda params: 1 - params['w'] ** 2
      >>> float(error_barrier(hill, {'w': jnp.float32(-1)}, {'w': jnp.float32(1)}, points=3).barrier)
      1.0
    """
    if points < 2:
        raise ValueError(f"points must be 2 or more, because both ends count; got {points}")
    error = _tree.scalar(error, "error", "error(params)")
    positions = jnp.arange(points, dtype=jnp.float32) / (points - 1)
    errors = jax.lax.map(lambda a: jnp.asarray(error(_interpolate(params, other, a))), positions)
    return Line(positions, errors, errors.max() - (errors[0] + errors[-1]) / 2)


def instability(
    train: Train, error: Callable[[PyTree], Any], params: PyTree, masks: PyTree, key: Any, *, points: int = 11
) -> Line:
    """Trains the same ticket twice with different SGD noise, and returns the error barrier between the two networks.

    Frankle et al. 2020, arXiv 1912.05671, section 2. Both trainings start from the same weights under the same masks;
    their keys are split from `key`.

    Args:
      train: `(params, masks, key) -> params`, a complete training; the order of the data depends on the key.
      error: `params -> scalar`, such as the error on test data; traceable.
      params: the initial weights of both trainings.
      masks: the masks of both trainings; `masks.ones(params)` for the dense network.
      key: a JAX key.
      points: the number of evenly spaced positions including both ends, 2 or more; default 11.

    Returns:
      A `Line`. Training is stable to SGD noise if the barrier is about 0.

    Raises:
      ValueError: `points` is below 2, or the masks do not fit.

    Example:
      >>> train = lambda params, masks, key: {'w': jax.random.normal(key)}
      >>> same = lambda params, masks, key: params
      >>> error = lambda params: -params['w'] ** 2
      >>> start, masks = {'w': jnp.ones(())}, {'w': jnp.array(True)}
      >>> [float(instability(f, error, start, masks, jax.random.key(0)).barrier) > 0 for f in (train, same)]
      [True, False]
    """
    _tree.check_key(key, needed_by="instability")
    _tree.check_function(train, "train", "train(params, masks, key) -> params")
    start = masks_.apply(params, masks)
    ends = (masks_.apply(train(start, masks, one), masks) for one in jax.random.split(key))
    return error_barrier(error, *ends, points=points)


def _shuffle(masks: PyTree, key: Any) -> PyTree:
    """Draws random masks with the same number of True in each leaf; masks of one key are nested.

    Channels stay channels. N:M groups and blocks do not stay groups and blocks, and layers stacked in one leaf are
    shuffled together.
    """
    zeros = jax.tree.map(lambda mask: jnp.zeros(mask.shape, "float32"), masks)
    removed = jax.tree.map(lambda mask: ~mask, masks)
    counts = masks_.count_kept(removed, removed)
    sparsities = jax.tree.map(lambda mask, count: count if mask.ndim else 0.0, masks, counts)
    return masks_.select(criteria.random(zeros, key=key), sparsities, where=lambda name, leaf: leaf.ndim > 0)
