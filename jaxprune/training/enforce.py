"""Updates after which removed weights are exactly zero."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import _tree, masks

PyTree = Any


def to_zero(updates: PyTree, params: PyTree, mask_tree: PyTree) -> PyTree:
    """The updates where the masks are True, and minus the parameter where they are False.

    `optax.apply_updates` then gives exact zeros, whatever the dtypes: where the parameter is wider than its update the
    result has the parameter's dtype. An infinite or NaN parameter becomes NaN (p - p); only `masks.apply` mends that.

    Args:
      updates: the optimizer's; None for a leaf without one.
      params: the parameters they will be added to.
      mask_tree: their masks.

    Returns:
      A tree in the structure of `updates`.
    """
    return _map(lambda u, p, mask: jnp.where(mask, u, -p), updates, params, mask_tree)


def zero(values: PyTree, mask_tree: PyTree) -> PyTree:
    """Gradients or parameters with zeros at removed places, for norms, factors and moments to see; None stays."""
    return _map(lambda x, _, mask: jnp.where(mask, x, jnp.zeros((), x.dtype)), values, values, mask_tree)


class KeepZerosState(NamedTuple):
    """The masks of `keep_zeros`."""

    masks: PyTree


def keep_zeros(mask_tree: PyTree) -> optax.GradientTransformationExtraArgs:
    """The plain last link of a chain, which holds removed weights at zero.

    It must come last: `optax.chain(optimizer, keep_zeros(masks))`. It cannot do what `jaxprune.sparsify` does: the
    optimizer before it still sees gradients of removed weights and keeps moments for them (which act on the kept ones
    through norms, factored moments and orthogonalisation); masks do not change; inside `optax.MultiSteps` it acts on
    every k-th step only, inside `lookahead` or a transparent `sam` not on all; the evaluation parameters of
    `schedule_free` keep what it removes.

    Args:
      mask_tree: masks in the structure of the parameters. They are copied into the state.

    Returns:
      A transformation whose update needs `params`.

    Raises:
      ValueError, TypeError: at init, masks that do not fit; the message names the leaves. At update, no parameters.

    Example:
      >>> params, mask = {'w': jnp.array([[1.0, 2.0]])}, {'w': jnp.array([[True, False]])}
      >>> optimizer = optax.chain(optax.sgd(0.5), keep_zeros(mask))
      >>> updates, _ = optimizer.update({'w': jnp.ones((1, 2))}, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)['w'].tolist()
      [[0.5, 0.0]]
    """

    def init(params: PyTree) -> KeepZerosState:
        return KeepZerosState(own_masks(params, mask_tree))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, KeepZerosState]:
        del extra
        check_params(params, "keep_zeros")
        _tree.check_masks(params, state.masks)
        return to_zero(updates, params, state.masks), state

    return optax.GradientTransformationExtraArgs(init, update)


def own_masks(params: PyTree, mask_tree: PyTree) -> PyTree:
    """A copy of the masks in the structure of the parameters: donating a state must not delete the user's arrays.

    Masks of the same leaves in other containers are taken too: an `nnx.State` of Variables and its pure dict, a
    FrozenDict and a dict.
    """
    aligned = _tree.align(params, mask_tree, what="masks", is_leaf=masks.is_packed)
    _tree.check_masks(params, aligned)
    return jax.tree.map(lambda mask: jnp.array(mask, copy=True), aligned)


def own_key(key: Any) -> Any:
    """A copy of the user's key, for a state: donating the state must not delete it. None stays."""
    _tree.check_key(key)
    return None if key is None else jnp.copy(key)


def check_own_key(state: Any, key: Any) -> None:
    """Raises where a method that remembers a key, or nothing, is given what another method remembers."""
    if jax.tree.structure(state) != jax.tree.structure(key):
        raise ValueError(f"the state of this method is {'None' if key is None else 'a key'}; got {state!r}")


def check_params(params: PyTree | None, what: str) -> None:
    """Raises where a training loop calls `update` without the parameters."""
    if params is None:
        raise ValueError(
            f"{what} needs the parameters to bring removed weights to exact zeros; "
            "call optimizer.update(grads, state, params)"
        )


def _map(fn: Any, updates: PyTree, params: PyTree, mask_tree: PyTree) -> PyTree:
    def apply(update: Any, param: Any, mask: Any) -> Any:
        # Unpruned leaves are told by their shape, so they cost nothing; leaves without gradients are None.
        return update if update is None or not jnp.ndim(mask) else fn(update, param, masks.as_bool(mask, param))

    return jax.tree.map(apply, updates, params, mask_tree, is_leaf=lambda x: x is None)
