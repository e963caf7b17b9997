"""Methods that follow a plan: fixed masks, one cut, or a schedule of sparsities."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, criteria, masks, schedules
from jaxprune import allocation as allocations
from jaxprune.prune import Selector
from jaxprune.training import enforce
from jaxprune.training.choosing import check_plan
from jaxprune.training.method import Method, Signals

PyTree = Any


def fixed(mask_tree: PyTree, *, specs: PyTree = None) -> Method:
    """Masks that never change: fine-tuning, tickets, static sparse training.

    Args:
      mask_tree: masks in the structure of the parameters, or of the same leaves in other containers. They are copied
        into the optimizer's state.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`. The parameters are zero at removed places from the first update on; start with
      `masks.apply(params, masks)` to have the zeros in the first gradient too.

    Raises:
      ValueError: when initialised with parameters of other leaves or shapes.

    Example:
      >>> fixed({'w': jnp.array([[True, False]])}).init({'w': jnp.ones((1, 2))})[0]['w'].tolist()
      [[True, False]]
    """

    def init(params: PyTree) -> tuple[PyTree, None]:
        return enforce.own_masks(params, mask_tree), None

    return Method(init, None, lambda held, state, signals: (held, state), specs=specs)


def one_shot(
    sparsity: float,
    *,
    step: int = 0,
    criterion: criteria.Criterion = criteria.magnitude,
    allocation: allocations.Allocate = allocations.uniform,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
    key: Any = None,
) -> Method:
    """Dense before `step`, then pruned once, then trained with fixed masks.

    Args:
      sparsity: the fraction to remove, in [0, 1).
      step: the update before which the masks are made; 0 prunes what training starts with.
      criterion: as in `jaxprune.prune`; gradients are those of that step.
      allocation: as in `jaxprune.prune`.
      pattern: as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.
      key: a JAX key, for random criteria; kept in the state.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a sparsity outside [0, 1), a negative step.
      TypeError: the criterion or the allocation is no function.

    Example:
      >>> method = one_shot(0.5, step=100)
      >>> [step for step in range(1000) if method.is_due(step)]
      [100]
    """
    masks.check_sparsity(sparsity)
    schedules.jump(sparsity, step)  # checks the step
    return _planned(
        lambda _: sparsity, lambda at: at == step, criterion, allocation, pattern, where, batch_axes, key, specs
    )


def gradual(
    schedule: schedules.Schedule,
    *,
    when: schedules.Update = schedules.every(100),
    criterion: criteria.Criterion = criteria.magnitude,
    allocation: allocations.Allocate = allocations.uniform,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
    key: Any = None,
) -> Method:
    """Prunes along a schedule while training, as gradual magnitude pruning does (Zhu and Gupta 2017, arXiv 1710.01878).

    What was removed ranks lowest at the next revision, so that a removed weight comes back only where the schedule
    falls; it comes back as zero.

    Args:
      schedule: step -> sparsity, such as `schedules.cubic(begin, end, final)`.
      when: step -> whether the masks are revised before this update. `schedules.every(n, begin, end)` with the ends of
        the schedule has a revision at the end; a schedule that ends between two revisions stops short until the next.
      criterion: as in `jaxprune.prune`; it sees the raw gradients of the step, and the extra arguments of `update`.
      allocation: as in `jaxprune.prune`.
      pattern: as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.
      key: a JAX key, for random criteria; kept in the state and the same at every revision, so that masks are nested.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      TypeError: the schedule, `when`, the criterion or the allocation is no function.

    What a schedule of one's own gives is traced and so cannot be refused: outside [0, 1) it is clipped.

    Example:
      >>> method = gradual(schedules.cubic(0, 1000, 0.9), when=schedules.every(50, 0, 1000))
    """
    _tree.check_function(schedule, "schedule", "schedules.cubic(begin=0, end=1000, final=0.9)")
    return _planned(schedule, when, criterion, allocation, pattern, where, batch_axes, key, specs)


def _planned(
    schedule: Any,
    when: Any,
    criterion: criteria.Criterion,
    allocation: allocations.Allocate,
    pattern: masks.Patterns,
    where: _tree.Where,
    batch_axes: masks.BatchAxes,
    key: Any,
    specs: PyTree,
) -> Method:
    check_plan(when, criterion)
    select = Selector(
        criterion=criterion,
        allocation=allocation,
        pattern=pattern,
        where=where,
        batch_axes=batch_axes,
        key=key,
        specs=specs,
    )

    def init(params: PyTree) -> tuple[PyTree, Any]:
        _tree.selected(params, where)
        return masks.ones(params, **select.units), enforce.own_key(key)

    def revise(held: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        enforce.check_own_key(state, key)
        scores = select.scores(signals.params, **{"grads": signals.grads, "key": state, **signals.extra})
        scores = last_where_removed(scores, held)
        return select.masks(scores, schedule(signals.step)), state

    return Method(init, when, revise, specs=specs)


def last_where_removed(scores: PyTree, held: PyTree) -> PyTree:
    """The scores, with NaN (the lowest rank) at what is removed already.

    A removed weight scores 0 by its magnitude, but a kept one may too; this breaks the tie for the kept one.
    """
    return jax.tree.map(
        lambda score, mask: jnp.where(masks.as_bool(mask), score, jnp.nan) if jnp.ndim(mask) else score, scores, held
    )
