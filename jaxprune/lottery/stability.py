"""Whether two trainings end in the same valley: the error on the straight line between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree, masks
from jaxprune.lottery.rewinding import Train

PyTree = Any


class Line(NamedTuple):
    """The straight line between two networks.

    Attributes:
      positions: float32 [points], 0 for the first network and 1 for the second.
      errors: [points], what was measured there.
      barrier: the instability, a scalar.
    """

    positions: jax.Array
    errors: jax.Array
    barrier: jax.Array


def interpolate(params: PyTree, other: PyTree, position: Any) -> PyTree:
    """`(1 - a) params + a other` of the floating leaves; the others are those of `params`.

    Two networks under the same masks have a sparse one between them: zeros stay exact.

    Args:
      params: at position 0, which gives its bits.
      other: at position 1, in the same structure.
      position: a, a number or a traced scalar.

    Returns:
      A tree in the structure of `params`, with its dtypes.

    Raises:
      ValueError: the structures differ.

    Example:
      >>> interpolate({'w': jnp.array([0.0, 1.0])}, {'w': jnp.array([0.0, 3.0])}, 0.5)['w'].tolist()
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
    """The error barrier between two networks trained from the same weights with different noise of SGD.

        barrier = max_a error((1 - a) W_1 + a W_2) - (error(W_1) + error(W_2)) / 2

    Frankle et al. 2020, arXiv 1912.05671, section 2: tickets are found where training is stable to its noise, that is
    where the barrier is about 0. Batch normalisation needs its statistics of each point; what is in the trees is
    interpolated like the weights.

    Args:
      error: `params -> scalar`, such as the error on test data; traceable.
      params: W_1.
      other: W_2, in the same structure.
      points: how many positions, evenly spaced with both ends, 2 or more.

    Returns:
      A `Line`; its barrier is 0 or more, since both ends are among the points.

    Raises:
      ValueError: fewer than 2 points, structures that differ.

    Example:
      >>> hill = lambda params: 1 - params['w'] ** 2
      >>> float(error_barrier(hill, {'w': jnp.float32(-1)}, {'w': jnp.float32(1)}, points=3).barrier)
      1.0
    """
    if points < 2:
        raise ValueError(f"points must be 2 or more, for the two ends; got {points}")
    positions = jnp.arange(points, dtype=jnp.float32) / (points - 1)
    errors = jax.lax.map(lambda a: jnp.asarray(error(interpolate(params, other, a))), positions)
    return Line(positions, errors, errors.max() - (errors[0] + errors[-1]) / 2)


def instability(
    train: Train, error: Callable[[PyTree], Any], params: PyTree, mask_tree: PyTree, key: Any, *, points: int = 11
) -> Line:
    """The barrier between two trainings of the same ticket that differ in nothing but the noise of SGD.

    Frankle et al. 2020, arXiv 1912.05671, section 2: W_1 and W_2 of `error_barrier` are trained here, from the same
    weights under the same masks, with two keys split from one.

    Args:
      train: `(params, masks, key) -> params`, as in `iterative_pruning`; the order of the data comes from the key.
      error: as in `error_barrier`.
      params: the weights that both start from.
      mask_tree: the masks of both; `masks.ones(params)` for the dense network.
      key: a JAX key.
      points: as in `error_barrier`.

    Returns:
      A `Line`: the network is stable to the noise of SGD if its barrier is about 0.

    Raises:
      ValueError: as in `error_barrier`; masks that do not fit.

    Example:
      >>> train = lambda params, held, key: {'w': jax.random.normal(key)}
      >>> same = lambda params, held, key: params
      >>> error = lambda params: -params['w'] ** 2
      >>> start, held = {'w': jnp.ones(())}, {'w': jnp.array(True)}
      >>> [float(instability(f, error, start, held, jax.random.key(0)).barrier) > 0 for f in (train, same)]
      [True, False]
    """
    start = masks.apply(params, mask_tree)
    ends = (masks.apply(train(start, mask_tree, one), mask_tree) for one in jax.random.split(key))
    return error_barrier(error, *ends, points=points)
