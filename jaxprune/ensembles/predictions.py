"""`member_logits` and `predictor` run members as one model; `mean_probability` and others combine their predictions.

The functions that combine predictions take logits with a leading axis of members and return log-probabilities. You can
use log-probabilities wherever logits are expected, because the softmax does not change them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune import masks as masks_
from jaxprune.ensembles.members import Members

Array = jax.Array
PyTree = Any
Combine = Callable[[Array], Array]


def mean_probability(logits: Array) -> Array:
    """The mean of the members' probabilities, log 1/M sum_m p_m: Lakshminarayanan et al. 2017, arXiv 1612.01474.

    Its negative log-likelihood is at most the mean negative log-likelihood of the members (Jensen's inequality).

    Args:
      logits: (members, ..., classes).

    Returns:
      Log-probabilities (..., classes), in float32 at least.

    Example:
      >>> jnp.exp(mean_probability(jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]])))).round(4).tolist()
      [0.625, 0.375]
    """
    log_p = jax.nn.log_softmax(_floats(logits), axis=-1)
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(jnp.asarray(logits.shape[0], log_p.dtype))


def mean_logit(logits: Array) -> Array:
    """The softmax of the members' mean logits: the normalised geometric mean of their probabilities.

    A class to which any member gives the logit -inf has probability 0.

    Args:
      logits: (members, ..., classes).

    Returns:
      Log-probabilities (..., classes), in float32 at least.

    Example:
      >>> [round(float(p), 4) for p in jnp.exp(mean_logit(jnp.array([[0.0, 0.0], [2.0, 0.0]])))]  # sigmoid(1)
      [0.7311, 0.2689]
    """
    return jax.nn.log_softmax(_floats(logits).mean(0), axis=-1)


def majority(logits: Array) -> Array:
    """The majority vote: the logarithm of the fraction of members that predict each class.

    If classes have equally many votes, the lowest class is predicted. A class without votes has probability 0, so the
    negative log-likelihood of a label without votes is infinite.

    Args:
      logits: (members, ..., classes).

    Returns:
      Log-probabilities (..., classes), in float32 at least.

    Example:
      >>> votes = majority(jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 1.0, 0.0]]))
      >>> [round(float(p), 4) for p in jnp.exp(votes)]
      [0.3333, 0.6667, 0.0]
    """
    logits = _floats(logits)
    votes = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=logits.dtype)
    return jnp.log(votes.mean(0))


def member_logits(fn: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a vmapped and jitted function that runs all members on the same inputs and returns their logits.

    Reuse the returned function: each call of `member_logits` compiles again.

    Args:
      fn: `(params, *inputs) -> logits (n, classes)`, traceable.

    Returns:
      `(members, *inputs) -> logits (members, n, classes)`. It applies the masks, so removed weights are zero for any
      parameters.

    Example:
      >>> from jaxprune.ensembles import from_stacked
      >>> run = member_logits(lambda params, x: x @ params['w'])
      >>> run(from_stacked({'w': jnp.ones((3, 2, 5))}), jnp.ones((4, 2))).shape
      (3, 4, 5)
    """

    def one(params: PyTree, masks: PyTree, inputs: tuple[Any, ...]) -> Array:
        return _tree.call(fn, "fn", "fn(params, *inputs)", masks_.apply(params, masks), *inputs)

    _tree.check_function(fn, "fn", "fn(params, *inputs) -> logits")

    @jax.jit
    def run(members: Members, *inputs: Any) -> Array:
        _tree.check_instance(
            members, Members, "members", "ensembles.Members, as ensembles.stack([(params, masks), ...]) returns them"
        )
        return jax.vmap(one, in_axes=(0, 0, None))(members.params, members.masks, inputs)

    return run


def predictor(fn: Callable[..., Array], combine: Combine = mean_probability) -> Callable[..., Array]:
    """Returns the ensemble as one jitted function, which runs all members and combines their predictions.

    Args:
      fn: `(params, *inputs) -> logits (n, classes)`, traceable.
      combine: `mean_probability` (default), `mean_logit`, `majority`, or any function of logits (members, n, classes).

    Returns:
      `(members, *inputs) -> log-probabilities (n, classes)`, which `assess.evaluate` accepts as logits.

    Example:
      >>> from jaxprune.ensembles import from_stacked
      >>> run = predictor(lambda params, x: x @ params['w'])
      >>> run(from_stacked({'w': jnp.ones((3, 2, 5))}), jnp.ones((4, 2))).shape
      (4, 5)
    """
    _tree.check_function(combine, "combine", "ensembles.mean_probability")
    every = member_logits(fn)
    return jax.jit(lambda members, *inputs: combine(every(members, *inputs)))


def _floats(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
