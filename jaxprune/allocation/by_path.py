"""`by_path`: fixed sparsities for some leaves; the other leaves share the rest of the total."""

from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxprune import _tree, masks
from jaxprune.allocation.shares import Allocate, Allocation, allocation, as_sparsity, removed_entries, share, uniform
from jaxprune.masks import Leaf
from jaxprune.masks._exact import counts

PyTree = Any


def by_path(rules: Mapping[str, Any], default: Allocate = uniform) -> Allocate:
    """Fixes the sparsity of the leaves whose name matches a glob; the other leaves share the rest of the total.

        s_rest = (s N - removed by the rules) / N_rest

    Args:
      rules: a mapping from globs over leaf names, such as `encoder/*/kernel`, to sparsities in [0, 1); 0.0 keeps a
        leaf dense. The first glob that matches a leaf counts.
      default: how the other leaves share the rest: any allocation that gives each leaf a sparsity, such as `erk` or
        `lamp`, but not `one_ranking`.

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
    """The joint sparsity of the leaves that are not fixed."""
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
