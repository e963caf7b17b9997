"""`StochasticGates` and `input_lasso`: Optax transformations that choose features while the network trains.

Both evaluate features jointly, because the loss of the whole network decides.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from jaxprune import _tree
from jaxprune.slimming.regularise import proximal_lasso

Array = jax.Array
PyTree = Any
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
          dtype: the dtype of the parameters.

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
    r"""Group lasso on the inputs of the first layer: all weights of an input become exactly zero together.

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
