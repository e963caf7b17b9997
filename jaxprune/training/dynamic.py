"""Dynamic sparse training: `set_` (SET), `rigl` (RigL), `srigl` (SRigL), `dynamic` for others, and `static` masks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree, allocation, criteria, schedules
from jaxprune.masks import Unstructured
from jaxprune.prune import How, Selector
from jaxprune.schedules.steps import Update, check_step, steps_left
from jaxprune.training import enforce, growth
from jaxprune.training.sparsify import Method, Signals

PyTree = Any
Fraction = Callable[[Any], Any]


def static(sparsity: float, **how: Unpack[How]) -> Method:
    """Draws random masks at init that never change.

    The method is the baseline of sparse training (Mocanu et al. 2018, arXiv 1707.04780; Evci et al. 2020, arXiv
    1911.11134). Start with `params = masks.apply(params, get_masks(state))`, so that the first gradient is computed
    with the zeros.

    Args:
      sparsity: the total fraction removed, in [0, 1).
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        Here `key` is required unless another criterion is given, the default criterion is `criteria.random` and the
        default allocation `allocation.erk`. Equal keys give equal masks.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: the sparsity is outside [0, 1); at init, the key is missing.

    Example:
      >>> start, _ = static(0.75, key=jax.random.key(0)).init({'w': jnp.ones((4, 4))})
      >>> int(start['w'].sum())
      4
    """
    _tree.check_sparsity(sparsity)
    how.setdefault("criterion", criteria.random)
    how.setdefault("allocation", allocation.erk)
    select = Selector(**how)

    def init(params: PyTree) -> tuple[PyTree, None]:
        return select(params, sparsity), None

    keep = lambda masks, state, signals: (masks, state)
    return Method(init, None, keep, specs=select.specs, end=0, starts_sparse=True)


def set_(
    sparsity: float,
    *,
    when: Update = schedules.every(100, 100),
    fraction: float | Fraction = 0.3,
    **how: Unpack[How],
) -> Method:
    """Returns the method SET (sparse evolutionary training): drops the smallest weights, grows random removed ones.

    Mocanu et al. 2018, arXiv 1707.04780, algorithm 1. The paper drops the smallest positive and the largest negative
    weights by the same fraction of each; this method, like all later work, drops the weights of smallest magnitude.

    Args:
      sparsity: the total fraction removed, in [0, 1).
      when: a function from a step to whether the masks are revised; every 100 steps by default, every epoch in the
        paper.
      fraction: zeta, the fraction of the kept weights that are dropped, in [0, 1], or a function of the step; 0.3 by
        default and in the paper.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        Here `key` is required, the criterion says which kept weights are dropped, and the default allocation is
        `allocation.er`, as in the paper.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a number is out of range; at init, the key is missing, or drop and grow does not support the pattern.

    Example:
      >>> start, _ = set_(0.75, key=jax.random.key(0)).init({'w': jnp.ones((4, 4))})
      >>> int(start['w'].sum())
      4
    """
    how.setdefault("allocation", allocation.er)
    return dynamic(sparsity, when=when, fraction=fraction, **how)


def rigl(
    sparsity: float,
    steps: int,
    *,
    every: int = 100,
    fraction: float = 0.3,
    end: float = 0.75,
    **how: Unpack[How],
) -> Method:
    """Returns the method RigL: drops the smallest weights, grows the removed weights with the largest gradients.

        f(t) = alpha / 2 (1 + cos(pi t / T_end))        at t = every, 2 every, ... < T_end

    Evci et al. 2020, arXiv 1911.11134, algorithm 1. The gradients must be dense: gradients at the sparse weights with
    respect to all weights, which `jax.grad` returns for parameters that contain zeros.

    Args:
      sparsity: the total fraction removed, in [0, 1).
      steps: the number of updates of the whole training, an int of 1 or more.
      every: Delta T, the number of steps between two revisions of the masks, an int of 1 or more; default 100.
      fraction: alpha, the fraction of the kept weights that the first revision drops, in [0, 1]; default 0.3.
      end: T_end as a fraction of `steps`, in (0, 1]; the masks do not change afterwards. Default 0.75.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        Here `key` is required, the criterion says which kept weights are dropped, and the default allocation is
        `allocation.erk`, as in the paper.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a number is out of range, or no revision comes before T_end; at init, the key is missing, or drop and
        grow does not support the pattern.

    Example:
      >>> method = rigl(0.9, 1000, key=jax.random.key(0))
      >>> [step for step in range(1000) if method.is_due(step)]
      [100, 200, 300, 400, 500, 600, 700]
    """
    if "when" in how:
        raise TypeError("rigl takes every= and end= in place of when; training.dynamic takes when")
    when, fractions = _rigl_steps(steps, every, fraction, end)
    return dynamic(sparsity, when=when, fraction=fractions, grow=growth.gradient_growth, **how)


def srigl(
    sparsity: float,
    steps: int,
    *,
    every: int = 100,
    fraction: float = 0.3,
    end: float = 0.75,
    **how: Unpack[How],
) -> Method:
    """Returns the method SRigL: RigL in which all outputs have the same number of inputs, or all groups keep n of m.

    Lasby et al. 2024, arXiv 2305.02299, section 3.2: the smallest weights of the whole leaf are dropped; each output
    (or group) then grows as many weights as it lost, by the largest gradients. So one output may change most of its
    inputs while another output keeps its inputs; `rigl` with the same pattern drops the same fraction from each output.
    The paper also removes whole neurons; in this method every output keeps its number of inputs.

    Args:
      sparsity: the total fraction removed, in [0, 1); 1 - n/m for `masks.NM(n, m)`.
      steps: the number of updates of the whole training, an int of 1 or more.
      every: Delta T, the number of steps between two revisions of the masks, an int of 1 or more; default 100.
      fraction: alpha, the fraction of the kept weights that the first revision drops, in [0, 1]; default 0.3.
      end: T_end as a fraction of `steps`, in (0, 1]; the masks do not change afterwards. Default 0.75.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        Here `key` is required and the criterion says which kept weights are dropped. The default pattern is
        `masks.Unstructured(axes=-2)`, the inputs of a (inputs, outputs) kernel; take `axes=(0, 1, 2)` for the kernel of
        a convolution, or `masks.NM(n, m)` with `allocation.uniform`. The default allocation is `allocation.erk`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a number is out of range, or no revision comes before T_end; at init, the key is missing, or drop and
        grow does not support the pattern.

    Example:
      >>> start, _ = srigl(0.75, 1000, key=jax.random.key(0)).init({'w': jnp.ones((8, 4))})
      >>> start['w'].sum(0).tolist()
      [2, 2, 2, 2]
    """
    when, fractions = _rigl_steps(steps, every, fraction, end)
    how.setdefault("pattern", Unstructured(axes=-2))
    return dynamic(sparsity, when=when, fraction=fractions, grow=growth.gradient_growth, whole_leaf=True, **how)


def dynamic(
    sparsity: float,
    *,
    when: Update = schedules.every(100, 100),
    fraction: float | Fraction = 0.3,
    grow: criteria.Criterion = criteria.random,
    momentum: float | None = None,
    whole_leaf: bool = False,
    **how: Unpack[How],
) -> Method:
    """Returns a method whose updates drop the worst kept weights and grow as many removed weights.

    With rare updates and few drops, training visits many of the dense network's weights over time (Liu et al. 2021,
    ITOP, arXiv 2102.02887). `grow=criteria.random` is SET with ITOP, `grow=training.gradient_growth` is RigL with ITOP,
    and `momentum` grows by averaged gradients, as in Dettmers and Zettlemoyer 2019 (arXiv 1907.04840).

    Each leaf (and slice of its batch axes, and output of `Unstructured(axes=-2)`) keeps exactly its number of weights
    at every step. A weight that was just dropped is not grown in the same update. Grown weights start from zero,
    without moments. The papers skip the optimizer's step when masks are updated; this method makes the step with the
    new masks. The number of weights is counted in the current masks, so a run continues from the masks that `phases`
    passes on.

    Args:
      sparsity: the total fraction removed, in [0, 1).
      when: a function from a step to whether the masks are revised; every 100 steps by default.
      fraction: the fraction of the kept weights that are dropped, in [0, 1], or a function of the step; default 0.3.
      grow: a criterion; the removed weights with the highest scores are grown. `criteria.random` by default. It
        receives the raw gradients and the extra arguments of `update`.
      momentum: b in [0, 1): both criteria receive the averages `m <- b m + (1 - b) g` over all steps instead of
        gradients. They cost a dense tree in the state, and reading the gradients at every step. None (the default): no
        averages.
      whole_leaf: whether the lowest scores of a whole leaf are dropped, instead of the lowest scores of each part; see
        `training.growth.drop_and_grow`; default False.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        Here `key` is required; it draws the first masks and random growth, and is kept in the state. The criterion says
        which kept weights are dropped, the lowest scores first. The allocation, by default `allocation.erk`, sets the
        sparsities of the first masks. The pattern is `masks.Unstructured`, also with axes, or with `whole_leaf` also
        `masks.NM`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: a number out of its range; at init, no key, or a pattern that drop and grow does not cover.

    Example:
      >>> method = dynamic(0.9, key=jax.random.key(0), grow=growth.gradient_growth, momentum=0.9)
    """
    _tree.check_sparsity(sparsity)
    if not callable(fraction):
        _check_fraction(fraction, "fraction")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), or None for no averages; got {momentum}")
    _tree.check_function(when, "when", "schedules.every(100)")
    _tree.check_function(grow, "grow", "training.gradient_growth")
    fraction_at: Any = fraction if callable(fraction) else lambda _: fraction
    how.setdefault("allocation", allocation.erk)
    select = Selector(**how)
    start, grower = replace(select, criterion=criteria.random), replace(select, criterion=grow)

    def init(params: PyTree) -> tuple[PyTree, Any]:
        growth.check_pattern(params, whole_leaf=whole_leaf, **select.units)
        masks = start(params, sparsity)
        return masks, (enforce.own_key(select.key), None if momentum is None else jax.tree.map(_zeros, params))

    def move(masks: PyTree, key: Any, grads: PyTree, signals: Signals) -> PyTree:
        signs = {"grads": grads, "key": jax.random.fold_in(key, signals.step), **signals.extra}
        drop, add = (signals.trained(each).scores(signals.params, **signs) for each in (select, grower))
        units = signals.trained(select).units
        moved = growth.drop_and_grow(masks, drop, add, fraction_at(signals.step), whole_leaf=whole_leaf, **units)
        return enforce.in_shape(moved, masks)

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        own, average = state
        key = enforce.use_key(own, select.key)
        if average is None:
            return move(masks, key, signals.grads, signals), state
        average = jax.tree.map(lambda m, g: _average(m, g, momentum), average, signals.grads)
        due = when(signals.step)
        moved = jax.lax.cond(due, lambda kept: move(kept, key, average, signals), lambda kept: kept, masks)
        return moved, (own, average)

    is_due = when if momentum is None else lambda _: True
    return Method(init, is_due, revise, specs=select.specs, end=0, starts_sparse=True)


def cosine_fraction(initial: float, end: int) -> Fraction:
    """Returns RigL's drop fraction: `alpha / 2 (1 + cos(pi t / T_end))`, and 0 from `end` on.

    Evci et al. 2020, arXiv 1911.11134, section 3 (2).

    Args:
      initial: alpha, in [0, 1].
      end: T_end, an int of 1 or more.

    Returns:
      A function from a step to a float array of shape ().

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> [round(float(cosine_fraction(0.3, 100)(step)), 2) for step in (0, 50, 100, 101)]
      [0.3, 0.15, 0.0, 0.0]
    """
    _check_fraction(initial, "fraction")
    end = check_step(end, "end", least=1)

    def fraction(step: Any) -> jax.Array:
        progress = 1 - jnp.asarray(steps_left(step, 0, end)) / end
        return jnp.where(progress < 1, initial / 2 * (1 + jnp.cos(jnp.pi * progress)), 0.0)

    return fraction


def _rigl_steps(steps: int, every: int, fraction: float, end: float) -> tuple[Update, Fraction]:
    every, steps = check_step(every, "every", least=1), check_step(steps, "steps", least=1)
    if not 0 < end <= 1:
        raise ValueError(f"end is a fraction of the steps and must be in (0, 1], got {end}")
    last = max(1, int(end * steps))
    if every >= last:
        raise ValueError(
            f"the masks would never be revised: revisions are {every} steps apart and end before step {last} (end * "
            "steps); lower every, or take training.static for masks that never change"
        )

    def when(step: Any) -> Any:
        return (step % every == 0) & (step > 0) & (step < last)

    return when, cosine_fraction(fraction, last)


def _check_fraction(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{what} must be in [0, 1], the fraction of the kept weights that is dropped; got {value}")


def _zeros(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if _tree.is_floating(leaf) else jnp.zeros(())


def _average(average: jax.Array, grad: Any, momentum: Any) -> jax.Array:
    if not _tree.is_floating(grad) or average.ndim != grad.ndim:
        return average
    return (momentum * average + (1 - momentum) * grad).astype(average.dtype)
