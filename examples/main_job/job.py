"""The two things that the demo does: train, prune and compare; and evaluate again what was saved."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import assess

from . import checkpoints, data, models, output, reporting
from .experiment import Experiment, Network, Plan
from .fitting import scaled
from .measuring import measure
from .problems import ProblemError, need


class Request(NamedTuple):
    """What was asked for; `folder` holds IDX files and takes the place of `dataset`."""

    dataset: str
    folder: Path | None
    model: str
    plan: Plan


def train(request: Request, folder: Path, *, cache: Path) -> str:
    """Train, prune, measure, and write everything into a new folder.

    Args:
        request: What was asked for.
        folder: The folder for the results.
        cache: The folder for prepared data.

    Returns:
        What to show: the table, and where the results lie.

    Raises:
        ProblemError: If something is for the user to put right; then nothing was written.
    """
    began = time.perf_counter()
    for package in ("tqdm", "matplotlib.figure", "orbax.checkpoint"):  # before there is work that could be lost
        need(package)
    with output.new_folder(folder) as unfinished:
        images = data.load(request.dataset, folder=request.folder, cache=cache)
        shown = _train(request, images, unfinished, began)
    example = folder / "checkpoints" / f"gradual-{100 * request.plan.sparsities[-2]:.0f}"
    again = f"Evaluate a network again: python examples/demo.py --evaluate {example}"
    return f"{shown}\n{time.perf_counter() - began:.0f} s in all. Report, plots and networks: {folder}\n{again}"


def _train(request: Request, images: data.Images, folder: Path, began: float) -> str:
    kept = {
        "model": request.model,
        "classes": images.classes,
        "image shape": list(images.train[0].shape[1:]),
        "mean": float(images.train[0].mean()),
        "deviation": float(images.train[0].std()),
        "dataset": request.dataset,
        "folder": str(request.folder) if request.folder else None,
        "data": images.origin,
    }
    model, measured = _model(kept), []
    print(reporting.data_line(images.origin), flush=True)
    with need("tqdm").tqdm(total=request.plan.total_steps, unit="step", dynamic_ncols=True) as bar:

        def tick(phase: str, loss: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()

        experiment = Experiment(model, images.train, request.plan, tick)
        for network in experiment.networks():
            result = measure(model, network, images.test)
            scores = result.metrics.as_dict() if result.metrics else {}
            about = {**kept, "network": network.name, "scores": scores}
            checkpoints.save(folder / "checkpoints" / network.slug, network.params, network.masks, about)
            measured.append((network, result))
    seconds = {"compiling": experiment.compile_seconds, "in all": time.perf_counter() - began}
    about = {**kept, "plan": request.plan._asdict(), "seconds": seconds, **_machine()}
    return reporting.write(folder, measured, about)


def evaluate(checkpoint: Path, other: dict[str, Any] | None, *, cache: Path) -> str:
    """Evaluate a saved network, on the data that it was trained with or on others.

    Args:
        checkpoint: Its folder.
        other: `dataset` and `folder` of other data; None for those that the checkpoint names.
        cache: The folder for prepared data.

    Returns:
        What to show: the row of the table, and whether the numbers are those that were saved.

    Raises:
        ProblemError: If there is no such checkpoint, or its data are not there any more, or do not fit it.
    """
    params, masks, kept = checkpoints.load(checkpoint)
    wanted = other or {"dataset": kept["dataset"], "folder": Path(kept["folder"]) if kept["folder"] else None}
    images = data.load(wanted["dataset"], folder=wanted["folder"], cache=cache)
    shape, classes = list(images.test[0].shape[1:]), images.classes
    if (shape, classes) != (kept["image shape"], kept["classes"]):
        takes = f"images of {kept['image shape']} in {kept['classes']} classes, not {shape} in {classes}"
        raise ProblemError(f"{checkpoint} takes {takes}: choose other data with --dataset or --data-dir.")
    masks = jax.tree.map(jnp.asarray, masks)
    result = measure(_model(kept), Network(kept["network"], 0.0, params, masks), images.test)
    notes = (reporting.data_line(images.origin), _verdict(result, images.origin, kept))
    return str(assess.table([result], notes=notes))


def _verdict(result: assess.Result, origin: dict[str, Any], kept: dict[str, Any]) -> str:
    if origin["sha256"] != kept["data"]["sha256"]:
        return f"These are not the data it was trained with, which were: {reporting.data_line(kept['data'])}"
    scores = result.metrics.as_dict() if result.metrics else {}
    if scores == kept["scores"]:
        return "The numbers are those of the report, to the last bit."
    gap = max(abs(scores[key] - kept["scores"][key]) for key in scores)
    return f"The numbers differ from those of the report by up to {gap:.1e}: another machine, or other versions?"


def _model(kept: dict[str, Any]) -> models.Model:
    height, width, channels = kept["image shape"]
    made = models.make(kept["model"], (height, width, channels), kept["classes"])
    return scaled(made, kept["mean"], kept["deviation"])


def _machine() -> dict[str, Any]:
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
