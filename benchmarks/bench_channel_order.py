"""2:4 of a trained ResNet-20 before and after the search for an order of channels, without any training.

    python benchmarks/bench_channel_order.py --data ../shared/data

reads what examples/sparsegpt_resnet20.py reads. A seed draws the calibration images from the first half, and the pairs
of stripes that the search tries. For each method it prints the share of the kernels' magnitude that 2:4 keeps, the
squared output error relative to the output, and the accuracy on the second half with the old batch statistics and with
statistics of crops of the calibration images.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import criteria, masks, slimming
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import recalibrate_statistics, reconstruct, relative_errors

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from sparsegpt_resnet20 import KERNELS, accuracy, apply, as_in_training, images, network

PyTree = Any
METHODS = ("magnitude", "wanda", "least_squares", "sparsegpt")


def measured(params: PyTree, x: np.ndarray, labels: np.ndarray, seed: int, size: int) -> dict[str, list[float]]:
    """By order, criterion and method: kept magnitude, error, and accuracy with old and new statistics."""
    half, rng = len(x) // 2, np.random.default_rng(seed)
    chosen = x[rng.permutation(half)[:size]]
    batches = [chosen[i : i + 250] for i in range(0, size, 250)]
    crops = [as_in_training(b, rng) for b in batches * 2]
    fn = lambda p, b: apply(p, p, b, train=False)[0]
    update = lambda r, b: apply(b[0], r, b[1], train=True)[1]
    stats = calibrate(fn, params, batches, where=KERNELS)
    trees = {"as trained": params}
    for name, criterion in (("by magnitude", criteria.magnitude), ("by Wanda", criteria.wanda)):
        began = time.perf_counter()
        key = jax.random.key(seed)
        trees[name] = slimming.permute_channels(
            fn, params, 2, 4, batches[0][:8], key=key, criterion=criterion, stats=stats
        )
        print(f"seed {seed}: order {name}, {time.perf_counter() - began:.1f} s", flush=True)
    found: dict[str, list[float]] = {}
    for order, tree in trees.items():
        stats = calibrate(fn, tree, batches, where=KERNELS)
        names = ["/".join(name) for name in stats.inputs]
        total = sum(float(jnp.abs(tree[name]).sum()) for name in names)
        for method in METHODS:
            new = reconstruct(tree, stats, method=method, pattern=masks.NM(2, 4))
            kept = sum(float(jnp.where(new.masks[name], jnp.abs(tree[name]), 0).sum()) for name in names)
            error = np.mean(list(relative_errors(tree, new.params, stats).values()))
            running = {name: leaf for name, leaf in new.params.items() if "running" in name}
            fresh = recalibrate_statistics(update, running, [(new.params, b) for b in crops])
            right = [accuracy(new.params, r, x[half:], labels[half:]) for r in (running, fresh)]
            found[f"{order} | {method}"] = [kept / total, float(error), *right]
            print(f"seed {seed}: {order}, {method}: {found[f'{order} | {method}']}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with resnet20_cifar10 and cifar10_jpeg")
    parser.add_argument("--calibration", type=int, default=1000, help="how many images to calibrate on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    x, labels = images(options.data / "cifar10_jpeg" / "half_a_5000.npz")
    params, running = network(options.data / "resnet20_cifar10" / "weights.npz")
    print("dense", accuracy(params, running, x[len(x) // 2 :], labels[len(x) // 2 :]))
    params |= running  # the search reorders the statistics with the channels
    each = [measured(params, x, labels, seed, options.calibration) for seed in options.seeds]
    print("| order | method | kept magnitude | error | accuracy | with new statistics |\n|---|---|---|---|---|---|")
    for name in each[0]:
        columns = np.array([found[name] for found in each]).T
        shown = [f"{np.mean(c):.2%} ({min(c):.2%} to {max(c):.2%})" for c in columns]
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
