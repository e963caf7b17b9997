"""One line in the optimizer: pruning as a wrapper around any Optax transformation.

A wrapper sees both ends: the raw gradients before the optimizer and its updates and state after it. So each step

    masks    <- revised, on the steps the method says            (lax.cond over the masks alone)
    grads, parameters, moments  <- zero where removed
    updates  <- the optimizer's, and minus the parameter where removed

and `optax.apply_updates` gives exact zeros. The optimizer sees the sparse network and nothing else; from zero gradients
and zero moments the elementwise optimizers make zero moments, so nothing has to be cleaned after them. (Cleaning after
them would copy the moments: the same new moment would be needed both with and without its mask.) No hook after the step
is needed, and no change of the training loop.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import _tree, masks
from jaxprune.masks import shards
from jaxprune.masks.axes import place_like
from jaxprune.training import enforce, finite, mismatch
from jaxprune.training.method import Dense, Method, Signals
from jaxprune.training.moments import zero_removed

PyTree = Any


class SparsifyState(NamedTuple):
    """The state of a sparsified optimizer: arrays only, so it is saved, sharded and donated as any other.

    Attributes:
      step: int32 scalar, the number of updates made.
      masks: bool, True = kept, in the structure of the parameters; a scalar True for a leaf that is not pruned. Packed
        if that was asked for.
      method: what the method remembers.
      inner: the state of the wrapped optimizer.
    """

    step: jax.Array
    masks: PyTree
    method: Any
    inner: PyTree


def sparsify(
    optimizer: optax.GradientTransformation, method: Method, *, packed: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that what the method removes stays exactly zero.

    Put it outermost, around the whole optimizer (`sparsify(optax.chain(...), method)`): what comes after it in a chain
    may move removed weights again.

    Args:
      optimizer: any Optax transformation.
      method: `training.fixed`, `one_shot`, `gradual`, or any `Method`.
      packed: whether the state holds the masks as `masks.Packed`, a bit an entry instead of a byte, with the same
        results. What the method itself remembers (the second masks of `top_kast`) stays as it is.

    Returns:
      A transformation. Its `update` needs `params` and passes extra arguments on to the optimizer. After
      `optax.apply_updates` the parameters are exactly zero where the masks are False, in every dtype. Each leaf of the
      optimizer's state that mirrors a parameter (moments, averages, accumulated gradients) is zero there when the
      optimizer sees it, and in the state it returns too, so that a regrown weight starts without a past; unless the
      optimizer itself puts something there (adafactor, adabelief and adamax a floor of 1e-30, 1e-16 and 1e-8, an `ema`
      behind `muon` what that spreads, the line search of `lbfgs` the gradient that it ended at).
      Methods that keep dense weights (`straight_through`, `sr_ste`, `top_kast`) leave all this out: see there.
      The masks are found by `jaxprune.get_masks(state)`.

    Raises:
      TypeError: `optimizer` is no transformation, or `method` no `Method`; the state is none of `init`.
      ValueError: `update` was called without `params`; masks, gradients or state are not those of these parameters, or
        not of this method and optimizer. At init, there is nothing to prune.

    Leaves that the optimizer freezes (`set_to_zero`, `masked`) are pruned like others: leave them out by `where`, or
    wrap the optimizer of the others alone. Gradients that the optimizer takes itself, as `sam(opaque_mode=True)` does,
    are not masked.

    For an `update` inside `jax.shard_map` whose devices share the parameters, make the method with `specs`, the
    `PartitionSpec`s in its `in_specs`. The method then sees whole parameters, and masks are those of one device; `init`
    may be called inside or outside. Gradients must be those of the whole loss. Optimizers that look at all parameters
    at once (`clip_by_global_norm`, `apply_if_finite`) see the part that the device holds, so they do not go with it.

    The masks are revised from the parameters before the update. All steps are one compiled program.

    With `optax.apply_if_finite`, around or inside, a step that it skips changes no mask and does not count: the state
    keeps its step, and a revision that was due is made on the next step with finite gradients. Gradients of removed
    weights may be anything: the optimizer does not see them.

    Example:
      >>> from jaxprune import training
      >>> params = {'w': jnp.array([[3.0, 1.0], [2.0, 4.0]])}
      >>> optimizer = sparsify(optax.adam(0.1), training.one_shot(0.5))
      >>> updates, state = optimizer.update({'w': jnp.ones((2, 2))}, optimizer.init(params), params)
      >>> (optax.apply_updates(params, updates)['w'] != 0).tolist()
      [[True, False], [False, True]]
    """
    if not isinstance(method, Method):
        raise TypeError(f"method must be a training.Method, such as training.gradual(...); got {method!r}")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r}")
    inner = optax.with_extra_args_support(optimizer)
    method = _packing(method) if packed else method

    def init(params: PyTree) -> SparsifyState:
        found, state = method.init(params)
        return SparsifyState(jnp.zeros((), jnp.int32), found, state, inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, SparsifyState]:
        enforce.check_params(params, "sparsify")
        _check_state(state)
        _tree.check_masks(params, state.masks)
        if method.specs is not None:
            _check_shards(params, state, method.specs)
        try:
            return step(updates, state, params, extra)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if reason := mismatch.explain(init, updates, state, params):
                raise ValueError(reason) from error
            raise

    def step(updates: PyTree, state: SparsifyState, params: PyTree, extra: Any) -> tuple[PyTree, SparsifyState]:
        if method.dense is not None:
            return _dense_update(inner, method, method.dense, updates, state, params, extra)
        guarded = finite.is_guarded(state.inner)
        found, method_state, waits = _revise(method, state, Signals(params, updates, state.step, extra), guarded)
        moved, inner_state = inner.update(
            enforce.zero(updates, found),
            zero_removed(state.inner, params, found),
            enforce.zero(params, found),
            **extra,
        )
        skipped = (finite.was_skipped(state.inner, inner_state) | waits) if guarded else False
        return enforce.to_zero(moved, params, found), SparsifyState(
            _next(state.step, skipped), found, method_state, inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _dense_update(
    inner: optax.GradientTransformationExtraArgs,
    method: Method,
    dense: Dense,
    updates: PyTree,
    state: SparsifyState,
    params: PyTree,
    extra: dict[str, Any],
) -> tuple[PyTree, SparsifyState]:
    """The step of a method that trains removed weights too; its masks are those of the parameters to come."""
    grads = dense.gradients(updates, params, state.masks, state.method)
    moved, inner_state = inner.update(grads, state.inner, params, **extra)
    moved = dense.updates(moved, state.masks, state.method)
    skipped = finite.was_skipped(state.inner, inner_state) if finite.is_guarded(state.inner) else False
    step = _next(state.step, skipped)
    signals = Signals(optax.apply_updates(params, moved), updates, step, extra, params)
    found, method_state, _ = _revise(method, state, signals, guarded=False, unless=skipped)
    return moved, SparsifyState(step, found, method_state, inner_state)


def get_masks(opt_state: PyTree) -> PyTree:
    """The masks in an optimizer's state, wherever it is in a chain or below other wrappers.

    Args:
      opt_state: the state of an optimizer that contains `sparsify(...)` or `keep_zeros(...)` once. That of an
        `nnx.Optimizer` is its `opt_state`.

    Returns:
      The mask tree; packed masks as they are (`masks.unpack` makes them bool, all of jaxprune takes both).

    Raises:
      ValueError: there is no such state in it, or more than one.

    Example:
      >>> from jaxprune import training
      >>> optimizer = optax.chain(sparsify(optax.sgd(0.1), training.one_shot(0.5)))
      >>> get_masks(optimizer.init({'w': jnp.ones((1, 2))}))['w'].tolist()
      [[True, True]]
    """
    found = _holders(opt_state)
    if len(found) != 1:
        way_out = (
            "pass the part of it that you mean, such as opt_state.inner_states[label] of optax.partition"
            if found
            else "pass the state of the sparsified optimizer itself"
        )
        raise ValueError(f"opt_state must hold the masks of one sparsify(...), found {len(found)}; {way_out}")
    return found[0].masks


def _holders(opt_state: PyTree) -> list[Any]:
    """The states that hold masks, those within another's optimizer too."""
    kinds = (SparsifyState, enforce.KeepZerosState)
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    found = [node for node in nodes if isinstance(node, kinds)]
    return found + [inner for node in found if isinstance(node, SparsifyState) for inner in _holders(node.inner)]


def _check_state(state: Any) -> None:
    if not isinstance(state, SparsifyState):
        raise TypeError(
            f"state must be a training.SparsifyState, as optimizer.init(params) makes it; got {type(state).__name__}: "
            "start from init, and restore a checkpoint with it for the structure"
        )


def _revise(
    method: Method, state: SparsifyState, signals: Signals, guarded: bool, unless: Any = False
) -> tuple[PyTree, Any, Any]:
    """The masks and the method's state for a step, and whether a revision was due and has to wait."""
    held = (state.masks, state.method)
    if method.is_due is None:
        return *held, False

    # Only the masks and the method's state go through: what else a branch returned would be copied every step.
    def revise(held: tuple[PyTree, Any]) -> tuple[tuple[PyTree, Any], Any]:
        # On axes that types name, new masks may lie on other devices; results of one `lax.cond` lie on the same.
        revised = jax.tree.map(place_like, method.revise(held[0], held[1], signals), held)
        if not guarded:
            return revised, jnp.array(False)
        fine = finite.are_finite(signals.grads, held[0]) & finite.are_finite(signals.grads, revised[0])
        return jax.tree.map(lambda new, old: jnp.where(fine, new, old), revised, held), ~fine

    due = method.is_due(signals.step)
    due = due if unless is False else due & ~unless
    (found, method_state), waits = jax.lax.cond(due, revise, lambda held: (held, jnp.array(False)), held)
    return found, method_state, waits


def _next(step: jax.Array, skipped: Any) -> jax.Array:
    following = jnp.asarray(optax.safe_increment(step))
    return following if skipped is False else jnp.where(skipped, step, following)


def _packing(method: Method) -> Method:
    """The method, with packed masks wherever they are kept; its own functions see bool ones."""

    def init(params: PyTree) -> tuple[PyTree, Any]:
        found, state = method.init(params)
        return masks.pack(found), state

    def revise(held: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        found, state = method.revise(masks.unpack(held, signals.params), state, signals)
        return masks.pack(found), state

    own = method.dense
    if own is None:
        return method._replace(init=init, revise=revise)
    dense = Dense(
        lambda grads, params, held, state: own.gradients(grads, params, masks.unpack(held, params), state),
        lambda updates, held, state: own.updates(updates, masks.unpack(held), state),
    )
    return method._replace(init=init, revise=revise, dense=dense)


def _check_shards(params: PyTree, state: SparsifyState, specs: PyTree) -> None:
    """Raises for what would go another way on each device."""
    cut = shards.layouts(params, specs)
    if finite.is_guarded(state.inner) and any(layout.is_cut for layout in cut):
        raise ValueError(
            "specs: optax.apply_if_finite inside the optimizer sees the part of the gradients that a "
            "device holds, and would skip a step on some devices only; put it around a shard_map, or check before"
        )
    held = jax.tree.structure(params).flatten_up_to(state.masks)
    leaves = zip(_tree.named_leaves(params), held, cut, strict=True)
    packed = [(name, mask, layout) for (name, _), mask, layout in leaves if masks.is_packed(mask)]
    wrong = [f"  {name}: {layout.names}" for name, mask, layout in packed if layout.along([mask.ndim - 1])]
    if wrong:
        raise ValueError(
            "packed masks know the width of a whole row, so the last axis of these leaves cannot be cut; shard another "
            "axis, or leave packed=False:\n" + "\n".join(wrong)
        )
