"""How members differ: `uncertainty` splits the entropy, `disagreement` counts different answers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import assess

Array = jax.Array


class Uncertainty(NamedTuple):
    """Entropies of the prediction for each sample, in nats; total = aleatoric + epistemic.

    Attributes:
      total: the entropy of the mean prediction, H(1/M sum_m p_m).
      aleatoric: the mean entropy of the members, 1/M sum_m H(p_m); more members do not lower it.
      epistemic: the mutual information of prediction and member; 0 if all members predict the same.
    """

    total: Array
    aleatoric: Array
    epistemic: Array


def uncertainty(logits: Any) -> Uncertainty:
    """Splits the entropy of the mean prediction: Depeweg et al. 2018, arXiv 1710.07283, equations 1 and 2.

    Args:
      logits: (members, n, classes); -inf gives a class probability 0.

    Returns:
      `Uncertainty`, three arrays (n,).

    Raises:
      ValueError: logits do not have three axes, an axis is empty, or concrete logits have NaN.

    Example:
      >>> sure = jnp.array([[[0.0, -jnp.inf]], [[-jnp.inf, 0.0]]])  # each member sure, of different answers
      >>> found = uncertainty(sure)
      >>> found.aleatoric.tolist(), round(float(found.epistemic[0]), 4)  # log 2
      ([0.0], 0.6931)
    """
    logits = check_logits(logits)
    epistemic = assess.epistemic_uncertainty(logits)
    aleatoric = assess.entropy(logits).mean(0)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def disagreement(logits: Any) -> Array:
    """For each sample, the fraction of pairs of members that answer differently.

    With v_k votes for class k from M members: (M^2 - sum_k v_k^2) / (M (M - 1)). If logits tie, the lowest class is the
    answer.

    Args:
      logits: (members, n, classes), for two members or more.

    Returns:
      (n,), in [0, 1].

    Raises:
      ValueError: logits do not have three axes, an axis is empty, concrete logits have NaN, or there is only one
        member.

    Example:
      >>> answers = jnp.array([[0, 1], [0, 2], [1, 0]])
      >>> [round(float(d), 4) for d in disagreement(jax.nn.one_hot(answers, 3))]
      [0.6667, 1.0]
    """
    logits = check_logits(logits, least=2)
    members = logits.shape[0]
    votes = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return (members**2 - (votes**2).sum(-1)) / (members * (members - 1))


def pairwise_disagreement(logits: Any) -> Array:
    """For each pair of members, the fraction of samples on which they answer differently.

    Args:
      logits: (members, n, classes).

    Returns:
      (members, members), symmetric, with zeros on the diagonal. The mean off the diagonal equals the mean of
      `disagreement` over the samples.

    Raises:
      ValueError: logits do not have three axes, an axis is empty, or concrete logits have NaN.

    Example:
      >>> answers = jnp.array([[0, 1], [0, 2]])
      >>> pairwise_disagreement(jax.nn.one_hot(answers, 3)).tolist()
      [[0.0, 0.5], [0.5, 0.0]]
    """
    answers = check_logits(logits).argmax(-1)
    return jax.vmap(lambda one: (one[None] != answers).mean(-1))(answers)


def check_logits(logits: Any, *, least: int = 1) -> Array:
    """Checks the shape, dtype and values of member logits; returns the logits in float32 at least."""
    logits = jnp.asarray(logits)
    if logits.ndim != 3 or not logits.size or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating, (members, n, classes); got {logits.dtype} {logits.shape}")
    if logits.shape[0] < least:
        raise ValueError(f"disagreement needs at least {least} members; got {logits.shape[0]}")
    if not isinstance(logits, Tracer):
        wrong = np.flatnonzero(np.isnan(np.asarray(logits, np.float64)).any((1, 2)))
        if wrong.size:
            raise ValueError(f"logits of member {', '.join(map(str, wrong))} contain NaN")
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
