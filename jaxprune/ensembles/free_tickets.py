"""`free_tickets`: makes several members in one sparse training (EDST), which explores and then refines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp

from jaxprune import criteria, training
from jaxprune.prune import How


@dataclass(frozen=True)
class Updates:
    """How masks change while members are trained.

    Attributes:
      every: the number of steps between mask updates, 1 or more; default 100.
      fraction: the fraction of the kept weights that each update drops and grows, in [0, 1]; default 0.5.
      leap: the fraction that the first update of each refinement except the first drops and grows, in [0, 1]; default
        0.8. A large fraction makes the training leave the basin of the last member.
      grow: the criterion for growing: the removed weights with the highest scores are grown.
    """

    every: int = 100
    fraction: float = 0.5
    leap: float = 0.8
    grow: criteria.Criterion = training.gradient_growth


class FreeTickets(NamedTuple):
    """One training that completes several members.

    Attributes:
      method: the method for `jaxprune.sparsify`.
      rate: step -> the factor of the learning rate, in (0, 1].
      ends: the number of steps after which each member is complete; the last number is the length of the training.
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
    """EDST ensembles: one exploration, then one refinement for each member (Liu et al. 2022, arXiv 2106.14568).

    Each update drops and grows a constant fraction, like RigL. The factor of the learning rate is 1 in the exploration;
    `rates` has the factors of the two halves of a refinement. A member is complete at the end of its refinement. The
    next refinement starts with a leap: it drops and grows a large fraction at once. All members together cost one
    sparse training of explore + members * refine steps.

    The defaults follow the authors' experiments on CIFAR except `updates.every`, which must suit the length of the
    training; short refinements need larger `rates`. Masks do not change in the second half of a refinement, because a
    grown weight stays near zero at such a small learning rate. (The authors change them, and choose the best epoch by
    validation.)

        tickets = free_tickets(0.9, members=3, explore=1000, refine=500, key=key)
        optimizer = jaxprune.sparsify(optax.sgd(lambda step: 0.1 * tickets.rate(step)), tickets.method)
        ...  # after each step in tickets.ends: networks.append((params, jaxprune.get_masks(state)))
        members = ensembles.stack(networks)

    Args:
      sparsity: the total fraction removed, in [0, 1).
      members: the number of members, 1 or more.
      explore: the number of steps of the exploration.
      refine: the number of steps of each refinement, 2 or more.
      updates: how masks change; default `Updates()`.
      rates: the factors of the learning rate in the two halves of a refinement, in (0, 1]; default (0.1, 0.01).
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        `key` is required, for the first masks and random growth. `criterion` chooses the weights to drop. `allocation`
        is `allocation.erk` by default.

    Returns:
      The method, the factor of the learning rate, and the steps at which members are complete.

    Raises:
      ValueError: a number is out of range.

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
            raise ValueError(f"{name} must be an integer of {least} or more; got {value!r}")
    if not isinstance(updates, Updates):
        raise TypeError(f"updates must be ensembles.Updates(every=..., ...); got {updates!r}")
    for name, value in (("fraction", updates.fraction), ("leap", updates.leap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], the fraction of the kept weights that is dropped; got {value}")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"rates must be two factors in (0, 1]; got {rates}")
    if not isinstance(updates.every, int) or updates.every < 1:
        raise ValueError(f"every must be a positive integer; got {updates.every!r}")
