"""Driving whole units to zero in training: group lasso, and a penalty that grows on the units chosen to go."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.slimming.choice import Choice
from jaxprune.slimming.groups import Groups

PyTree = Any
Schedule = Callable[[Any], Any]


class StepState(NamedTuple):
    """The number of steps made, an int32 scalar."""

    step: jax.Array


def unit_norms(groups: Groups, params: PyTree) -> jax.Array:
    """The Euclidean norm of all entries of each unit.

    Args:
      groups: the groups, found on parameters of these shapes.
      params: the parameters.

    Returns:
      (units,) float32 norms. An entry of which a unit holds both row and column counts twice.
    """
    total = jnp.zeros(groups.size, jnp.float32)
    for leaf, axes in zip(jax.tree.leaves(params), groups.units, strict=True):
        for axis, units in enumerate(axes):
            others = tuple(i for i in range(np.ndim(leaf)) if i != axis and i >= units.ndim - 2)
            per_position = None
            for column in np.moveaxis(units, -1, 0):
                if per_position is None:
                    per_position = jnp.sum(jnp.square(jnp.asarray(leaf, jnp.float32)), others)
                held = np.where(column >= 0, column, groups.size)  # out of range is dropped
                total = total.at[held].add(per_position, mode="drop")
    return jnp.sqrt(total)


def group_lasso(groups: Groups, strength: float | Schedule) -> optax.GradientTransformation:
    """Group lasso by its proximal step: shrinks each unit's norm, to exactly zero when it is small.

    After the optimizer's step to w, each unit's entries w_u become w_u max(0, 1 - t sqrt(n_u) / ||w_u||), with n_u
    entries in the unit (Yuan & Lin, 2006, eq. 2.4, as a proximal step). An entry of several units (a row of one, a
    column of another) is multiplied by the factors of all. Put it last in the chain: it must see the optimizer's
    updates.

    Args:
      groups: the groups, found on parameters of these shapes.
      strength: t, a step's shrinkage: the learning rate times the penalty; or a function of the step.

    Returns:
      A transformation whose update needs `params`.
    """
    sizes = _unit_sizes(groups)

    def init(params: PyTree) -> StepState:
        del params
        return StepState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("group_lasso needs params: call update(updates, state, params)")
        amount = strength(state.step) if callable(strength) else strength
        stepped = optax.apply_updates(params, updates)
        norms = unit_norms(groups, stepped)
        factors = jnp.maximum(0.0, 1.0 - amount * jnp.sqrt(sizes) / jnp.maximum(norms, 1e-30))
        scaled = _scale(groups, stepped, factors)
        # Where nothing is left the update is -w itself, not cast, so that w + update is exactly zero.
        new = jax.tree.map(lambda s, p, u: jnp.where(s == 0, -p, jnp.asarray(s - p, u.dtype)), scaled, params, updates)
        return new, StepState(state.step + 1)

    return optax.GradientTransformation(init, update)


def growing_penalty(choice: Choice, growth: float | Schedule, *, limit: float = 1.0) -> optax.GradientTransformation:
    """An L2 penalty on the units that a choice removes, growing from step to step.

    Adds c_t w to the gradient of their entries, c_t = min(limit, growth x t) (Wang et al., 2021, arXiv:2012.09243,
    GReg-1; as DepGraph trains before it prunes). What stays is not penalised. Put it before the optimizer.

    Args:
      choice: which units are to go.
      growth: what the coefficient grows by in a step; or a function of the step that gives the coefficient.
      limit: the largest coefficient.

    Returns:
      A transformation whose update needs `params`.
    """
    masks = choice.masks()

    def init(params: PyTree) -> StepState:
        del params
        return StepState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if params is None:
            raise ValueError("growing_penalty needs params: call update(updates, state, params)")
        amount = growth(state.step) if callable(growth) else growth * state.step
        amount = jnp.minimum(amount, limit)
        new = jax.tree.map(
            lambda u, p, m: jnp.where(m, u, u + jnp.asarray(amount * p, u.dtype)), updates, params, masks
        )
        return new, StepState(state.step + 1)

    return optax.GradientTransformation(init, update)


def zero_units(groups: Groups, params: PyTree) -> np.ndarray:
    """For each unit whether all its entries are exactly zero: what group lasso has driven out.

    Args:
      groups: the groups.
      params: the parameters.

    Returns:
      (units,) bools; `Choice(groups, ~zero_units(groups, params))` removes them, if no group is empty and layers of a
      stack have as many.
    """
    return np.asarray(unit_norms(groups, params)) == 0


def _unit_sizes(groups: Groups) -> np.ndarray:
    sizes = np.zeros(groups.size)
    for leaf, axes in zip(groups.analysis.leaves, groups.units, strict=True):
        for units in axes:
            layers = max(1, int(np.prod(units.shape[:-2])))
            each = int(np.prod(leaf.shape or ())) // max(1, layers * units.shape[-2])
            np.add.at(sizes, units[units >= 0], each)
    return sizes


def _scale(groups: Groups, params: PyTree, factors: jax.Array) -> PyTree:
    padded = jnp.append(factors, 1.0)
    leaves, structure = jax.tree.flatten(params)
    result = []
    for given, axes in zip(leaves, groups.units, strict=True):
        leaf = given
        for axis, units in enumerate(axes):
            if (units >= 0).any():
                shape = [1] * np.ndim(leaf)
                for i in range(units.ndim - 2):
                    shape[i] = units.shape[i]
                shape[axis] = units.shape[-2]
                factor = jnp.prod(padded[units], -1).reshape(shape)
                leaf = jnp.where(factor == 0, jnp.zeros_like(leaf), leaf * jnp.asarray(factor, leaf.dtype))
        result.append(leaf)
    return jax.tree.unflatten(structure, result)
