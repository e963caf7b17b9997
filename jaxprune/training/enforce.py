"""Exact zeros at removed weights in updates, gradients, parameters and moments; and `keep_zeros`, a plain last link.

It also detects steps that `optax.apply_if_finite` skips: in such a step no mask changes and the step count stays.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import _tree
from jaxprune.masks import is_packed, unpack

PyTree = Any


def to_zero(updates: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """Returns the updates where the masks are True, and minus the parameter where they are False.

    `optax.apply_updates` then computes exact zeros in all dtypes: where the parameter is wider than its update
    the result has the parameter's dtype. An infinite or NaN parameter becomes NaN (p - p); only `masks.apply` mends it.

    Args:
      updates: the optimizer's updates; None for a leaf without one.
      params: the parameters to which the updates will be added.
      masks: the masks of the parameters.

    Returns:
      A tree in the structure of `updates`.
    """
    return _map(lambda u, p, mask: jnp.where(mask, u, -p), updates, params, masks)


def zero(values: PyTree, masks: PyTree) -> PyTree:
    """Gradients or parameters with zeros at removed weights, so that norms and moments ignore them; None stays None."""
    return _map(lambda x, _, mask: jnp.where(mask, x, jnp.zeros((), x.dtype)), values, values, masks)


def zero_removed(state: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """Returns the optimizer's state with zeros at removed weights.

    A subtree of the state mirrors the parameters if it has a leaf at the path of every parameter, and no other leaves;
    parameters that `optax.masked` or `optax.partition` replaced by a `MaskedNode`, or that are None, count as present.
    The leaves of such a subtree with the shape of their parameter and an inexact dtype are zeroed. That covers the
    moments of every optimizer of Optax; leaves of other shapes, such as the factored moments of adafactor or a layer's
    scalar in novograd, stay as they are.

    Args:
      state: any state of an optimizer.
      params: the parameters that it was initialised with.
      masks: the masks of the parameters, in the structure of `params`.

    Returns:
      A tree in the structure of `state`.

    Raises:
      ValueError: the masks have another structure than the parameters.

    Example:
      >>> params, masks = {'w': jnp.array([[1.0, 2.0]])}, {'w': jnp.array([[True, False]])}
      >>> zero_removed(optax.TraceState({'w': jnp.array([[5.0, 6.0]])}), params, masks).trace['w'].tolist()
      [[5.0, 0.0]]
    """
    named = [(_tree.identity(path), leaf) for path, leaf in _tree.with_paths(params)]
    own = dict(zip((name for name, _ in named), jax.tree.structure(params).flatten_up_to(masks), strict=True))
    like = dict(named)

    def clean(leaf: Any, name: tuple[str, ...] | None) -> Any:
        if name is None or not jnp.ndim(own[name]) or getattr(leaf, "shape", None) != like[name].shape:
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jnp.where(unpack(own[name], leaf), leaf, jnp.zeros((), leaf.dtype))

    return _tree.map_mirrored(lambda path, leaf, name: clean(leaf, name), state, list(like))


class KeepZerosState(NamedTuple):
    """The masks of `keep_zeros`."""

    masks: PyTree


def keep_zeros(masks: PyTree) -> optax.GradientTransformationExtraArgs:
    """A plain last link of a chain that holds removed weights at zero.

    It must come last: `optax.chain(optimizer, keep_zeros(masks))`. Use `jaxprune.sparsify` unless you need a plain
    link, because `keep_zeros` has limits. The optimizer before it sees gradients of removed weights and keeps moments
    for them, which affect kept weights through norms, factored moments and orthogonalisation. Masks do not change.
    Inside `optax.MultiSteps` it acts only on every k-th step, and inside `lookahead` or a transparent `sam` not on all
    parameters. The evaluation parameters of `schedule_free` keep removed weights.

    Args:
      masks: masks in the structure of the parameters. They are copied into the state.

    Returns:
      A transformation whose update needs `params`.

    Raises:
      ValueError, TypeError: at init, the masks do not fit (the message names the leaves); at update, params are
      missing.

    Example:
      >>> params, masks = {'w': jnp.array([[1.0, 2.0]])}, {'w': jnp.array([[True, False]])}
      >>> optimizer = optax.chain(optax.sgd(0.5), keep_zeros(masks))
      >>> updates, _ = optimizer.update({'w': jnp.ones((1, 2))}, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)['w'].tolist()
      [[0.5, 0.0]]
    """

    def init(params: PyTree) -> KeepZerosState:
        return KeepZerosState(own_masks(params, masks))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, KeepZerosState]:
        del extra
        check_params(params, "keep_zeros")
        return to_zero(updates, params, fit(params, state.masks)), state

    return optax.GradientTransformationExtraArgs(init, update)


def fit(params: PyTree, masks: PyTree) -> PyTree:
    """Checks the masks and returns them in the structure of the parameters.

    Masks of the same leaves in other containers are accepted: an `nnx.State` of Variables and its pure dict, a
    FrozenDict and a dict, boxes and their values.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.
    """
    masks = _tree.align(params, masks, what="masks", is_leaf=is_packed)
    _tree.check_masks(params, masks)
    return masks


def own_masks(params: PyTree, masks: PyTree) -> PyTree:
    """A copy of the masks in the structure of the parameters: donating a state must not delete the user's arrays."""
    return jax.tree.map(lambda mask: jnp.array(mask, copy=True), fit(params, masks))


def own_key(key: Any) -> Any:
    """Copies the data of the user's key into a state, in a form for every checkpoint format. None stays None.

    Without the copy, donating the state would delete the user's key.
    """
    _tree.check_key(key)
    return None if key is None else jnp.copy(jax.random.key_data(key))


def use_key(state: Any, key: Any) -> Any:
    """Returns the key in a method's state, in the form of the user's key.

    Raises:
      ValueError: the method has a key but the state has none, or the reverse.
    """
    if jax.tree.structure(state) != jax.tree.structure(key):
        raise ValueError(f"the state of this method is {'None' if key is None else 'a key'}; got {state!r}")
    if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return state
    return jax.random.wrap_key_data(state, impl=jax.random.key_impl(key))


def check_params(params: PyTree | None, what: str) -> None:
    """Raises if a training loop calls `update` without the parameters."""
    if params is None:
        raise ValueError(
            f"{what} needs the parameters to bring removed weights to exact zeros; "
            "call optimizer.update(grads, state, params)"
        )


def is_guarded(state: PyTree) -> bool:
    """Returns whether an optimizer's state contains a state of `optax.apply_if_finite`; a Python bool."""
    return bool(_guards(state))


def was_skipped(before: PyTree, after: PyTree) -> jax.Array:
    """Returns whether `optax.apply_if_finite` received non-finite gradients between two states; a bool scalar."""
    pairs = zip(_guards(before), _guards(after), strict=True)
    return jnp.any(jnp.stack([a.total_notfinite != b.total_notfinite for b, a in pairs]))


def are_finite(grads: PyTree, masks: PyTree) -> jax.Array:
    """Returns whether all gradients of kept weights, which the optimizer receives, are finite; a bool scalar."""
    leaves = jax.tree.leaves(zero(grads, masks))
    return jnp.all(jnp.stack([jnp.array(True), *(jnp.isfinite(leaf).all() for leaf in leaves)]))


def _map(fn: Any, updates: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    def apply(update: Any, param: Any, mask: Any) -> Any:
        # Unpruned leaves have masks without axes, so they cost nothing; leaves without gradients are None.
        return update if update is None or not jnp.ndim(mask) else fn(update, param, unpack(mask, param))

    return jax.tree.map(apply, updates, params, masks, is_leaf=lambda x: x is None)


def _guards(state: PyTree) -> list[optax.ApplyIfFiniteState]:
    is_guard = lambda node: isinstance(node, optax.ApplyIfFiniteState)
    found = [node for node in jax.tree.leaves(state, is_leaf=is_guard) if is_guard(node)]
    # One guard may be inside another.
    return found + [inner for node in found for inner in _guards(node.inner_state)]
