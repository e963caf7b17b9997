"""Predictions of members: run them as one model, combine them, measure how they differ, select members.

`member_logits` and `predictor` run members as one model. `mean_probability`, `mean_logit` and `majority` combine their
predictions: they take logits with a leading axis of members and return log-probabilities, which can be passed as
logits, because the softmax does not change them. `uncertainty` splits the entropy, `disagreement` compares answers, and
`greedy_selection` adds members to an ensemble one by one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree, assess
from jaxprune import masks as masks_
from jaxprune.assess.metrics import log_losses
from jaxprune.ensembles.members import Members, check_members

Array = jax.Array
PyTree = Any
Combine = Callable[[Array], Array]


def mean_probability(logits: Array) -> Array:
    """Returns the mean of the members' probabilities, log 1/M sum_m p_m.

    Deep ensembles (Lakshminarayanan et al. 2017, arXiv 1612.01474). The negative log-likelihood of
    the result is at most the mean negative log-likelihood of the members (Jensen's inequality).

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
    """Returns the softmax of the members' mean logits: the normalised geometric mean of their probabilities.

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
    """Returns the majority vote: the logarithm of the fraction of members that predict each class.

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
        check_members(members)
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
    """Returns for each sample the fraction of pairs of members that answer differently.

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


class Selection(NamedTuple):
    """Members in the order of a greedy selection.

    Attributes:
      order: the numbers of the members, int32 (size,); the best single member is first.
      losses: (size,), the mean negative log-likelihood of the first member, of the first two members, and so on.
    """

    order: Array
    losses: Array

    @property
    def best(self) -> Array:
        """The members of the smallest ensemble with the lowest loss. It needs concrete arrays."""
        return self.order[: int(self.losses.argmin()) + 1]


def greedy_selection(logits: Any, labels: Any, size: int | None = None) -> Selection:
    """Adds members one by one: each step adds the member that gives the mean probability the lowest loss.

    Caruana et al. 2004 (Ensemble selection from libraries of models, ICML), without replacement. If members are equal,
    the member with the lowest number is added. Use data that neither trains the members nor evaluates the ensemble.

    Args:
      logits: (members, n, classes), for held-out data.
      labels: integers, (n,).
      size: the number of members to select, in [1, members], static; None (default) orders all members.

    Returns:
      A `Selection`: the members in the order in which they were added, and the losses of the growing ensembles.

    Raises:
      ValueError: shapes do not fit, labels are not classes, logits have NaN, or `size` is out of range.
      TypeError: labels are not integers.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.6, 0.4]], [[0.9, 0.1]], [[0.2, 0.8]]]))
      >>> greedy_selection(logits, jnp.array([0])).order.tolist()
      [1, 0, 2]
    """
    logits = check_logits(logits)
    members, n, classes = logits.shape
    wanted = members if size is None else size
    if not 1 <= wanted <= members:
        raise ValueError(f"size must be in [1, {members}], the number of members; got {size}")
    flat, every = logits.reshape(members * n, classes), jnp.tile(jnp.asarray(labels), members)
    log_losses(flat, every)  # checks both
    return _select(logits, jnp.asarray(labels), wanted)


@partial(jax.jit, static_argnums=2)
def _select(logits: Array, labels: Array, size: int) -> Selection:
    log_p = jax.nn.log_softmax(logits, axis=-1)
    of_label = jnp.take_along_axis(log_p, labels[None, :, None], axis=-1)[..., 0]  # (members, n)

    def step(carry: tuple[Array, Array], count: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        total, free = carry
        together = jnp.logaddexp(total, of_label)  # log of the sum of the probabilities, with each candidate
        losses = jnp.where(free, jnp.log(count) - together.mean(-1), jnp.nan)
        # If all losses are infinite, a member that is not yet chosen must still come before a chosen one.
        chosen = jnp.nanargmin(jnp.where(free, jnp.nan_to_num(losses, posinf=jnp.finfo(losses.dtype).max), jnp.nan))
        return (together[chosen], free.at[chosen].set(False)), (chosen.astype(jnp.int32), losses[chosen])

    start = jnp.full(labels.shape, -jnp.inf, log_p.dtype), jnp.ones(logits.shape[0], bool)
    _, (order, losses) = jax.lax.scan(step, start, jnp.arange(1, size + 1, dtype=log_p.dtype))
    return Selection(order, losses)
