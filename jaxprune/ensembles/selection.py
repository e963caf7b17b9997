"""Ensemble selection: `greedy_selection` adds the member that improves the ensemble most, one after another."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import assess
from jaxprune.ensembles.uncertainty import check_logits

Array = jax.Array


class Selection(NamedTuple):
    """Members in the order of a greedy selection.

    Attributes:
      order: numbers of members, int32 (size,); the best single member is first.
      losses: (size,), the mean negative log-likelihood of the ensembles of the first member, the first two, and so on.
    """

    order: Array
    losses: Array

    @property
    def best(self) -> Array:
        """The members of the ensemble with the lowest loss, and the smallest such ensemble. Concrete arrays only."""
        return self.order[: int(self.losses.argmin()) + 1]


def greedy_selection(logits: Any, labels: Any, size: int | None = None) -> Selection:
    """Adds members one after another: each time the one with which the mean probability has the lowest loss.

    Caruana et al. 2004 (Ensemble selection from libraries of models, ICML), without replacement. In a tie the member
    with the lowest number is added. Use data that neither trained the members nor will judge the ensemble.

    Args:
      logits: (members, n, classes), of held-out data.
      labels: integers, (n,).
      size: number of members to select, in [1, members], static; None orders all members.

    Returns:
      A `Selection`: the members in the order in which they were added, and the losses of the growing ensembles.

    Raises:
      ValueError: logits or labels of other shapes, labels that are not classes, NaN, a size out of range.
      TypeError: labels that are not integers.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.6, 0.4]], [[0.9, 0.1]], [[0.2, 0.8]]]))
      >>> greedy_selection(logits, jnp.array([0])).order.tolist()
      [1, 0, 2]
    """
    logits = check_logits(logits)
    members, n, classes = logits.shape
    wanted = members if size is None else size
    if not 1 <= wanted <= members:
        raise ValueError(f"size must lie in [1, {members}], the number of members; got {size}")
    flat, every = logits.reshape(members * n, classes), jnp.tile(jnp.asarray(labels), members)
    assess.log_losses(flat, every)  # checks both
    return _select(logits, jnp.asarray(labels), wanted)


@partial(jax.jit, static_argnums=2)
def _select(logits: Array, labels: Array, size: int) -> Selection:
    log_p = jax.nn.log_softmax(logits, axis=-1)
    of_label = jnp.take_along_axis(log_p, labels[None, :, None], axis=-1)[..., 0]  # (members, n): all that counts

    def step(carry: tuple[Array, Array], count: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        total, free = carry
        together = jnp.logaddexp(total, of_label)  # log of the sum of the probabilities, with each candidate
        losses = jnp.where(free, jnp.log(count) - together.mean(-1), jnp.nan)
        # A loss may be infinite for all: an infinite free member still comes before one that was chosen.
        chosen = jnp.nanargmin(jnp.where(free, jnp.nan_to_num(losses, posinf=jnp.finfo(losses.dtype).max), jnp.nan))
        return (together[chosen], free.at[chosen].set(False)), (chosen.astype(jnp.int32), losses[chosen])

    start = jnp.full(labels.shape, -jnp.inf, log_p.dtype), jnp.ones(logits.shape[0], bool)
    _, (order, losses) = jax.lax.scan(step, start, jnp.arange(1, size + 1, dtype=log_p.dtype))
    return Selection(order, losses)
