"""How the demo's learning rate was chosen: on images held out of the training images; the test images are not read.

    python benchmarks/demo_rate.py

Trains the demo's dense network and its gradually pruned one on four fifths of the training digits, at each rate, and
prints the accuracy and the NLL on the other fifth, as mean and standard deviation over seeds.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from main_job import data, experiment, networks
from main_job.networks import Trainer, batches, predict, scaled

from jaxprune import assess

Pair = tuple[np.ndarray, np.ndarray]


def outcomes(model: networks.Model, train: Pair, held: Pair, rate: float, seed: int, options: Any) -> list[list[float]]:
    """Accuracy and NLL of the dense and of the pruned network."""
    experiment.RATE = rate
    run = lambda optimizer, phase, start, choice: Trainer(model, partial(optimizer, options.steps)).run(
        start, choice, batches(*train, steps=options.steps, size=128, seed=[seed, phase]), lambda loss: None
    )
    dense = run(experiment.dense, 0, model.init(jax.random.key(seed)), None)
    pruned = run(experiment.gradual, 1, dense.params, options.sparsity)
    scores = [assess.evaluate(predict(model.apply, fit.params, held[0]), held[1]) for fit in (dense, pruned)]
    return [[float(s.accuracy), float(s.nll)] for s in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--cache", type=Path, default=Path("output/data"))
    options = parser.parse_args()
    images = data.load("digits", folder=None, cache=options.cache)
    pixels, labels = images.train
    cut = len(pixels) * 4 // 5
    train, held = (pixels[:cut], labels[:cut]), (pixels[cut:], labels[cut:])
    height, width, channels = pixels.shape[1:]
    model = networks.make("linen", (height, width, channels), images.classes)
    model = scaled(model, float(train[0].mean()), float(train[0].std()))
    print(f"{cut} digits trained on, {len(labels) - cut} held out, {options.seeds} seeds: accuracy, NLL (mean ± sd)")
    for rate in options.rates:
        found = np.array([outcomes(model, train, held, rate, seed, options) for seed in range(options.seeds)])
        mean, spread = found.mean(0), found.std(0, ddof=1)
        for row, name in enumerate(("dense", f"gradual {options.sparsity:.0%}")):
            shown = [f"{m:.4f} ± {s:.4f}" for m, s in zip(mean[row], spread[row], strict=True)]
            print(f"rate {rate:<8g}{name:14}{'   '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
