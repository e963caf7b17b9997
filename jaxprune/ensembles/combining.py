"""From the logits of members to one prediction: kernels over arrays, each returning log-probabilities.

Log-probabilities serve wherever logits do: the softmax leaves them as they are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Combine = Callable[[Array], Array]


def mean_probability(logits: Array) -> Array:
    """The mean of the members' probabilities (Lakshminarayanan et al. 2017, arXiv:1612.01474): log 1/M sum_m p_m.

    Its negative log-likelihood is never above the mean of the members' own (Jensen).

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

    A class that any member excludes with -inf is excluded.

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
    """The logarithm of the fraction of members that answer each class; of equally many votes the lowest class wins.

    A class without a vote has probability 0: where it is the label, the negative log-likelihood is infinite.

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


def _floats(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
