"""Features by what a trained network makes of them: gradients, shuffled columns, and first-layer norms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.selection import checks

Array = jax.Array
PyTree = Any
Predict = Callable[[PyTree, Array], Array]
Losses = Callable[[Array, Array], Array]


def gradient(predict: Predict, params: PyTree, x: Any, y: Any, losses: Losses) -> Array:
    r"""How much the loss of a trained network moves with each feature, in the mean over samples.

        s_j = 1/n \sum_i | d loss_i / d x_ij |

    Features should be of one scale, for the derivative is by their unit (Simonyan et al. 2014, arXiv 1312.6034, take
    the class score in place of the loss).

    Args:
      predict: `(params, x) -> outputs`, one row a sample; a sample's output depends on that sample alone.
      params: the trained parameters.
      x: (n, features).
      y: (n, ...) targets.
      losses: `(outputs, y) -> (n,)` the loss of each sample.

    Returns:
      (features,) scores, 0 or more.

    Raises:
      ValueError: x is not a matrix of finite numbers, y has another length, or the losses are not (n,).

    Example:
      >>> squares = lambda out, y: (out[:, 0] - y) ** 2
      >>> gradient(lambda w, x: x @ w, jnp.array([[3.0], [0.0]]), jnp.ones((2, 2)), jnp.zeros(2), squares).tolist()
      [18.0, 0.0]
    """
    x, y = _pair(predict, params, x, y, losses)
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
    """How much worse a trained network gets when a feature's values are dealt out to other samples.

    Breiman 2001, Machine Learning 45, section 10. The mean loss with the column shuffled less that without, averaged
    over the repeats: one compiled function, mapped over features. A network that has learned by heart leans on
    everything: shuffle rows that it has not seen. Of features that say the same each alone is little missed.

    Args:
      predict: `(params, x) -> outputs`.
      params: the trained parameters.
      x: (n, features).
      y: (n, ...) targets.
      losses: `(outputs, y) -> (n,)`, a loss of each sample; of an error rate `argmax != y`.
      key: a JAX key. All features are shuffled by the same permutations, so that they can be compared.
      repeats: how many permutations, static.
      batch: how many features are computed at once, static; memory grows with it, the result does not depend on it.

    Returns:
      (features,) scores; about 0, or below, for a feature that is not used.

    Raises:
      ValueError: as `gradient` does, or repeats or batch below 1.

    Example:
      >>> squares = lambda out, y: (out[:, 0] - y) ** 2
      >>> x = jnp.arange(8.0).reshape(4, 2)
      >>> w, key = jnp.array([[1.0], [0.0]]), jax.random.key(0)
      >>> scores = permutation(lambda w, x: x @ w, w, x, x[:, 0], squares, key=key)
      >>> bool(scores[0] > 0), float(scores[1])
      (True, 0.0)
    """
    if repeats < 1 or batch < 1:
        raise ValueError(f"repeats and batch must be 1 or more; got {repeats} and {batch}")
    x, y = _pair(predict, params, x, y, losses)
    orders = jax.vmap(lambda k: jax.random.permutation(k, x.shape[0]))(jax.random.split(key, repeats))
    return _permutation(predict, losses, min(batch, x.shape[1]), params, x, y, orders)


def input_norms(kernel: Any, *, axis: int = 0) -> Array:
    """The Euclidean norm of each input's weights in the first layer; features should be of one scale.

    Args:
      kernel: the first layer's kernel.
      axis: its axis of inputs.

    Returns:
      (features,) scores in float32 at least.

    Raises:
      ValueError: there is no such axis.

    Example:
      >>> input_norms(jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
      [5.0, 1.0]
    """
    kernel = jnp.asarray(kernel)
    if not -kernel.ndim <= axis < kernel.ndim:
        raise ValueError(f"the kernel has shape {kernel.shape} and no axis {axis}")
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
            dealt = lax.dynamic_update_index_in_dim(x, column[order], j, 1)
            return losses(predict(params, dealt), y).mean()

        return lax.map(shuffled, orders).mean() - whole

    return lax.map(feature, jnp.arange(x.shape[1]), batch_size=batch)


def _pair(predict: Predict, params: PyTree, x: Any, y: Any, losses: Losses) -> tuple[Array, Array]:
    x, y = checks.samples(x, least=1), jnp.asarray(y)
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"y must have one entry for each of the {x.shape[0]} samples; got shape {y.shape}")
    found = jax.eval_shape(lambda p, x, y: losses(predict(p, x), y), params, x, y)
    if found.shape != x.shape[:1]:
        raise ValueError(f"losses(predict(params, x), y) must be one loss a sample, {x.shape[:1]}; got {found.shape}")
    return x, y
