"""Which members belong in an ensemble: forward selection by what they add to it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import assess
from jaxprune.ensembles.uncertainty import check

Array = jax.Array


class Chosen(NamedTuple):
    """A greedy choice.

    Attributes:
      order: the members, the best alone first, int32 (size,).
      losses: the mean negative log-likelihood of the ensemble of the first, the first two, ..., (size,).
    """

    order: Array
    losses: Array

    @property
    def best(self) -> Array:
        """The members up to the least loss; of equal losses the smallest ensemble. Concrete arrays only."""
        return self.order[: int(self.losses.argmin()) + 1]


def greedy(logits: Any, labels: Any, size: int | None = None) -> Chosen:
    """Adds, one after another, the member that lowers the loss of the mean probability most.

    Caruana et al. 2004 (Ensemble selection from libraries of models, ICML), without replacement. Of equally good
    members the lowest number is taken. Use data that neither trained the members nor will judge the ensemble.

    Args:
      logits: (members, n, classes) of held-out data.
      labels: integers, (n,).
      size: how many members to choose, static; by default all, in order.

    Returns:
      The members in the order of choice, and the losses on the way.

    Raises:
      ValueError: see `assess.evaluate`; a size that is not in [1, members].
      TypeError: see `assess.evaluate`.

    Example:
      >>> logits = jnp.log(jnp.array([[[0.6, 0.4]], [[0.9, 0.1]], [[0.2, 0.8]]]))
      >>> greedy(logits, jnp.array([0])).order.tolist()
      [1, 0, 2]
    """
    logits = check(logits)
    members, n, classes = logits.shape
    wanted = members if size is None else size
    if not 1 <= wanted <= members:
        raise ValueError(f"size must lie in [1, {members}], the number of members; got {size}")
    flat, every = logits.reshape(members * n, classes), jnp.tile(jnp.asarray(labels), members)
    assess.log_losses(flat, every)  # checks both
    return _greedy(logits, jnp.asarray(labels), wanted)


@partial(jax.jit, static_argnums=2)
def _greedy(logits: Array, labels: Array, size: int) -> Chosen:
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
    return Chosen(order, losses)
