"""Methods that follow a plan: `fixed`, `one_shot`, `gradual`, `acdc`; `phases` runs methods one after another."""

from itertools import pairwise
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree, allocation, schedules
from jaxprune.masks import ones, unpack
from jaxprune.prune import How, Selector
from jaxprune.schedules.steps import Planned, Schedule, Update, check_interval, check_schedule, check_step, covering
from jaxprune.training import enforce
from jaxprune.training.sparsify import Method, Signals

PyTree = Any


def fixed(masks: PyTree) -> Method:
    """Holds masks that never change: for fine-tuning, tickets and static sparse training.

    Args:
      masks: masks in the structure of the parameters, or of the same leaves in other containers. They are copied into
        the optimizer's state.

    Returns:
      A method for `jaxprune.sparsify`. Removed weights are zero from the first update on. Start with
      `masks.apply(params, masks)`, so that they are also zero in the first gradient and in leaves with the gradient
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
        training starts with. A criterion receives the gradients of that step.
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
    _tree.check_sparsity(sparsity)
    step = schedules.every(1, step).begin  # checks the step
    return _planned(lambda _: sparsity, lambda at: at == step, step + 1, how)


def gradual(schedule: Schedule, *, when: Update | None = None, **how: Unpack[How]) -> Method:
    """Prunes along a schedule during training: gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878).

    Removed weights rank lowest at the next update of the masks. A removed weight is restored only where the schedule
    decreases, and starts from zero.

    Args:
      schedule: a function from a step to a sparsity, such as `schedules.cubic(begin=0, end=1000, final=0.9)`. Traced
        values outside [0, 1) are clipped.
      when: a function from a step to whether the masks are revised before this update. The default follows from the
        schedule and always reaches its final sparsity: every 100 steps from its begin to its end, or every tenth of its
        length if that is shorter; every step if the schedule is a function without a known end. With your own rule,
        such as `schedules.every(n, begin, end)`, a schedule that ends between two updates reaches its final sparsity at
        the second update. `training.is_finished(state)` says whether a run has reached it.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        The criterion receives the raw gradients and the extra arguments of `update`. The key is the same at every
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
    """Returns the method AC/DC, alternating compressed and decompressed training.

        dense until `begin`; then `compressed` steps pruned, `dense` steps dense, and so on; pruned from `end` on

    Peste et al. 2021, arXiv 2106.12379, algorithm 1. The masks are computed at the start of each compressed phase, from
    the weights of that step, and do not change during the phase. In a dense phase all masks are True: removed weights
    restart from zero and without moments. The moments of kept weights stay, while the authors' code clears all moments.
    The paper trains 100 epochs on ImageNet with 10 dense epochs, phases of 5 epochs, and a last dense phase from epoch
    75 to 85: `begin=10, end=85, compressed=5, dense=5, last_dense=10`, times the steps of an epoch. The result is a
    sparse model, and a dense model at the end of the last dense phase.

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
        leaves and needs `allocation.uniform`. The criterion receives the raw gradients of the step.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: the sparsity is outside [0, 1), `end` is not after `begin`, or a phase has no steps.

    Example:
      >>> method = acdc(0.9, begin=2, end=9, compressed=2, dense=3)
      >>> [step for step in range(12) if method.is_due(step)]
      [2, 4, 7]
    """
    _tree.check_sparsity(sparsity)
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
        new = enforce.in_shape(signals.trained(select)(signals.params, sparsity, **signs), masks)
        all_kept = ~jnp.asarray(is_compressed(signals.step))
        return jax.tree.map(lambda mask: mask | all_kept if mask.ndim else mask, new), state

    return Method(init, is_due, revise, specs=select.specs, end=end + 1)


def phases(*parts: tuple[int, Method]) -> Method:
    """Runs each method from its step until the step of the next method.

    Each method starts from the last masks of the previous method; the first method makes the first masks. Each method
    has its own state from the start, and counts steps from the start of the run. `gradual` computes its own sparsity;
    methods that drop and grow keep the current number of weights.

    Args:
      *parts: pairs `(step, method)`, with steps that rise from 0.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: there are no parts, steps do not rise from 0, or a method keeps dense weights (its masks have another
        meaning); at init, the masks of the methods differ in shape.
      TypeError: a part is not a pair (step, method).

    Example:
      >>> from jaxprune import schedules, training
      >>> prune = training.gradual(schedules.cubic(0, 100, 0.9), when=schedules.every(10, 0, 100))
      >>> method = phases((0, prune), (101, training.rigl(0.9, 1000, key=jax.random.key(0))))
    """
    _check_phases(parts)
    starts = [step for step, _ in parts]
    methods = [method for _, method in parts]

    def due(i: int, step: Any) -> Any:
        is_due = methods[i].is_due
        active = step >= starts[i]
        if i + 1 < len(starts):
            active = active & (step < starts[i + 1])
        return active & is_due(step) if is_due is not None else active & False

    def init(params: PyTree) -> tuple[PyTree, Any]:
        made = [method.init(params) for method in methods]
        _check_same_shapes([masks for masks, _ in made])
        return made[0][0], tuple(state for _, state in made)

    def is_due(step: Any) -> Any:
        flags = [due(i, step) for i in range(len(methods))]
        return jnp.any(jnp.stack([jnp.asarray(flag) for flag in flags]))

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        states = list(state)
        for i, method in enumerate(methods):
            if method.is_due is not None:
                own = (masks, states[i])
                revised = lambda own, method=method: method.revise(own[0], own[1], signals)
                masks, states[i] = jax.lax.cond(due(i, signals.step), revised, lambda own: own, own)
        return masks, tuple(states)

    ends = [method.end for method in methods]
    return Method(
        init,
        is_due,
        revise,
        specs=next((method.specs for method in methods if method.specs is not None), None),
        end=None if None in ends else max(end for end in ends if end is not None),
        starts_sparse=methods[0].starts_sparse,
    )


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
        return enforce.in_shape(chosen.masks(scores, schedule(signals.step)), masks), state

    return Method(init, when, revise, specs=select.specs, end=end)


def _check_phases(parts: tuple[Any, ...]) -> None:
    if not parts:
        raise ValueError("phases needs at least one part, (0, method)")
    for part in parts:
        if not (isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], Method)):
            raise TypeError(
                "phases takes pairs (step, training.Method), each an argument of its own: "
                f"phases((0, first), (1000, second)); got {part!r}"
            )
        if part[1].dense is not None:
            raise ValueError("phases is for methods that hold removed weights at zero; run the others on their own")
    starts = [check_step(part[0], "a phase's step") for part in parts]
    if starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"the steps of phases must rise from 0, got {starts}")


def _check_same_shapes(made: list[PyTree]) -> None:
    for i, other in enumerate(made[1:], 1):
        _tree.check_same(made[0], other, what=f"the masks of phase {i}", of="phase 0")
        pairs = zip(_tree.named_leaves(made[0]), jax.tree.leaves(other), strict=True)
        wrong = [f"  {name}: {a.shape} and {b.shape}" for (name, a), b in pairs if a.shape != b.shape]
        if wrong:
            raise ValueError(
                f"phases 0 and {i} make masks of different shapes; give both the same pattern and where:\n"
                + "\n".join(wrong)
            )
