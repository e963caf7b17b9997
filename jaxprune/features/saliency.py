"""Scores of features by a network: `gradient_saliency`, `permutation`, `input_norms`; and gates trained with it.

These scores evaluate features jointly, as far as the network uses them jointly. Features should have one scale.
`StochasticGates` and `input_lasso` are Optax transformations that choose features while the network trains: the loss of
the whole network decides.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.scipy.stats import norm

from jaxprune import _tree
from jaxprune.features import _checks
from jaxprune.slimming.regularise import proximal_lasso

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
    if not -kernel.ndim <= axis < kernel.ndim:
        raise ValueError(f"the kernel has shape {kernel.shape}, so it has no axis {axis}")
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
    found = jax.eval_shape(lambda p, x, y: losses(predict(p, x), y), params, x, y)
    if getattr(found, "shape", None) != x.shape[:1]:
        raise ValueError(
            f"losses(predict(params, x), y) must be an array with one loss for each sample, shape {x.shape[:1]}; got "
            f"{_tree.shown(found)}"
        )
    return x, y


Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class StochasticGates:
    r"""Stochastic gates, one for each feature, which open or close while the network trains.

        z_ij = min(1, max(0, mu_j + sigma e_ij)),    e_ij ~ N(0, 1)

    Yamada, Lindenbaum, Negahban and Kluger 2020, arXiv 1810.04247, section 3: a Bernoulli gate, relaxed so that the
    gradient with respect to mu is the gradient of a clipped Gaussian. Add `start(features)` to the tree of parameters
    as a leaf, multiply the features by `draw(mu, key, n)` in the loss, and put `add_penalty` before the optimizer.
    After training, mu is the score of each feature; keep the features with mu > 0.

    Attributes:
      sigma: the standard deviation of the noise, above 0; default 0.5 as in the paper.

    Raises:
      ValueError: `sigma` is not above 0.

    Example:
      >>> gates = StochasticGates()
      >>> mu = gates.start(3)
      >>> gates.draw(mu, jax.random.key(0), 8).shape, gates.through(mu).tolist()
      ((8, 3), [0.5, 0.5, 0.5])
    """

    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0; got {self.sigma}")

    def start(self, features: int, *, mu: float = 0.5, dtype: Any = jnp.float32) -> Array:
        """Returns the parameters of the gates before training.

        Args:
          features: the number of features, 1 or more.
          mu: the start value of each gate; default 0.5: a gate without noise is half open.
          dtype: the dtype of the parameters; default float32.

        Returns:
          (features,), all equal to `mu`.

        Raises:
          ValueError: `features` is below 1.
        """
        if features < 1:
            raise ValueError(f"features must be 1 or more; got {features}")
        return jnp.full(features, mu, dtype)

    def draw(self, mu: Array, key: Array, samples: int) -> Array:
        """Draws the gate values of a training step; multiply the features by them in the loss.

        Args:
          mu: (features,) the parameters of the gates.
          key: a JAX key, a new one in each step.
          samples: the number of rows; each row has its own noise.

        Returns:
          (samples, features) in [0, 1].
        """
        return jnp.clip(mu + self.sigma * jax.random.normal(key, (samples, *mu.shape), mu.dtype), 0.0, 1.0)

    def through(self, mu: Array) -> Array:
        """Returns the gate values after training: mu clipped to [0, 1]. Keep the features with values above 0.

        Example:
          >>> StochasticGates().through(jnp.array([-0.5, 0.25, 3.0])).tolist()
          [0.0, 0.25, 1.0]
        """
        return jnp.clip(mu, 0.0, 1.0)

    def expected_open(self, mu: Array) -> Array:
        r"""Returns the expected number of open gates, a scalar: \sum_j P(z_j > 0) = \sum_j Phi(mu_j / sigma).

        Example:
          >>> float(StochasticGates().expected_open(jnp.zeros(4)))
          2.0
        """
        return norm.cdf(mu / self.sigma).sum()

    def add_penalty(self, strength: float | Schedule, where: _tree.Where) -> optax.GradientTransformation:
        """Adds the gradient of `strength * expected_open(mu)` to the gradient of the gates.

        Put it before the optimizer: `optax.chain(gates.add_penalty(0.01, "gates"), optax.adam(1e-3))`.

        Args:
          strength: 0 or more, or a schedule (a function of the step). A larger strength closes more gates.
          where: the leaf of the gates: its name, a glob, several globs, or a predicate `(name, leaf) -> bool`.

        Returns:
          An Optax transformation whose `update` needs `params`.

        Raises:
          ValueError: `where` matches no leaf, or `update` was called without params.

        Example:
          >>> params = {'gates': jnp.zeros(2), 'w': jnp.ones(2)}
          >>> penalty = StochasticGates().add_penalty(1.0, 'gates')
          >>> grads, _ = penalty.update(jax.tree.map(jnp.zeros_like, params), penalty.init(params), params)
          >>> [round(float(g[0]), 4) for g in grads.values()]
          [0.7979, 0.0]
        """

        def add(step: Any, mu: Array, grad: Array) -> Array:
            amount = strength(step) if callable(strength) else strength
            return grad + jnp.asarray(amount * norm.pdf(mu / self.sigma) / self.sigma, grad.dtype)

        def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
            if params is None:
                raise ValueError("add_penalty needs params: call update(updates, state, params)")
            new = jax.tree.map(lambda mu, grad: add(state.count, mu, grad), params, updates)
            return new, optax.ScaleByScheduleState(state.count + 1)

        init = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
        return optax.masked(optax.GradientTransformation(init, update), _leaves_at(where, "add_penalty"))


def input_lasso(strength: float | Schedule, where: _tree.Where, *, axis: int = 0) -> optax.GradientTransformation:
    r"""Returns a group lasso on the inputs of the first layer: all weights of an input become exactly zero together.

        w_j <- w_j max(0, 1 - t sqrt(m) / ||w_j||)     after the optimizer's step, with m weights per input

    Yuan and Lin 2006, J. R. Stat. Soc. B 68, eq. 2.4, as a proximal step. Scardapane et al. 2017, arXiv 1607.00485, use
    it for the inputs of networks. Put it last in the chain. `slimming.group_lasso` does the same for hidden units.

    Args:
      strength: t, the shrinkage of one step, 0 or more: the learning rate times the penalty; or a schedule (a function
        of the step). It should fall with the learning rate.
      where: the kernel of the first layer: its name, a glob, several globs, or a predicate `(name, leaf) -> bool`.
      axis: the axis of the inputs in the kernel; default 0.

    Returns:
      An Optax transformation whose `update` needs `params`. After `optax.apply_updates` the weights of a removed input
      are exactly zero.

    Raises:
      ValueError: `where` matches no leaf, the leaf has no such axis, or `update` was called without params.

    Example:
      >>> params = {'w': jnp.array([[3.0, 4.0], [0.1, 0.1]])}
      >>> lasso = input_lasso(1.0, 'w')
      >>> updates, _ = lasso.update(jax.tree.map(jnp.zeros_like, params), lasso.init(params), params)
      >>> optax.apply_updates(params, updates)['w'][1].tolist()
      [0.0, 0.0]
    """

    def inputs(params: PyTree) -> list[list[np.ndarray]]:
        units, first = [], 0
        for w in jax.tree.leaves(params):
            if not -w.ndim <= axis < w.ndim:
                raise ValueError(f"input_lasso: the kernel has shape {w.shape}, so it has no axis {axis}")
            own = [np.full((size, 1), -1) for size in w.shape]
            own[axis] = first + np.arange(w.shape[axis])[:, None]
            units, first = [*units, own], first + w.shape[axis]
        return units

    return optax.masked(proximal_lasso(inputs, strength, "input_lasso"), _leaves_at(where, "input_lasso"))


def _leaves_at(where: _tree.Where, what: str) -> Callable[[PyTree], PyTree]:
    """Returns a function from parameters to a tree of bools, True for the leaves that `where` selects."""
    if where is None:
        raise ValueError(f'{what}: where must name the leaf, such as "gates" or "first/kernel"; got None')

    def selected(params: PyTree) -> PyTree:
        if callable(where):
            return _tree.prunable(params, where)
        # Gates have one axis. The default rule of `where` (two axes or more) must not exclude them.
        rules = dict.fromkeys([where] if isinstance(where, str) else where, True)
        return jax.tree.unflatten(jax.tree.structure(params), _tree.resolve(rules, params, default=False, what=what))

    return selected
