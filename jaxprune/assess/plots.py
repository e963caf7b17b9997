"""Plots of comparisons: accuracy, sparsity, reliability, risk and coverage, corruptions, the Pareto front.

Matplotlib is imported when a plot is drawn. No window is opened and no global state is changed.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.assess.calibration_error import LEAST_SAMPLES, Reliability
from jaxprune.assess.complexity import Complexity
from jaxprune.assess.intervals import Interval
from jaxprune.assess.selection import pareto_front
from jaxprune.assess.uncertainty import RiskCoverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_by_sparsity(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, dense: float | None = None, ylabel: str = "accuracy"
) -> "Figure":
    """Plots accuracy, or any other value, against sparsity: one line for each method.

    The axis is logarithmic in the density, which separates 90, 95 and 98 %. If a method has several values at one
    sparsity, such as one for each seed, the line is the mean of the values, and a band shows their range.

    Args:
      curves: for each method pairs (sparsity in [0, 1), value), in any order.
      dense: the value of the dense network, drawn as a horizontal line; None (default) for no line.
      ylabel: the name of the values; default "accuracy".

    Returns:
      A figure; `figure.savefig(path)` writes it.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no curve, a curve is empty, or a sparsity is outside [0, 1).

    Example:
      >>> figure = accuracy_by_sparsity({'gradual': [(0.5, 0.95), (0.9, 0.93)]}, dense=0.96)
      >>> figure.axes[0].get_xlabel()
      'sparsity in %'
    """
    _check_curves(curves)
    figure, axes = new_figure(6.4, 4.2)
    for name, points in curves.items():
        levels = sorted({float(sparsity) for sparsity, _ in points})
        values = [[float(v) for s, v in points if float(s) == level] for level in levels]
        density = [1 - level for level in levels]
        [line] = axes.plot(density, [np.mean(v) for v in values], marker="o", label=name)
        if any(len(v) > 1 for v in values):
            low, high = [min(v) for v in values], [max(v) for v in values]
            axes.fill_between(density, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    if dense is not None:
        axes.axhline(dense, color="black", linestyle=":", label="dense")
    ticks = sorted({1 - float(sparsity) for points in curves.values() for sparsity, _ in points}, reverse=True)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{100 * (1 - tick):.4g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(max(ticks) * 1.1, min(ticks) / 1.1)
    axes.set(xlabel="sparsity in %", ylabel=ylabel)
    axes.legend()
    return figure


def sparsity_by_leaf(costs: Mapping[str, Complexity]) -> "Figure":
    """Plots the sparsity of each pruned leaf as bars, one colour for each network.

    Args:
      costs: the complexity of networks with the same parameters, by name.

    Returns:
      A figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no network with a pruned leaf, or the networks have different leaves.
    """
    pruned = {name: {x.size.name: x.size for x in cost.leaves} for name, cost in costs.items()}
    names = [
        name
        for name in dict.fromkeys(n for sizes in pruned.values() for n in sizes)
        if any(name in sizes and sizes[name].pruned for sizes in pruned.values())
    ]
    if not names:
        raise ValueError("no network with a pruned leaf: there is no sparsity to draw")
    lacking = [f"  {leaf}: not in {net}" for net, sizes in pruned.items() for leaf in names if leaf not in sizes]
    if lacking:
        raise ValueError("the networks must have the same parameters:\n" + "\n".join(lacking))
    figure, axes = new_figure(7.0, 1.2 + 0.18 * len(names) * (len(pruned) + 1))
    height = 0.8 / len(pruned)
    for k, (net, sizes) in enumerate(pruned.items()):
        places = np.arange(len(names)) + (k - (len(pruned) - 1) / 2) * height
        axes.barh(places, [100 * sizes[name].sparsity for name in names], height, label=net)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="sparsity in %", xlim=(0, 100))
    axes.invert_yaxis()
    if len(pruned) > 1:
        figure.legend(loc="outside lower center", ncols=min(4, len(pruned)))
    return figure


def reliability_diagram(models: Mapping[str, Reliability | Interval]) -> "Figure":
    """Plots accuracy against confidence, one line for each model; below the diagonal a model is overconfident.

    Args:
      models: the bins that `reliability` returns, by name, or an `Interval` of bins, as `bootstrap` returns it.

    Returns:
      A figure; the area of a point grows with the samples in its bin. A bin with fewer than 10 samples is a ring
      apart from the line, without an interval.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no model.

    Example:
      >>> bins = Reliability(np.array([9, 40]), np.array([0.4, 0.9]), np.array([0.5, 0.8]))
      >>> reliability_diagram({'dense': bins}).axes[0].get_ylabel()
      'accuracy'
    """
    if not models:
        raise ValueError("no model to draw")
    figure, axes = new_figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="calibrated")
    for name, given in models.items():
        bins = given.estimate if isinstance(given, Interval) else given
        count = np.asarray(bins.samples)
        filled = count > 0
        confidence, accuracy = np.asarray(bins.confidence)[filled], np.asarray(bins.accuracy)[filled]
        many = count[filled] >= LEAST_SAMPLES
        [line] = axes.plot(confidence[many], accuracy[many], label=name)
        sizes = 8 + 150 * count[filled] / count.sum()
        _ = axes.scatter(confidence[many], accuracy[many], sizes[many], color=line.get_color())
        _ = axes.scatter(confidence[~many], accuracy[~many], 12, facecolors="none", edgecolors=line.get_color())
        if isinstance(given, Interval):
            low, high = (np.asarray(end.accuracy)[filled][many] for end in (given.low, given.high))
            axes.vlines(confidence[many], low, high, color=line.get_color(), alpha=0.5, linewidth=1)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    _legend_below(figure)
    return figure


def risk_coverage_curves(models: Mapping[str, RiskCoverage]) -> "Figure":
    """Plots the error of the most confident samples against the fraction of samples that they make up.

    Args:
      models: the curves that `risk_coverage` returns, by name.

    Returns:
      A figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no model.
    """
    if not models:
        raise ValueError("no model to draw")
    figure, axes = new_figure(5.4, 4.4)
    for name, curve in models.items():
        axes.plot(np.asarray(curve.coverage), np.asarray(curve.risk), label=f"{name} ({float(curve.aurc):.4f})")
    axes.set(xlabel="coverage", ylabel="error among the answered", xlim=(0, 1), ylim=(0, None))
    _legend_below(figure, title="area under the curve")
    return figure


def accuracy_by_level(models: Mapping[str, Sequence[Interval]], *, xlabel: str = "level") -> "Figure":
    """Plots accuracy at each level of a corruption with its interval, one line for each model.

    Args:
      models: by name an interval for each level, as `Risk.corruption` has them.
      xlabel: the name of the corruption; default "level".

    Returns:
      A figure.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no model, or a model without a level.

    Example:
      >>> levels = [Interval(0.9, 0.88, 0.92), Interval(0.7, 0.66, 0.73)]
      >>> accuracy_by_level({'dense': levels}, xlabel='noise').axes[0].get_xlabel()
      'noise'
    """
    if not models or not all(len(levels) for levels in models.values()):
        raise ValueError("no model with a level to draw")
    figure, axes = new_figure(5.4, 4.4)
    for name, levels in models.items():
        at = np.arange(1, len(levels) + 1)
        estimate, low, high = (100 * np.array(ends) for ends in zip(*levels, strict=True))
        [line] = axes.plot(at, estimate, marker="o", label=name)
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=xlabel, ylabel="accuracy in %")
    axes.set_xticks(range(1, 1 + max(len(levels) for levels in models.values())))
    _legend_below(figure)
    return figure


def pareto_plot(models: Mapping[str, tuple[float, float]], *, xlabel: str = "effective FLOPs") -> "Figure":
    """Plots error against cost: a point for each model, and the Pareto front as a line.

    Args:
      models: (cost, error) of each model by its name, the error as a fraction.
      xlabel: the name of the cost; its axis is logarithmic. Default "effective FLOPs".

    Returns:
      A figure; `figure.savefig(path)` writes it.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: there is no model, or a cost that is not positive.
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


def style(settings: Mapping[Any, Any]) -> Any:
    """Changes Matplotlib's settings for the plots drawn inside the context.

    Args:
      settings: Matplotlib rc parameters.

    Returns:
      A context manager.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return mpl.rc_context(dict(settings))


def new_figure(width: float, height: float) -> tuple["Figure", Any]:
    """Returns a figure of a size in inches, and its axes with a grid, without pyplot, which would keep the figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error

    class Shown(Figure):
        """A figure that notebooks show as a picture without pyplot."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=100)
            return picture.getvalue()

    figure = Shown(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _legend_below(figure: Any, **options: Any) -> None:
    """Puts the legend below the axes, where it covers no line."""
    labels = [label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    columns = 2 if max(map(len, labels)) <= 28 else 1
    figure.legend(loc="outside lower center", ncols=columns, fontsize="small", frameon=False, **options)


def _check_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    if not curves or not all(len(points) for points in curves.values()):
        raise ValueError("each method needs at least one (sparsity, value); got none")
    wrong = [f"{name}: {s}" for name, points in curves.items() for s, _ in points if not 0 <= float(s) < 1]
    if wrong:
        raise ValueError(f"sparsities must be in [0, 1), the fraction removed; got {', '.join(wrong)}")
