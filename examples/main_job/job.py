"""The two things that the demo does: train, prune and compare; and evaluate again what was saved."""

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import assess

from . import checkpoints, data, models, output, pixels, reporting, risk, tickets
from .experiment import GRADUAL, LONGER, Experiment, Network, Plan
from .fitting import scaled
from .measuring import measure
from .problems import ProblemError, need

DRAWN = (LONGER, GRADUAL, tickets.TICKET)
"""The methods in the plots of the risk report; more lines could not be told apart."""


class Request(NamedTuple):
    """What was asked for; `folder` holds IDX files and takes the place of `dataset`; `pixels` is their share kept."""

    dataset: str
    folder: Path | None
    model: str
    plan: Plan
    pixels: float = 1.0
    resamples: int = 1000


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
    sets = risk.Sets(*data.hold_out(images.train), images.test)
    chosen = None
    if request.pixels < 1:
        chosen = pixels.choose(sets.train, request.pixels, classes=images.classes, seed=request.plan.seed)
        sets = risk.Sets(*((chosen.apply(x), y) for x, y in sets))
        kept["pixels"] = chosen.kept.tolist()
        print(f"{chosen.kept.sum()} of {chosen.kept.size} pixels stay:\n{chosen}", flush=True)
    total = request.plan.total_steps + tickets.steps_of_search(request.plan.steps)
    with need("tqdm").tqdm(total=total, unit="step", dynamic_ncols=True) as bar:

        def tick(phase: str, loss: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()

        experiment = Experiment(model, sets.train, request.plan, tick)
        for network in itertools.chain(experiment.networks(), _ticket(experiment, model, sets, request.plan, tick)):
            result = measure(model, network, sets.test)
            scores = result.metrics.as_dict() if result.metrics else {}
            about = {**kept, "network": network.name, "scores": scores}
            checkpoints.save(folder / "checkpoints" / network.slug, network.params, network.masks, about)
            measured.append((network, result))
    seconds = {"compiling": experiment.compile_seconds, "in all": time.perf_counter() - began}
    about = {**kept, "plan": request.plan._asdict(), "seconds": seconds, **_machine()}
    shown = reporting.write(folder, measured, about)
    notes = (reporting.data_line(images.origin), tickets.CHOICE, *([_kept(chosen)] if chosen else []))
    networks = [network for network, _ in measured]
    return f"{shown}\n\n{_risk(request, model, networks, sets, notes, folder)}"


def _risk(
    request: Request,
    model: models.Model,
    networks: list[Network],
    sets: risk.Sets,
    notes: tuple[str, ...],
    folder: Path,
) -> assess.RiskReport:
    found = risk.report(model, networks, sets, seed=request.plan.seed, resamples=request.resamples, notes=notes)
    drawn = [n.name for n in networks if n.method in DRAWN]
    risk.write(found, folder, [*drawn, *(name for name in found.risks if name == risk.ENSEMBLE)])
    return found


def _ticket(experiment: Experiment, model: models.Model, sets: risk.Sets, plan: Plan, tick: Any) -> Iterator[Network]:
    """The ticket, searched when it is asked for."""
    key = jax.random.fold_in(jax.random.key(plan.seed), 2)
    batches = partial(experiment.batches, 0)
    told = partial(tick, tickets.TICKET)
    yield tickets.best(
        model, experiment.fixed, experiment.initial(), batches, sets.validation, steps=plan.steps, key=key, tick=told
    )


def _kept(chosen: pixels.Pixels) -> str:
    return f"The input was pruned first, to {chosen.kept.sum()} of {chosen.kept.size} pixels (# stayed):\n{chosen}"


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
    test = images.test
    if kept.get("pixels"):
        test = pixels.Pixels(np.array(kept["pixels"]), np.empty(0)).apply(test[0]), test[1]
    result = measure(_model(kept), Network(kept["network"], 0.0, params, masks), test)
    notes = (reporting.data_line(images.origin), _verdict(result, images.origin, kept))
    return str(assess.comparison_table([result], notes=notes))


def _verdict(result: assess.ModelResult, origin: dict[str, Any], kept: dict[str, Any]) -> str:
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
