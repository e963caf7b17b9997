"""The command line of the demo: what was asked for, and one sentence where it cannot be done."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import data, models
from .problems import ProblemError

QUICK_STEPS = 12


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="demo.py", description="Train a CNN on real images, prune it, compare.")
    add = made.add_argument
    source = made.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset", metavar="NAME", help=f"{', '.join(data.NAMES)} (default: digits, needs no network)"
    )
    source.add_argument("--data-dir", type=Path, metavar="FOLDER", help="use the four IDX files in this folder instead")
    add("--model", choices=models.NAMES, default="linen", help="the network in Flax Linen or in NNX (default: linen)")
    add("--output", type=Path, metavar="FOLDER", help="a new folder for the results (default: output/demo-TIME)")
    add(
        "--cache",
        type=Path,
        default=data.default_cache(),
        metavar="FOLDER",
        help="prepared data (default: %(default)s)",
    )
    add("--seed", type=_natural, default=0, help="of parameters, batches and random masks (default: 0)")
    add("--steps", type=_positive, default=500, help="training steps of each phase (default: 500)")
    add(
        "--pixels",
        type=_fraction,
        default=1.0,
        metavar="FRACTION",
        help="prune the input first: keep this fraction of the pixels, and show which (default: 1, all)",
    )
    add("--quick", action="store_true", help=f"{QUICK_STEPS} steps instead: to see that it runs, not how good it is")
    add("--evaluate", type=Path, metavar="CHECKPOINT", help="evaluate a checkpoint of an earlier run; trains nothing")
    return made


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^32 - 1")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction above 0 and up to 1")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: The command line, without the program's name; by default that of the process.

    Returns:
        The exit code: 0, 2 if something is for the user to put right, 130 if interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        _evaluate(options) if options.evaluate else _train(options)
    except ProblemError as problem:
        print(f"demo.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo.py: interrupted; nothing was kept.", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    from . import job
    from .experiment import Plan

    output = options.output or Path("output") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    steps = QUICK_STEPS if options.quick else options.steps
    plan = Plan(seed=options.seed, steps=steps)
    request = job.Request(
        **_data(options), model=options.model, plan=plan, pixels=options.pixels, resamples=20 if options.quick else 1000
    )
    print(job.train(request, output, cache=options.cache))


def _evaluate(options: argparse.Namespace) -> None:
    from . import job

    other = _data(options) if options.dataset or options.data_dir else None
    print(job.evaluate(options.evaluate, other, cache=options.cache))


def _data(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.data_dir.absolute() if options.data_dir else None
    return {"dataset": options.dataset or "digits", "folder": folder}
