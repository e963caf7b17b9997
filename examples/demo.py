"""Train a CNN on real images, prune it in several ways, make it smaller, and compare; or evaluate a saved network.

    python examples/demo.py                                    digits of scikit-learn, about two minutes on two cores
    python examples/demo.py --data-dir FOLDER                  MNIST or the like, as four IDX files
    python examples/demo.py --dataset fashion_mnist            from the catalogue of tensorflow-datasets
    python examples/demo.py --model nnx --seed 1 --output new  the network in NNX, another seed, a folder of your choice
    python examples/demo.py --evaluate new/checkpoints/gradual-95

Read `main_job/experiment.py` next: what pruning takes is one line of an optimizer, and one call for a smaller network.
`main_job/report.py` measures and tells; the other files are what any training needs: networks, images, files.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from main_job import data
from main_job.files import ProblemError, load_about, load_network, need, new_folder, save_network

CHECKPOINTS = "checkpoints"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="demo.py", description="Train a CNN on real images, prune it, compare.")
    add = made.add_argument
    source = made.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset", metavar="NAME", help=f"{', '.join(data.NAMES)} (default: digits, needs no network)"
    )
    source.add_argument("--data-dir", type=Path, metavar="FOLDER", help="use the four IDX files in this folder instead")
    kinds = ("linen", "nnx")  # networks.NAMES, without waiting for JAX
    add("--model", choices=kinds, default="linen", help="the network in Flax Linen or in NNX (default: linen)")
    add("--output", type=Path, metavar="FOLDER", help="a new folder for the results (default: output/demo-TIME)")
    prepared = "prepared data (default: %(default)s)"
    add("--cache", type=Path, default=data.default_cache(), metavar="FOLDER", help=prepared)
    add("--seed", type=_natural, default=0, help="of parameters, batches and random masks (default: 0)")
    add("--steps", type=_positive, default=500, help="training steps of each phase (default: 500)")
    add(
        "--pixels",
        type=_fraction,
        default=1.0,
        metavar="FRACTION",
        help="prune the input first: keep this fraction of the pixels, and show which (default: 1, all)",
    )
    add("--quick", action="store_true", help="few networks and steps: to see that it runs, not how good it is")
    add("--evaluate", type=Path, metavar="CHECKPOINT", help="evaluate a checkpoint of an earlier run; trains nothing")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: The command line, without the program's name; by default that of the process.

    Returns:
        The exit code: 0, 2 if something is for the user to put right, 130 if interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        print(evaluate(options) if options.evaluate else train(options))
    except ProblemError as problem:
        print(f"demo.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo.py: interrupted; nothing was kept.", file=sys.stderr)
        return 130
    return 0


def train(options: argparse.Namespace) -> str:
    """Train, prune, measure, and write everything into a new folder.

    Returns:
        What to show: the table, the risk report, and where the results lie.

    Raises:
        ProblemError: If something is for the user to put right; then nothing was written.
    """
    began = time.perf_counter()
    for package in ("tqdm", "matplotlib.figure", "safetensors"):  # before there is work that could be lost
        need(package)
    output = options.output or Path("output") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    with new_folder(output) as unfinished:
        images = data.load(options.dataset or "digits", folder=_folder(options), cache=options.cache)
        shown = _train_into(unfinished, options, images, began)
    again = f"Evaluate a network again: python examples/demo.py --evaluate {output / CHECKPOINTS / 'gradual-95'}"
    return f"{shown}\n{time.perf_counter() - began:.0f} s in all. Report, plots and networks: {output}\n{again}"


def _train_into(folder: Path, options: argparse.Namespace, images: data.Images, began: float) -> str:
    from main_job import experiment, pixels, report

    plan = experiment.QUICK if options.quick else experiment.Plan(steps=options.steps)
    plan = plan._replace(seed=options.seed)
    source = str(_folder(options)) if _folder(options) else None
    about = {
        "model": options.model,
        "classes": images.classes,
        "image shape": list(images.train[0].shape[1:]),
        "mean": float(images.train[0].mean()),
        "deviation": float(images.train[0].std()),
        "dataset": options.dataset or "digits",
        "folder": source,
        "data": images.origin,
    }
    notes = [report.data_line(images.origin), experiment.TICKET_CHOICE]
    print(notes[0], flush=True)
    sets = report.Sets(*data.hold_out(images.train), images.test)
    if options.pixels < 1:
        chosen = pixels.choose(sets.train, options.pixels, classes=images.classes, seed=plan.seed)
        sets = report.Sets(*((chosen.apply(x), y) for x, y in sets))
        about["pixels"] = chosen.kept.tolist()
        count = f"{chosen.kept.sum()} of {chosen.kept.size} pixels"
        notes.append(f"The input was pruned first, to {count} (# stayed):\n{chosen}")
        print(f"{count} stay:\n{chosen}", flush=True)
    model, networks, results, sizes = _model(about), [], [], {}
    with need("tqdm").tqdm(total=plan.total_steps, unit="step", dynamic_ncols=True) as bar:

        def tick(phase: str, loss: float) -> None:
            bar.set_description(phase, refresh=False)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()

        made = experiment.Experiment(model, sets.train, sets.validation, plan, tick)
        for network in made.networks():
            result = report.measure(network, sets.test)
            scores = result.metrics.as_dict() if result.metrics else {}
            more = {"network": network.name, "manifest": network.manifest, "scores": scores}
            place = folder / CHECKPOINTS / network.slug
            sizes[network.name] = save_network(place, network.params, network.masks, {**about, **more})
            networks.append(network)
            results.append(result)
    times = report.latencies(report.timed(networks), sets.test[0][:128])
    measured = [
        (n, dataclasses.replace(r, extra=_extra(r.extra, sizes[n.name], times.get(n.name))))
        for n, r in zip(networks, results, strict=True)
    ]
    seconds = {"compiling": made.compile_seconds, "in all": time.perf_counter() - began}
    table = report.write(folder, measured, {**about, "plan": plan._asdict(), "seconds": seconds, **_machine()})
    draws = 200 if options.quick else 2000
    risk = report.risk_report(networks, sets, times, seed=plan.seed, draws=draws, notes=notes)
    report.write_risk(risk, folder, networks)
    return f"{table}\n\n{risk}"


def evaluate(options: argparse.Namespace) -> str:
    """Evaluate a saved network, on the data that it was trained with or on the data that the options name.

    Returns:
        What to show: the row of the table, and whether the numbers are those that were saved.

    Raises:
        ProblemError: If there is no such checkpoint, or its data are not there any more, or do not fit it.
    """
    import jax
    import numpy as np
    from main_job import experiment, pixels, report

    import jaxprune
    from jaxprune import assess, slimming

    about = load_about(options.evaluate)
    if options.dataset or options.data_dir:
        name, folder = options.dataset or "digits", _folder(options)
    else:
        name, folder = about["dataset"], Path(about["folder"]) if about["folder"] else None
    images = data.load(name, folder=folder, cache=options.cache)
    shape, classes = list(images.test[0].shape[1:]), images.classes
    if (shape, classes) != (about["image shape"], about["classes"]):
        takes = f"images of {about['image shape']} in {about['classes']} classes, not {shape} in {classes}"
        raise ProblemError(f"{options.evaluate} takes {takes}: choose other data with --dataset or --data-dir.")
    model, test = _model(about), images.test
    apply, like = model.apply, jax.eval_shape(model.init, jax.random.key(0))
    if about["manifest"]:
        manifest = slimming.Manifest.from_json(about["manifest"])
        apply, like, _ = jaxprune.slim(apply, like, manifest, jax.ShapeDtypeStruct((1, *shape), test[0].dtype))
    params, masks = load_network(options.evaluate, like)
    if about.get("pixels"):
        test = pixels.Pixels(np.array(about["pixels"]), np.empty(0)).apply(test[0]), test[1]
    result = report.measure(experiment.Network(about["network"], 0.0, apply, params, masks), test)
    notes = (report.data_line(images.origin), _verdict(result, images.origin, about))
    return str(assess.comparison_table([result], notes=notes))


def _verdict(result: Any, origin: dict[str, Any], about: dict[str, Any]) -> str:
    from main_job import report

    if origin["sha256"] != about["data"]["sha256"]:
        return f"These are not the data it was trained with, which were: {report.data_line(about['data'])}"
    scores = result.metrics.as_dict() if result.metrics else {}
    if scores == about["scores"]:
        return "The numbers are those of the report, to the last bit."
    gap = max(abs(scores[key] - about["scores"][key]) for key in scores)
    return f"The numbers differ from those of the report by up to {gap:.1e}: another machine, or other versions?"


def _model(about: dict[str, Any]) -> Any:
    from main_job import networks

    height, width, channels = about["image shape"]
    made = networks.make(about["model"], (height, width, channels), about["classes"])
    return networks.scaled(made, about["mean"], about["deviation"])


def _extra(extra: Any, size: int, milliseconds: float | None) -> dict[str, Any]:
    return {**extra, "kB": round(size / 1000, 1)} | ({"milliseconds": milliseconds} if milliseconds else {})


def _machine() -> dict[str, Any]:
    import jax

    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def _folder(options: argparse.Namespace) -> Path | None:
    return options.data_dir.absolute() if options.data_dir else None


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^32 - 1")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction above 0 and up to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
