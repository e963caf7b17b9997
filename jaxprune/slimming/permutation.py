r"""`permute_channels`: reorders the units of a function so that a pattern of n of m along the inputs removes less.

N:M sparsity compares m consecutive inputs of each output. Which inputs are neighbours is a convention of the network:
the channels between two layers may have any order, if every leaf that holds the channels is reordered in the same
way. Pool and Yu 2021, Channel Permutations for N:M Sparsity (NeurIPS 2021), search for the order whose groups keep the
largest total magnitude. The groups of `find_groups` name the leaves that hold the same channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _tree, criteria
from jaxprune.slimming.groups import Group, Groups, Member, find_groups

PyTree = Any


def permute_channels(
    fn: Callable[..., PyTree],
    params: PyTree,
    n: int,
    m: int,
    *inputs: Any,
    key: jax.Array,
    criterion: criteria.Criterion = criteria.magnitude,
    stats: PyTree = None,
    groups: Groups | None = None,
    sweeps: int = 200,
) -> PyTree:
    """Returns the parameters of the same function with channels in an order that suits N:M sparsity.

    Use it before pruning by `masks.NM(n, m)`; afterwards calibrate the new parameters. The function of the new
    parameters equals the old function to rounding, which is checked on the inputs. Each sweep pairs the stripes of m
    channels at random and makes the best exchange of two channels in each pair, so the kept score never decreases.

    Args:
      fn: a function `fn(params, *inputs)`.
      params: its parameters, any tree of arrays.
      n: how many of m consecutive inputs are kept.
      m: the length of a stripe.
      *inputs: arrays in any trees, such as a batch of the data: the two functions are compared on them.
      key: a JAX key for the pairing of stripes.
      criterion: `(params, *, stats, ...) -> scores`, larger = more worth keeping; default `criteria.magnitude`. With
        `criteria.wanda` and `stats` the search keeps the least error that it estimates.
      stats: the result of `jaxprune.calibrate`, for criteria that need it; default None. Leaves without statistics are
        reordered with the others but do not count in the search.
      groups: the result of `find_groups(fn, params, *inputs)`; default None: it is computed.
      sweeps: how often stripes are paired; default 200. Static.

    Returns:
      Parameters in the structure, shapes and dtypes of `params`. Groups whose units no leaf has as consecutive inputs,
      stacked groups, and groups whose number of units m does not divide keep their order.

    Raises:
      ValueError: n and m are out of range, no group can be reordered, or the function depends on the order of a group's
        channels by more than its parameters, or its outputs at the inputs do not depend on them, as at zeros; the
        message names the group.
      TypeError: the inputs are shapes without numbers.

    Example:
      >>> params = {'a': jnp.eye(8), 'b': jnp.array([[4.0], [3], [4], [3], [0], [0], [0], [0]])}
      >>> fn, x = lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], jnp.arange(16.0).reshape(2, 8) / 16
      >>> new = permute_channels(fn, params, 2, 4, x, key=jax.random.key(0))
      >>> sorted((new['b'].reshape(2, 4) > 0).sum(1).tolist())
      [2, 2]
    """
    if not 0 < n < m:
        raise ValueError(f"n of m needs 0 < n < m, got n = {n}, m = {m}")
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((params, inputs))):
        raise TypeError("permute_channels compares the functions' outputs: pass arrays, not ShapeDtypeStructs")
    _tree.check_key(key)
    found = find_groups(fn, params, *inputs) if groups is None else groups
    scores = jax.tree.leaves(criterion(params, stats=stats, grads=None, key=key))
    leaves, treedef = jax.tree.flatten(params)
    run = jax.jit(fn)
    want = last = run(params, *inputs)
    moved = False
    for number, group in enumerate(found):
        columns = [] if group.layer is not None or group.count % m else _inputs_of(found, group, scores, m)
        if not columns:
            continue
        order = stripe_order(jnp.concatenate(columns, 1), jax.random.fold_in(key, number), n=n, m=m, sweeps=sweeps)
        order, moved = np.asarray(order), True
        if (order != np.arange(group.count)).any():
            inward = [member for member in group.members if member.axis in found.roles.leaves[member.leaf].inputs]
            broken = run(jax.tree.unflatten(treedef, _reordered(found, group, inward, leaves, order)), *inputs)
            _check_differ(broken, last, group)
        leaves, scores = (_reordered(found, group, group.members, x, order) for x in (leaves, scores))
        last = run(jax.tree.unflatten(treedef, leaves), *inputs)
        _check_equal(last, want, group)
    if not moved:
        raise ValueError(
            f"no group of channels can be reordered for {n} of {m}: none has a multiple of {m} units that are "
            "consecutive inputs of a leaf"
        )
    return jax.tree.unflatten(treedef, leaves)


@partial(jax.jit, static_argnames=("n", "m", "sweeps"))
def stripe_order(scores: jax.Array, key: jax.Array, *, n: int, m: int, sweeps: int) -> jax.Array:
    """Returns the order of channels that keeps the largest score in the stripes of m, with n kept in each row.

    Args:
      scores: float[channels, rows], at least 0; m divides the channels.
      key: a JAX key.
      n: how many of a stripe each row keeps.
      m: the length of a stripe.
      sweeps: how often the stripes are paired.

    Returns:
      int32[channels]: the channel at each place; no worse than the order 0, 1, 2, ...
    """
    stripes = scores.shape[0] // m
    pairs = stripes // 2
    # Exchange number 0 changes nothing; the others exchange channel i of one stripe and channel j of the other.
    exchanges = np.tile(np.arange(2 * m), (m * m + 1, 1))
    for e in range(m * m):
        exchanges[e + 1, [e // m, m + e % m]] = m + e % m, e // m
    swaps = jnp.asarray(exchanges)

    def kept(channels: jax.Array) -> jax.Array:
        """Returns the score that each pair of stripes [pairs, 2 m] keeps."""
        each = scores[channels].reshape(pairs, 2, m, -1)
        return jnp.sort(each, 2)[:, :, m - n :].sum((1, 2, 3))

    def sweep(order: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        chosen = jax.random.permutation(key, stripes)[: 2 * pairs]
        paired = order.reshape(stripes, m)[chosen].reshape(pairs, 2 * m)
        totals = lax.map(lambda swap: kept(paired[:, swap]), swaps)
        # A gain below the rounding of the sums would exchange channels back and forth.
        gains = jnp.where(totals > totals[0] * (1 + 1e-6), totals, -jnp.inf).at[0].set(totals[0])
        best = swaps[gains.argmax(0)]
        paired = jnp.take_along_axis(paired, best, 1).reshape(2 * pairs, m)
        return order.reshape(stripes, m).at[chosen].set(paired).reshape(-1), None

    first = jnp.arange(scores.shape[0], dtype=jnp.int32)
    return lax.scan(sweep, first, jax.random.split(key, sweeps))[0] if pairs else first


def _inputs_of(groups: Groups, group: Group, scores: Sequence[Any], m: int) -> list[jax.Array]:
    """Returns for each leaf that sums over the group's units the magnitudes of its scores, [units, rows]."""
    columns = []
    for member in group.members:
        if member.axis not in groups.roles.leaves[member.leaf].inputs or not np.ndim(scores[member.leaf]):
            continue
        places = _places(groups, group, member.leaf, member.axis)
        # The units must be neighbours: several runs over all units, each of whole stripes.
        runs = places.T
        if not (np.diff(runs, axis=1) == 1).all() or (runs[:, 0] % m).any():
            continue
        whole = jnp.moveaxis(jnp.abs(jnp.asarray(scores[member.leaf], jnp.float32)), member.axis, 0)
        columns.append(whole[places].reshape(group.count, -1))
    return columns


def _places(groups: Groups, group: Group, leaf: int, axis: int) -> np.ndarray:
    """Returns the positions of each unit of a group on an axis, [units, positions of a unit]."""
    units = groups.units[leaf][axis].reshape(-1, *groups.units[leaf][axis].shape[-2:])[0]
    return np.stack([np.flatnonzero((units == unit).any(-1)) for unit in range(group.span.start, group.span.stop)])


def _reordered(
    groups: Groups, group: Group, members: Sequence[Member], leaves: Sequence[Any], order: np.ndarray
) -> list[Any]:
    out = list(leaves)
    for member in members:
        places = _places(groups, group, member.leaf, member.axis)
        index = np.arange(groups.units[member.leaf][member.axis].shape[-2])
        index[places.ravel()] = places[order].ravel()
        if np.ndim(out[member.leaf]):
            out[member.leaf] = jnp.take(jnp.asarray(out[member.leaf]), index, member.axis)
    return out


def _check_differ(broken: PyTree, last: PyTree, group: Group) -> None:
    """Raises if the outputs do not change although only the leaves that read the channels are reordered."""
    pairs = zip(jax.tree.leaves(broken), jax.tree.leaves(last), strict=True)
    if all(np.array_equal(np.asarray(new), np.asarray(old)) for new, old in pairs):
        raise ValueError(
            f"the outputs at these inputs do not depend on the channels of {group.name}, so they cannot show whether "
            "the function stays the same when the channels are reordered: pass real inputs, not zeros"
        )


def _check_equal(got: PyTree, want: PyTree, group: Group) -> None:
    for new, old in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        change, size = (np.abs(np.asarray(x, np.float64)).max(initial=0.0) for x in (new - old, old))
        if not change <= 2e-3 * size:
            raise ValueError(
                f"the function changes by up to {change:.3g} when the channels of {group.name} are reordered: it uses "
                "their order by more than its parameters, such as by a constant for each channel, or it is not finite"
            )
