"""What a caller asks for, leaf by leaf: which leaves, with which statistics, and what is to go from each matrix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.calibration import Inputs, Stats
from jaxprune.masks import NM, Unstructured
from jaxprune.masks._exact import counts
from jaxprune.reconstruction import targets

PyTree = Any


class Leaf(NamedTuple):
    """A leaf to be pruned."""

    position: int
    name: str
    array: jax.Array
    inputs: Inputs


class Wanted(NamedTuple):
    """A target for every matrix of a leaf: `values` are stacked, None for n of m."""

    make: Callable[[Any], targets.Target]
    values: Any
    groups: targets.Grouped | None = None


def leaves_of(params: PyTree, stats: Stats | None, needs: str, where: _tree.Where) -> list[Leaf]:
    """The leaves that `where` selects, with their statistics; all that have some, if it is None.

    Args:
      params: the parameters.
      stats: of `calibrate`.
      needs: the field of the statistics that must be there.
      where: see `_tree.prunable`.

    Raises:
      ValueError: statistics are missing; the message names the leaves.
    """
    if stats is None:
        raise ValueError("reconstruction needs stats: pass what calibrate(fn, params, batches) returns")
    chosen = jax.tree.leaves(_tree.prunable(params, where))
    named, entries = _tree.named_leaves(params), stats.leaves(params)
    picked = [i for i, entry in enumerate(entries) if (entry is not None if where is None else chosen[i])]
    missing = [named[i][0] for i in picked if entries[i] is None]
    if missing:
        why = dict(stats.uncovered)
        lines = "\n".join(f"  {name}: {why.get(name, 'was not calibrated')}" for name in missing)
        raise ValueError(f"where selects leaves without statistics; narrow it, or calibrate them:\n{lines}")
    lacking = [named[i][0] for i in picked if getattr(entries[i], needs) is None]
    if lacking:
        raise ValueError(
            f"this method needs calibrate(..., collect={needs!r}); without it are:\n"
            + "\n".join(f"  {name}" for name in lacking)
        )
    return [Leaf(i, *named[i], entry) for i in picked if (entry := entries[i]) is not None]


def targets_of(
    params: PyTree, leaves: Sequence[Leaf], sparsity: Any, pattern: Any, masks: PyTree | None
) -> list[Wanted | None]:
    """What to remove from each leaf; None for a leaf that is left alone. See `reconstruct` for the arguments."""
    if masks is not None:
        if sparsity is not None or pattern is not None:
            raise ValueError("masks say what is removed: leave sparsity and pattern out")
        return _given(params, leaves, masks)
    patterns = _tree.resolve(
        Unstructured() if pattern is None else pattern, params, default=Unstructured(), what="pattern"
    )
    asked = [(leaf, patterns[leaf.position]) for leaf in leaves]
    _check_patterns(asked)
    values = _sparsities(params, leaves, sparsity)
    return [_wanted(leaf, form, value) for (leaf, form), value in zip(asked, values, strict=True)]


def _wanted(leaf: Leaf, pattern: Any, sparsity: Any) -> Wanted | None:
    if not isinstance(pattern, NM):
        return _entries(leaf, sparsity)
    fraction = 1 - pattern.n / pattern.m
    if sparsity is not None and not (_is_number(sparsity) and abs(float(sparsity) - fraction) < 1e-6):
        raise ValueError(
            f"{leaf.name}: {pattern.n} of {pattern.m} removes {fraction}, got sparsity {sparsity!r}; pass None"
        )
    if pattern.n == pattern.m:
        return None
    return Wanted(targets.Given, None, targets.Grouped(pattern.n, pattern.m))


def _check_patterns(asked: Sequence[tuple[Leaf, Any]]) -> None:
    wrong = [(leaf.name, problem) for leaf, pattern in asked if (problem := _problem(leaf, pattern)) is not None]
    if wrong:
        lines = "\n".join(f"  {name}: {problem}" for name, problem in wrong)
        raise ValueError(f"patterns that reconstruction cannot follow:\n{lines}")


def _problem(leaf: Leaf, pattern: Any) -> str | None:
    layout = leaf.inputs.layout
    if isinstance(pattern, NM):
        inputs = layout.input_axes
        axes = inputs if pattern.axis is None else tuple(np.atleast_1d(pattern.axis) % len(layout.shape))
        if axes != inputs:
            return f"{pattern} lies along other axes than its inputs, {inputs}; leave axis out"
        if layout.sizes[1] % pattern.m:
            return f"m = {pattern.m} does not divide its {layout.sizes[1]} inputs; leave it out by `where`"
        return None
    if pattern == Unstructured():
        return None
    return f"{pattern!r} is neither Unstructured() nor NM(n, m); pass masks=masks.select(...)"


def _given(params: PyTree, leaves: Sequence[Leaf], masks: PyTree) -> list[Wanted | None]:
    _tree.check_masks(params, masks)
    all_masks = [jnp.asarray(mask) for mask in jax.tree.leaves(masks)]
    covered = {leaf.position for leaf in leaves}
    other = [
        name for i, (name, _) in enumerate(_tree.named_leaves(params)) if i not in covered and not all_masks[i].all()
    ]
    if other:
        raise ValueError(
            "masks remove something from leaves that are not reconstructed (where leaves them out, or they were not "
            "calibrated); set their masks to True:\n" + "\n".join(f"  {name}" for name in other)
        )
    out: list[Wanted | None] = []
    for leaf in leaves:
        mask = all_masks[leaf.position]
        full = jnp.broadcast_to(mask, leaf.array.shape)
        alone = mask.ndim == 0 and bool(mask)
        out.append(None if alone else Wanted(targets.Given, leaf.inputs.layout.matrices(full)))
    return out


def _sparsities(params: PyTree, leaves: Sequence[Leaf], sparsity: Any) -> list[Any]:
    if sparsity is None:
        return [None] * len(leaves)
    values, structure = jax.tree.flatten(sparsity, is_leaf=lambda x: isinstance(x, counts.Count))
    if structure == jax.tree.structure(params):
        resolved = values
    elif isinstance(sparsity, Mapping):
        resolved = _tree.resolve(sparsity, params, default=0.0, what="sparsity")
    elif _is_number(sparsity):
        resolved = [sparsity] * len(jax.tree.leaves(params))
    else:
        raise ValueError(
            "sparsity must be a number, a mapping of globs, or a tree in the structure of params, got "
            f"{structure}; a ranking over all leaves (masks.Global) goes through masks=masks.select(...)"
        )
    return [resolved[leaf.position] for leaf in leaves]


def _is_number(sparsity: Any) -> bool:
    return not isinstance(sparsity, (Mapping, counts.Count)) and np.ndim(sparsity) == 0


def _entries(leaf: Leaf, sparsity: Any) -> Wanted | None:
    if sparsity is None:
        raise ValueError(f"{leaf.name}: pass a sparsity, n of m as its pattern, or masks")
    n = leaf.inputs.layout.sizes[0]
    if isinstance(sparsity, counts.Count) and np.ndim(sparsity.low):
        each = np.asarray(sparsity.high) * 2**16 + np.asarray(sparsity.low)
        if each.shape != (n,):
            raise ValueError(f"{leaf.name}: a Count of {each.shape[0]} slices, but it is {n} matrices")
    else:
        is_count = isinstance(sparsity, counts.Count)
        total = int(sparsity if is_count else counts.removed(sparsity, leaf.array.size))
        each = np.diff([(2 * total * b + n) // (2 * n) for b in range(n + 1)])
    return Wanted(targets.Entries, jnp.asarray(each, jnp.int32)) if each.any() else None
