"""AC/DC: `acdc` alternates compressed and dense phases of training."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import allocation
from jaxprune.masks import ones
from jaxprune.masks._exact.counts import check_sparsity
from jaxprune.prune import How, Selector
from jaxprune.schedules.steps import check_interval, check_step
from jaxprune.training import enforce
from jaxprune.training.method import Method, Signals, in_shape

PyTree = Any


def acdc(
    sparsity: float,
    *,
    begin: int,
    end: int,
    compressed: int,
    dense: int,
    last_dense: int = 0,
    **how: Unpack[How],
) -> Method:
    """Alternating compressed and decompressed training.

        dense until `begin`; then `compressed` steps pruned, `dense` steps dense, and so on; pruned from `end` on

    Peste et al. 2021, arXiv 2106.12379, algorithm 1. The masks are computed at the start of each compressed phase, from
    the weights of that step, and do not change during the phase. In a dense phase all masks are True: removed weights
    restart from zero and without moments. The other moments are kept, while the authors' code clears all of them. The
    paper trains 100 epochs on ImageNet with 10 dense epochs, phases of 5, and a last dense phase from epoch 75 to 85:
    `begin=10, end=85, compressed=5, dense=5, last_dense=10`, times the steps of an epoch. The result is a sparse model,
    and a dense model at the end of the last dense phase.

    Args:
      sparsity: the fraction removed in compressed phases, in [0, 1).
      begin: the step of the first compressed phase, an int of 0 or more.
      end: the step from which the network stays compressed, an int above `begin`. If `end` falls into a compressed
        phase, the masks of that phase stay.
      compressed: the length of a compressed phase in steps, an int of 1 or more.
      dense: the length of a dense phase in steps, an int of 1 or more.
      last_dense: the number of steps before `end` that are always dense, for a longer last dense phase; default 0.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        The default allocation is `allocation.one_ranking`, as in the paper; a pattern of N:M has no ranking over all
        leaves and needs `allocation.uniform`. The criterion sees the raw gradients of the step.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: the sparsity is outside [0, 1), `end` is not after `begin`, or a phase has no steps.

    Example:
      >>> method = acdc(0.9, begin=2, end=9, compressed=2, dense=3)
      >>> [step for step in range(12) if method.is_due(step)]
      [2, 4, 7]
    """
    check_sparsity(sparsity)
    begin, end = check_interval(begin, end)
    compressed, dense = check_step(compressed, "compressed", least=1), check_step(dense, "dense", least=1)
    last_dense = check_step(last_dense, "last_dense")
    how.setdefault("allocation", allocation.one_ranking)
    select = Selector(**how)

    def is_compressed(step: Any) -> Any:
        inside = ((step - begin) % (compressed + dense) < compressed) & (step < end - last_dense)
        return (step >= begin) & (inside | (step >= end))

    def is_due(step: Any) -> Any:
        return is_compressed(step) != is_compressed(step - 1)

    def init(params: PyTree) -> tuple[PyTree, Any]:
        select.chosen(params)
        return ones(params, **select.units), enforce.own_key(select.key)

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        key = enforce.use_key(state, select.key)
        signs = {"grads": signals.grads, "key": key, **signals.extra}
        new = in_shape(signals.trained(select)(signals.params, sparsity, **signs), masks)
        all_kept = ~jnp.asarray(is_compressed(signals.step))
        return jax.tree.map(lambda mask: mask | all_kept if mask.ndim else mask, new), state

    return Method(init, is_due, revise, specs=select.specs, end=end + 1)
