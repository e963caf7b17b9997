"""Methods that follow a plan: `fixed` masks, `one_shot` pruning at a step, `gradual` pruning along a schedule."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree, schedules
from jaxprune.masks import ones, unpack
from jaxprune.masks._exact.counts import check_sparsity
from jaxprune.prune import How, Selector
from jaxprune.schedules.steps import Planned, check_schedule
from jaxprune.schedules.updates import covering
from jaxprune.training import enforce
from jaxprune.training.method import Method, Signals, in_shape

PyTree = Any


def fixed(masks: PyTree) -> Method:
    """Masks that never change: for fine-tuning, tickets and static sparse training.

    Args:
      masks: masks in the structure of the parameters, or of the same leaves in other containers. They are copied into
        the optimizer's state.

    Returns:
      A method for `jaxprune.sparsify`. Removed weights are zero from the first update on. Start with
      `masks.apply(params, masks)` so that they are zero in the first gradient too, and in leaves whose gradients are
      None, which an optimizer does not change.

    Raises:
      ValueError: at init, the masks have other leaves or shapes than the parameters; the message names the leaves.

    Example:
      >>> fixed({'w': jnp.array([[True, False]])}).init({'w': jnp.ones((1, 2))})[0]['w'].tolist()
      [[True, False]]
    """

    def init(params: PyTree) -> tuple[PyTree, None]:
        return enforce.own_masks(params, masks), None

    return Method(init, None, lambda masks, state, signals: (masks, state), end=0)


def one_shot(sparsity: float, *, step: int = 0, **how: Unpack[How]) -> Method:
    """Trains the dense network before `step`, prunes it once, and then trains with fixed masks.

    Args:
      sparsity: the fraction to remove, in [0, 1).
      step: the update before which the masks are made, an int of 0 or more. The default, 0, prunes the parameters that
        training starts with. A criterion sees the gradients of that step.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: the sparsity is outside [0, 1), or the step is negative.
      TypeError: the criterion or the allocation is not a function.

    Example:
      >>> method = one_shot(0.5, step=100)
      >>> [step for step in range(1000) if method.is_due(step)]
      [100]
    """
    check_sparsity(sparsity)
    step = schedules.every(1, step).begin  # checks the step
    return _planned(lambda _: sparsity, lambda at: at == step, step + 1, how)


def gradual(schedule: schedules.Schedule, *, when: schedules.Update | None = None, **how: Unpack[How]) -> Method:
    """Prunes along a schedule during training: gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878).

    Removed weights rank lowest at the next update of the masks. A removed weight returns only where the schedule falls,
    and it returns as zero.

    Args:
      schedule: a function from a step to a sparsity, such as `schedules.cubic(begin=0, end=1000, final=0.9)`. Traced
        values outside [0, 1) are clipped.
      when: a function from a step to whether the masks are revised before this update. The default follows from the
        schedule and always reaches its final sparsity: every 100 steps from its begin to its end, or every tenth of its
        length if that is shorter; every step if the schedule is a function without a known end. With your own rule,
        such as `schedules.every(n, begin, end)`, a schedule that ends between two updates reaches its final sparsity at
        the second update. `training.is_finished(state)` says whether a run has reached it.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        The criterion sees the raw gradients and the extra arguments of `update`. The key is the same at every
        revision, so that masks of a random criterion are nested.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      TypeError: the schedule, `when`, the criterion or the allocation is not a function.

    Example:
      >>> method = gradual(schedules.cubic(begin=0, end=1000, final=0.9))
      >>> [step for step in range(2000) if method.is_due(step)][-3:]
      [800, 900, 1000]
    """
    _tree.check_function(schedule, "schedule", "schedules.cubic(begin=0, end=1000, final=0.9)")
    check_schedule(schedule)
    when = covering(schedule) if when is None else when
    _tree.check_function(when, "when", "schedules.every(100)")
    end = None
    if isinstance(schedule, Planned):
        last = when.first_from(schedule.end) if isinstance(when, schedules.every) else schedule.end
        end = None if last is None else last + 1
    return _planned(schedule, when, end, how)


def _planned(schedule: Any, when: Any, end: int | None, how: How) -> Method:
    select = Selector(**how)

    def init(params: PyTree) -> tuple[PyTree, Any]:
        select.chosen(params)
        return ones(params, **select.units), enforce.own_key(select.key)

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        chosen, key = signals.trained(select), enforce.use_key(state, select.key)
        scores = chosen.scores(signals.params, **{"grads": signals.grads, "key": key, **signals.extra})
        # A removed weight scores 0 by its magnitude, but a kept one may too: NaN, the lowest rank, breaks the tie.
        last = lambda score, mask: jnp.where(unpack(mask), score, jnp.nan) if jnp.ndim(mask) else score
        scores = jax.tree.map(last, scores, masks)
        return in_shape(chosen.masks(scores, schedule(signals.step)), masks), state

    return Method(init, when, revise, specs=select.specs, end=end)
