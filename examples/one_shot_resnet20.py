"""One-shot magnitude pruning of a trained ResNet-20: how a sparsity is shared among layers decides what is left.

    python examples/one_shot_resnet20.py --data ../shared/data --output output/one_shot

reads what sparsegpt_resnet20.py reads. For each allocation and sparsity it removes the smallest weights of all
convolutions and of the classifier, without training or repair, and prints the accuracy. The network is one, so the
spread is that of the images: the standard error of each accuracy and, beside it, of its difference to uniform on the
same images. Writes one_shot.json and one_shot.png; rows found there are not measured again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sparsegpt_resnet20 import apply, images, network

import jaxprune
from jaxprune import allocation, assess

ALLOCATIONS = {
    "uniform": allocation.uniform,
    "ERK": allocation.erk,
    "LAMP": allocation.lamp,
    "global": allocation.one_ranking,
}


@jax.jit
def hits(params: Any, running: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Which images are classified right."""
    return apply(params, running, x, train=False)[0].argmax(-1) == labels


def measure(params: Any, running: Any, x: np.ndarray, labels: np.ndarray) -> list[bool]:
    parts = [hits(params, running, x[i : i + 500], labels[i : i + 500]) for i in range(0, len(x), 500)]
    return np.concatenate(parts).tolist()


def line(sparsity: float, name: str, kept: int, found: list[bool], uniform: list[bool]) -> str:
    right, gain = np.array(found, float), np.subtract(found, uniform, dtype=float)
    error, gain_error = (x.std(ddof=1) / np.sqrt(len(x)) for x in (right, gain))
    beside = "" if name in ("dense", "uniform") else f"  {100 * gain.mean():+6.1f} ({100 * gain_error:.1f})"
    return f"{sparsity:8.0%}  {name:8} {kept:8}  {right.mean():.3f} ({error:.3f}){beside}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with resnet20_cifar10 and cifar10_jpeg")
    parser.add_argument("--output", type=Path, required=True, help="a folder for one_shot.json and one_shot.png")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--test", type=int, default=5000, help="how many of the 5000 images")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    x, labels = (array[: options.test] for array in images(options.data / "cifar10_jpeg" / "half_a_5000.npz"))
    params, running = network(options.data / "resnet20_cifar10" / "weights.npz")
    note = options.output / "one_shot.json"
    rows = json.loads(note.read_text()) if note.exists() else {}

    def row(name: str, sparsity: float) -> tuple[int, list[bool]]:
        label = json.dumps([name, sparsity, options.test])
        if label not in rows:
            pruned = jaxprune.prune(params, sparsity, allocation=ALLOCATIONS.get(name, allocation.uniform))
            kept = sum(int(mask.sum()) for mask in jax.tree.leaves(pruned.masks) if mask.ndim)
            rows[label] = kept, measure(pruned.params, running, x, labels)
            note.write_text(json.dumps(rows) + "\n")
        return rows[label]

    print(f"{len(x)} images (standard error)")
    print("sparsity  shares       kept  accuracy        points above uniform")
    kept, dense = row("dense", 0.0)
    print(line(0.0, "dense", kept, dense, dense), flush=True)
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in ALLOCATIONS}
    for sparsity in options.sparsities:
        _, uniform = row("uniform", sparsity)
        for name in ALLOCATIONS:
            kept, found = row(name, sparsity)
            curves[name].append((sparsity, float(np.mean(found))))
            print(line(sparsity, name, kept, found, uniform), flush=True)
    figure = assess.plots.accuracy_by_sparsity(curves, dense=float(np.mean(dense)))
    figure.savefig(options.output / "one_shot.png", dpi=150)


if __name__ == "__main__":
    main()
