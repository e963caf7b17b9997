"""Sparse training of LeNet-300-100 on MNIST: static masks, SET, RigL, and gradual pruning at the same sparsity.

    python examples/sparse_training_mnist.py --data ../shared/data/mnist --output output/sparse_training

All methods keep exactly as many weights in each layer, shared out by Erdos-Renyi-kernel. The first three never have
more; gradual pruning starts dense. Each row is one jitted training, vmapped over the seeds (first weights, masks, order
of the images). Prints test results and writes them to sparse_training.json; rows found there are not run again.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lenet_mnist import Data, apply, fit, init, load

from jaxprune import allocation, assess, masks, schedules, training

VALUES = "accuracy", "nll", "ece", "kept"


def methods(steps: int, every: int, end: float) -> dict[str, Callable[[float, Any], training.Method]]:
    """By name, what makes a method from a sparsity and a key. Masks change until `end`, a fraction of the steps."""
    last = int(end * steps)

    def static(sparsity: float, key: Any) -> training.Method:
        return training.static(sparsity, key=key)

    def set_(sparsity: float, key: Any) -> training.Method:
        when = schedules.every(every, every, last)
        return training.set_(sparsity, key=key, when=when, allocation=allocation.erk)

    def rigl(sparsity: float, key: Any) -> training.Method:
        return training.rigl(sparsity, steps, key=key, every=every, end=end)

    def gradual(sparsity: float, key: Any) -> training.Method:
        ramp, when = schedules.cubic(0, last, sparsity), schedules.every(every, 0, last)
        return training.gradual(ramp, when=when, allocation=allocation.erk)

    return {"static": static, "SET": set_, "RigL": rigl, "gradual": gradual}


def run(make: Callable[[Any], training.Method], seeds: Sequence[int], data: Data, steps: int) -> dict[str, list[float]]:
    """The test results of each seed, all trained in one vmapped program."""

    def one(key: Any, data: Data) -> dict[str, Any]:
        first, drawn, order = jax.random.split(key, 3)
        params = init(first, data.train.images.shape[1])
        params, held, _ = fit(params, make(drawn), order, data, steps=steps, look_every=steps)
        found = assess.evaluate(apply(params, data.test.images), data.test.labels)
        kept = jax.tree.map(lambda mask: mask.sum() if mask.ndim else 0, held)
        return {"accuracy": found.accuracy, "nll": found.nll, "ece": found.ece, "kept": sum(jax.tree.leaves(kept))}

    keys = jax.numpy.stack([jax.random.key(seed) for seed in seeds])
    found = jax.jit(jax.vmap(one, in_axes=(0, None)))(keys, data)
    return {name: np.asarray(found[name]).tolist() for name in VALUES}


def line(name: str, sparsity: float, found: dict[str, list[float]]) -> str:
    """Mean and, in brackets, standard deviation over the seeds."""
    value = {name: np.array(found[name], float) for name in VALUES}
    mean, spread = ({v: f(x) for v, x in value.items()} for f in (np.mean, partial(np.std, ddof=1)))
    return (
        f"{sparsity:8.1%}  {name:8}  {mean['kept']:7.0f}  {mean['accuracy']:.2%} ({100 * spread['accuracy']:4.2f})  "
        f"{mean['nll']:.4f} ({spread['nll']:.4f})  {mean['ece']:.4f} ({spread['ece']:.4f})"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four IDX files")
    parser.add_argument("--output", type=Path, required=True, help="a folder for sparse_training.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.95, 0.98, 0.99])
    names = list(methods(1, 1, 1.0))
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=100, help="steps between two updates of the masks")
    parser.add_argument("--end", type=float, default=0.75, help="the part of the steps after which masks stay")
    parser.add_argument("--size", type=int, help="only so many images of each split")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    data = load(options.data, size=options.size)
    note = options.output / "sparse_training.json"
    rows = json.loads(note.read_text()) if note.exists() else {}
    print(f"{len(options.seeds)} seeds, mean (standard deviation); {options.steps} steps")
    print("sparsity  method       kept  accuracy       NLL              ECE")
    dense = {"dense": lambda sparsity, key: training.fixed(masks.ones(init(key, data.train.images.shape[1])))}
    sparse = methods(options.steps, options.every, options.end)
    sparse = {name: sparse[name] for name in options.methods}
    for sparsity in [0.0, *options.sparsities]:
        for name, make in (sparse if sparsity else dense).items():
            asked = [sparsity, name, options.steps, options.every, options.end, options.size, options.seeds]
            label = json.dumps(asked)
            if label not in rows:
                rows[label] = run(partial(make, sparsity), options.seeds, data, options.steps)
                note.write_text(json.dumps(rows, indent=1) + "\n")
            print(line(name, sparsity, rows[label]), flush=True)


if __name__ == "__main__":
    main()
