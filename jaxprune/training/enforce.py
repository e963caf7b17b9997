"""Exact zeros at removed weights: in updates (`to_zero`), gradients (`zero`), and optimizer states (`zero_removed`).

It also detects steps that `optax.apply_if_finite` skips: in a skipped step no mask changes and the step count stays.

The checks of a sparsified optimizer refuse gradients, states and dtypes that would make its result wrong. `explain`
runs only after an update has failed; the other checks run when `init` or `update` is traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import _tree
from jaxprune.masks import unpack
from jaxprune.masks._exact import shards
from jaxprune.masks.packing import is_packed

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
    """Sets gradients or parameters to zero at removed weights, so that norms and moments ignore them. None stays."""
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
    """Returns a copy of the masks in the parameters' structure: donating a state must not delete the user's arrays."""
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
        raise ValueError(f"the state of this method must be {'None' if key is None else 'a key'}; got {state!r}")
    if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return state
    return jax.random.wrap_key_data(state, impl=jax.random.key_impl(key))


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


_SHOWN = 10
_PROBES = 4  # optimizers such as `MultiSteps` compute nothing in the first steps


def explain(init: Callable[[PyTree], PyTree], updates: PyTree, state: PyTree, params: PyTree) -> str:
    """Returns which leaves of the gradients or the state do not belong to the parameters or the optimizer.

    Args:
      init: the `init` of the sparsified optimizer, which is traced again.
      updates: the gradients given to its update.
      state: the state given to its update.
      params: the parameters given to its update.

    Returns:
      A message that names the leaves; empty if everything belongs together.
    """
    try:
        _ = jax.tree.structure(params).flatten_up_to(updates)
        whole = True
    except (ValueError, TypeError):
        whole = False  # leaves are missing; None would stand for leaves without gradients
    lines = _differences(_kinds(params), _kinds(updates), optional=whole)
    if lines:
        return "the gradients do not belong to the parameters:\n" + "\n".join(lines)
    try:
        expected = jax.eval_shape(init, params)
    except Exception:  # an error of init itself does not explain the failed update
        return ""
    lines = _differences(_kinds(expected), _kinds(state))
    if not lines:
        return ""
    packed = [any(name[-1:] == ("bits",) for name in _kinds(t.masks)) for t in (expected, state)]
    hint = ""
    if packed[0] != packed[1]:
        hint = f"; it has {'packed' if packed[1] else 'bool'} masks: pass sparsify(..., packed={packed[1]})"
    return (
        "the state belongs to another optimizer, method or network than this sparsify(...); make it by "
        "optimizer.init(params), restore it for the same one, or change methods by training.phases(...)"
        + "\n".join([hint, *lines])
    )


def check_gradients(params: PyTree, updates: PyTree, kept: PyTree) -> None:
    """Raises if the gradient of a pruned leaf has another shape than its parameter; an axis of examples may precede.

    Raises:
      ValueError: the message names each leaf with both shapes.
    """
    grads, own = (jax.tree.structure(params).flatten_up_to(tree) for tree in (updates, kept))
    wrong = [
        f"  {name}: gradient {np.shape(grad)}, parameter {np.shape(leaf)}"
        for (name, leaf), grad, mask in zip(_tree.named_leaves(params), grads, own, strict=True)
        if jnp.ndim(mask) and hasattr(grad, "shape") and np.shape(grad)[-np.ndim(leaf) :] != np.shape(leaf)
    ]
    if wrong:
        raise ValueError("the gradients must have the shapes of the parameters:\n" + "\n".join(wrong))


def check_trained(params: PyTree, updates: PyTree, kept: PyTree) -> None:
    """Raises if a leaf from which `init` removed weights has no gradients.

    Raises:
      ValueError: the message names the leaves.
    """
    grads, own = (jax.tree.structure(params).flatten_up_to(tree) for tree in (updates, kept))
    named = zip(_tree.named_leaves(params), grads, own, strict=True)
    wrong = [f"  {name}" for (name, _), grad, mask in named if grad is None and jnp.ndim(mask)]
    if wrong:
        raise ValueError(
            "these leaves have no gradients (None), so they are not trained and cannot be brought to zero, but the "
            "method removed weights of them at init; leave them out by where=...:\n" + "\n".join(wrong)
        )


def check_shards(params: PyTree, kept: PyTree, inner: PyTree, specs: PyTree) -> None:
    """Raises if the devices of a `jax.shard_map` would not all do the same.

    Raises:
      ValueError: the optimizer skips steps by the gradients of one device, or packed masks are cut along a row.
    """
    cut = shards.of_leaves(params, specs)
    if is_guarded(inner) and any(layout.is_cut for layout in cut):
        raise ValueError(
            "specs: optax.apply_if_finite inside the optimizer receives only one device's shard of the gradients, and "
            "would skip a step on some devices only; put it around a shard_map, or check before"
        )
    own = jax.tree.structure(params).flatten_up_to(kept)
    leaves = zip(_tree.named_leaves(params), own, cut, strict=True)
    packed = [(name, mask, layout) for (name, _), mask, layout in leaves if is_packed(mask)]
    wrong = [f"  {name}: {layout.names}" for name, mask, layout in packed if layout.along([mask.ndim - 1])]
    if wrong:
        raise ValueError(
            "packed masks know the width of a whole row, so the last axis of these leaves cannot be cut; shard another "
            "axis, or leave packed=False:\n" + "\n".join(wrong)
        )


def check_half(optimizer: optax.GradientTransformationExtraArgs, params: PyTree, kept: PyTree) -> None:
    """Raises if, in float16, the zeros of removed weights make the optimizer compute NaN for kept weights.

    An `eps` below 3e-8, such as Adam's 1e-8, is zero in float16. For the zero gradient and moments of a removed weight
    Adam computes 0 / 0. The update of the removed weight is overwritten, but a transformation after Adam that takes a
    norm spreads the NaN. The optimizer is a closed function, so it is tried on arrays of the tree's structure with at
    most two entries along each axis. An optimizer whose update needs extra arguments is not tried.

    Args:
      optimizer: the wrapped optimizer.
      params: the parameters.
      kept: the bool masks of the parameters; a leaf whose mask has axes is pruned.

    Raises:
      ValueError: the message names the leaves.
    """
    leaves, structure = jax.tree.flatten(params)
    pruned = [
        jnp.ndim(mask) > 0 and getattr(leaf, "dtype", None) == jnp.float16
        for leaf, mask in zip(leaves, structure.flatten_up_to(kept), strict=True)
    ]
    if not any(pruned):
        return
    try:
        dense, sparse = (
            _finite_updates(optimizer, structure, leaves, which) for which in ([False] * len(leaves), pruned)
        )
    except Exception:  # such as an update that needs a value of the loss: nothing is known of this optimizer
        return
    wrong = [before and not after for before, after in zip(dense, sparse, strict=True)]
    if any(wrong):
        names = [f"  {name}" for (name, _), yes in zip(_tree.named_leaves(params), wrong, strict=True) if yes]
        raise ValueError(
            "in float16 this optimizer computes NaN for kept weights: an eps such as Adam's 1e-8 is zero in float16, a "
            "removed weight gives 0 / 0, and a later transformation that takes a norm spreads the NaN over these "
            "leaves; pass an eps of 1e-7 or more:\n" + "\n".join(names)
        )


def _finite_updates(optimizer: Any, structure: Any, leaves: list[Any], pruned: list[bool]) -> list[bool]:
    """Returns for each leaf whether updates of kept weights are finite, if half of each pruned leaf is removed."""
    with jax.ensure_compile_time_eval():
        ones = [np.ones([min(n, 2) for n in np.shape(leaf)], leaf.dtype) for leaf in leaves]
        kept = [
            np.arange(x.size).reshape(x.shape) % 2 == 0 if cut else x > 0 for x, cut in zip(ones, pruned, strict=True)
        ]
        params = structure.unflatten([jnp.asarray(np.where(m, x, 0)) for x, m in zip(ones, kept, strict=True)])
        grads = jax.tree.map(lambda p: p / 8, params)
        state, finite = optimizer.init(params), [True] * len(leaves)
        for _ in range(_PROBES):
            moved, state = optimizer.update(grads, state, params)
            updates = map(np.asarray, structure.flatten_up_to(moved))
            finite = [ok and bool(np.isfinite(u[m]).all()) for ok, u, m in zip(finite, updates, kept, strict=True)]
    return finite


def _kinds(values: PyTree) -> dict[tuple[str, ...], str]:
    leaves = _tree.with_paths(values)
    return {_tree.identity(path): _tree.kind(leaf) for path, leaf in leaves}


def _differences(expected: dict[Any, str], got: dict[Any, str], *, optional: bool = False) -> list[str]:
    """Returns a line for each leaf that differs. Gradients (`optional`) may lack leaves and may have another dtype."""
    names = [name for name in {**expected, **got} if not (optional and name not in got)]
    bare = (lambda kind: kind[kind.find("[") :]) if optional else (lambda kind: kind)
    wrong = [n for n in names if bare(expected.get(n, "nothing")) != bare(got.get(n, "nothing"))]
    lines = [
        f"  {'/'.join(n) or '(the tree itself)'}: expected {expected.get(n, 'nothing')}, got {got.get(n, 'nothing')}"
        for n in wrong[:_SHOWN]
    ]
    return lines + ([f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])


def in_shape(masks: PyTree, old: PyTree) -> PyTree:
    """Returns new masks in the shapes of the old masks: the scalar True of a frozen leaf becomes an array of True."""
    return jax.tree.map(lambda m, o: m if m.ndim == o.ndim else jnp.broadcast_to(m, o.shape), masks, old)


def next_step(step: jax.Array, skipped: Any) -> jax.Array:
    """Returns the count of updates after an update, which stays in a skipped step."""
    following = jnp.asarray(optax.safe_increment(step))
    return following if skipped is False else jnp.where(skipped, step, following)
