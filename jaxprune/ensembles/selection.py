"""`greedy_selection`: adds members to an ensemble one by one, each time the member that improves it most."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.assess.metrics import log_losses
from jaxprune.ensembles.uncertainty import check_logits

Array = jax.Array


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
        """The members of the smallest ensemble with the lowest loss. Concrete arrays only."""
        return self.order[: int(self.losses.argmin()) + 1]


def greedy_selection(logits: Any, labels: Any, size: int | None = None) -> Selection:
    """Adds members one by one: each time the member with which the mean probability has the lowest loss.

    Caruana et al. 2004 (Ensemble selection from libraries of models, ICML), without replacement. Of equal members the
    one with the lowest number is added. Use data that neither trains the members nor evaluates the ensemble.

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
