"""AC/DC: compressed and dense phases of training in turn."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, criteria, masks
from jaxprune import allocation as allocations
from jaxprune.prune import Selector
from jaxprune.schedules.steps import check_interval, check_step
from jaxprune.training import enforce
from jaxprune.training.method import Method, Signals

PyTree = Any


def acdc(
    sparsity: float,
    *,
    begin: int,
    end: int,
    compressed: int,
    dense: int,
    last_dense: int = 0,
    criterion: criteria.Criterion = criteria.magnitude,
    allocation: allocations.Allocate = allocations.one_ranking,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
    key: Any = None,
) -> Method:
    """Alternating compressed and decompressed training.

        dense until `begin`; then `compressed` steps pruned, `dense` steps dense, and so on; pruned from `end` on

    Peste et al. 2021, arXiv 2106.12379, algorithm 1. Where a compressed phase starts, the masks are made from the
    weights of that step, and stay for the phase. In a dense phase all masks are True: weights come back from zero and
    without moments; those of the others go on, where the authors' code clears all of them. Of 100 epochs on ImageNet
    they have 10 dense, phases of 5, the last dense one from 75 to 85, and rank all layers together: `begin=10, end=85,
    compressed=5, dense=5, last_dense=10` times the steps of an epoch. The result is both a sparse model and, from the
    last dense phase, a dense one.

    Args:
      sparsity: the fraction removed in compressed phases, in [0, 1).
      begin: the step of the first compressed phase; 0 or more.
      end: the step from which on the network stays compressed; after `begin`. If that step lies in a compressed phase
        the masks of that phase stay.
      compressed: the length of a compressed phase in steps, 1 or more.
      dense: the length of a dense phase in steps, 1 or more.
      last_dense: the steps before `end` that are dense whatever the phases say, for a last dense phase that is longer
        than the others; 0 for none.
      criterion: as in `jaxprune.prune`; it sees the raw gradients of the step.
      allocation: as in `jaxprune.prune`; for a pattern of N:M, which has no global ranking, `allocation.uniform`.
      pattern: as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.
      key: a JAX key, for random criteria; kept in the state.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a sparsity outside [0, 1), `end` not after `begin`, a phase without steps.

    Example:
      >>> method = acdc(0.9, begin=2, end=9, compressed=2, dense=3)
      >>> [step for step in range(12) if method.is_due(step)]
      [2, 4, 7]
    """
    masks.check_sparsity(sparsity)
    begin, end = check_interval(begin, end)
    compressed, dense = check_step(compressed, "compressed", least=1), check_step(dense, "dense", least=1)
    last_dense = check_step(last_dense, "last_dense")
    select = Selector(
        criterion=criterion,
        allocation=allocation,
        pattern=pattern,
        where=where,
        batch_axes=batch_axes,
        key=key,
        specs=specs,
    )

    def is_compressed(step: Any) -> Any:
        inside = ((step - begin) % (compressed + dense) < compressed) & (step < end - last_dense)
        return (step >= begin) & (inside | (step >= end))

    def is_due(step: Any) -> Any:
        return is_compressed(step) != is_compressed(step - 1)

    def init(params: PyTree) -> tuple[PyTree, Any]:
        _tree.selected(params, where)
        return masks.ones(params, **select.units), enforce.own_key(key)

    def revise(held: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        del held
        enforce.check_own_key(state, key)
        found = select(signals.params, sparsity, **{"grads": signals.grads, "key": state, **signals.extra})
        all_kept = ~jnp.asarray(is_compressed(signals.step))
        return jax.tree.map(lambda mask: mask | all_kept if mask.ndim else mask, found), state

    return Method(init, is_due, revise, specs=specs)
