"""Masks kept as bits beside masks kept as bytes: the time of a training step and the memory of the masks.

    python benchmarks/bench_packed.py --output output/bench

The network and the way of timing are those of `bench_step.py`: stretches of steps in turn, the ratio taken within a
round, the median over the rounds with the quartiles.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from bench_step import Network, in_turns, make_stretch

import jaxprune
from jaxprune import schedules, training


def variants() -> dict[str, Any]:
    """The same pruning, with masks as bytes (twice, which shows the noise) and as bits; and with updates in between."""
    adam = optax.adam(1e-3)
    never = training.gradual(schedules.jump(0.9), when=lambda step: step == 0)
    every_100 = training.gradual(schedules.jump(0.9), when=schedules.every(100))
    return {
        "bytes": jaxprune.sparsify(adam, never),
        "bytes again": jaxprune.sparsify(adam, never),
        "bits": jaxprune.sparsify(adam, never, packed=True),
        "bytes, update every 100": jaxprune.sparsify(adam, every_100),
        "bits, update every 100": jaxprune.sparsify(adam, every_100, packed=True),
    }


def measure(width: int, batch: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """A row for each variant: milliseconds, the ratio to the first, and the bytes of its masks."""
    images = jax.random.normal(jax.random.key(1), (batch, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
    model = Network(width)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    compared = variants()
    held = {name: jax.eval_shape(optimizer.init, shapes).masks for name, optimizer in compared.items()}
    stretches = {name: make_stretch(optimizer, model, images, labels) for name, optimizer in compared.items()}
    seconds = in_turns(stretches, rounds, steps)
    rows = []
    for name, values in seconds.items():
        low, middle, high = np.percentile(np.array(values) / np.array(seconds["bytes"]), [25, 50, 75])
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held[name]))
        rows.append({"variant": name, "ms": 1e3 * float(np.median(values)), "ratio": float(middle),
                     "quartiles": [float(low), float(high)], "mask_bytes": size})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="features of the first convolution")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=100, help="steps in a round; 100 holds one update of every 100")
    parser.add_argument("--quick", action="store_true", help="a small network and few rounds: does it run at all")
    parser.add_argument("--output", type=Path, help="a folder to write packed.json into")
    options = parser.parse_args()
    if options.quick:
        options.width, options.batch, options.rounds, options.steps = 2, 4, 2, 10
    rows = measure(options.width, options.batch, options.rounds, options.steps)
    print(f"A step with packed masks ({platform.machine()}, jax {jax.__version__}; {options.rounds} rounds)")
    print("| masks | ms | of bytes | quartiles | bytes of masks |")
    print("|---|---|---|---|---|")
    for row in rows:
        low, high = row["quartiles"]
        cells = [row["variant"], f"{row['ms']:.2f}", f"{row['ratio']:.3f}", f"{low:.3f} - {high:.3f}"]
        print("| " + " | ".join([*cells, f"{row['mask_bytes']:,}"]) + " |")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "packed.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
