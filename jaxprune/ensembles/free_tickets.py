"""Members from one sparse training: explore, refine, take what is there, leap elsewhere, refine again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxprune import _tree, criteria, masks, training
from jaxprune import allocation as allocations

Array = Any


class FreeTickets(NamedTuple):
    """A training that passes several tickets.

    Attributes:
      method: for `jaxprune.sparsify`.
      rate: step -> a factor in (0, 1] of the learning rate.
      ends: after how many steps each member is complete; the last is the length of the training.
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
    key: Any,
    every: int = 100,
    fraction: float = 0.5,
    leap: float = 0.8,
    rates: tuple[float, float] = (0.1, 0.01),
    grow: criteria.Criterion = training.gradient_growth,
    allocation: allocations.Allocate = allocations.erk,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
) -> FreeTickets:
    """EDST ensembles: an exploration phase, then one refinement phase a member (Liu et al. 2022, arXiv:2106.14568).

    Masks drop and grow as in RigL, by a constant fraction. The rate is 1 while exploring, and 0.1 and then 0.01 in the
    halves of each refinement (`rates`); at its end a member is complete. The next refinement begins with a leap: a
    large fraction is dropped and grown at once, to leave the basin. All members together cost one sparse training of
    explore + members * refine steps.

    The defaults are those of the authors' experiments on CIFAR but for `every` (1000 there), which must suit the length
    of training; short refinements want larger `rates`. In the second half of a refinement the masks rest: a weight that
    is grown at so small a rate comes to nothing. (The authors go on, and take the best epoch by validation instead.)

        tickets = free_tickets(0.9, members=3, explore=1000, refine=500, key=key)
        optimizer = jaxprune.sparsify(optax.sgd(lambda step: 0.1 * tickets.rate(step)), tickets.method)
        ...  # after step in tickets.ends: found.append((params, jaxprune.get_masks(state)))
        members = ensembles.stack(found)

    Args:
      sparsity: the total fraction removed, in [0, 1).
      members: how many members, 1 or more.
      explore: steps of the exploration.
      refine: steps of each refinement, 2 or more.
      key: a JAX key for the first masks and random growth.
      every: the interval of mask updates.
      fraction: the fraction of the kept weights dropped in each update, in [0, 1].
      leap: that of the update with which all refinements but the first begin, in [0, 1].
      rates: the factors of the learning rate in the two halves of a refinement, in (0, 1].
      grow: as in `training.dynamic`.
      allocation: as in `training.dynamic`.
      pattern: as in `training.dynamic`.
      where: as in `training.dynamic`.
      batch_axes: as in `training.dynamic`.

    Returns:
      The method, the factor of the rate, and when to take members.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> tickets = free_tickets(0.9, members=2, explore=300, refine=100, key=jax.random.key(0))
      >>> tickets.ends, [round(float(tickets.rate(step)), 2) for step in (0, 299, 300, 350, 400, 450)]
      ((400, 500), [1.0, 1.0, 0.1, 0.01, 0.1, 0.01])
    """
    for name, value, least in (("members", members, 1), ("explore", explore, 0), ("refine", refine, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of {least} at least; got {value!r}")
    for name, share in (("fraction", fraction), ("leap", leap)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is the fraction dropped of the kept weights and must be in [0, 1]; got {share}")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"rates are two factors in (0, 1]; got {rates}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a positive integer; got {every!r}")
    ends = tuple(explore + refine * (i + 1) for i in range(members))

    def leaps(step: Any) -> Any:
        return (step > explore) & (step < ends[-1]) & ((step - explore) % refine == 0)

    def when(step: Any) -> Any:
        moving = (step < explore) | ((step - explore) % refine < refine // 2)
        return ((step > 0) & (step % every == 0) & (step < ends[-1]) & moving) | leaps(step)

    def rate(step: Any) -> Any:
        refined = jnp.asarray(step) - explore
        return jnp.where(refined < 0, 1.0, jnp.where(refined % refine < refine // 2, *rates))

    method = training.dynamic(
        sparsity, key=key, when=when, fraction=lambda step: jnp.where(leaps(step), leap, fraction), grow=grow,
        allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes,
    )  # fmt: skip
    return FreeTickets(method, rate, ends)
