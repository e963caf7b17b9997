"""`leaf_sensitivity` and `group_sensitivity`: the value of a network with one leaf or group pruned alone."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _tree, masks
from jaxprune.assess.plots import new_figure
from jaxprune.calibration import Stats
from jaxprune.prune import How, Selector
from jaxprune.slimming import Choice, Groups, Limits, choose
from jaxprune.slimming.choice import unit_masks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PyTree = Any
Evaluate = Callable[[PyTree], Any]


class Sensitivity(NamedTuple):
    """The value of a network with one leaf or group pruned alone, for each leaf and level; print it for a table.

    Attributes:
      names: the names of the leaves, or of the groups.
      levels: (levels,) the sparsities, ascending; the first is 0.
      values: (leaves, levels) the values that `evaluate` returned, float64; column 0 is the dense network's value.
    """

    names: tuple[str, ...]
    levels: np.ndarray
    values: np.ndarray

    @property
    def changes(self) -> np.ndarray:
        """(leaves, levels) the values minus the dense network's value."""
        return self.values - self.values[:, :1]

    def __str__(self) -> str:
        values = zip(self.names, self.values.tolist(), strict=True)
        rows = [[name, *(f"{value:.4g}" for value in row)] for name, row in values]
        return _tree.table(["pruned alone to", *(f"{level:.1%}" for level in self.levels)], rows)


def leaf_sensitivity(
    evaluate: Evaluate,
    params: PyTree,
    levels: Sequence[float],
    *,
    grads: PyTree = None,
    stats: Stats | None = None,
    batch: int | None = None,
    **how: Unpack[How],
) -> Sensitivity:
    """Prunes each leaf alone to several sparsities, and evaluates the network each time.

    One compiled function evaluates all leaves and levels: it is vmapped over levels and loops over leaves.

    The values are exact for the data that `evaluate` uses, and say nothing of their spread on other data. For a
    standard error, measure each of n batches and compare changes, in which the differences between batches cancel:
    `changes = [leaf_sensitivity(partial(loss, batch), params, levels).changes for batch in batches]`, then
    `np.std(changes, 0, ddof=1) / n**0.5`.

    Args:
      evaluate: `params -> value`, a traceable function that returns a scalar: a loss or an accuracy.
      params: the trained parameters, any pytree.
      levels: sparsities in [0, 1); 0 is added. Each is rounded to float32 before entries are counted.
      grads: gradients in the structure of `params`, for criteria that need them; default None.
      stats: the result of `jaxprune.calibrate`, for criteria that need it; default None.
      batch: the number of levels computed at once, 1 or more; default None: all levels. 1 needs the least memory.
      **how: how weights are chosen: criterion, pattern, where, batch_axes, key, specs, roles; see `jaxprune.How`. An
        allocation raises, because each leaf is pruned alone. `NM` raises too, because it has only one sparsity.

    Returns:
      A `Sensitivity` with one row for each leaf that may be pruned.

    Raises:
      ValueError: a level is out of range, the value is not a scalar, `batch` is below 1, no leaf may be pruned, a
        pattern does not fit a leaf or allows one sparsity only, or the scores do not fit.
      TypeError: `evaluate` is not a function, `params` has no arrays, `levels` is a number, or an allocation or an
        unknown option was passed.

    Example:
      >>> params = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[3.0, 9.0]])}
      >>> found = leaf_sensitivity(lambda p: p['a'].sum() + p['b'].sum(), params, [0.5])
      >>> found.names, found.changes.tolist()
      (('a', 'b'), [[0.0, -1.0], [0.0, -3.0]])
    """
    asked = _levels(levels)
    _check_scalar(evaluate, params)
    if "allocation" in how:
        raise TypeError("leaf_sensitivity takes no allocation, because it prunes each leaf alone to each level")
    select = Selector(**how).following(params, stats)
    chosen = masks.leaves(params, **select.units)
    if fixed := [f"  {leaf.name}: {leaf.pattern}" for leaf in chosen if leaf.pattern.fixed_sparsity is not None]:
        raise ValueError(
            "leaf_sensitivity needs a pattern that allows every level, and the patterns of these leaves have only one "
            "sparsity; pass another pattern, or leave the leaves out by where:\n" + "\n".join(fixed)
        )
    places = [leaf.place for leaf in chosen]
    scores = select.scores(params, grads=grads, stats=stats)
    leaves = jax.tree.structure(scores).num_leaves

    def value(place: Any, level: Any, params: PyTree, scores: PyTree) -> Any:
        wanted = [jnp.where(place == i, level, 0.0) for i in range(leaves)]
        kept = masks.select(scores, jax.tree.unflatten(jax.tree.structure(scores), wanted), **select.units)
        return evaluate(masks.apply(params, kept))

    table = _table(value, np.asarray(places), jnp.asarray(asked[1:], jnp.float32), (params, scores), batch)
    dense = np.full((len(chosen), 1), float(evaluate(params)))
    return Sensitivity(tuple(leaf.name for leaf in chosen), asked, np.concatenate([dense, table], 1))


def group_sensitivity(
    evaluate: Evaluate,
    params: PyTree,
    groups: Groups,
    scores: np.ndarray,
    levels: Sequence[float],
    *,
    batch: int | None = None,
) -> Sensitivity:
    """Masks the lowest units of each group alone, to several sparsities, and evaluates the network each time.

    One compiled function evaluates all groups and levels. The levels are the options of each layer's architecture: its
    widths, its heads, and at level 1 nothing, as in Puzzle (Bercovich et al. 2024, arXiv 2411.19146), which scores each
    option by the loss of the network in which only this layer is replaced. `choose_levels` combines them. The layers of
    a scan have one group together; `slimming.unstack` gives each its own. For a standard error of the changes, measure
    several batches as `leaf_sensitivity` explains.

    Args:
      evaluate: `params -> value`, a traceable function that returns a scalar: a loss or an accuracy.
      params: the trained parameters, any pytree.
      groups: the groups of the network, from `find_groups`. Groups that cannot lose units exactly are left out.
      scores: (units,) larger = more worth keeping.
      levels: sparsities in [0, 1], of the units of the group; 0 is added. Below 1 every group keeps at least one unit;
        at 1 it keeps none, so that a residual branch adds at most its last bias (`slimming.choose` needs
        `Limits(min_units=0)` for the same).
      batch: the number of levels computed at once, 1 or more; default None: all levels. 1 needs the least memory.

    Returns:
      A `Sensitivity` with one row for each exact group.

    Raises:
      ValueError: a level is out of range, the value is not a scalar, `batch` is below 1, no group is exact, or the
        scores have another shape or NaN.
      TypeError: `evaluate` is not a function, `params` has no arrays, or `levels` is a number.

    Example:
      >>> from jaxprune import find_groups
      >>> params = {'a': jnp.array([[1.0, 2.0]]), 'b': jnp.array([[1.0], [1.0]])}
      >>> network = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> groups = find_groups(network, params, jnp.ones((1, 1)))
      >>> found = group_sensitivity(lambda p: network(p, jnp.ones((1, 1)))[0, 0], params, groups, np.arange(2.0), [0.5])
      >>> found.names, found.changes.round(4).tolist()
      (('a[1]',), [[0.0, -0.7616]])
    """
    asked = _levels(levels, empty=True)
    _check_scalar(evaluate, params)
    names = [group.name for group in groups if group.exact]
    if not names:
        raise ValueError("no group has units that can be removed exactly")
    keep = np.stack([[at_levels(groups, scores, {name: level}).keep for level in asked[1:]] for name in names])

    def value(group: Any, level: Any, params: PyTree, keep: Any) -> Any:
        return evaluate(masks.apply(params, unit_masks(groups, keep[group, level])))

    columns = jnp.arange(len(asked) - 1)
    table = _table(value, np.arange(len(names)), columns, (params, jnp.asarray(keep)), batch)
    dense = np.full((len(names), 1), float(evaluate(params)))
    return Sensitivity(tuple(names), asked, np.concatenate([dense, table], 1))


def at_levels(groups: Groups, scores: np.ndarray, levels: Mapping[str, float]) -> Choice:
    """Returns the choice that removes these sparsities of groups: at least one unit stays, and none at level 1."""
    removed = {name: level for name, level in levels.items() if level}
    if not removed:
        return Choice.remove(groups, {})
    empty = {name: 0 for name, level in removed.items() if level == 1}
    return choose(groups, scores, removed, limits=Limits(min_units=empty or 1))


def sensitivity_curves(found: Sensitivity, *, ylabel: str = "loss") -> "Figure":
    """Plots the value of the network against the sparsity of one leaf or group alone, one line for each.

    Args:
      found: the result of `leaf_sensitivity` or `group_sensitivity`.
      ylabel: the name of the values; default "loss".

    Returns:
      A figure; `figure.savefig(path)` writes it. The dotted line is the dense network's value.

    Raises:
      ImportError: matplotlib is not installed.
    """
    _tree.check_instance(found, Sensitivity, "found", "what leaf_sensitivity or group_sensitivity returns")
    figure, axes = new_figure(7.2, 4.4)
    for name, values in zip(found.names, found.values, strict=True):
        _ = axes.plot(100 * found.levels, values, marker="o", markersize=3, label=name)
    _ = axes.axhline(found.values[0, 0], color="black", linestyle=":")
    axes.set(xlabel="sparsity of one leaf or group alone, in %", ylabel=ylabel)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _table(
    value: Callable[..., Any], rows: np.ndarray, columns: jax.Array, args: tuple[PyTree, PyTree], batch: int | None
) -> np.ndarray:
    size = len(columns) if batch is None else batch
    if size < 1:
        raise ValueError(f"batch must be 1 or more levels; got {batch}")

    @jax.jit
    def table(columns: jax.Array, params: PyTree, scores: PyTree) -> jax.Array:
        of = lambda row: lax.map(lambda column: value(row, column, params, scores), columns, batch_size=size)
        return lax.map(of, jnp.asarray(rows))

    return np.asarray(table(columns, *args), np.float64)


def _levels(levels: Sequence[float], *, empty: bool = False) -> np.ndarray:
    """Returns the levels in ascending order, with 0; `empty`: level 1, which keeps nothing, is allowed."""
    bounds = "[0, 1]" if empty else "[0, 1)"
    if isinstance(levels, Real) or (_tree.is_array(levels) and not np.ndim(levels)):
        raise TypeError(f"levels must be a list of sparsities in {bounds}, such as [0.5, 0.9]; got {levels}")
    found = sorted({0.0, *map(float, levels)})
    if len(found) < 2 or not all(0 <= level < 1 or (empty and level == 1) for level in found):
        raise ValueError(f"levels must be sparsities in {bounds}, at least one of them above 0; got {list(levels)}")
    return np.asarray(found)


def _check_scalar(evaluate: Evaluate, params: PyTree) -> None:
    if not callable(evaluate):
        swapped = "; evaluate and params are swapped" if callable(params) else ""
        raise TypeError(f"evaluate must be a function evaluate(params); got {_tree.shown(evaluate)}{swapped}")
    if not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(params)):
        raise TypeError(f"params must be a tree of arrays; got {_tree.shown(params)}")
    called = lambda p: _tree.call(evaluate, "evaluate", "evaluate(params)", p)
    shape = getattr(jax.eval_shape(called, params), "shape", None)
    if shape != ():
        raise ValueError(f"evaluate(params) must be a scalar, such as a mean loss; got shape {shape}")
