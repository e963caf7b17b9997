"""`group_lasso` and `growing_penalty` drive whole units to zero in training."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxprune import _tree
from jaxprune.slimming.choice import Choice
from jaxprune.slimming.groups import Groups
from jaxprune.slimming.manifest import spread

PyTree = Any
Schedule = Callable[[Any], Any]
Units = Sequence[Sequence[np.ndarray]]  # for each leaf and axis the units of each position, as in `Groups.units`


def group_lasso(groups: Groups, strength: float | Schedule) -> optax.GradientTransformation:
    r"""Returns a transformation for the group lasso: each step shrinks the norm of each unit, small norms to exactly 0.

    After the optimizer's step to w, a proximal step multiplies the entries $w_u$ of each unit by

    $\max(0, 1 - \lambda \sqrt{n_u} / \lVert w_u \rVert)$

    with $n_u$ entries in the unit (Yuan and Lin 2006, eq. 2.4). An entry of several units (a row of one, a column of
    another) is multiplied by the factors of all its units. Put the transformation last in the chain, because it must
    see the optimizer's updates. Afterwards `Choice.from_masks(groups, masks, partial="keep")` removes the units that
    are zero; the masks are `jax.tree.map(lambda p: p != 0, params)`.

    Args:
      groups: the groups, found on parameters of these shapes.
      strength: $\lambda$, 0 or more: the learning rate times the weight of the penalty. A number, a scalar array, or a
        function of the step, whose first value is for step 0.

    Returns:
      A transformation whose update needs `params`. Its state counts the steps.

    Raises:
      TypeError: `groups` is not what `find_groups` returns, or `strength` is neither a number nor a function.
      ValueError: `strength` is below 0. The update raises it if it is called without `params`.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': jnp.array([[3.0, 0.1]]), 'b': jnp.array([[4.0], [0.1]])}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((5, 1)))
      >>> lasso = group_lasso(groups, 1.0)
      >>> updates, _ = lasso.update(jax.tree.map(jnp.zeros_like, params), lasso.init(params), params)
      >>> optax.apply_updates(params, updates)['a'][0, 1].item()
      0.0
    """
    _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
    return proximal_lasso(lambda params: groups.units, strength, "group_lasso")


def growing_penalty(choice: Choice, growth: float | Schedule, *, limit: float = 1.0) -> optax.GradientTransformation:
    """Returns an L2 penalty on the units that a choice removes, growing from step to step.

    For each entry w of these units, update number t adds min(limit, growth t) w to the gradient. The first update has
    t = 0 (Wang et al. 2021, arXiv 2012.09243, GReg-1; DepGraph trains in this way
    before pruning). Units that stay are not penalised. Put the transformation before the optimizer.

    Args:
      choice: the units to remove.
      growth: the increase of the coefficient in a step, 0 or more; or a function of the step t that returns the
        coefficient.
      limit: the largest coefficient, 0 or more; default 1.

    Returns:
      A transformation whose update needs `params`. Its state counts the steps.

    Raises:
      TypeError: `choice` is not a `Choice`, or `growth` is neither a number nor a function.
      ValueError: `growth` or `limit` is below 0. The update raises it if it is called without `params`.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': jnp.ones((1, 2)), 'b': jnp.ones((2, 1))}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((5, 1)))
      >>> penalty = growing_penalty(Choice.remove(groups, {'a[1]': [1]}), lambda step: 0.5)
      >>> grads, _ = penalty.update(jax.tree.map(jnp.zeros_like, params), penalty.init(params), params)
      >>> grads['a'].tolist()
      [[0.0, 0.5]]
    """
    _tree.check_instance(choice, Choice, "choice", "a slimming.Choice of the units to remove")
    _check_amount(growth, "growth")
    _check_amount(limit, "limit")
    masks = choice.masks()

    def change(step: Any, updates: PyTree, params: PyTree) -> PyTree:
        amount = jnp.minimum(growth(step) if callable(growth) else growth * step, limit)
        add = lambda u, p, m: jnp.where(m, u, u + jnp.asarray(amount * p, u.dtype))
        return jax.tree.map(add, updates, params, masks)

    return _counting(change, "growing_penalty")


def proximal_lasso(
    units_of: Callable[[PyTree], Units], strength: float | Schedule, name: str
) -> optax.GradientTransformation:
    """Returns a transformation for the group lasso over any units; see `group_lasso`.

    Args:
      units_of: `params -> units`: for each leaf and axis the units of each position, (layers..., n, k) whole numbers
        from 0 on; -1 is no unit.
      strength: the shrinkage of a step, or a function of the step.
      name: the name of the transformation, for errors.

    Returns:
      A transformation whose update needs `params`.

    Raises:
      TypeError: `strength` is neither a number nor a function.
      ValueError: `strength` is below 0.
    """
    _check_amount(strength, "strength")

    def change(step: Any, updates: PyTree, params: PyTree) -> PyTree:
        units = units_of(params)
        sizes = _sizes(units, params)
        stepped = optax.apply_updates(params, updates)
        amount = strength(step) if callable(strength) else strength
        norms = _norms(units, sizes.size, stepped)
        factors = jnp.maximum(0.0, 1.0 - amount * jnp.sqrt(sizes) / jnp.maximum(norms, 1e-30))
        scaled = _scale(units, stepped, factors)
        # If nothing is left the update is exactly -w, without a cast, so that w + update is exactly zero.
        new = lambda s, p, u: jnp.where(s == 0, -p, jnp.asarray(s - p, u.dtype))
        return jax.tree.map(new, scaled, params, updates)

    return _counting(change, name)


def _check_amount(amount: Any, what: str) -> None:
    """Raises unless the argument is a number of 0 or more or a function of the step; a traced scalar is not checked."""
    if callable(amount) or isinstance(amount, Tracer):
        return
    if not isinstance(amount, Real | np.ndarray | jax.Array) or getattr(amount, "ndim", 0):
        raise TypeError(f"{what} must be a number or a function of the step; got {_tree.shown(amount)}")
    if not float(np.asarray(amount)) >= 0:
        raise ValueError(f"{what} must be 0 or more; got {amount}")


def _counting(change: Callable[[Any, PyTree, PyTree], PyTree], name: str) -> optax.GradientTransformation:
    """Returns a transformation `change(step, updates, params) -> updates` that counts its steps."""

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError(f"{name} needs params: call update(updates, state, params)")
        return change(state.count, updates, params), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _norms(units: Units, size: int, params: PyTree) -> jax.Array:
    total = jnp.zeros(size, jnp.float32)
    for leaf, axes in zip(jax.tree.leaves(params), units, strict=True):
        for axis, places in enumerate(axes):
            others = tuple(i for i in range(np.ndim(leaf)) if i != axis and i >= places.ndim - 2)
            per_position = None
            for column in np.moveaxis(places, -1, 0):
                if per_position is None:
                    per_position = jnp.sum(jnp.square(jnp.asarray(leaf, jnp.float32)), others)
                held = np.where(column >= 0, column, size)  # out of range is dropped
                total = total.at[held].add(per_position, mode="drop")
    return jnp.sqrt(total)


def _sizes(units: Units, params: PyTree) -> np.ndarray:
    """Returns the number of entries of each unit."""
    sizes = np.zeros(1 + max((int(places.max()) for axes in units for places in axes if places.size), default=-1))
    for leaf, axes in zip(jax.tree.leaves(params), units, strict=True):
        for places in axes:
            layers = max(1, int(np.prod(places.shape[:-2])))
            each = int(np.size(leaf)) // max(1, layers * places.shape[-2])
            np.add.at(sizes, places[places >= 0], each)
    return sizes


def _scale(units: Units, params: PyTree, factors: jax.Array) -> PyTree:
    """Multiplies each entry by the factors of all its units; exactly zero if a factor is zero."""
    padded = jnp.append(factors, 1.0)
    leaves, structure = jax.tree.flatten(params)
    result = []
    for given, axes in zip(leaves, units, strict=True):
        leaf = given
        for axis, places in enumerate(axes):
            if (places >= 0).any():
                factor = spread(jnp.prod(padded[places], -1), axis, np.ndim(leaf))
                leaf = jnp.where(factor == 0, jnp.zeros_like(leaf), leaf * jnp.asarray(factor, leaf.dtype))
        result.append(leaf)
    return jax.tree.unflatten(structure, result)
