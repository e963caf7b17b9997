"""Scores of units: `group_scores` adds up any criterion; `expert_scores` (REAP); `geometric_median_scores` (FPGM).

Whole blocks of a residual network have scores too: `block_influence` (ShortGPT) computes them, `keep_influential` marks
the blocks to keep, and `keep_blocks` returns the parameters of the kept blocks.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune import _tree
from jaxprune.calibration import Stats
from jaxprune.calibration.stats import Experts
from jaxprune.slimming._labels.analysis import Leaf
from jaxprune.slimming.groups import Group, Groups, Member

Array = jax.Array
PyTree = Any
Leaves = str | Sequence[str] | Callable[[str, Any], bool]
_REDUCE = ("sum", "mean", "l2", "max")
_NORMALISE = (None, "mean", "max", "sum")


def group_scores(
    groups: Groups, scores: PyTree, *, reduce: str = "l2", normalise: str | None = "mean", where: Leaves = "*"
) -> np.ndarray:
    """Computes scores of units from the scores of their entries.

    With magnitudes as scores and "l2" the result is the group norm of DepGraph (Fang et al., 2023, arXiv:2301.12900,
    eq. 4): the root of the sum of squares over all entries of the unit. With the scales of normalisation layers
    alone (`where="*scale"`) it is network slimming (Liu et al., 2017, arXiv:1708.06519).

    Args:
      groups: the groups.
      scores: the result of any criterion: a tree of the parameters' structure, with arrays that have the parameters'
        shapes or broadcast to them. A single number for a larger leaf means that the leaf has no scores.
      reduce: "sum", "mean", "l2" or "max" over the entries of a unit, in all leaves that `where` selects. An entry
        whose row and column belong to the same unit counts twice. Default: "l2".
      normalise: divides the scores of each group by the "mean", "max" or "sum" of their absolute values, so that groups
        can be compared; each layer of a stacked group is divided separately. The order within a group never changes.
        None does not change the scores. Default: "mean".
      where: the leaves that count: a glob over paths, several, or a predicate `(path, leaf) -> bool`. Default: all.

    Returns:
      (units,) float64 scores of all units of all groups; units without a scored entry have 0.

    Raises:
      ValueError: the scores have another structure or shape, `reduce` or `normalise` is unknown, or `where`
        selects no leaf.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.array([[3.0, 1.0]]), 'b': np.array([[4.0], [1.0]])}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, np.ones((5, 1)))
      >>> group_scores(groups, params, normalise=None).round(3).tolist()
      [5.0, 1.414]
    """
    _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
    if reduce not in _REDUCE:
        raise ValueError(f"reduce must be one of {_REDUCE}; got {reduce!r}")
    total, count = np.zeros(groups.size), np.zeros(groups.size)
    for k, values in _arrays(groups, scores, where, "scores").items():
        _add_leaf(total, count, values, groups.units[k], reduce)
    if reduce == "l2":
        total = np.sqrt(total)
    if reduce == "mean":
        total = total / np.maximum(count, 1)
    return _normalised(groups, total, normalise)


def geometric_median_scores(
    groups: Groups, params: PyTree, *, normalise: str | None = "mean", where: Leaves = "*"
) -> np.ndarray:
    """Returns the sum of each unit's distances to the other units of its group (FPGM).

    He et al. 2019, arXiv 1811.00250, eq. 5.

    g(u) = sum_v ||w_u - w_v||, where w_u are all entries of unit u. The unit with the smallest sum is nearest to the
    geometric median of its group: the other units can replace it best, independent of its norm.

    Args:
      groups: the groups.
      params: the parameters.
      normalise: divides the scores of each group by their "mean", "max" or "sum", each layer of a stacked group is
        divided separately. None does not change the scores. Default: "mean".
      where: the leaves that count: a glob over paths, several, or a predicate `(path, leaf) -> bool`; the kernels of
        convolutions in the paper. Default: all.

    Returns:
      (units,) float64 scores of all units; 0 in groups without entries in the selected leaves. Units of stacked layers
      are compared within their layer.

    Raises:
      ValueError: the parameters have another structure, `normalise` is unknown, or `where` selects no leaf.

    Example:
      >>> from jaxprune.slimming import find_groups
      >>> params = {'a': np.array([[0.0, 1.0, 5.0]]), 'b': np.zeros((3, 2))}
      >>> groups = find_groups(lambda p, x: x @ p['a'] @ p['b'], params, np.ones((4, 1)))
      >>> geometric_median_scores(groups, params, normalise=None).tolist()
      [6.0, 5.0, 9.0]
    """
    arrays = _arrays(groups, params, where, "parameters")
    total = np.zeros(groups.size)
    for group in groups:
        layer = np.zeros(group.count, int) if group.layer is None else group.layer
        for k in range(group.layers):
            units = group.first + np.flatnonzero(layer == k)
            members = [member for member in group.members if member.leaf in arrays]
            rows = [_entries(groups, units, arrays[member.leaf], member) for member in members]
            if rows:
                total[units] = _distance_sums(np.concatenate(rows, 1))
    return _normalised(groups, total, normalise)


def _add_leaf(
    total: np.ndarray, count: np.ndarray, values: np.ndarray, axes: Sequence[np.ndarray], reduce: str
) -> None:
    powers = values**2 if reduce == "l2" else values
    for axis, units in enumerate(axes):
        layers = units.ndim - 2
        others = tuple(i for i in range(values.ndim) if i != axis and i >= layers)
        per_position = powers.max(others) if reduce == "max" else powers.sum(others)
        size = values.size // max(per_position.size, 1)
        for column in np.moveaxis(units, -1, 0):
            held = column >= 0
            if reduce == "max":
                np.maximum.at(total, column[held], per_position[held])
            else:
                np.add.at(total, column[held], per_position[held])
            np.add.at(count, column[held], size)


def _entries(groups: Groups, units: np.ndarray, values: np.ndarray, member: Member) -> np.ndarray:
    """Returns the entries of each unit in one leaf along one axis, (units, entries), by ascending position."""
    held = groups.units[member.leaf][member.axis]
    lead = held.ndim - 2
    rows = np.moveaxis(values, member.axis, lead).reshape(
        -1, held.shape[-2], values[(0,) * lead].size // held.shape[-2]
    )
    number = np.full(groups.size + 1, -1)
    number[units] = np.arange(units.size)
    row, position, part = np.nonzero(number[held.reshape(len(rows), *held.shape[-2:])] >= 0)
    of = number[held.reshape(len(rows), *held.shape[-2:])[row, position, part]]
    order = np.argsort(of, kind="stable")
    return rows[row[order], position[order]].reshape(units.size, -1)


def _arrays(groups: Groups, tree: PyTree, where: Leaves, what: str) -> dict[int, np.ndarray]:
    """Returns the float64 arrays of the leaves that `where` selects, in the parameters' shapes, by the leaf's place.

    A single number for a leaf that is not single, and leaves that are no arrays, are left out.
    """
    _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
    leaves = groups.analysis.leaves
    given = _tree.named_leaves(tree)
    if [name for name, _ in given] != [leaf.name for leaf in leaves]:
        here, there = [name for name, _ in given], [leaf.name for leaf in leaves]
        lines = [f"  {_tree.label(name)}: only in the parameters" for name in there if name not in here]
        lines += [f"  {_tree.label(name)}: only in the {what}" for name in here if name not in there]
        raise ValueError(
            f"{what} must have the structure of the parameters that find_groups was called with; got {len(given)} "
            f"leaves for {len(leaves)}:\n" + "\n".join(lines[:10])
        )
    counted = [_selects(where, leaf) for leaf in leaves]
    names = [leaf.name for leaf in leaves]
    if not any(counted):
        raise ValueError(f"where selects none of: {', '.join(names)}")
    globs = () if callable(where) or isinstance(where, str) else where
    unmatched = [glob for glob in globs if not any(_tree.matches(name, glob) for name in names)]
    if unmatched:
        raise ValueError(f"where: no leaf matches {', '.join(map(repr, unmatched))}; there are: {', '.join(names)}")
    found = {}
    for k, ((name, raw), leaf) in enumerate(zip(given, leaves, strict=True)):
        if not counted[k] or leaf.shape is None or (np.shape(raw) == () and leaf.shape != ()):
            continue
        values = np.asarray(jax.device_get(raw), np.float64)
        if values.ndim != len(leaf.shape) or any(
            a not in (1, b) for a, b in zip(values.shape, leaf.shape, strict=True)
        ):
            raise ValueError(f"{what} of {name} have shape {values.shape}, the parameter {leaf.shape}")
        found[k] = np.broadcast_to(values, leaf.shape)
    return found


def _normalised(groups: Groups, total: np.ndarray, normalise: str | None) -> np.ndarray:
    """Divides scores by the mean, maximum or sum of the absolute scores of their group, or layer if stacked."""
    if normalise not in _NORMALISE:
        raise ValueError(f"normalise must be one of {_NORMALISE}; got {normalise!r}")
    if normalise is None:
        return total
    result = total.copy()
    for group in groups:
        layer = np.zeros(group.count, int) if group.layer is None else group.layer
        for k in range(group.layers):
            own = group.first + np.flatnonzero(layer == k)
            # Scores may be negative (OBD with the diagonal of the Hessian): dividing by a signed mean could reverse
            # them.
            by = getattr(np, normalise)(np.abs(total[own]))
            result[own] = total[own] / by if by else total[own]
    return result


def _selects(where: Leaves, leaf: Leaf) -> bool:
    if callable(where):
        return bool(where(leaf.name, jax.ShapeDtypeStruct(leaf.shape or (), leaf.dtype or np.float32)))
    return any(_tree.matches(leaf.name, glob) for glob in ([where] if isinstance(where, str) else where))


def expert_scores(
    groups: Groups, stats: Stats, criterion: Callable[[Experts], Any] | None = None
) -> dict[str, np.ndarray]:
    r"""Computes scores of experts for `choose`, from calibration statistics of their tokens.

    Published criteria are products of a frequency, a gate and the norm of the output (Liu et al., 2026,
    arXiv:2606.15716). With the tokens $t$ of expert $j$, their gates $g_j(t)$ and the outputs $f_j(t)$:

    | criterion | formula | `criterion` |
    | --- | --- | --- |
    | REAP (Lasby et al., 2025, arXiv:2510.13999, eq. 9), the default | mean of g ‖f‖ | `e.weighted / e.tokens` |
    | frequency | number of tokens | `e.tokens` |
    | mean gate | mean of g | `e.gate / e.tokens` |
    | mean activation norm (MAN, arXiv:2606.15716) | mean of ‖f‖ | `e.norm / e.tokens` |
    | mean squared activation norm (MSAN, arXiv:2606.15716) | mean of ‖f‖² | `e.square / e.tokens` |
    | random | - | `jax.random.uniform(key, e.tokens.shape)` |

    Args:
      groups: the groups of the function, from `find_groups`.
      stats: the result of `calibrate` for the same function and parameters.
      criterion: a function that returns one score for each expert, from the sums `e` over each expert's tokens (the
        table above). NaN, the score of an expert without tokens in a mean, becomes 0. Default: REAP.

    Returns:
      For each group of experts the float64 scores of its units, as `choose` takes them; all other groups stay whole.

    Raises:
      ValueError: the statistics contain no experts of these groups, or a score is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune.calibration import calibrate
      >>> from jaxprune.slimming import find_groups
      >>> def mixture(p, x):
      ...     gate, index = jax.lax.top_k(jax.nn.softmax(x @ p['router']), 1)
      ...     weight = (jax.nn.one_hot(index, 3) * gate[..., None]).sum(1)
      ...     return jnp.einsum('be,bef->bf', weight, jnp.einsum('bd,edf->bef', x, p['w']))
      >>> params = {'router': jnp.eye(3), 'w': jnp.ones((3, 3, 2))}
      >>> x = jnp.array([[9.0, 0, 0], [0, 9.0, 0], [0, 8.0, 0], [0, 0, 9.0], [0, 0, 9.0], [0, 0, 9.0]])
      >>> stats = calibrate(mixture, params, [x], collect='square')
      >>> groups = find_groups(mixture, params, x)
      >>> [(name, scores.tolist()) for name, scores in expert_scores(groups, stats, lambda e: e.tokens).items()]
      [('router[1]', [1.0, 2.0, 3.0])]
    """
    _tree.check_instance(groups, Groups, "groups", "the groups that find_groups(fn, params, *inputs) returns")
    _tree.check_instance(stats, Stats, "stats", "the result of calibrate(fn, params, batches)")
    criterion = criterion or (lambda e: e.weighted / e.tokens)
    scores: dict[str, np.ndarray] = {}
    found: dict[str, tuple[np.ndarray, list[Experts]]] = {}
    for experts in stats.experts:
        place = next((p for leaf in experts.leaves if (p := _experts_of(groups, *leaf)) is not None), None)
        if place is not None:
            found.setdefault(place[0].name, (place[1], []))[1].append(experts)
    if not found:
        known = ", ".join(sorted({name for e in stats.experts for name, _ in e.leaves})) or "none"
        raise ValueError(
            f"stats contain no experts of these groups; experts were calibrated in: {known}; the groups of experts are "
            f"{', '.join(g.name for g in groups if g.routed) or 'none (print the groups to see why)'}"
        )
    for name, (units, records) in found.items():
        total = records[0]
        for other in records[1:]:
            total = jax.tree.map(lambda a, b: a + b, total, dataclasses.replace(other, leaves=total.leaves))
        own = np.nan_to_num(np.asarray(criterion(total), np.float64), posinf=np.inf, neginf=-np.inf)
        if own.shape != units.shape or not np.isfinite(own).all():
            raise ValueError(f"{name}: criterion must return finite scores of shape {units.shape}; got {own.shape}")
        scores[name] = np.zeros(groups[name].count)
        scores[name][units - groups[name].first] = own
    return scores


def _experts_of(groups: Groups, name: str, axis: int | None) -> tuple[Group, np.ndarray] | None:
    """Returns the group of the experts on an axis of a leaf, and the unit of each expert, (layers..., experts)."""
    for group in groups:
        member = next((m for m in group.members if group.routed and (m.name, m.axis) == (name, axis)), None)
        if member is not None:
            units = groups.units[member.leaf][member.axis]
            own = (units >= group.first) & (units < group.first + group.count)
            if (own.sum(-1) == 1).all():
                return group, np.where(own, units, 0).sum(-1)
    return None


@jax.jit
def _distance_sums(rows: Array) -> Array:
    """Returns the (n,) sums of the Euclidean distances of each row to all rows, in float32 or wider.

    Distances are norms of differences, so equal rows have a distance of exactly 0.
    """
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    return jax.lax.map(lambda own: jnp.linalg.norm(rows - own, axis=1).sum(), rows)


def block_influence(hidden: Sequence[Any] | Any) -> Array:
    r"""Returns how much each block of a residual network changes the direction of its input.

        BI_i = 1 - E[ x_i . x_{i+1} / (||x_i|| ||x_{i+1}||) ]

    Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1: x_i is the input of block i and x_{i+1} its output; the mean
    is over samples and positions. Blocks with a small influence are candidates to remove. Only directions count,
    because a later normalisation removes the lengths.

    Args:
      hidden: blocks + 1 arrays (n, ..., features) of one shape: the input of each block, and the output of the last; or
        one array with the hidden states stacked on its first axis.

    Returns:
      (blocks,) in [0, 2], in float32 or wider; larger is more worth keeping. A vector of zeros has a cosine of 0 with
      every other vector.

    Raises:
      ValueError: there are fewer than two arrays, their shapes differ, or they have NaN or infinite values.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> block_influence([x, 3 * x, x[:, ::-1]]).tolist()
      [0.0, 1.0]
    """
    shapes = [np.shape(x) for x in hidden]
    if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) < 2:
        raise ValueError(
            "hidden must be two arrays (n, ..., features) or more, all of one shape (a block that changes it, "
            f"such as one that halves an image, has no influence to compare); got {shapes}"
        )
    stacked = jnp.stack([jnp.asarray(x) for x in hidden])
    if not isinstance(stacked, Tracer) and not bool(jnp.isfinite(stacked).all()):
        raise ValueError("hidden holds NaN or infinite values")
    return _influence(stacked.astype(jnp.promote_types(stacked.dtype, jnp.float32)))


def keep_influential(influence: Any, count: int) -> np.ndarray:
    """Marks the blocks to keep: all but the `count` blocks with the smallest influence.

    Args:
      influence: (blocks,) numbers, such as `block_influence` returns.
      count: the number of blocks to remove, 0 to blocks - 1.

    Returns:
      (blocks,) bool, True = kept. If influences are equal, the later block is removed.

    Raises:
      ValueError: `count` is out of range, or an influence is NaN.

    Example:
      >>> keep_influential([0.3, 0.1, 0.2], 2).tolist()
      [True, False, False]
    """
    influence = np.asarray(influence, np.float64)
    if influence.ndim != 1 or np.isnan(influence).any() or not 0 <= count < influence.size:
        raise ValueError(
            f"influence must have one number a block, none of them NaN, and one must stay; got shape "
            f"{influence.shape} and count {count}"
        )
    keep = np.zeros(influence.size, bool)
    keep[np.argsort(-influence, kind="stable")[: influence.size - count]] = True
    return keep


def keep_blocks(blocks: PyTree, keep: Any) -> PyTree:
    """Returns the parameters of the kept blocks, for a network that runs over any number of blocks.

    Args:
      blocks: a list or tuple of the parameters of each block; or one tree whose leaves have the blocks on their first
        axis, as `jax.lax.scan` over layers takes them.
      keep: (blocks,) bool, True = kept.

    Returns:
      A container of the same kind with fewer blocks.

    Raises:
      ValueError: `keep` does not have one bool per block, or keeps none. The message names the leaves that have
        another first axis.

    Example:
      >>> keep_blocks({'w': jnp.arange(6).reshape(3, 2)}, [True, False, True])['w'].tolist()
      [[0, 1], [4, 5]]
    """
    keep = np.asarray(keep)
    if keep.dtype != np.bool_ or keep.ndim != 1:
        raise ValueError(f"keep must be one bool for each block, shape (blocks,); got {_tree.kind(keep)}")
    if not keep.any():
        raise ValueError(f"keep must be True for at least one of the {len(keep)} blocks; got False for all")
    if isinstance(blocks, (list, tuple)):
        if len(blocks) != len(keep):
            raise ValueError(f"keep must have one entry for each of the {len(blocks)} blocks; got {len(keep)}")
        return type(blocks)(block for block, stays in zip(blocks, keep, strict=True) if stays)
    paths = jax.tree_util.tree_flatten_with_path(blocks)[0]
    wrong = [
        f"  {jax.tree_util.keystr(path)}: {np.shape(leaf)}" for path, leaf in paths if np.shape(leaf)[:1] != keep.shape
    ]
    if wrong:
        raise ValueError(f"each leaf must have {len(keep)} blocks on its first axis:\n" + "\n".join(wrong))
    places = np.flatnonzero(keep)
    return jax.tree.map(lambda leaf: leaf[places], blocks)


@jax.jit
def _influence(hidden: Array) -> Array:
    length = jnp.linalg.norm(hidden, axis=-1, keepdims=True)
    unit = jnp.where(length > 0, hidden / jnp.where(length > 0, length, 1.0), 0.0)
    cosine = (unit[:-1] * unit[1:]).sum(-1)
    return jnp.clip(1.0 - cosine.reshape(cosine.shape[0], -1).mean(1), 0.0, 2.0)
