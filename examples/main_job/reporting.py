"""The report: a table, JSON and two plots, all made by `jaxprune.assess`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxprune import assess

from .experiment import GRADUAL, LONGER, PRUNED, SAME_CHANCE, Network

FLOPS = "FLOPs are the effective ones of one image: 2 for each multiply-add with a weight that is kept."
Measured = Sequence[tuple[Network, assess.ModelResult]]


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
        about: What else stands in the JSON: `data` (of which a line also heads the plots), the plan, times.

    Returns:
        The table, with the notes that must be read with it.
    """
    line = data_line(about["data"])
    notes = (line, f"plan: {_plan(about)}", SAME_CHANCE, FLOPS, _doubt(about["data"]["test images"]))
    report = assess.comparison_table([result for _, result in measured], notes=notes)
    costs = {network.name: result.complexity for network, result in measured if result.complexity}
    details = {name: cost.as_dict() for name, cost in costs.items()}
    content = {**about, **json.loads(report.to_json()), "complexity": details}
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "report.txt").write_text(f"{report}\n")
    gradual = {network.name: costs[network.name] for network, _ in measured if network.method == GRADUAL}
    _save(_accuracy_plot(measured), folder / "accuracy.png", line)
    _save(
        assess.plots.sparsity_by_leaf(gradual), folder / "layers.png", f"{line}\nother methods prune each layer as much"
    )
    return str(report)


def _plan(about: dict[str, Any]) -> str:
    plan = about["plan"]
    steps = f"{plan['steps']:,} steps of {plan['batch']} images in each phase"
    held = "every seventh training image is held out for validation"
    return f"the {about['model']} CNN, seed {plan['seed']}, {steps}; seconds are those of the last phase; {held}"


def _doubt(images: int) -> str:
    error = (0.95 * 0.05 / images) ** 0.5
    return f"One seed; the standard error of an accuracy of 95 % on {images:,} images is {100 * error:.1f} points."


def _accuracy_plot(measured: Measured) -> Any:
    accuracy = lambda method: [
        (network.target, 100 * float(result.metrics.accuracy))
        for network, result in measured
        if network.method == method and result.metrics
    ]
    ((_, dense),) = accuracy(LONGER)
    return assess.plots.accuracy_by_sparsity({m: accuracy(m) for m in PRUNED}, dense=dense, ylabel="test accuracy in %")


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=7, wrap=True)
    figure.savefig(path)
