"""Pruning in the optimizer: `sparsify` wraps any Optax optimizer; `get_masks` and `is_finished` read its state.

A `Method` says which masks hold at which step; `Signals` are the values that it reads.

The wrapper receives the raw gradients before the optimizer does, and the optimizer's updates and state afterwards. Each
step

    revises the masks, on the steps that the method names (`lax.cond` over the masks alone),
    sets gradients, parameters and moments to zero where weights are removed, and calls the optimizer,
    and returns its updates, with minus the parameter where weights are removed,

so that `optax.apply_updates` computes exact zeros. The optimizer receives only the sparse network. Elementwise
optimizers make zero moments from zero gradients and zero moments, so the moments are cleaned before the optimizer and
not after it: cleaning after it would copy them. The training loop does not change, and no hook runs after the step.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import _tree, masks
from jaxprune.masks._exact.shards import place_like
from jaxprune.masks.packing import is_packed
from jaxprune.prune import Selector
from jaxprune.training import enforce

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


class Dense(NamedTuple):
    """How a method that trains removed weights too changes gradients and updates.

    Attributes:
      gradients: `(grads, params, masks, state) -> grads`: returns the gradients that the optimizer receives.
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


_DIVISOR = 128  # a multiple of any usual number of devices along an axis of a mesh


class SparsifyState(NamedTuple):
    """The state of a sparsified optimizer. It holds only arrays, so it is saved, sharded and donated as any other.

    All other attributes and indices are read from the wrapped optimizer's state: `state.hyperparams` of
    `optax.inject_hyperparams`, `state[0].mu` of a chain, `state.mini_step` for `optax.MultiSteps.has_updated(state)`.

    Attributes:
      step: int32 scalar, the number of updates made.
      masks: bool, True = kept, in the structure of the parameters; a scalar True for a leaf that is not pruned. Packed
        if `sparsify(packed=True)`. `jaxprune.get_masks(state)` returns them without boxes of Flax.
      method: the state of the method.
      inner: the state of the wrapped optimizer.
      end: int32 scalar, the number of updates after which the method has reached its final sparsity; -1 if unknown.
    """

    step: jax.Array
    masks: PyTree
    method: Any
    inner: PyTree
    end: jax.Array

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(self.inner, name)
        except AttributeError:
            kind = type(self.inner).__name__
            raise AttributeError(f"neither SparsifyState nor the state in it, {kind}, has {name!r}") from None

    def __getitem__(self, index: Any) -> Any:
        return self.inner[index]


class _Sparsified(optax.GradientTransformationExtraArgs):
    """The transformation that `sparsify` returns; it passes on the attributes of the wrapped optimizer."""

    optimizer: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)


def sparsify(
    optimizer: optax.GradientTransformation | optax.MultiSteps, method: Method, *, packed: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that weights removed by the method stay exactly zero.

    Put it outermost, around the whole optimizer (`sparsify(optax.chain(...), method)`): a transformation that follows
    it in a chain, or wraps it as `optax.lookahead` does, may make removed weights nonzero again.

    Args:
      optimizer: any Optax transformation.
      method: `training.fixed`, `one_shot`, `gradual`, or any `Method`. For an `update` inside `jax.shard_map` whose
        devices share the parameters, give the method `specs`: it then ranks the weights of all devices together, and
        the masks equal the masks of one device. `init` may be called inside or outside. Each device must have the
        gradients of the whole loss. Optimizers that use all parameters at once (`clip_by_global_norm`,
        `apply_if_finite`) receive only the shards of their device.
      packed: whether the state holds masks of one bit an entry, as `masks.pack` returns them, instead of one byte, with
        the same results; default False. The method's own state (the second masks of `top_kast`) is not packed. Inside
        `jax.shard_map`, devices may share a leaf along any axis except the last one, because a packed row is whole.

    Returns:
      A transformation. Its `update` needs `params` and passes extra arguments on to the optimizer. After
      `optax.apply_updates` the parameters are exactly zero where the masks are False, in every dtype. Each leaf of the
      optimizer's state that mirrors a parameter (moments, averages, accumulated gradients) is zero there before and
      after each update, so that a regrown weight starts from zero moments. The returned state has other values only if
      the optimizer itself writes them: adafactor, adabelief and adamax write a floor of 1e-30, 1e-16 and 1e-8; an `ema`
      after `muon` averages the updates of `muon`; the line search of `lbfgs` stores its last gradient.
      Methods that keep dense weights (`straight_through`, `sr_ste`, `top_kast`, `movement`) set nothing to zero.
      `jaxprune.get_masks(state)` returns the masks.

    Raises:
      TypeError: `optimizer` is not a transformation, `method` is not a `Method`, or `state` was not made by `init`.
      ValueError: `update` was called without `params`; masks, gradients or state do not belong to these parameters,
        this method and this optimizer; a leaf that lost weights at init has no gradients; with `specs`, the optimizer
        contains `optax.apply_if_finite`, or packed masks are cut along their last axis. At init, there is nothing to
        prune, or in float16 the optimizer computes NaN for kept weights.

    The method's `where` selects the leaves that are pruned, including leaves that the optimizer freezes (`set_to_zero`,
    `masked`); to keep frozen leaves dense, exclude them by `where`, or wrap only the optimizer of the trained leaves.
    A leaf whose gradient is None is not trained and keeps an all-True mask. In `optax.LookaheadParams` the masks and
    the gradients belong to `fast`, and the masks also apply to `slow`. Gradients that the optimizer computes itself, as
    `sam(opaque_mode=True)` does, are not masked.

    The method computes new masks from the parameters before the update. If you jit the training step, steps with and
    without a mask update run the same compiled program. Without jit, the computation of new masks is compiled once.

    If `optax.apply_if_finite` (around `sparsify` or inside it) skips a step, the masks do not change and the step does
    not count: the state keeps its step number, and a mask update that was due happens at the next step with finite
    gradients. Gradients of removed weights may have any value, also NaN, because `sparsify` sets them to zero before
    the optimizer reads them.

    In float16 an `eps` of 1e-8 is zero: for the zero gradient and moments of a removed weight Adam computes 0 / 0. The
    update of the removed weight is overwritten, but a transformation after Adam that takes a norm would spread the NaN.
    `init` tests the optimizer on small arrays and raises if it computes NaN: pass an `eps` of 1e-7 or more.

    Example:
      >>> from jaxprune import training
      >>> params = {'w': jnp.array([[3.0, 1.0], [2.0, 4.0]])}
      >>> optimizer = sparsify(optax.adam(0.1), training.one_shot(0.5))
      >>> updates, state = optimizer.update({'w': jnp.ones((2, 2))}, optimizer.init(params), params)
      >>> (optax.apply_updates(params, updates)['w'] != 0).tolist()
      [[True, False], [False, True]]
    """
    if not isinstance(method, Method):
        swapped = "; optimizer and method are swapped" if isinstance(optimizer, Method) else ""
        raise TypeError(
            f"method must be a training.Method, such as training.gradual(...); got {_tree.shown(method)}{swapped}"
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, such as optax.adam(1e-3); got {_tree.shown(optimizer)}"
        )
    _tree.check_function(method.init, "the init of method", "(params) -> (masks, state)")
    run = _Run(optimizer, method, packed)
    sparsified = _Sparsified(run.init, run.update)
    sparsified.optimizer = optimizer
    return sparsified


def get_masks(opt_state: PyTree) -> PyTree:
    """Returns the masks in an optimizer's state, at any place in a chain or below other wrappers.

    Args:
      opt_state: the state of an optimizer that contains `sparsify(...)` once; for an `nnx.Optimizer` pass
        `optimizer.opt_state`.

    Returns:
      A tree of bool arrays, or of packed masks (`masks.unpack` makes bool masks), without the boxes and Variables of
      Flax. Every function of jaxprune takes bool and packed masks, and parameters with and without boxes. But
      `jax.tree.map` takes the structure of its first tree. Pass it parameters without boxes
      (`nnx.as_pure(nnx.state(model, nnx.Param))`, `nn.unbox(params)`) and then the masks; or first the masks and then
      parameters in boxes, and the function receives whole boxes.

    Raises:
      ValueError: the state contains no masks, or the masks of more than one optimizer.

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
    return jax.tree.map(_unboxed, found[0].masks, is_leaf=_tree.is_box)


def is_finished(opt_state: PyTree) -> jax.Array:
    """Returns whether a run has made all updates that its method needs to reach the final sparsity.

    Args:
      opt_state: the state of an optimizer that contains `sparsify(...)` once.

    Returns:
      A bool scalar. It is also False for a method without a known end, such as `gradual` with your own function as
      the schedule.

    Raises:
      ValueError: the state contains no sparsified optimizer, or more than one.

    Example:
      >>> from jaxprune import schedules, training
      >>> optimizer = sparsify(optax.sgd(0.1), training.gradual(schedules.cubic(begin=0, end=60, final=0.9)))
      >>> bool(is_finished(optimizer.init({'w': jnp.ones((4, 4))})))
      False
    """
    found = [state for state in _holders(opt_state) if isinstance(state, SparsifyState)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state must hold the state of one sparsify(...), found {len(found)}; pass the state that "
            "optimizer.init or optimizer.update returned"
        )
    step, end = _unboxed(found[0].step), _unboxed(found[0].end)
    return (end >= 0) & (step >= end)


class _Run:
    """The functions `init` and `update` of an optimizer that is sparsified by a method."""

    def __init__(self, optimizer: Any, method: Method, packed: bool) -> None:
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.method, self.packed = method, packed
        # All steps call one jitted function, so that updates outside jit compile the revision once.
        self.jitted = jax.jit(self.revise, static_argnums=(0, 1), inline=True)

    def init(self, params: PyTree) -> SparsifyState:
        own, zero = _fast(params), jnp.zeros((), jnp.int32)
        # The placeholder of `optax.tree.map_params`, which looks for parameters in the state.
        if type(own).__module__.startswith("optax.") and not jax.tree.leaves(own):
            return SparsifyState(zero, own, 0, self.optimizer.init(params), zero)
        made, state = self.method.init(own)
        if self.method.dense is None:
            enforce.check_half(self.optimizer, own, made)
        made = _outside_boxes(masks.pack(made) if self.packed else made, own)
        end = jnp.asarray(-1 if self.method.end is None else self.method.end, jnp.int32)
        return SparsifyState(zero, made, state, self.optimizer.init(params), end)

    def update(
        self, updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SparsifyState]:
        if params is None:
            raise ValueError(
                "sparsify needs the parameters to bring removed weights to exact zeros; "
                "call optimizer.update(grads, state, params)"
            )
        if not isinstance(state, SparsifyState):
            raise TypeError(
                "state must be a training.SparsifyState, as optimizer.init(params) returns it; got "
                f"{type(state).__name__}: start from init, and restore a checkpoint into its structure"
            )
        own = _fast(params)
        state = state._replace(masks=enforce.fit(own, state.masks))
        if self.method.specs is not None:
            enforce.check_shards(own, state.masks, state.inner, self.method.specs)
        try:
            enforce.check_gradients(own, updates, state.masks)
            if self.method.starts_sparse:
                enforce.check_trained(own, updates, state.masks)
            step = self.sparse_step if self.method.dense is None else self.dense_step
            moved, new = step(updates, state, params, extra)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if reason := enforce.explain(self.init, updates, state, params):
                raise ValueError(reason) from error
            raise
        return moved, new._replace(masks=_outside_boxes(new.masks, own))

    def sparse_step(
        self, updates: PyTree, state: SparsifyState, params: PyTree, extra: dict[str, Any]
    ) -> tuple[PyTree, SparsifyState]:
        """Returns the step of a method that holds removed weights at zero."""
        guarded, own = enforce.is_guarded(state.inner), _fast(params)
        signals = Signals(own, updates, state.step, extra)
        kept, method_state, waits = self.revised(state, signals, guarded)
        moved, inner_state = self.optimizer.update(
            enforce.zero(updates, kept),
            enforce.zero_removed(state.inner, own, kept),
            _each(lambda p: enforce.zero(p, kept), params),
            **extra,
        )
        skipped = (enforce.was_skipped(state.inner, inner_state) | waits) if guarded else False
        moved = _each(lambda u, p: enforce.to_zero(u, p, kept), moved, params)
        return moved, SparsifyState(enforce.next_step(state.step, skipped), kept, method_state, inner_state, state.end)

    def dense_step(
        self, updates: PyTree, state: SparsifyState, params: PyTree, extra: dict[str, Any]
    ) -> tuple[PyTree, SparsifyState]:
        """Returns the step of a method that trains removed weights too; it returns the masks of the new parameters."""
        dense: Any = self.method.dense
        own = _fast(params)
        kept = masks.unpack(state.masks, own)
        grads = dense.gradients(updates, own, kept, state.method)
        moved, inner_state = self.optimizer.update(grads, state.inner, params, **extra)
        moved = _each(lambda u: dense.updates(u, kept, state.method), moved)
        skipped = enforce.was_skipped(state.inner, inner_state) if enforce.is_guarded(state.inner) else False
        step = enforce.next_step(state.step, skipped)
        signals = Signals(_fast(optax.apply_updates(params, moved)), updates, step, extra, own)
        kept, method_state, _ = self.revised(state, signals, guarded=False, unless=skipped)
        return moved, SparsifyState(step, kept, method_state, inner_state, state.end)

    def revised(
        self, state: SparsifyState, signals: Signals, guarded: bool, unless: Any = False
    ) -> tuple[PyTree, Any, Any]:
        """Returns the masks and the method's state for a step, and whether a revision was due and has to wait."""
        if self.method.is_due is None:
            return state.masks, state.method, False
        leaves, structure = jax.tree.flatten(signals.extra)
        is_array = [isinstance(x, jax.Array | np.ndarray | np.generic | int | float) for x in leaves]
        static = structure, tuple(None if yes else x for x, yes in zip(leaves, is_array, strict=True))
        arrays = [x if yes else None for x, yes in zip(leaves, is_array, strict=True)]
        # The gradients of integers have the dtype float0, which jit does not take.
        grads = jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, signals.grads)
        given = signals._replace(grads=grads, extra={}), arrays, None if unless is False else unless
        try:
            hash(static)
        except TypeError:
            return self.revise(guarded, static, state.masks, state.method, *given)
        return self.jitted(guarded, static, state.masks, state.method, *given)

    def revise(
        self, guarded: bool, static: Any, kept: PyTree, state: Any, signals: Signals, arrays: list[Any], unless: Any
    ) -> tuple[PyTree, Any, Any]:
        """Revises the masks if they are due; `static` and `arrays` are the extra arguments of the update."""
        structure, options = static
        extra = jax.tree.unflatten(structure, [o if x is None else x for x, o in zip(arrays, options, strict=True)])
        params, grads, step = signals.params, signals.grads, signals.step
        frozen = tuple(g is None for g in jax.tree.structure(params).flatten_up_to(grads))
        fill = lambda p, g: jnp.zeros_like(p) if g is None and _tree.is_floating(p) else g
        signals = Signals(params, jax.tree.map(fill, params, grads), step, extra, signals.before, frozen)

        # The branches return only the masks and the method's state: every other returned value is copied at every step.
        def revise(own: tuple[PyTree, Any]) -> tuple[tuple[PyTree, Any], Any]:
            old = masks.unpack(own[0], params) if self.packed else own[0]
            new, new_state = self.method.revise(old, own[1], signals)
            # With explicit mesh axes new masks may be sharded otherwise, and both branches must return one sharding.
            revised = jax.tree.map(place_like, (masks.pack(new) if self.packed else new, new_state), own)
            if not guarded:
                return revised, jnp.array(False)
            fine = enforce.are_finite(grads, own[0]) & enforce.are_finite(grads, revised[0])
            return jax.tree.map(lambda new, old: jnp.where(fine, new, old), revised, own), ~fine

        is_due: Any = self.method.is_due
        due = is_due(step)
        due = due if unless is None else due & ~unless
        (kept, state), waits = jax.lax.cond(due, revise, lambda own: (own, jnp.array(False)), (kept, state))
        return kept, state, waits


def _fast(params: PyTree) -> PyTree:
    """Returns the parameters that gradients belong to."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _each(fn: Any, *trees: PyTree) -> PyTree:
    """Applies `fn` to the trees, or separately to the fast and to the slow parameters."""
    if not isinstance(trees[-1], optax.LookaheadParams):
        return fn(*trees)
    return optax.LookaheadParams(fn(*(tree.fast for tree in trees)), fn(*(tree.slow for tree in trees)))


def _outside_boxes(kept: PyTree, params: PyTree) -> PyTree:
    """Returns the masks, without the box of their parameter where its axis names do not fit the mask."""

    def place(mask: Any, param: Any) -> Any:
        own = _unboxed(mask)
        fits = np.shape(own) == np.shape(_unboxed(param))
        if is_packed(own):  # the number of devices must divide the last axis
            fits = own.bits.shape[-1] % _DIVISOR == 0
        return mask if fits else own

    return jax.tree.map(place, kept, params, is_leaf=lambda node: _tree.is_box(node) or is_packed(node))


def _unboxed(node: Any) -> Any:
    return jax.tree.leaves(node, is_leaf=is_packed)[0] if _tree.is_box(node) else node


def _holders(opt_state: PyTree) -> list[Any]:
    """Returns the states that hold masks, also inside the state of another sparsified optimizer."""
    is_state = lambda node: isinstance(node, SparsifyState)
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(node)]
    return found + [inner for node in found for inner in _holders(node.inner)]
