"""The report: a table and JSON by `jaxprune.assess`, and two plots."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxprune import assess

from .experiment import GRADUAL, LONGER, PRUNED, SAME_CHANCE, Network
from .problems import need

Measured = Sequence[tuple[Network, assess.Result]]


def data_line(origin: dict[str, Any]) -> str:
    """Which data were used, in one line."""
    counts = f"{origin['training images']:,} training and {origin['test images']:,} test images"
    shape = "x".join(map(str, origin["image shape"]))
    return f"data: {origin['source']}, {counts} of {shape}, sha256 {origin['sha256'][:12]}"


def write(folder: Path, measured: Measured, about: dict[str, Any]) -> str:
    """Write `report.txt`, `report.json`, `accuracy.png` and `layers.png`.

    Args:
        folder: Where to.
        measured: The networks and what was measured.
        about: What else stands in the JSON: `data` (of which a line also heads the plots), settings, times.

    Returns:
        The table, with the notes that must be read with it.
    """
    line = data_line(about["data"])
    report = assess.table([result for _, result in measured], notes=("", line, SAME_CHANCE))
    layers = {network.name: _layers(result) for network, result in measured}
    content = {**about, "report": json.loads(report.to_json()), "sparsity of each layer": layers}
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "report.txt").write_text(f"{report}\n")
    _plot_accuracy(folder / "accuracy.png", measured, line)
    _plot_layers(folder / "layers.png", measured, line)
    return str(report)


def _layers(result: assess.Result) -> dict[str, float]:
    leaves = result.complexity.leaves if result.complexity else ()
    return {leaf.size.name: leaf.size.sparsity for leaf in leaves if leaf.size.pruned}


def _accuracy(result: assess.Result) -> float:
    return 100 * float(result.metrics.accuracy) if result.metrics else float("nan")


def _plot_accuracy(path: Path, measured: Measured, title: str) -> None:
    figure, axes = _figure(title)
    for network, result in measured:
        if network.method == LONGER:
            axes.axhline(_accuracy(result), color="black", linestyle="--", label=LONGER)
    for method in PRUNED:
        points = [(network.target, _accuracy(result)) for network, result in measured if network.method == method]
        axes.plot(*zip(*points, strict=True), marker="o", label=method)
    # The fewer weights are left, the more each percent means: the axis shows the odds s / (1 - s).
    axes.set_xscale("logit")
    targets = sorted({network.target for network, _ in measured if network.target})
    axes.set_xticks(targets, [f"{target:.0%}" for target in targets])
    axes.minorticks_off()
    axes.set_xlabel("sparsity")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    figure.savefig(path, dpi=120)


def _plot_layers(path: Path, measured: Measured, title: str) -> None:
    figure, axes = _figure(title)
    chosen = [(network, _layers(result)) for network, result in measured if network.method == GRADUAL]
    width = 0.8 / len(chosen)
    names = list(chosen[0][1])
    for i, (network, layers) in enumerate(chosen):
        places = [layer + (i - (len(chosen) - 1) / 2) * width for layer in range(len(names))]
        axes.bar(places, [100 * layers[name] for name in names], width, label=f"{network.target:.0%} in all")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("sparsity of the layer, % (the same for all methods)")
    axes.legend(loc="lower center", ncols=len(chosen))
    figure.savefig(path, dpi=120)


def _figure(title: str) -> tuple[Any, Any]:
    figure = need("matplotlib.figure").Figure(figsize=(8, 5), layout="constrained")  # pyplot would want a display
    axes = figure.subplots()
    axes.set_title(title, fontsize=8, wrap=True)
    return figure, axes
