"""Those known by name: SET, which grows at random, RigL, which grows by gradients, and SRigL, which keeps a pattern."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, masks, schedules
from jaxprune import allocation as allocations
from jaxprune.schedules.steps import check_step, steps_left
from jaxprune.training import growth
from jaxprune.training.dynamic import Fraction, check_fraction, dynamic
from jaxprune.training.method import Method

_FAN_IN = masks.Unstructured(axes=-2)


def cosine_fraction(initial: float, end: int) -> Fraction:
    """The fraction that RigL drops: `alpha / 2 (1 + cos(pi t / T_end))`, and 0 from `end` on.

    Evci et al. 2020, arXiv 1911.11134, section 3 (2).

    Args:
      initial: alpha, in [0, 1].
      end: T_end, 1 or more.

    Returns:
      A function from a step to a float array of shape ().

    Raises:
      ValueError: one of them is out of its range.

    Example:
      >>> [round(float(cosine_fraction(0.3, 100)(step)), 2) for step in (0, 50, 100, 101)]
      [0.3, 0.15, 0.0, 0.0]
    """
    check_fraction(initial, "initial")
    end = check_step(end, "end", least=1)

    def fraction(step: Any) -> jax.Array:
        progress = 1 - jnp.asarray(steps_left(step, 0, end)) / end
        return jnp.where(progress < 1, initial / 2 * (1 + jnp.cos(jnp.pi * progress)), 0.0)

    return fraction


def set_(
    sparsity: float,
    *,
    key: Any,
    when: schedules.Update = schedules.every(100, 100),
    fraction: float = 0.3,
    allocation: allocations.Allocate = allocations.er,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: Any = None,
) -> Method:
    """Sparse evolutionary training: drops the smallest weights and grows random ones.

    Mocanu et al. 2018, arXiv 1707.04780, algorithm 1. The paper drops the smallest positive and the largest negative
    weights by the same fraction of each; here, as in all later work, those smallest by magnitude.

    Args:
      sparsity: as in `dynamic`.
      key: as in `dynamic`.
      when: as in `dynamic`; the paper's is every epoch.
      fraction: zeta, the fraction dropped; 0.3 in the paper.
      allocation: as in `dynamic`; the paper's is `allocation.er`.
      pattern: as in `dynamic`.
      where: as in `dynamic`.
      batch_axes: as in `dynamic`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: as `dynamic`.

    Example:
      >>> start, _ = set_(0.75, key=jax.random.key(0)).init({'w': jnp.ones((4, 4))})
      >>> int(start['w'].sum())
      4
    """
    return dynamic(
        sparsity, key=key, when=when, fraction=fraction, allocation=allocation,
        pattern=pattern, where=where, batch_axes=batch_axes, specs=specs,
    )  # fmt: skip


def rigl(
    sparsity: float,
    steps: int,
    *,
    key: Any,
    every: int = 100,
    fraction: float = 0.3,
    end: float = 0.75,
    allocation: allocations.Allocate = allocations.erk,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: Any = None,
) -> Method:
    """RigL: drops the smallest weights and grows those of the largest gradients.

        f(t) = alpha / 2 (1 + cos(pi t / T_end))        at t = every, 2 every, ... < T_end

    Evci et al. 2020, arXiv 1911.11134, algorithm 1. The gradients must be dense: those of the loss at the sparse
    weights, with respect to all of them, which is what `jax.grad` gives for parameters that hold zeros.

    Args:
      sparsity: as in `dynamic`.
      steps: how long the training is.
      key: as in `dynamic`.
      every: the interval of updates, Delta T.
      fraction: alpha, the fraction dropped at first.
      end: T_end as a fraction of `steps`, in (0, 1].
      allocation: as in `dynamic`.
      pattern: as in `dynamic`.
      where: as in `dynamic`.
      batch_axes: as in `dynamic`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: as `dynamic`; `end` outside (0, 1].

    Example:
      >>> method = rigl(0.9, 1000, key=jax.random.key(0))
      >>> [step for step in range(1000) if method.is_due(step)]
      [100, 200, 300, 400, 500, 600, 700]
    """
    when, fractions = _rigl_steps(steps, every, fraction, end)
    return dynamic(
        sparsity, key=key, when=when, fraction=fractions, grow=growth.gradient_growth,
        allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs,
    )  # fmt: skip


def srigl(
    sparsity: float,
    steps: int,
    *,
    key: Any,
    every: int = 100,
    fraction: float = 0.3,
    end: float = 0.75,
    allocation: allocations.Allocate = allocations.erk,
    pattern: masks.Patterns = _FAN_IN,
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: Any = None,
) -> Method:
    """SRigL: RigL whose outputs all have the same number of inputs, or whose groups all keep n of m.

    Lasby et al. 2024, arXiv 2305.02299, section 3.2: the smallest weights of the whole leaf are dropped; each output
    (or group) then grows those of its largest gradients, as many as it lost. An output may so change most of its inputs
    while another keeps its own, where `rigl` with the same pattern drops the same share of each. Their ablation of
    neurons is not made: all outputs stay, with as many inputs as they had.

    Args:
      sparsity: as in `dynamic`; 1 - n/m for `masks.NM(n, m)`.
      steps: as in `rigl`.
      key: as in `dynamic`.
      every: as in `rigl`.
      fraction: as in `rigl`.
      end: as in `rigl`.
      allocation: as in `dynamic`; for NM `allocation.uniform`.
      pattern: `masks.Unstructured(axes=...)`, the axes of the inputs, -2 of a (in, out) kernel and (0, 1, 2) of one for
        images; or `masks.NM(n, m)`.
      where: as in `dynamic`.
      batch_axes: as in `dynamic`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`.

    Raises:
      ValueError: as `rigl`.

    Example:
      >>> start, _ = srigl(0.75, 1000, key=jax.random.key(0)).init({'w': jnp.ones((8, 4))})
      >>> start['w'].sum(0).tolist()
      [2, 2, 2, 2]
    """
    when, fractions = _rigl_steps(steps, every, fraction, end)
    return dynamic(
        sparsity, key=key, when=when, fraction=fractions, grow=growth.gradient_growth, whole_leaf=True,
        allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs,
    )  # fmt: skip


def _rigl_steps(steps: int, every: int, fraction: float, end: float) -> tuple[schedules.Update, Fraction]:
    every, steps = check_step(every, "every", least=1), check_step(steps, "steps", least=1)
    if not 0 < end <= 1:
        raise ValueError(f"end is a fraction of the steps and must be in (0, 1], got {end}")
    last = max(1, int(end * steps))

    def when(step: Any) -> Any:
        return (step % every == 0) & (step > 0) & (step < last)

    return when, cosine_fraction(fraction, last)
