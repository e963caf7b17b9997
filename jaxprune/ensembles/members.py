"""`Members`: several networks as one value for vmap; made by `stack`, `from_stacked`, `from_keys` and `take`.

`soup` averages the weights of members that share their masks into one network.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree
from jaxprune import masks as masks_

Array = jax.Array
PyTree = Any


class Members(NamedTuple):
    """Several networks of the same shape, for `jax.vmap`.

    Attributes:
      params: the parameters, each leaf with a leading axis of members.
      masks: bool masks, each with the same leading axis; (members,) for a leaf that is not pruned.
    """

    params: PyTree
    masks: PyTree

    @property
    def size(self) -> int:
        """The number of members."""
        return jax.tree.leaves(self.params)[0].shape[0]


def stack(networks: Sequence[Any]) -> Members:
    """Stacks networks of the same shape.

    Args:
      networks: pairs (params, masks), such as `Pruned`, all of one structure; the masks of a dense network are None.
        Masks may be packed, and the shapes of masks may differ between members.

    Returns:
      The members, in the order of `networks`.

    Raises:
      ValueError: there is no network, networks differ in structure or shapes, or masks do not fit. The message names
        the leaves.
      TypeError: masks are not bool, or a network is not a pair.

    Example:
      >>> two = stack([({'w': jnp.ones((2, 2))}, None), ({'w': jnp.zeros((2, 2))}, {'w': jnp.eye(2, dtype=bool)})])
      >>> two.size, two.params['w'].shape, two.masks['w'].shape
      (2, (2, 2, 2), (2, 2, 2))
    """
    _tree.check_instance(networks, list | tuple, "networks", "a list of pairs (params, masks)")
    if not networks:
        raise ValueError("stack needs at least one network; got none")
    odd = [i for i, network in enumerate(networks) if not _is_pair(network)]
    if odd:
        raise TypeError(
            f"each network must be a pair (params, masks), with masks None for a dense network; "
            f"networks {odd} are not, the first is {type(networks[odd[0]]).__name__}"
        )
    first, _ = networks[0]
    every = []
    for i, (params, masks) in enumerate(networks):
        _tree.check_same(first, params, what=f"member {i}", of="member 0")
        every.append(masks_.ones(params, where=lambda name, leaf: False) if masks is None else masks_.unpack(masks))
        _tree.check_masks(params, every[-1])
    _check_shapes([params for params, _ in networks])
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in networks))
    return Members(params, jax.tree.map(_stack_masks, *every))


def from_stacked(params: PyTree, masks: PyTree = None) -> Members:
    """Makes members from trees that are already stacked, such as results of `jax.vmap` or of `iterative_pruning`.

        rounds = lottery.iterative_pruning(...)
        members = take(from_stacked(rounds.ticket.params, rounds.ticket.masks), [3, 4, 5])

    Args:
      params: leaves with one leading axis of members.
      masks: bool masks with the same leading axis; the other axes broadcast to the parameter. None (default) for dense
        members.

    Returns:
      The members.

    Raises:
      ValueError: a leaf has no leading axis, leading axes have different lengths, or masks do not fit. The message
        names the leaves.
      TypeError: masks are not bool.

    Example:
      >>> from_stacked({'w': jnp.ones((3, 2))}).masks['w'].tolist()
      [True, True, True]
    """
    sizes = {name: np.shape(leaf)[:1] for name, leaf in _tree.named_leaves(params)}
    if not sizes or len(set(sizes.values())) > 1 or () in sizes.values() or (0,) in sizes.values():
        listed = "\n".join(f"  {name}: {size[0] if size else 'no axis'}" for name, size in sizes.items())
        raise ValueError(f"each leaf needs the same leading axis of one member or more; got the lengths:\n{listed}")
    size = next(iter(sizes.values()))[0]
    if masks is None:
        masks = jax.tree.map(lambda leaf: jnp.ones(size, bool), params)
    _tree.check_same(params, masks, what="masks")
    odd = [
        f"  {name}: mask {np.shape(mask)}"
        for (name, _), mask in zip(_tree.named_leaves(params), jax.tree.leaves(masks), strict=True)
        if np.shape(mask)[:1] != (size,)
    ]
    if odd:
        raise ValueError(f"each mask needs a leading axis of {size} members:\n" + "\n".join(odd))
    one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    _tree.check_masks(jax.tree.map(one, params), jax.tree.map(one, masks))
    return Members(params, masks)


def take(members: Members, which: Any) -> Members:
    """Returns some of the members, in the order of `which`. A member may be repeated.

    Args:
      members: the members.
      which: numbers of members, integers in [-size, size), static.

    Returns:
      The chosen members.

    Raises:
      ValueError: `which` is empty, or a number is out of range.

    Example:
      >>> take(from_stacked({'w': jnp.arange(3.0)}), [2, 0]).params['w'].tolist()
      [2.0, 0.0]
    """
    check_members(members)
    rows = np.asarray(which)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise ValueError(f"which must be the numbers of at least one member; got {which}")
    if (rows < -members.size).any() or (rows >= members.size).any():
        raise ValueError(f"which must be numbers of the {members.size} members; got {rows.tolist()}")
    return jax.tree.map(lambda leaf: leaf[rows], members)


def from_keys(train: Callable[..., tuple[PyTree, PyTree] | masks_.Pruned], keys: Array, *data: Any) -> Members:
    """Trains one member for each key, all at once, by `train` under vmap and jit.

    On a CPU this is fast for networks of matrix products, and slow for convolutions: each member has its own kernel.

    Args:
      train: `(key, *data) -> (params, masks)`, a complete training with its initialisation; traceable.
      keys: JAX keys, (members,).
      *data: arrays that all members share, such as the training images. Pass them here: the compiled program would
        contain a copy of arrays that `train` closes over.

    Returns:
      The members.

    Raises:
      ValueError: `keys` has no axis.

    Example:
      >>> from jaxprune import prune
      >>> train = lambda key, x: prune({'w': x * jax.random.normal(key, (4, 4))}, 0.5)
      >>> from_keys(train, jax.random.split(jax.random.key(0), 3), 2.0).masks['w'].sum((1, 2)).tolist()
      [8, 8, 8]
    """
    form = "train(key, *data) -> (params, masks)"
    _tree.check_function(train, "train", form)
    if jnp.ndim(keys) != 1:
        raise ValueError(f"keys must have one axis, the members; got shape {jnp.shape(keys)}. Use jax.random.split")
    _tree.check_key(keys)

    def one(key: Array, *data: Any) -> Any:
        made = _tree.call(train, "train", form, key, *data)
        if not _is_pair(made):
            raise TypeError(f"train must return a pair (params, masks); got {_tree.shown(made)}")
        return tuple(made)

    return from_stacked(*jax.jit(jax.vmap(one, in_axes=(0, *[None] * len(data))))(keys, *data))


def kept_weights(members: Members) -> int:
    """Counts the weights that all members keep in total, on the host.

    Args:
      members: the members.

    Returns:
      The number of floating parameters where the masks are True, including biases and other leaves that are not pruned.

    Example:
      >>> masks = {'w': jnp.array([[True, False, True], [True, True, True]])}
      >>> kept_weights(from_stacked({'w': jnp.ones((2, 3))}, masks))
      5
    """
    check_members(members)
    total = 0
    for leaf, mask in zip(jax.tree.leaves(members.params), jax.tree.leaves(members.masks), strict=True):
        if _tree.is_floating(leaf):
            total += int(np.count_nonzero(mask)) * (leaf.size // np.size(mask))
    return total


def check_members(members: Any) -> None:
    """Raises a TypeError unless the argument is `Members`."""
    expected = "ensembles.Members, as ensembles.stack([(params, masks), ...]) returns them"
    _tree.check_instance(members, Members, "members", expected)


def _stack_masks(*leaves: Any) -> Array:
    shape = np.broadcast_shapes(*(np.shape(leaf) for leaf in leaves))
    return jnp.stack([jnp.broadcast_to(jnp.asarray(leaf), shape) for leaf in leaves])


def _check_shapes(every: Sequence[PyTree]) -> None:
    named = [_tree.named_leaves(params) for params in every]
    wrong = [
        f"  {name}: {np.shape(leaf)} in member {i}, {np.shape(first)} in member 0"
        for i, other in enumerate(named)
        for (name, first), (_, leaf) in zip(named[0], other, strict=True)
        if np.shape(leaf) != np.shape(first)
    ]
    if wrong:
        raise ValueError("members must have leaves of the same shape, to run as one model:\n" + "\n".join(wrong))


def _is_pair(network: Any) -> bool:
    return isinstance(network, masks_.Pruned) or (isinstance(network, tuple) and len(network) == 2)


def soup(members: Members, weights: Any = None) -> masks_.Pruned:
    """The weighted mean of the members' parameters, sum_m a_m w_m / sum_m a_m: Zimmer et al. 2024, arXiv 2306.16788.

    Members that were fine-tuned from one pruned network, with different seeds or learning rates, are in one basin, and
    their mean is about as good as each member. Members from different initialisations are not. The members must share
    their masks, because the mean of networks with different masks is denser than each network.

    Sparse Model Soups prune the mean further, train copies of it and average again. Use this `train` for
    `lottery.iterative_pruning(..., rewind=lottery.learning_rate_only())`:

        def train(params, masks, key):
            tuned = jax.vmap(lambda key: fine_tune(params, masks, key))(jax.random.split(key, 3))
            return soup(from_stacked(tuned, jax.tree.map(lambda mask: jnp.stack([mask] * 3), masks))).params

    Args:
      members: members that share their masks.
      weights: a_m, (members,), non-negative, with a positive sum; None (default) for equal weights.

    Returns:
      `Pruned(params, masks)`. Leaves that are not floating are taken from the first member.

    Raises:
      ValueError: concrete masks differ (the message names the leaves); weights are negative, sum to zero, or are not
        one for each member.

    Example:
      >>> from jaxprune.ensembles import from_stacked
      >>> mask = jnp.array([[True, False]] * 2)
      >>> soup(from_stacked({'w': jnp.array([[1.0, 9.0], [3.0, 0.0]])}, {'w': mask})).params['w'].tolist()
      [2.0, 0.0]
    """
    check_members(members)
    size = members.size
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (size,):
        raise ValueError(f"weights must be one number for each member, {(size,)}; got {weights.shape}")
    if not isinstance(weights, Tracer) and (np.any(np.asarray(weights) < 0) or not 0 < float(weights.sum()) < np.inf):
        raise ValueError(f"weights must be non-negative with a positive sum; got {np.asarray(weights).tolist()}")
    _check_shared(members.masks)
    shared = jax.tree.map(lambda mask: mask[0], members.masks)
    params = jax.tree.map(lambda leaf: _mean(leaf, weights / weights.sum()), members.params)
    return masks_.Pruned(masks_.apply(params, shared), shared)


def _mean(leaf: Any, shares: jax.Array) -> Any:
    if not _tree.is_floating(leaf):
        return leaf[0]
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return jnp.tensordot(shares.astype(dtype), leaf.astype(dtype), 1).astype(leaf.dtype)


def _check_shared(stacked: PyTree) -> None:
    if any(isinstance(mask, Tracer) for mask in jax.tree.leaves(stacked)):
        return
    differing = {name: np.asarray(mask != mask[:1]).sum() for name, mask in _tree.named_leaves(stacked)}
    wrong = [f"  {name}: {count} places" for name, count in differing.items() if count]
    if wrong:
        raise ValueError(
            "members must share one mask, or the soup is denser than each member; masks differ from the first "
            "member's in\n"
            + "\n".join(wrong)
            + "\nfine-tune copies of one pruned network, or combine predictions with `predictor`"
        )
