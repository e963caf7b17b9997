"""`Method`: functions that make and update masks during training; `Signals`, their input; `Dense`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.prune import Selector

PyTree = Any


class Signals(NamedTuple):
    """The values that a method may read when it updates the masks.

    Attributes:
      params: the parameters before the update. Removed weights are exactly zero from the first update on.
      grads: the raw gradients, also of removed weights; zeros for a leaf whose gradient is None.
      step: int32 scalar, the number of updates before this one.
      extra: the extra arguments of the optimizer's update.
      before: the parameters at which `grads` were computed, if they are not `params` (methods with `dense`).
      frozen: for each leaf of `params`, whether its gradient is None: the leaf is not trained, and so not pruned.
    """

    params: PyTree
    grads: PyTree
    step: jax.Array
    extra: dict[str, Any]
    before: PyTree = None
    frozen: tuple[bool, ...] = ()

    def trained(self, select: Selector) -> Selector:
        """Returns the selector without frozen leaves."""
        if not any(self.frozen):
            return select
        named = _tree.named_leaves(self.params)
        chosen = zip(named, select.chosen(self.params), self.frozen, strict=True)
        names = {name for (name, _), yes, no in chosen if yes and not no}
        if not names:
            raise ValueError("there is nothing to prune: where selects only leaves whose gradients are None")
        return replace(select, where=lambda name, leaf: name in names)


def in_shape(masks: PyTree, old: PyTree) -> PyTree:
    """New masks in the shapes of the old masks: the scalar True of a frozen leaf becomes an array of True."""
    return jax.tree.map(lambda m, o: m if m.ndim == o.ndim else jnp.broadcast_to(m, o.shape), masks, old)


class Dense(NamedTuple):
    """How a method that trains removed weights too changes gradients and updates.

    Attributes:
      gradients: `(grads, params, masks, state) -> grads`: returns the gradients that the optimizer sees.
      updates: `(updates, masks, state) -> updates`: returns the updates that `sparsify` returns.
    """

    gradients: Callable[[PyTree, PyTree, PyTree, Any], PyTree]
    updates: Callable[[PyTree, PyTree, Any], PyTree]


class Method(NamedTuple):
    """A way to make masks during training. Any three functions with these signatures are a method.

    Attributes:
      init: `params -> (masks, state)`: returns the first masks, whose shapes never change, and the method's own state
        (arrays; None for nothing).
      is_due: `step -> bool scalar`: whether the masks are updated before this step; None for never.
      revise: `(masks, state, signals) -> (masks, state)`, called under `lax.cond` on the steps that are due.
      dense: None holds removed weights, their gradients and moments at zero. Otherwise all weights are trained, and the
        masks are for the forward pass (`training.sparse_params`). They are then updated after the step, from the new
        parameters and for the next step: `is_due` and `signals.step` have that step's number.
      specs: None, or for an update inside `jax.shard_map` the `PartitionSpec`s of the parameters.
      end: the number of updates after which the method has reached its final sparsity; None if unknown.
      starts_sparse: whether `init` removes weights. `update` then raises for a pruned leaf without gradients.
    """

    init: Callable[[PyTree], tuple[PyTree, Any]]
    is_due: Callable[[jax.Array], Any] | None
    revise: Callable[[PyTree, Any, Signals], tuple[PyTree, Any]]
    dense: Dense | None = None
    specs: PyTree = None
    end: int | None = None
    starts_sparse: bool = False
