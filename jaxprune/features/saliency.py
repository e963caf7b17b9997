"""Scores of features by a trained network: `gradient_saliency`, `permutation` and `input_norms`.

These scores evaluate features jointly, as far as the network uses them jointly. Features should have one scale.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import _tree
from jaxprune.features import _checks

Array = jax.Array
PyTree = Any
Predict = Callable[[PyTree, Array], Array]
Losses = Callable[[Array, Array], Array]


def gradient_saliency(predict: Predict, params: PyTree, x: Any, y: Any, losses: Losses) -> Array:
    r"""Returns the absolute derivative of a trained network's loss with respect to each feature, averaged over samples.

        s_j = 1/n \sum_i | d loss_i / d x_ij |

    Simonyan et al. 2014, arXiv 1312.6034, differentiate the class score instead of the loss. The derivative depends on
    the unit of a feature, so features should have one scale.

    Args:
      predict: `(params, x) -> outputs`, one row for each sample; a sample's output depends only on that sample.
      params: the trained parameters, any pytree.
      x: (n, features) numbers.
      y: (n, ...) targets, passed to `losses`.
      losses: `(outputs, y) -> (n,)`, the loss of each sample.

    Returns:
      (features,) scores, 0 or more.

    Raises:
      ValueError: `x` is not a matrix of finite numbers, `y` has another length, or the losses do not have shape (n,).

    Example:
      >>> squares = lambda out, y: (out[:, 0] - y) ** 2
      >>> w, x, y = jnp.array([[3.0], [0.0]]), jnp.ones((2, 2)), jnp.zeros(2)
      >>> gradient_saliency(lambda w, x: x @ w, w, x, y, squares).tolist()
      [18.0, 0.0]
    """
    x, y = _checked(predict, params, x, y, losses)
    return _gradient(predict, losses, params, x, y)


def permutation(
    predict: Predict,
    params: PyTree,
    x: Any,
    y: Any,
    losses: Losses,
    *,
    key: Array,
    repeats: int = 5,
    batch: int = 16,
) -> Array:
    """Returns the increase in the mean loss when the values of a feature are shuffled among the samples.

    Breiman 2001, Machine Learning 45, section 10. Pass samples that the network was not trained on: an overfitted
    network uses every feature on its training samples. Features with the same information all score low, because the
    network can use the others.

    Args:
      predict: `(params, x) -> outputs`, one row per sample.
      params: the trained parameters, any pytree.
      x: (n, features) numbers.
      y: (n, ...) targets, passed to `losses`.
      losses: `(outputs, y) -> (n,)`, the loss of each sample; for the error rate, `argmax != y`.
      key: a JAX key. All features are shuffled by the same permutations, so that their scores can be compared.
      repeats: the number of permutations to average over, 1 or more; static; default 5.
      batch: the number of features computed at once, 1 or more; static; default 16. Memory grows with it; the result
        does not depend on it.

    Returns:
      (features,) scores; about 0 or negative for a feature that the network does not use.

    Raises:
      ValueError: `x` is not a matrix of finite numbers, `y` has another length, the losses do not have shape (n,), or
        `repeats` or `batch` is below 1.

    Example:
      >>> squares = lambda out, y: (out[:, 0] - y) ** 2
      >>> x = jnp.arange(8.0).reshape(4, 2)
      >>> w, key = jnp.array([[1.0], [0.0]]), jax.random.key(0)
      >>> scores = permutation(lambda w, x: x @ w, w, x, x[:, 0], squares, key=key)
      >>> bool(scores[0] > 0), float(scores[1])
      (True, 0.0)
    """
    _tree.check_key(key, needed_by="permutation")
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats and batch must be 1 or more; got {repeats} and {batch}")
    x, y = _checked(predict, params, x, y, losses)
    orders = jax.vmap(lambda k: jax.random.permutation(k, x.shape[0]))(jax.random.split(key, repeats))
    return _permutation(predict, losses, min(batch, x.shape[1]), params, x, y, orders)


def input_norms(kernel: Any, *, axis: int = 0) -> Array:
    """Returns the Euclidean norm of each input's weights in the first layer.

    Args:
      kernel: the kernel of the first layer.
      axis: the axis of the inputs in the kernel; default 0.

    Returns:
      (features,) scores in float32 or wider.

    Raises:
      ValueError: the kernel has no such axis.

    Example:
      >>> input_norms(jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
      [5.0, 1.0]
    """
    kernel = jnp.asarray(kernel)
    _checks.kernel_axis(kernel, axis)
    rows = jnp.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    return jnp.linalg.norm(rows.astype(jnp.promote_types(kernel.dtype, jnp.float32)), axis=1)


@partial(jax.jit, static_argnums=(0, 1))
def _gradient(predict: Predict, losses: Losses, params: PyTree, x: Array, y: Array) -> Array:
    return jnp.abs(jax.grad(lambda x: losses(predict(params, x), y).sum())(x)).mean(0)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _permutation(
    predict: Predict, losses: Losses, batch: int, params: PyTree, x: Array, y: Array, orders: Array
) -> Array:
    whole = losses(predict(params, x), y).mean()

    def feature(j: Array) -> Array:
        def shuffled(order: Array) -> Array:
            column = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
            moved = lax.dynamic_update_index_in_dim(x, column[order], j, 1)
            return losses(predict(params, moved), y).mean()

        return lax.map(shuffled, orders).mean() - whole

    return lax.map(feature, jnp.arange(x.shape[1]), batch_size=batch)


def _checked(predict: Predict, params: PyTree, x: Any, y: Any, losses: Losses) -> tuple[Array, Array]:
    if not callable(predict):
        swapped = "; predict and params are swapped" if callable(params) else ""
        raise TypeError(f"predict must be a function predict(params, x); got {_tree.shown(predict)}{swapped}")
    _tree.check_function(losses, "losses", "losses(predict(params, x), y)")
    x, y = _checks.samples(x, least=1), jnp.asarray(y)
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"y must have one entry for each of the {x.shape[0]} samples; got shape {y.shape}")
    shape = jax.eval_shape(lambda p, x, y: losses(predict(p, x), y), params, x, y).shape
    if shape != x.shape[:1]:
        raise ValueError(
            f"losses(predict(params, x), y) must have one loss for each sample, {x.shape[:1]}; got {shape}"
        )
    return x, y
