"""`Members`: several networks as one value for vmap; made by `stack`, `from_stacked` and `take`.

`free_tickets` makes several members in one sparse training (EDST), which explores and then refines. `soup` averages the
weights of members that share their masks into one network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree, criteria, training
from jaxprune import masks as masks_
from jaxprune.prune import How

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

    def __str__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        each = sum(leaf.size for leaf in leaves) // self.size
        return f"{self.size} members of {len(leaves)} leaves and {each:,} parameters each"


def stack(networks: Sequence[Any]) -> Members:
    """Stacks networks of the same shape.

    Args:
      networks: pairs (params, masks), such as `Pruned`, all of one structure; the masks of a dense network are None.
        Masks may be packed, and the shapes of masks may differ between members.

    Returns:
      The members, in the order of `networks`.

    Raises:
      ValueError: there is no network, networks differ in structure, shapes or dtypes, or masks do not fit. The message
        names the leaves.
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
            f"networks {odd} are other objects, the first is a {type(networks[odd[0]]).__name__}"
        )
    first, _ = networks[0]
    every = []
    for i, (params, masks) in enumerate(networks):
        _tree.check_same(first, params, what=f"member {i}", of="member 0")
        every.append(masks_.ones(params, where=lambda name, leaf: False) if masks is None else masks_.unpack(masks))
        _tree.check_masks(params, every[-1])
    _check_alike([params for params, _ in networks])
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in networks))
    return Members(params, jax.tree.map(_stack_masks, *every))


def from_stacked(params: PyTree, masks: PyTree = None) -> Members:
    """Makes members from trees that are already stacked, such as results of `jax.vmap` or of `iterative_pruning`.

        rounds = lottery.iterative_pruning(...)
        members = take(from_stacked(rounds.ticket.params, rounds.ticket.masks), [3, 4, 5])

    To train one member for each key at once, map a function `train(key, data) -> (params, masks)`. The data is an
    argument, because a compiled program contains a copy of all arrays that `train` closes over. On a CPU this is fast
    for networks of matrix products, and slow for convolutions, because each member has its own kernel.

        members = from_stacked(*jax.jit(jax.vmap(train, in_axes=(0, None)))(keys, data))

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


def _check_alike(every: Sequence[PyTree]) -> None:
    named = [_tree.named_leaves(params) for params in every]

    def check(of: Callable[[Any], Any], shown: Callable[[Any], Any], why: str) -> None:
        wrong = [
            f"  {_tree.label(name)}: {shown(leaf)} in member {i}, {shown(first)} in member 0"
            for i, other in enumerate(named)
            for (name, first), (_, leaf) in zip(named[0], other, strict=True)
            if of(leaf) != of(first)
        ]
        if wrong:
            raise ValueError(f"members must have leaves of the same {why}:\n" + "\n".join(wrong))

    check(np.shape, np.shape, "shape, to run as one model")
    check(
        jnp.result_type,
        _tree.kind,
        "dtype, because one array holds a leaf of all members; convert the members to one dtype first",
    )


def _is_pair(network: Any) -> bool:
    return isinstance(network, masks_.Pruned) or (isinstance(network, tuple) and len(network) == 2)


def soup(members: Members, weights: Any = None) -> masks_.Pruned:
    """Returns the weighted mean of the members' parameters, sum_m a_m w_m / sum_m a_m.

    Sparse Model Soups (Zimmer et al. 2024, arXiv 2306.16788). Members that were fine-tuned from one pruned network,
    with different seeds or learning rates, are in one basin, and their mean is about as good as each member. Members
    from different initialisations are not. The members must share their masks, because the mean of networks with
    different masks is denser than each network.

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
            "members must share one mask, because otherwise the soup is denser than each member; masks differ from the "
            "first member's in\n"
            + "\n".join(wrong)
            + "\nfine-tune copies of one pruned network, or combine predictions with `predictor`"
        )


@dataclass(frozen=True)
class Updates:
    """How masks change while members are trained.

    Attributes:
      every: the number of steps between mask updates, 1 or more; default 100.
      fraction: the fraction of the kept weights that each update drops and grows, in [0, 1]; default 0.5.
      leap: the fraction that the first update of each refinement except the first drops and grows, in [0, 1]; default
        0.8. A large fraction makes the training leave the basin of the last member.
      grow: the criterion for growing: the removed weights with the highest scores are grown.
    """

    every: int = 100
    fraction: float = 0.5
    leap: float = 0.8
    grow: criteria.Criterion = training.gradient_growth


class FreeTickets(NamedTuple):
    """One training that completes several members.

    Attributes:
      method: the method for `jaxprune.sparsify`.
      rate: step -> the factor of the learning rate, in (0, 1].
      ends: the number of steps after which each member is complete; the last number is the length of the training.
    """

    method: training.Method
    rate: Callable[[Any], Any]
    ends: tuple[int, ...]


def free_tickets(
    sparsity: float,
    *,
    members: int,
    explore: int,
    refine: int,
    updates: Updates = Updates(),
    rates: tuple[float, float] = (0.1, 0.01),
    **how: Unpack[How],
) -> FreeTickets:
    """Returns the method and the learning rates of an EDST ensemble: one exploration, then a refinement per member.

    Liu et al. 2022, arXiv 2106.14568.

    Each update drops and grows a constant fraction, like RigL. The factor of the learning rate is 1 in the exploration;
    `rates` has the factors of the two halves of a refinement. A member is complete at the end of its refinement. The
    next refinement starts with a leap: it drops and grows a large fraction at once. All members together cost one
    sparse training of explore + members * refine steps.

    The defaults follow the authors' experiments on CIFAR except `updates.every`, which must suit the length of the
    training; short refinements need larger `rates`. Masks do not change in the second half of a refinement, because a
    grown weight stays near zero at such a small learning rate. (The authors change them, and choose the best epoch by
    validation.)

        tickets = free_tickets(0.9, members=3, explore=1000, refine=500, key=key)
        optimizer = jaxprune.sparsify(optax.sgd(lambda step: 0.1 * tickets.rate(step)), tickets.method)
        ...  # after each step in tickets.ends: networks.append((params, jaxprune.get_masks(state)))
        members = ensembles.stack(networks)

    Args:
      sparsity: the total fraction removed, in [0, 1).
      members: the number of members, 1 or more.
      explore: the number of steps of the exploration.
      refine: the number of steps of each refinement, 2 or more.
      updates: how masks change; default `Updates()`.
      rates: the factors of the learning rate in the two halves of a refinement, in (0, 1]; default (0.1, 0.01).
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, specs; see `jaxprune.How`.
        `key` is required, for the first masks and random growth. `criterion` chooses the weights to drop. `allocation`
        is `allocation.erk` by default.

    Returns:
      The method, the factor of the learning rate, and the steps at which members are complete.

    Raises:
      ValueError: a number is out of range.

    Example:
      >>> import jax
      >>> tickets = free_tickets(0.9, members=2, explore=300, refine=100, key=jax.random.key(0))
      >>> tickets.ends, [round(float(tickets.rate(step)), 2) for step in (0, 299, 300, 350, 400, 450)]
      ((400, 500), [1.0, 1.0, 0.1, 0.01, 0.1, 0.01])
    """
    _check(members, explore, refine, updates, rates)
    ends = tuple(explore + refine * (i + 1) for i in range(members))

    def leaps(step: Any) -> Any:
        return (step > explore) & (step < ends[-1]) & ((step - explore) % refine == 0)

    def when(step: Any) -> Any:
        moving = (step < explore) | ((step - explore) % refine < refine // 2)
        return ((step > 0) & (step % updates.every == 0) & (step < ends[-1]) & moving) | leaps(step)

    def rate(step: Any) -> Any:
        refined = jnp.asarray(step) - explore
        return jnp.where(refined < 0, 1.0, jnp.where(refined % refine < refine // 2, *rates))

    fraction = lambda step: jnp.where(leaps(step), updates.leap, updates.fraction)
    method = training.dynamic(sparsity, when=when, fraction=fraction, grow=updates.grow, **how)
    return FreeTickets(method, rate, ends)


def _check(members: int, explore: int, refine: int, updates: Updates, rates: tuple[float, float]) -> None:
    for name, value, least in (("members", members, 1), ("explore", explore, 0), ("refine", refine, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of {least} or more; got {value!r}")
    if not isinstance(updates, Updates):
        raise TypeError(f"updates must be ensembles.Updates(every=..., ...); got {updates!r}")
    for name, value in (("fraction", updates.fraction), ("leap", updates.leap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], the fraction of the kept weights that is dropped; got {value}")
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"rates must be two factors in (0, 1]; got {rates}")
    if not isinstance(updates.every, int) or updates.every < 1:
        raise ValueError(f"every must be a positive integer; got {updates.every!r}")
