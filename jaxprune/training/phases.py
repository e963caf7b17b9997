"""`phases`: runs one method after another, such as gradual pruning and then RigL at the final sparsity."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.schedules.steps import check_step
from jaxprune.training.method import Method, Signals

PyTree = Any


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
    _check(parts)
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
        _check_shapes([masks for masks, _ in made])
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


def _check(parts: tuple[Any, ...]) -> None:
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


def _check_shapes(made: list[PyTree]) -> None:
    for i, other in enumerate(made[1:], 1):
        _tree.check_same(made[0], other, what=f"the masks of phase {i}", of="phase 0")
        pairs = zip(_tree.named_leaves(made[0]), jax.tree.leaves(other), strict=True)
        wrong = [f"  {name}: {a.shape} and {b.shape}" for (name, a), b in pairs if a.shape != b.shape]
        if wrong:
            raise ValueError(
                f"phases 0 and {i} make masks of different shapes; give both the same pattern and where:\n"
                + "\n".join(wrong)
            )
