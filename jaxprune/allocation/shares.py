"""`uniform`, `one_ranking`, `er` and `erk`: allocations by the shapes of leaves; and `Allocation`, their result.

`by_path` gives some leaves a fixed sparsity, and the other leaves share the rest of the total.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, masks
from jaxprune.masks import Leaf
from jaxprune.masks._exact import counts
from jaxprune.masks.select import leaves_together

PyTree = Any
Shape = tuple[int, ...]
_LARGEST = float(np.nextafter(1.0, 0.0))  # the largest sparsity below 1


class Allocation(NamedTuple):
    """The sparsity of each leaf and the total that they achieve.

    Attributes:
      sparsities: for `masks.select`: a tree with a sparsity, or a `masks.Count` of removed entries, for each leaf (0.0
        for leaves that are not pruned), or `masks.Global`.
      achieved: the fraction removed of all entries of the pruned leaves, once every leaf's count is rounded; a Python
        float if the sparsity was a Python number, else a float array of shape ().
    """

    sparsities: Any
    achieved: Any


# `(scores, sparsity, **units: Unpack[masks.Units]) -> Allocation`, with `sparsity` a number in [0, 1) or a traced
# scalar. An allocation may have options before `**units`, which a protocol cannot express.
Allocate = Callable[..., Allocation]


def uniform(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """Gives every leaf the total sparsity.

    Args:
      scores: a tree of scores or of `jax.ShapeDtypeStruct`s; only the shapes are read.
      sparsity: the fraction to remove, in [0, 1): a Python number or a traced scalar.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`.

    Returns:
      The sparsity for each pruned leaf and 0.0 for the other leaves; and the total achieved. The count of removed units
      is rounded in each slice of a leaf (each layer of a stack; each output, for a pattern that ranks the inputs of
      each output), so the total differs from `sparsity` by at most half a unit in each slice.

    Raises:
      ValueError: the sparsity is outside [0, 1); a pattern does not fit a leaf.

    Example:
      >>> uniform({'bias': jnp.ones(3), 'kernel': jnp.ones((2, 5))}, 0.25)
      Allocation(sparsities={'bias': 0.0, 'kernel': 0.25}, achieved=0.3)
    """
    sparsity = as_sparsity(sparsity)
    pruned = masks.leaves(scores, **units)
    return allocation(scores, pruned, [sparsity] * len(pruned))


def one_ranking(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """Ranks all leaves together, so that the scores decide how many units each leaf loses.

    Args:
      scores: a tree of scores or of `jax.ShapeDtypeStruct`s; only the shapes are read.
      sparsity: the fraction of all units to remove, in [0, 1): a Python number or a traced scalar.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. The pattern must not be NM.
        Each slice along `batch_axes` is ranked separately, over all leaves.

    Returns:
      `masks.Global(sparsity)`, and the fraction of units removed. If the units of the leaves differ in size (blocks or
      channels), the fraction of entries differs from it and depends on the scores.

    Raises:
      ValueError: the sparsity is outside [0, 1); a pattern does not fit a leaf.

    Example:
      >>> one_ranking({'a': jnp.ones((2, 5)), 'b': jnp.ones((1, 5))}, 0.5)
      Allocation(sparsities=Global(sparsity=0.5), achieved=0.5333333333333333)
    """
    sparsity = as_sparsity(sparsity)
    total = sum(leaf.units for leaf in leaves_together(scores, **units))
    count = counts.removed(sparsity, total)
    if isinstance(count.low, int):
        return Allocation(masks.Global(sparsity), int(count) / total if total else 0.0)
    return Allocation(masks.Global(sparsity), counts.as_float(count) / max(total, 1))


def er(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """Gives each leaf the density of an Erdos-Renyi random graph: all neurons have equally many connections.

        1 - s_l = min(1, eps (n_in + n_out) / (n_in n_out))

    Mocanu et al. 2018 (SET), arXiv 1707.04780, eq. 1. s_l is the sparsity of leaf l. n_in and n_out are its numbers of
    input and output channels, without the window of a convolution. The factor eps is the same for all leaves, and is
    computed so that the network has the total sparsity. A leaf whose density would exceed 1 stays dense, and eps is
    computed from the other leaves (Evci et al. 2020). For leaves with a fixed sparsity of their own, see `by_path`.

    Args:
      scores: a tree of scores or of `jax.ShapeDtypeStruct`s; only the shapes are read.
      sparsity: the total fraction to remove, in [0, 1): a Python number, computed in float64, or a traced scalar,
        computed in its own dtype. Another value of a traced scalar does not recompile.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. Each stacked layer
        counts as a leaf of its own shape.

    Returns:
      A sparsity for each pruned leaf and 0.0 for the other leaves; and the total achieved. The count of each leaf is
      rounded, so for single entries the total differs from `sparsity` by at most half an entry in each leaf and slice.

    Raises:
      ValueError: the sparsity is outside [0, 1); a pattern does not fit a leaf.

    Example:
      >>> sparsities, achieved = er({'a': jnp.ones((10, 90)), 'b': jnp.ones((10, 10))}, 0.76)
      >>> {name: round(s, 3) for name, s in sparsities.items()}, round(achieved, 3)
      ({'a': 0.778, 'b': 0.6}, 0.76)
    """
    return _erdos_renyi(scores, sparsity, _er_density, **units)


def erk(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
    """Gives each leaf an Erdos-Renyi density that counts the window of a convolution: small kernels are denser.

        1 - s_l = min(1, eps (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w))

    Evci et al. 2020 (RigL), arXiv 1911.11134, section 3. s_l is the sparsity of leaf l, n_in and n_out are its numbers
    of input and output channels, k_h and k_w the height and width of its window. The factor eps is the same for all
    leaves, and is computed so that the network has the total sparsity; a leaf whose density would exceed 1 stays dense.
    In general the density is proportional to the sum of the sizes of a leaf's axes, divided by their product. For
    leaves of two axes it equals `er`. A dense layer stored with more axes, such as the (inputs, heads, head size) of
    attention, counts all its axes.

    Args:
      scores: a tree of scores or of `jax.ShapeDtypeStruct`s; only the shapes are read.
      sparsity: the total fraction to remove, in [0, 1): a Python number, computed in float64, or a traced scalar,
        computed in its own dtype. Another value of a traced scalar does not recompile.
      **units: what is pruned: pattern, where, batch_axes, specs, roles; see `masks.Units`. Each stacked layer
        counts as a leaf of its own shape.

    Returns:
      A sparsity for each pruned leaf and 0.0 for the other leaves; and the total achieved. The count of each leaf is
      rounded, so for single entries the total differs from `sparsity` by at most half an entry in each leaf and slice.

    Raises:
      ValueError: the sparsity is outside [0, 1); a pattern does not fit a leaf.

    Example:
      >>> sparsities, achieved = erk({'conv': jnp.ones((3, 3, 8, 8)), 'head': jnp.ones((8, 10))}, 0.5)
      >>> {name: round(s, 3) for name, s in sparsities.items()}, round(achieved, 3)
      ({'conv': 0.569, 'head': 0.0}, 0.5)
    """
    return _erdos_renyi(scores, sparsity, _erk_density, **units)


def _er_density(leaf: Leaf) -> float:
    role, unclear = leaf.role, [a for a in range(leaf.ndim) if a not in leaf.stacked]
    if len(unclear) > 2 or role is None:
        if role is None or role.unclear_axes or set(leaf.stacked) - set(role.stacked):
            raise ValueError(
                f"er needs the inputs and outputs of {leaf.name}, of shape {leaf.matrix}; pass "
                "roles=jaxprune.find_roles(fn, params, *inputs), or use erk, which needs none"
            )
        n_in = math.prod(leaf.shape[a] for a in role.inputs if a not in role.windows)
        n_out = math.prod(leaf.shape[a] for a in role.outputs)
    else:
        n_in, n_out = (1, *leaf.matrix)[-2:]
    return (n_in + n_out) / max(n_in * n_out, 1)


def _erk_density(leaf: Leaf) -> float:
    return sum(leaf.matrix) / max(float(np.prod(np.array(leaf.matrix, float))), 1.0)


def _erdos_renyi(
    scores: PyTree, sparsity: Any, density: Callable[[Leaf], float], **units: Unpack[masks.Units]
) -> Allocation:
    sparsity = as_sparsity(sparsity)
    pruned = [leaf for leaf in masks.leaves(scores, **units) if leaf.entries]
    raw = np.array([density(leaf) for leaf in pruned])
    sizes = np.array([leaf.entries for leaf in pruned], float)
    return allocation(scores, pruned, _solve(sparsity, raw, sizes, pruned))


def _solve(sparsity: Any, raw: np.ndarray, sizes: np.ndarray, pruned: Sequence[Leaf]) -> list[Any]:
    """Returns 1 - min(1, eps raw) for each leaf, with the eps that gives the total sparsity.

    If the leaves are sorted by falling raw density, the first m leaves are dense for some m, and eps = (d N - sum_{i<m}
    n_i) / sum_{i>=m} raw_i n_i, where d is the total density. The right m is the first for which leaf m would have a
    density of at most 1. All candidates are computed at once, so a traced sparsity needs no loop.
    """
    if not pruned:
        return []
    order = np.argsort(-raw, kind="stable")
    total = sizes.sum()
    dense_before = np.concatenate([[0.0], np.cumsum(sizes[order])])[:-1] / total
    per_density = total / np.cumsum((raw * sizes)[order][::-1])[::-1]
    if isinstance(sparsity, jax.Array):
        xp, constant = jnp, lambda x: jnp.asarray(x, sparsity.dtype)
    else:
        xp, constant = np, lambda x: x
    scales = ((1 - sparsity) - constant(dense_before)) * constant(per_density)
    fits = scales * constant(raw[order]) <= 1
    # If rounding leaves no candidate, all leaves but the last are dense.
    first = xp.where(fits.any(), xp.argmax(fits), len(order) - 1)
    densities = xp.minimum(scales[first] * constant(raw), 1)
    return [share(1 - densities[i]) for i in range(len(pruned))]


def allocation(scores: PyTree, pruned: Sequence[Leaf], values: Sequence[Any]) -> Allocation:
    """Returns the allocation with these values for the pruned leaves and 0.0 for the others."""
    filled: list[Any] = [0.0] * len(jax.tree.leaves(scores))
    for leaf, value in zip(pruned, values, strict=True):
        filled[leaf.place] = value
    return Allocation(jax.tree.unflatten(jax.tree.structure(scores), filled), achieved(pruned, values))


def achieved(pruned: Sequence[Leaf], values: Sequence[Any]) -> Any:
    """Returns the fraction of all entries that these sparsities or counts remove.

    Returns:
      A correctly rounded Python float if every value is a Python number or a Count of integers; else float32 (or the
      dtype of the sparsities).
    """
    entries = sum(leaf.entries for leaf in pruned)
    removed = [removed_entries(leaf, value) for leaf, value in zip(pruned, values, strict=True)]
    if not entries:
        return 0.0
    if all(isinstance(k, int) for k in removed):
        return sum(removed) / entries
    return sum((jnp.asarray(k) for k in removed), jnp.zeros(())) / float(entries)  # entries may exceed an int32


def removed_entries(leaf: Leaf, value: Any) -> Any:
    """Returns the number of entries that a sparsity or count removes: an int if static, else a float array."""
    count = value if isinstance(value, masks.Count) else counts.removed(value, leaf.units)
    if group := leaf.group:
        # The pattern, not the sparsity, decides how many entries of a group stay.
        most = group.size - group.kept
        count = masks.Count.of(most) if isinstance(count.low, int) else masks.Count(0, jnp.minimum(count.low, most))
    each = leaf.entries // max(leaf.slices * leaf.units, 1)
    if isinstance(count.low, int):
        return int(count) * leaf.slices * each
    total = counts.as_float(count)
    return (total.sum() if total.ndim else total * leaf.slices) * each


def share(value: Any) -> Any:
    """Returns a computed sparsity, clipped to [0, 1) because rounding may have moved it outside."""
    if isinstance(value, jax.Array):
        top = np.nextafter(np.ones((), value.dtype), np.zeros((), value.dtype))
        return jnp.clip(value, 0.0, top)
    return min(max(float(value), 0.0), _LARGEST)


def as_sparsity(sparsity: Any, what: str = "sparsity") -> Any:
    """Checks a sparsity given by the user; returns a Python float or a floating array of 32 bits at least.

    Raises:
      ValueError: the number is outside [0, 1).
      TypeError: `sparsity` is not a number, or is an array that is not a floating scalar.
    """
    _tree.check_sparsity(sparsity, what)
    if isinstance(sparsity, jax.Array):
        return sparsity.astype(jnp.promote_types(sparsity.dtype, jnp.float32))
    return float(sparsity)


def by_path(rules: Mapping[str, Any], default: Allocate = uniform) -> Allocate:
    """Fixes the sparsity of the leaves whose name matches a glob; the other leaves share the rest of the total.

        s_rest = (s N - removed by the rules) / N_rest

    Args:
      rules: a mapping from globs over leaf names, such as `encoder/*/kernel`, to sparsities in [0, 1); 0.0 keeps a
        leaf dense. The first glob that matches a leaf counts.
      default: how the other leaves share the rest: any allocation that gives each leaf a sparsity, such as `erk` or
        `lamp`, but not `one_ranking`; default `uniform`.

    Returns:
      An allocation. Its total sparsity covers all pruned leaves, including leaves with a fixed sparsity.

    Raises:
      TypeError: `rules` is not a mapping.
      ValueError: a sparsity is outside [0, 1). The allocation raises it if a glob matches no leaf, if the fixed leaves
        make the total impossible (the message gives the possible totals; a traced total is clipped to them), or
        if `default` ranks all leaves together.

    Example:
      >>> scores = {'head': jnp.ones((2, 10)), 'a': jnp.ones((10, 10)), 'b': jnp.ones((8, 10))}
      >>> by_path({'head': 0.0})(scores, 0.45)
      Allocation(sparsities={'a': 0.5, 'b': 0.5, 'head': 0.0}, achieved=0.45)
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a mapping from globs to sparsities; got {_tree.shown(rules)}")
    rules = {glob: as_sparsity(value, f"rules[{glob!r}]") for glob, value in rules.items()}
    _tree.check_function(default, "default", "allocation.erk, which shares the rest")

    def allocate(scores: PyTree, sparsity: Any, **units: Unpack[masks.Units]) -> Allocation:
        pruned = masks.leaves(scores, **units)
        matched = _tree.resolve(rules, scores, default=None, what="rules")
        fixed = [leaf for leaf in pruned if matched[leaf.place] is not None]
        free = [leaf for leaf in pruned if matched[leaf.place] is None]
        values = {leaf.place: matched[leaf.place] for leaf in fixed}
        rest = _rest(as_sparsity(sparsity), fixed, free, matched)
        if free:
            names = {leaf.name for leaf in free}
            shared = default(scores, rest, **{**units, "where": lambda name, _: name in names}).sparsities
            values |= _of_leaves(scores, shared, free)
        return allocation(scores, pruned, [values[leaf.place] for leaf in pruned])

    return allocate


def _rest(sparsity: Any, fixed: list[Leaf], free: list[Leaf], matched: list[Any]) -> Any:
    """Returns the joint sparsity of the leaves that are not fixed."""
    gone = [removed_entries(leaf, matched[leaf.place]) for leaf in fixed]
    room, total = sum(leaf.entries for leaf in free), sum(leaf.entries for leaf in fixed + free)
    if isinstance(sparsity, jax.Array) or not all(isinstance(k, int) for k in gone):
        fraction = sum((jnp.asarray(k, float) for k in gone), jnp.zeros(())) / max(total, 1)
        return share((jnp.asarray(sparsity) - fraction) * (total / max(room, 1)))
    wanted, already = int(counts.removed(sparsity, total)), sum(gone)
    if already <= wanted < already + max(room, 1):
        return (wanted - already) / max(room, 1)
    if not room:
        raise ValueError(
            f"rules: every pruned leaf is fixed, and together they remove {already / total:.6g} of all entries, not "
            f"{sparsity:.6g}; pass this sparsity, or leave some leaves without a rule"
        )
    raise ValueError(
        f"rules: with the fixed leaves the total can be from {already / total:.6g} to just under "
        f"{(already + room) / total:.6g}, not {sparsity:.6g}; change the rules or the sparsity"
    )


def _of_leaves(scores: PyTree, shared: Any, free: list[Leaf]) -> dict[int, Any]:
    if isinstance(shared, masks.Global):
        raise ValueError(
            "by_path: one ranking over all leaves gives no leaf a sparsity, so one_ranking cannot be the default; use "
            "lamp or erk, or exclude the fixed leaves by `where`"
        )
    if isinstance(shared, masks.Count) or jax.tree.structure(shared) == jax.tree.structure(0):
        return {leaf.place: shared for leaf in free}
    listed = jax.tree.structure(scores).flatten_up_to(shared)
    return {leaf.place: listed[leaf.place] for leaf in free}
