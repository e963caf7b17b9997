"""Gates learned with the network, as Optax transformations: stochastic gates, and group lasso on the inputs' rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from jaxprune import _tree

Array = jax.Array
PyTree = Any
Schedule = Callable[[Any], Any]


def start_gates(features: int, *, start: float = 0.5, dtype: Any = jnp.float32) -> Array:
    """The parameters of stochastic gates, one a feature: put them into the tree of parameters as a leaf.

    Args:
      features: how many.
      start: where they start; 0.5 is open as often as a fair coin, and halfway when it is not cut off.
      dtype: their dtype.

    Returns:
      (features,).

    Raises:
      ValueError: no feature.
    """
    if features < 1:
        raise ValueError(f"there must be a feature; got {features}")
    return jnp.full(features, start, dtype)


def draw(mu: Array, key: Array, samples: int, *, sigma: float = 0.5) -> Array:
    r"""What stochastic gates let through in a step of training.

        z_ij = min(1, max(0, mu_j + sigma e_ij)),    e_ij ~ N(0, 1)

    Yamada, Lindenbaum, Negahban and Kluger 2020, arXiv 1810.04247, section 3: a Bernoulli gate, relaxed so that its
    gradient by mu is that of a clipped Gaussian. Multiply the features by it: the loss sees `net(params, x * z)`.

    Args:
      mu: (features,), from `start_gates`.
      key: a JAX key.
      samples: how many rows, each with noise of its own.
      sigma: the noise, above 0; the paper's 0.5.

    Returns:
      (samples, features) in [0, 1].

    Raises:
      ValueError: sigma is not positive.
    """
    _check_sigma(sigma)
    return jnp.clip(mu + sigma * jax.random.normal(key, (samples, *mu.shape), mu.dtype), 0.0, 1.0)


def through(mu: Array) -> Array:
    """What gates let through once training is over: mu, cut off at 0 and 1. What is above 0 is a feature kept.

    Example:
      >>> through(jnp.array([-0.5, 0.25, 3.0])).tolist()
      [0.0, 0.25, 1.0]
    """
    return jnp.clip(mu, 0.0, 1.0)


def open_gates(mu: Array, *, sigma: float = 0.5) -> Array:
    r"""The expected number of open gates, the penalty of the paper: \sum_j P(z_j > 0) = \sum_j Phi(mu_j / sigma).

    Args:
      mu: (features,).
      sigma: the noise.

    Returns:
      A scalar.

    Example:
      >>> float(open_gates(jnp.zeros(4)))
      2.0
    """
    _check_sigma(sigma)
    return norm.cdf(mu / sigma).sum()


def add_gate_penalty(
    strength: float | Schedule, where: _tree.Where, *, sigma: float = 0.5
) -> optax.GradientTransformation:
    """Adds the gradient of `strength * open_gates(mu)` to that of the gates, as `optax.add_decayed_weights` adds decay.

    Put it before the optimizer: `optax.chain(add_gate_penalty(0.01, "gates"), optax.adam(1e-3))`.

    Args:
      strength: 0 or more, or a function of the step.
      where: which leaves are gates: a name, a glob, several, or a predicate `(name, leaf) -> bool`.
      sigma: the noise that the gates are drawn with.

    Returns:
      A transformation whose update needs `params`.

    Raises:
      ValueError: sigma is not positive, no leaf matches, or `update` was called without params.

    Example:
      >>> params = {'gates': jnp.zeros(2), 'w': jnp.ones(2)}
      >>> penalty = add_gate_penalty(1.0, 'gates')
      >>> grads, _ = penalty.update(jax.tree.map(jnp.zeros_like, params), penalty.init(params), params)
      >>> [round(float(g[0]), 4) for g in grads.values()]
      [0.7979, 0.0]
    """
    _check_sigma(sigma)

    def change(amount: Any, mu: Array, grad: Array) -> Array:
        return grad + jnp.asarray(amount * norm.pdf(mu / sigma) / sigma, grad.dtype)

    return _at(strength, where, change, "add_gate_penalty")


def input_lasso(strength: float | Schedule, where: _tree.Where, *, axis: int = 0) -> optax.GradientTransformation:
    r"""Group lasso on the rows of the first layer, by its proximal step: an input's weights become zero at once.

        w_j <- w_j max(0, 1 - t sqrt(m) / ||w_j||)     after the optimizer's step, with m weights in a row

    Yuan and Lin 2006, J. R. Stat. Soc. B 68, eq. 2.4, as a proximal step; Scardapane et al. 2017, arXiv 1607.00485, for
    networks' inputs. Put it last in the chain. `slimming.group_lasso` does the same for hidden units.

    Args:
      strength: t, a step's shrinkage, the learning rate times the penalty; or a function of the step.
      where: the first layer's kernel: a name, a glob, several, or a predicate.
      axis: its axis of inputs.

    Returns:
      A transformation whose update needs `params`; after `optax.apply_updates` a row that was driven out is exactly
      zero.

    Raises:
      ValueError: no leaf matches, it has no such axis, or `update` was called without params.

    Example:
      >>> params = {'w': jnp.array([[3.0, 4.0], [0.1, 0.1]])}
      >>> lasso = input_lasso(1.0, 'w')
      >>> updates, _ = lasso.update(jax.tree.map(jnp.zeros_like, params), lasso.init(params), params)
      >>> optax.apply_updates(params, updates)['w'][1].tolist()
      [0.0, 0.0]
    """

    def change(amount: Any, w: Array, update: Array) -> Array:
        if not -w.ndim <= axis < w.ndim:
            raise ValueError(f"input_lasso: a kernel of shape {w.shape} has no axis {axis}")
        stepped = w + update
        others = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
        length = jnp.sqrt(jnp.sum(jnp.square(stepped), others, keepdims=True))
        threshold = amount * (w.size / w.shape[axis]) ** 0.5
        # A row that goes gets -w itself, so that w plus its update is exactly zero.
        kept = stepped * (1.0 - threshold / jnp.maximum(length, 1e-30)) - w
        return jnp.where(length <= threshold, -w, jnp.asarray(kept, update.dtype))

    return _at(strength, where, change, "input_lasso")


def _at(
    strength: float | Schedule, where: _tree.Where, change: Callable[[Any, Array, Array], Array], what: str
) -> optax.GradientTransformation:
    """A transformation that changes the updates of some leaves, by a strength that may be a schedule."""

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        _ = _chosen(params, where, what)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"{what} needs params: call update(updates, state, params)")
        amount = strength(state.count) if callable(strength) else strength
        chosen = _chosen(params, where, what)
        new = jax.tree.map(lambda c, p, u: change(amount, p, u) if c else u, chosen, params, updates)
        return new, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _chosen(params: PyTree, where: _tree.Where, what: str) -> PyTree:
    # Gates have one axis, so the default rule (two axes or more) must not narrow a glob here.
    if where is None or callable(where):
        if where is None:
            raise ValueError(f"{what}: say which leaf, by its name: {[name for name, _ in _tree.named_leaves(params)]}")
        return _tree.prunable(params, where)
    globs = [where] if isinstance(where, str) else list(where)
    rules = dict.fromkeys(globs, True)
    return jax.tree.unflatten(jax.tree.structure(params), _tree.resolve(rules, params, default=False, what=what))


def _check_sigma(sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0; got {sigma}")
