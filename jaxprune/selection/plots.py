"""Plots of what a selection is made from. Matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.assess.plots import new_figure
from jaxprune.selection.pareto import pareto_front
from jaxprune.selection.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sensitivity_curves(found: Sensitivity, *, ylabel: str = "loss") -> "Figure":
    """What the network loses, one line for each leaf or group, against the share of it that is removed.

    Args:
      found: from `sensitivity` or `group_sensitivity`.
      ylabel: what the values are.

    Returns:
      A figure; `figure.savefig(path)` writes it. The dotted line is the dense network.

    Raises:
      ImportError: matplotlib is not installed.
    """
    figure, axes = new_figure(7.2, 4.4)
    for name, values in zip(found.names, found.values, strict=True):
        _ = axes.plot(100 * found.levels, values, marker="o", markersize=3, label=name)
    _ = axes.axhline(found.values[0, 0], color="black", linestyle=":")
    axes.set(xlabel="sparsity of this one alone, in %", ylabel=ylabel)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def pareto_plot(models: Mapping[str, tuple[float, float]], *, xlabel: str = "effective FLOPs") -> "Figure":
    """Error against cost: a point for each model, and the front as a line.

    Args:
      models: by name (cost, error).
      xlabel: what the cost is; its axis is logarithmic.

    Returns:
      A figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no model, or a cost that is not positive.
    """
    costs, errors = (np.asarray([pair[k] for pair in models.values()], float) for k in (0, 1))
    front = pareto_front(errors, costs)
    if (costs <= 0).any():
        raise ValueError(f"costs must be positive on a logarithmic axis; got {costs.min():g}")
    figure, axes = new_figure(6.4, 4.2)
    order = np.flatnonzero(front)[np.argsort(costs[front])]
    _ = axes.step(costs[order], 100 * errors[order], where="post", color="black", linewidth=1)
    for name, cost, error, best in zip(models, costs, errors, front, strict=True):
        _ = axes.scatter([cost], [100 * error], color="C0" if best else "C7")
        _ = axes.annotate(name, (cost, 100 * error), xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    axes.set(xlabel=xlabel, ylabel="error in %")
    return figure


def halving_curves(trials: Sequence[Any]) -> "Figure":
    """The loss of each candidate against its budget, as a search went on with the better ones.

    Args:
      trials: `Found.trials`.

    Returns:
      A figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no trial.
    """
    if not trials:
        raise ValueError("there is no trial to draw")
    figure, axes = new_figure(6.4, 4.2)
    lines: dict[Any, list[tuple[float, float]]] = {}
    for trial in trials:
        lines.setdefault((trial.bracket, repr(trial.candidate)), []).append((trial.budget, trial.loss))
    for (bracket, _), points in lines.items():
        _ = axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=f"C{bracket % 10}", alpha=0.7)
    axes.set_xscale("log")
    axes.set(xlabel="budget", ylabel="loss")
    return figure
