"""Methods that train dense weights behind a sparse forward pass: straight-through, SR-STE, Top-KAST, movement pruning.

The loss calls `sparse_params(params, get_masks(opt_state))`, and `masks.apply` sets the zeros after training.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from jaxprune import _tree, schedules
from jaxprune.masks import NM, unite, unpack
from jaxprune.prune import How, Selector
from jaxprune.schedules.steps import Planned, Schedule, Update, check_schedule
from jaxprune.training import enforce
from jaxprune.training.sparsify import Dense, Method, Signals

PyTree = Any
_SUM = optax.sgd(1.0)


def sparse_params(params: PyTree, masks: PyTree) -> PyTree:
    """Returns the parameters with zeros where the masks are False, and with gradients as if no mask had been applied.

        forward: w where m, else 0        backward: dL/dw := dL/d(forward), unmasked

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432), for the loss of the methods in this file:
    `jax.grad(lambda p: loss(sparse_params(p, masks)))`, with `masks = get_masks(opt_state)` of the same step. Forward-
    and reverse-mode differentiation agree.

    Args:
      params: any pytree.
      masks: bool or packed masks in the structure of `params`, or of the same leaves in other containers.

    Returns:
      A tree in the structure of `params`.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> loss = lambda w: (sparse_params(w, jnp.array([True, False])) * jnp.array([2.0, 3.0])).sum()
      >>> float(loss(jnp.ones(2))), jax.grad(loss)(jnp.ones(2)).tolist()
      (2.0, [2.0, 3.0])
    """
    masks = enforce.fit(params, masks)
    return jax.tree.map(lambda w, m: _pass_through(w, unpack(m, w)) if jnp.ndim(m) else w, params, masks)


def straight_through(sparsity: float | Schedule, *, when: Update = schedules.every(1), **how: Unpack[How]) -> Method:
    """Masks weights by the scores of the dense weights, and trains all weights, so removed weights may return.

        w <- w - lr dL/dw(w m(w)),    m(w) the largest by |w|

    The loss must take `training.sparse_params(params, get_masks(opt_state))`.

    Args:
      sparsity: the fraction removed, in [0, 1); or a schedule step -> sparsity.
      when: a function from a step to whether the masks for this step are computed anew from its parameters; every step
        by default.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        The criterion has no gradients for the first masks, only parameters and the key.

    Returns:
      A method for `jaxprune.sparsify`. Removed weights, their gradients and moments are not set to zero.

    Raises:
      ValueError: the sparsity is outside [0, 1).

    Example:
      >>> start, _ = straight_through(0.5).init({'w': jnp.array([[3.0, 1.0, 2.0, 4.0]])})
      >>> start['w'].tolist()
      [[True, False, False, True]]
    """
    schedule, end = _as_schedule(sparsity, when)
    select = Selector(**how)

    def init(params: PyTree) -> tuple[PyTree, Any]:
        return select(params, schedule(0)), enforce.own_key(select.key)

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        del masks
        signs = {"grads": signals.grads, "key": enforce.use_key(state, select.key), **signals.extra}
        return select(signals.params, schedule(signals.step), **signs), state

    dense = Dense(lambda grads, params, masks, state: grads, _unchanged)
    return Method(init, when, revise, dense, select.specs, end)


def sr_ste(*, decay: float = 2e-4, when: Update = schedules.every(1), **how: Unpack[How]) -> Method:
    """Returns the method SR-STE, for N:M sparsity from scratch: straight-through, with a decay of the removed weights.

        g <- g + lambda (1 - m) w

    Zhou et al. 2021, arXiv 2102.04010, eq. 9: the decay keeps masks from flickering. It is added to the gradient before
    the optimizer receives it. The loss must take `training.sparse_params(params, get_masks(opt_state))`.

    Args:
      decay: lambda, 0 or more; 2e-4 by default and in the paper. 0 is plain straight-through.
      when: a function from a step to whether the masks for this step are computed anew from its parameters; every step
        by default.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        The pattern must have a fixed sparsity, such as `masks.NM(2, 4)`, the default; leave out leaves that m does not
        divide.

    Returns:
      A method for `jaxprune.sparsify`, which keeps dense weights.

    Raises:
      TypeError: the pattern has no fixed sparsity.
      ValueError: the decay is negative; at init, a leaf that the pattern does not divide.

    Example:
      >>> start, _ = sr_ste(pattern=NM(1, 2)).init({'w': jnp.array([[3.0], [1.0], [2.0], [4.0]])})
      >>> start['w'].T.tolist()
      [[True, False, False, True]]
    """
    pattern: Any = how.setdefault("pattern", NM(2, 4))
    sparsity = getattr(pattern, "fixed_sparsity", None)
    if sparsity is None:
        raise TypeError(f"sr_ste needs masks.NM(n, m), got {pattern!r}; straight_through takes any pattern")
    _check_weight(decay, "decay")

    def gradients(grads: PyTree, params: PyTree, masks: PyTree, state: Any) -> PyTree:
        return _of_pruned(lambda g, w, m: jnp.where(m, g, g + (decay * w).astype(g.dtype)), grads, params, masks)

    base = straight_through(sparsity, when=when, **how)
    return base._replace(dense=Dense(gradients, _unchanged))


def top_kast(
    sparsity: float,
    backward: float,
    *,
    penalty: float = 0.0,
    when: Update = schedules.every(1),
    **how: Unpack[How],
) -> Method:
    """Returns the method Top-KAST: the forward pass uses the largest weights, A; updates change a larger set, B.

        forward: w on A, else 0        update: on B, else none
        penalty: R = lambda (sum_A w^2 / 2 + sum_{B - A} w^2 / (2 D)),    D = 1 - sparsity

    Jayakumar et al. 2020, arXiv 2106.03517, sections 2.1 to 2.3. The paper writes its penalty with |w| and calls it L2;
    this method uses the square, with the gradients w and w / D. Weights outside B keep their values. The loss must take
    `training.sparse_params(params, get_masks(opt_state))` (`get_masks` returns A; the state holds B). The gradient is
    set to zero outside B before the optimizer, so the moments of weights that leave B decay as with zero gradients.
    Arrays stay dense, so the method saves no memory and no time.

    Args:
      sparsity: the fraction of weights outside A, in [0, 1).
      backward: the fraction of weights outside B, in [0, 1) and at most `sparsity`.
      penalty: lambda, 0 or more; its gradient is added to the gradient of the loss. Default 0.
      when: a function from a step to whether the masks for this step are computed anew from its parameters; every step
        by default; the paper uses every step or every hundred.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`, which keeps dense weights; its state is B.

    Raises:
      ValueError: sparsities are out of range or order, or the penalty is negative.

    Example:
      >>> forward, backward = top_kast(0.75, 0.5).init({'w': jnp.array([[3.0, 1.0, 2.0, 4.0]])})
      >>> forward['w'].tolist(), backward['w'].tolist()
      ([[False, False, False, True]], [[True, False, False, True]])
    """
    _tree.check_sparsity(sparsity)
    _tree.check_sparsity(backward, "backward")
    _check_weight(penalty, "penalty")
    if backward > sparsity:
        raise ValueError(f"backward must be at most sparsity={sparsity}, because B includes A; got {backward}")
    _tree.check_function(when, "when", "schedules.every(100)")
    select = Selector(**how)

    def both(params: PyTree, **signs: Any) -> tuple[PyTree, PyTree]:
        scores = select.scores(params, **signs)
        forward = select.masks(scores, sparsity)
        return forward, unite(forward, select.masks(scores, backward))

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, PyTree]:
        del masks, state
        return both(signals.params, **{"grads": signals.grads, **signals.extra})

    def gradients(grads: PyTree, params: PyTree, masks: PyTree, state: Any) -> PyTree:
        def cut(g: Any, w: Any, a: Any, b: Any) -> Any:
            pull = penalty * jnp.where(a, w, w / (1 - sparsity))
            return jnp.where(b, g + pull.astype(g.dtype), jnp.zeros((), g.dtype))

        return _of_pruned(cut, grads, params, masks, state)

    def updates(moved: PyTree, masks: PyTree, state: Any) -> PyTree:
        return _of_pruned(lambda u, b: jnp.where(b, u, jnp.zeros((), u.dtype)), moved, state)

    return Method(both, when, revise, Dense(gradients, updates), select.specs, end=0)


def movement(
    sparsity: float | Schedule,
    *,
    learn: optax.GradientTransformation = _SUM,
    when: Update = schedules.every(1),
    **how: Unpack[How],
) -> Method:
    """Returns the method of movement pruning: keeps weights with the highest learned scores, which moved from zero.

        forward: W' = w where S is among the highest, else 0        dL/dS = dL/dW' w        dL/dw = dL/dW' where kept

    Sanh et al. 2020, arXiv 2005.07683, section 4 and eq. 3 to 5 (hard movement pruning; the soft form keeps no exact
    number). The gradient of a score passes straight through the ranking, so a removed weight, which does not move, may
    return. With plain gradient descent `S = -sum dL/dW' w`, and the learning rate changes no ranking; the paper learns
    scores with Adam at 1e-2 and follows a cubic schedule from 0. The loss must take
    `training.sparse_params(params, get_masks(opt_state))`.

    Args:
      sparsity: the fraction removed, in [0, 1); or a schedule step -> sparsity. It should start from 0: all scores are
        0 before the first step, so a first mask would keep the weights with the lowest indices.
      learn: the optimizer of the scores; `optax.sgd(1.0)` by default.
      when: a function from a step to whether the masks for this step are computed anew; every step by default. The
        scores learn at every step.
      **how: how weights are chosen: allocation, pattern, where, batch_axes, specs; see `jaxprune.How`. The allocation
        receives the learned scores. A criterion or key is refused, since scores are learned.

    Returns:
      A method for `jaxprune.sparsify`, which keeps dense weights; its state is the scores, in float32 at least, and
      the state of `learn`. The optimizer gets zero gradients for removed weights; moments that it still has move them,
      as in the authors' code.

    Raises:
      ValueError: the sparsity is outside [0, 1).
      TypeError: a criterion or a key was passed.

    Example:
      >>> method = movement(schedules.cubic(100, 900, 0.9), learn=optax.adam(1e-2))
    """
    schedule, end = _as_schedule(sparsity, when)
    if not (hasattr(learn, "init") and hasattr(learn, "update")):
        raise TypeError(
            "learn must be the optimizer of the scores, an optax.GradientTransformation such as optax.adam(1e-2); got "
            f"{_tree.shown(learn)}"
        )
    for name in ("criterion", "key"):
        if how.get(name) is not None:
            raise TypeError(f"movement learns its scores, so it takes no {name}; leave it out")
    select = Selector(**how)

    def init(params: PyTree) -> tuple[PyTree, Any]:
        scores = jax.tree.map(_no_score, params)
        return select.masks(scores, schedule(0)), (scores, learn.init(scores))

    def revise(masks: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        scores, learned = state
        slopes = jax.tree.map(_slope, scores, signals.grads, signals.before)
        updates, learned = learn.update(slopes, learned, scores)
        scores = optax.apply_updates(scores, updates)
        choose = lambda _: select.masks(scores, schedule(signals.step))
        return jax.lax.cond(when(signals.step), choose, lambda m: m, masks), (scores, learned)

    def gradients(grads: PyTree, params: PyTree, masks: PyTree, state: Any) -> PyTree:
        del params, state
        return _of_pruned(lambda g, m: jnp.where(m, g, jnp.zeros((), g.dtype)), grads, masks)

    return Method(init, lambda _: True, revise, Dense(gradients, _unchanged), select.specs, end)


def _as_schedule(sparsity: Any, when: Any) -> tuple[Schedule, int | None]:
    """Returns the schedule (a constant one for a number), and the number of updates after which it is final."""
    _tree.check_function(when, "when", "schedules.every(100)")
    if not callable(sparsity):
        _tree.check_sparsity(sparsity)
        return lambda _: sparsity, 0
    check_schedule(sparsity)
    if not isinstance(sparsity, Planned):
        return sparsity, None
    return sparsity, when.first_from(sparsity.end) if isinstance(when, schedules.every) else sparsity.end


@jax.custom_jvp
def _pass_through(weights: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, weights, jnp.zeros((), weights.dtype))


_pass_through.defjvps(lambda tangent, primal, weights, mask: tangent, None)


def _check_weight(value: float, what: str) -> None:
    if not value >= 0:
        raise ValueError(f"{what} must be 0 or more, got {value}")


def _unchanged(updates: PyTree, masks: PyTree, state: Any) -> PyTree:
    del masks, state
    return updates


def _of_pruned(fn: Any, updates: PyTree, *rest: PyTree) -> PyTree:
    """Applies `fn` to pruned leaves, which have axes in the last tree; None stays for a leaf without an update."""

    def apply(update: Any, *others: Any) -> Any:
        return update if update is None or not jnp.ndim(others[-1]) else fn(update, *others)

    return jax.tree.map(apply, updates, *rest, is_leaf=lambda x: x is None)


def _no_score(leaf: Any) -> jax.Array:
    if not _tree.is_floating(leaf):
        return jnp.zeros(())
    return jnp.zeros(jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _slope(score: jax.Array, grad: Any, weight: Any) -> jax.Array:
    if not _tree.is_floating(weight) or not _tree.is_floating(grad):
        return jnp.zeros_like(score)
    return grad.astype(score.dtype) * weight.astype(score.dtype)
