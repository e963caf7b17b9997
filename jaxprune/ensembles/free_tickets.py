"""Free tickets (EDST): `free_tickets` makes several members in one sparse training that explores and refines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp

from jaxprune import criteria, training
from jaxprune.prune import How


@dataclass(frozen=True)
class Updates:
    """How the masks move while members are found.

    Attributes:
      every: the interval between mask updates, in steps; 1 or more.
      fraction: the fraction of the kept weights that each update drops and grows, in [0, 1].
      leap: the fraction that the first update of each refinement but the first drops and grows, in [0, 1]. It is large,
        so that training leaves the basin of the last member.
      grow: the criterion for growing: removed weights with the highest scores are grown.
    """

    every: int = 100
    fraction: float = 0.5
    leap: float = 0.8
    grow: criteria.Criterion = training.gradient_growth


class FreeTickets(NamedTuple):
    """One training in which several members are completed.

    Attributes:
      method: the method for `jaxprune.sparsify`.
      rate: step -> the factor in (0, 1] of the learning rate.
      ends: the number of steps after which each member is complete; the last one is the length of the training.
    """

    method: training.Method
    rate: Callable[[Any], Any]
    ends: tuple[int, ...]


def free_tickets(
    sparsity: float,
    *,
    members: int,
    explore: int,
    refine: int,
    updates: Updates = Updates(),
    rates: tuple[float, float] = (0.1, 0.01),
    **how: Unpack[How],
) -> FreeTickets:
    """EDST ensembles: an exploration, then one refinement for each member: Liu et al. 2022, arXiv 2106.14568.

    Masks drop and grow as in RigL, by a constant fraction. The factor of the learning rate is 1 in the exploration, and
    `rates` in the two halves of each refinement, at whose end a member is complete. The next refinement begins with a
    leap: a large fraction is dropped and grown at once. All members together cost one sparse training of
    explore + members * refine steps.

    The defaults are those of the authors' experiments on CIFAR except `updates.every` (1000 there), which must suit the
    length of the training; short refinements need larger `rates`. In the second half of a refinement the masks do not
    move: at so small a learning rate a grown weight stays near zero. (The authors move them, and take the best epoch by
    validation instead.)

        tickets = free_tickets(0.9, members=3, explore=1000, refine=500, key=key)
        optimizer = jaxprune.sparsify(optax.sgd(lambda step: 0.1 * tickets.rate(step)), tickets.method)
        ...  # after each step in tickets.ends: networks.append((params, jaxprune.get_masks(state)))
        members = ensembles.stack(networks)

    Args:
      sparsity: the total fraction removed, in [0, 1).
      members: number of members, 1 or more.
      explore: steps of the exploration.
      refine: steps of each refinement, 2 or more.
      updates: how the masks move.
      rates: factors of the learning rate in the two halves of a refinement, in (0, 1].
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        `key` is required, for the first masks and random growth. `criterion` says which weights are dropped.
        `allocation` is `allocation.erk` by default.

    Returns:
      The method, the factor of the learning rate, and when members are complete.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import jax
      >>> tickets = free_tickets(0.9, members=2, explore=300, refine=100, key=jax.random.key(0))
      >>> tickets.ends, [round(float(tickets.rate(step)), 2) for step in (0, 299, 300, 350, 400, 450)]
      ((400, 500), [1.0, 1.0, 0.1, 0.01, 0.1, 0.01])
    """
    _check(members, explore, refine, updates, rates)
    ends = tuple(explore + refine * (i + 1) for i in range(members))

    def leaps(step: Any) -> Any:
        return (step > explore) & (step < ends[-1]) & ((step - explore) % refine == 0)

    def when(step: Any) -> Any:
        moving = (step < explore) | ((step - explore) % refine < refine // 2)
        return ((step > 0) & (step % updates.every == 0) & (step < ends[-1]) & moving) | leaps(step)

    def rate(step: Any) -> Any:
        refined = jnp.asarray(step) - explore
        return jnp.where(refined < 0, 1.0, jnp.where(refined % refine < refine // 2, *rates))

    fraction = lambda step: jnp.where(leaps(step), updates.leap, updates.fraction)
    method = training.dynamic(sparsity, when=when, fraction=fraction, grow=updates.grow, **how)
    return FreeTickets(method, rate, ends)


def _check(members: int, explore: int, refine: int, updates: Updates, rates: tuple[float, float]) -> None:
    for name, value, least in (("members", members, 1), ("explore", explore, 0), ("refine", refine, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of {least} at least; got {value!r}")
    if not isinstance(updates, Updates):
        raise TypeError(f"updates must be ensembles.Updates(every=..., ...); got {updates!r}")
    for name, value in (("fraction", updates.fraction), ("leap", updates.leap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is the fraction dropped of the kept weights and must be in [0, 1]; got {value}")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"rates are two factors in (0, 1]; got {rates}")
    if not isinstance(updates.every, int) or updates.every < 1:
        raise ValueError(f"every must be a positive integer; got {updates.every!r}")
