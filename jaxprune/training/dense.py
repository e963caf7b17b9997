"""Methods that keep dense weights behind a sparse forward pass: straight-through, SR-STE, Top-KAST."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, criteria, masks, schedules
from jaxprune import allocation as allocations
from jaxprune.prune import Selector
from jaxprune.training import enforce
from jaxprune.training.choosing import as_schedule, check_plan
from jaxprune.training.method import Dense, Method, Signals

PyTree = Any
_TWO_OF_FOUR = masks.NM(2, 4)


def sparse_params(params: PyTree, mask_tree: PyTree) -> PyTree:
    """The parameters with zeros where the masks are False, and with gradients as if there were none.

        forward: w where m, else 0        backward: dL/dw := dL/d(forward), all of it

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432). It is what the loss of the methods in this
    file takes: `jax.grad(lambda p: loss(sparse_params(p, masks)))`, with `masks = get_masks(opt_state)` from the same
    step. Forward- and reverse-mode differentiation agree.

    Args:
      params: any pytree.
      mask_tree: bool or packed masks in its structure.

    Returns:
      A tree in the structure of `params`.

    Raises:
      ValueError, TypeError: the masks do not fit; the message names the leaves.

    Example:
      >>> loss = lambda w: (sparse_params(w, jnp.array([True, False])) * jnp.array([2.0, 3.0])).sum()
      >>> float(loss(jnp.ones(2))), jax.grad(loss)(jnp.ones(2)).tolist()
      (2.0, [2.0, 3.0])
    """
    _tree.check_masks(params, mask_tree)
    return jax.tree.map(lambda w, m: _pass_through(w, masks.as_bool(m, w)) if jnp.ndim(m) else w, params, mask_tree)


def straight_through(
    sparsity: float | schedules.Schedule,
    *,
    when: schedules.Update = schedules.every(1),
    criterion: criteria.Criterion = criteria.magnitude,
    allocation: allocations.Allocate = allocations.uniform,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
    key: Any = None,
) -> Method:
    """Masks by the dense weights' own scores; all weights are trained, removed ones may come back with their value.

        w <- w - lr dL/dw(w m(w)),    m(w) the largest by |w|

    The loss must take `training.sparse_params(params, get_masks(opt_state))`. At the end `masks.apply` makes the zeros.

    Args:
      sparsity: the fraction removed, in [0, 1); or a schedule step -> sparsity.
      when: step -> whether the masks for this step are made anew from its parameters.
      criterion: as in `jaxprune.prune`; for the first masks there are no gradients, only parameters and the key.
      allocation: as in `jaxprune.prune`.
      pattern: as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.
      key: a JAX key, for random criteria; kept in the state.

    Returns:
      A method for `jaxprune.sparsify`, which then leaves removed weights, their gradients and moments alone.

    Raises:
      ValueError: a sparsity outside [0, 1).

    Example:
      >>> start, _ = straight_through(0.5).init({'w': jnp.array([[3.0, 1.0, 2.0, 4.0]])})
      >>> start['w'].tolist()
      [[True, False, False, True]]
    """
    schedule = as_schedule(sparsity)
    check_plan(when, criterion)
    select = Selector(
        criterion=criterion,
        allocation=allocation,
        pattern=pattern,
        where=where,
        batch_axes=batch_axes,
        key=key,
        specs=specs,
    )

    def init(params: PyTree) -> tuple[PyTree, Any]:
        return select(params, schedule(0)), enforce.own_key(key)

    def revise(held: PyTree, state: Any, signals: Signals) -> tuple[PyTree, Any]:
        enforce.check_own_key(state, key)
        signs = {"grads": signals.grads, "key": state, **signals.extra}
        return select(signals.params, schedule(signals.step), **signs), state

    return Method(init, when, revise, Dense(lambda grads, params, held, state: grads, unchanged), specs)


def sr_ste(
    pattern: masks.NM = _TWO_OF_FOUR,
    *,
    decay: float = 2e-4,
    when: schedules.Update = schedules.every(1),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
) -> Method:
    """N:M from scratch: straight-through, with a decay of the weights that are removed.

        g <- g + lambda (1 - m) w

    Zhou et al. 2021 (SR-STE), arXiv 2102.04010, eq. 9: the decay keeps masks from flickering. It is added to the
    gradient before the optimizer sees it. The loss must take `training.sparse_params(params, get_masks(opt_state))`.

    Args:
      pattern: n of m, by magnitude.
      decay: lambda, 0 or more; 2e-4 in the paper. 0 is plain straight-through.
      when: as in `straight_through`.
      where: as in `jaxprune.prune`; a leaf that m does not divide must be left out.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`, which keeps dense weights.

    Raises:
      TypeError: the pattern is another.
      ValueError: the decay is negative; at init, a leaf that the pattern does not divide.

    Example:
      >>> start, _ = sr_ste(masks.NM(1, 2)).init({'w': jnp.array([[3.0], [1.0], [2.0], [4.0]])})
      >>> start['w'].T.tolist()
      [[True, False, False, True]]
    """
    if getattr(pattern, "fixed_sparsity", None) is None:
        raise TypeError(f"sr_ste needs masks.NM(n, m), got {pattern!r}; straight_through takes any pattern")
    _check_weight(decay, "decay")

    def gradients(grads: PyTree, params: PyTree, held: PyTree, state: Any) -> PyTree:
        return of_pruned(lambda g, w, m: jnp.where(m, g, g + (decay * w).astype(g.dtype)), grads, params, held)

    sparsity = pattern.fixed_sparsity
    base = straight_through(sparsity, when=when, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs)
    return base._replace(dense=Dense(gradients, unchanged))


def top_kast(
    sparsity: float,
    backward: float,
    *,
    penalty: float = 0.0,
    when: schedules.Update = schedules.every(1),
    allocation: allocations.Allocate = allocations.uniform,
    pattern: masks.Patterns = masks.Unstructured(),
    where: _tree.Where = None,
    batch_axes: masks.BatchAxes = 0,
    specs: PyTree = None,
) -> Method:
    """Top-KAST: the largest weights A in the forward pass, a larger set B of the largest is updated.

        forward: w on A, else 0        update: on B, else none
        penalty: R = lambda (sum_A w^2 / 2 + sum_{B - A} w^2 / (2 D)),    D = 1 - sparsity

    Jayakumar et al. 2020, arXiv 2106.03517, sections 2.1 to 2.3. The paper writes its penalty with |w|, and calls it
    L2; here it is the square, whose gradients are w and w / D. Weights outside B keep their values. The loss must
    take `training.sparse_params(params, get_masks(opt_state))` (those are A; B is in the state); the gradient is cut to
    B before the optimizer sees it, so moments of weights that leave B fade as with zero gradients. Nothing is saved in
    memory or time: arrays are dense.

    Args:
      sparsity: the fraction without a forward pass.
      backward: the fraction without an update, at most `sparsity`; both in [0, 1).
      penalty: lambda, 0 or more; its gradient is added to the loss's.
      when: as in `straight_through`; the paper's is every step, or every hundred.
      allocation: as in `jaxprune.prune`.
      pattern: as in `jaxprune.prune`.
      where: as in `jaxprune.prune`.
      batch_axes: as in `jaxprune.prune`.
      specs: as in `jaxprune.How`.

    Returns:
      A method for `jaxprune.sparsify`, which keeps dense weights; its state is B.

    Raises:
      ValueError: sparsities out of range or order, a negative penalty.

    Example:
      >>> forward, backward = top_kast(0.75, 0.5).init({'w': jnp.array([[3.0, 1.0, 2.0, 4.0]])})
      >>> forward['w'].tolist(), backward['w'].tolist()
      ([[False, False, False, True]], [[True, False, False, True]])
    """
    masks.check_sparsity(sparsity)
    masks.check_sparsity(backward, "backward")
    _check_weight(penalty, "penalty")
    if backward > sparsity:
        raise ValueError(f"backward must be at most sparsity={sparsity}: B contains A; got {backward}")
    check_plan(when)
    choose = Selector(allocation=allocation, pattern=pattern, where=where, batch_axes=batch_axes, specs=specs).masks

    def both(params: PyTree) -> tuple[PyTree, PyTree]:
        scores = criteria.magnitude(params)
        forward = choose(scores, sparsity)
        return forward, masks.unite(forward, choose(scores, backward))

    def gradients(grads: PyTree, params: PyTree, held: PyTree, state: Any) -> PyTree:
        def cut(g: Any, w: Any, a: Any, b: Any) -> Any:
            pull = penalty * jnp.where(a, w, w / (1 - sparsity))
            return jnp.where(b, g + pull.astype(g.dtype), jnp.zeros((), g.dtype))

        return of_pruned(cut, grads, params, held, state)

    def updates(moved: PyTree, held: PyTree, state: Any) -> PyTree:
        return of_pruned(lambda u, b: jnp.where(b, u, jnp.zeros((), u.dtype)), moved, state)

    return Method(both, when, lambda held, state, signals: both(signals.params), Dense(gradients, updates), specs)


@jax.custom_jvp
def _pass_through(weights: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, weights, jnp.zeros((), weights.dtype))


_pass_through.defjvps(lambda tangent, primal, weights, mask: tangent, None)


def _check_weight(value: float, what: str) -> None:
    if not value >= 0:
        raise ValueError(f"{what} must be 0 or more, got {value}")


def unchanged(updates: PyTree, held: PyTree, state: Any) -> PyTree:
    """The updates of a method that only changes gradients."""
    del held, state
    return updates


def of_pruned(fn: Any, updates: PyTree, *rest: PyTree) -> PyTree:
    """`fn` on leaves that are pruned, which the last tree tells; None, a leaf without an update, stays."""

    def apply(update: Any, *others: Any) -> Any:
        return update if update is None or not jnp.ndim(others[-1]) else fn(update, *others)

    return jax.tree.map(apply, updates, *rest, is_leaf=lambda x: x is None)
