"""What a method is: pure functions that start masks and revise them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class Signals(NamedTuple):
    """What a method sees when it revises the masks.

    Attributes:
      params: the parameters before the update; exactly zero where the masks are False, once they were applied.
      grads: the raw gradients, also at removed places.
      step: int32 scalar, the number of updates before this one.
      extra: the extra arguments of the optimizer's update.
      before: the parameters that `grads` are taken at, where `params` are not: for methods with `dense`.
    """

    params: PyTree
    grads: PyTree
    step: jax.Array
    extra: dict[str, Any]
    before: PyTree = None


class Dense(NamedTuple):
    """What a method that goes on training removed weights does to gradients and updates.

    Attributes:
      gradients: `(grads, params, masks, state) -> grads`: what the optimizer sees.
      updates: `(updates, masks, state) -> updates`: what becomes of its updates.
    """

    gradients: Callable[[PyTree, PyTree, PyTree, Any], PyTree]
    updates: Callable[[PyTree, PyTree, Any], PyTree]


class Method(NamedTuple):
    """A way to make masks in training. Any three functions of these signatures are a method.

    Attributes:
      init: `params -> (masks, state)`: the masks to start with, whose shapes stay for the whole run, and whatever the
        method has to remember (arrays; None for nothing).
      is_due: `step -> bool scalar`: whether the masks are revised before this update; None for never.
      revise: `(masks, state, signals) -> (masks, state)`, called under `lax.cond` on the steps that are due.
      dense: None holds removed weights, their gradients and moments at zero. Otherwise all weights are trained, the
        masks are for the forward pass (`training.sparse_params`), and they are revised after the update, from the
        parameters that it leads to and for the next step: `is_due` and `signals.step` have that step's number.
      specs: the `PartitionSpec`s of the parameters that the method was made with, for training inside `jax.shard_map`.
    """

    init: Callable[[PyTree], tuple[PyTree, Any]]
    is_due: Callable[[jax.Array], Any] | None
    revise: Callable[[PyTree, Any, Signals], tuple[PyTree, Any]]
    dense: Dense | None = None
    specs: PyTree = None
