"""Methods that train sparse from the start: static masks, and masks that drop and grow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, criteria, masks, schedules
from jaxprune import allocation as allocations
from jaxprune.prune import Selector
from jaxprune.training import enforce, growth
from jaxprune.training.choosing import check_plan
from jaxprune.training.method import Method, Signals

PyTree = Any
Fraction = Callable[[Any], Any]


def static(
    sparsity: float,
    *,
    key: Any,
    allocation: allocations.Allocate = allocations.erk,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
) -> Method:
    """Random masks, drawn where training starts and never changed.

    The baseline of sparse training (Mocanu et al. 2018, arXiv 1707.04780; Evci et al. 2020, arXiv 1911.11134). As with
    every sparse start, `params = masks.apply(params, get_masks(state))` has the zeros in the first gradient too.

    Args:
      sparsity: the total fraction removed, in [0, 1).
      key: a JAX key; equal keys give equal masks.
      allocation: how the leaves share the sparsity.
      pattern: any, as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a sparsity outside [0, 1).

    Example:
      >>> start, _ = static(0.75, key=jax.random.key(0)).init({'w': jnp.ones((4, 4))})
      >>> int(start['w'].sum())
      4
    """
    masks.check_sparsity(sparsity)
    choose = Selector(allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs).masks

    def init(params: PyTree) -> tuple[PyTree, None]:
        return choose(criteria.random(params, key=key, specs=specs), sparsity), None

    return Method(init, None, lambda held, state, signals: (held, state), specs=specs)


def dynamic(
    sparsity: float,
    *,
    key: Any,
    when: schedules.Update = schedules.every(100, 100),
    fraction: float | Fraction = 0.3,
    drop: criteria.Criterion = criteria.magnitude,
    grow: criteria.Criterion = criteria.random,
    momentum: float | None = None,
    allocation: allocations.Allocate = allocations.erk,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
    whole_leaf: bool = False,
) -> Method:
    """Dynamic sparse training: drops the worst of the kept weights and grows as many others, now and then.

    With rare updates and few drops it explores in time what a dense network has in space (Liu et al. 2021, ITOP, arXiv
    2102.02887): `grow=criteria.random` is their ITOP of SET, `grow=gradient_growth` that of RigL, and with `momentum`
    it grows by averaged gradients, as Dettmers and Zettlemoyer 2019 (arXiv 1907.04840) do.

    Each leaf (and slice of its batch axes, and output of `Unstructured(axes=-2)`) keeps exactly its number of weights
    at every step. A weight just dropped is not grown in the same update. Grown weights start from zero, without
    moments; the papers skip the optimizer's step when masks are updated, here it is made with the new masks. Counts
    are taken from the masks held, so that it goes on from whatever `phases` hands over.

    Args:
      sparsity: the total fraction removed, in [0, 1).
      key: a JAX key for the first masks and random growth, kept in the state.
      when: step -> whether masks are updated.
      fraction: of the kept weights how many are dropped, in [0, 1]; a number, or a function of the step.
      drop: the kept weights that score lowest are dropped; it sees the raw gradients and extra arguments too.
      grow: the removed weights that score highest are grown.
      momentum: b in [0, 1): the gradients that `drop` and `grow` see are `m <- b m + (1 - b) g` over all steps. It
        costs a dense tree in the state, and reading the gradients at every step. None: those of the step.
      allocation: how the leaves share the sparsity at the start.
      pattern: `masks.Unstructured`, also with axes; with `whole_leaf` also `masks.NM`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.
      whole_leaf: as in `training.drop_and_grow`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a number out of its range; at init, a pattern that drop and grow does not cover.

    Example:
      >>> method = dynamic(0.9, key=jax.random.key(0), grow=growth.gradient_growth, momentum=0.9)
    """
    masks.check_sparsity(sparsity)
    if not callable(fraction):
        check_fraction(fraction, "fraction")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    check_plan(when, drop)
    _tree.check_function(grow, "grow", "training.gradient_growth")
    fraction_at: Any = fraction if callable(fraction) else lambda _: fraction
    select = Selector(allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs)
    sharding = {} if specs is None else {"specs": specs}

    def init(params: PyTree) -> tuple[PyTree, Any]:
        growth.check_pattern(params, whole_leaf=whole_leaf, **select.units)
        start = select.masks(criteria.random(params, key=key, specs=specs), sparsity)
        return start, (enforce.own_key(key), None if momentum is None else jax.tree.map(_zeros, params))

    def move(held: PyTree, own: Any, grads: PyTree, signals: Signals) -> PyTree:
        seen = {"grads": grads, "key": jax.random.fold_in(own, signals.step), **sharding, **signals.extra}
        scores = drop(signals.params, **seen), grow(signals.params, **seen)
        return growth.drop_and_grow(held, *scores, fraction_at(signals.step), whole_leaf=whole_leaf, **select.units)

    def revise(held: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        own, average = state
        if average is None:
            return move(held, own, signals.grads, signals), state
        average = jax.tree.map(lambda m, g: _average(m, g, momentum), average, signals.grads)
        due = when(signals.step)
        moved = jax.lax.cond(due, lambda kept: move(kept, own, average, signals), lambda kept: kept, held)
        return moved, (own, average)

    return Method(init, when if momentum is None else lambda _: True, revise, specs=specs)


def check_fraction(value: float, what: str) -> None:
    """Raises unless a number is a fraction of the kept weights."""
    if not 0 <= value <= 1:
        raise ValueError(f"{what} is the fraction dropped of the kept weights and must be in [0, 1], got {value}")


def _zeros(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if _tree.is_floating(leaf) else jnp.zeros(())


def _average(average: jax.Array, grad: Any, momentum: Any) -> jax.Array:
    if not _tree.is_floating(grad) or average.ndim != grad.ndim:
        return average
    return (momentum * average + (1 - momentum) * grad).astype(average.dtype)
