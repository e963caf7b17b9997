"""Pruning before training: does a layer collapse? SynFlow beside SNIP, GraSP, magnitude and random masks on MNIST.

    python examples/at_initialisation_mnist.py --data ../shared/data/mnist --output output/at_initialisation

For LeNet-300-100 and for a deeper network it prunes the first weights once, to extreme sparsities, and prints for each
layer how many weights are left and how many of these lie on a path from an input to an output (the others can neither
act nor learn). LeNet is then trained under the masks. Prints and writes at_initialisation.json; rows found there are
not run again.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lenet_mnist import WIDTHS, Data, Split, apply, fit, init, load, loss

import jaxprune
from jaxprune import allocation, criteria, masks, training

PyTree = Any
NETWORKS = {"LeNet-300-100": WIDTHS, "9 layers of 100": (100,) * 8 + (10,)}


def random(params: PyTree, sparsity: float, batch: Split, key: Any) -> PyTree:
    return jaxprune.prune(params, sparsity, criterion=criteria.random, allocation=allocation.erk, key=key).masks


def magnitude(params: PyTree, sparsity: float, batch: Split, key: Any) -> PyTree:
    return jaxprune.prune(params, sparsity, allocation=allocation.one_ranking).masks


def snip(params: PyTree, sparsity: float, batch: Split, key: Any) -> PyTree:
    grads = jax.grad(loss)(params, batch)
    return jaxprune.prune(
        params, sparsity, criterion=criteria.snip, grads=grads, allocation=allocation.one_ranking
    ).masks


def grasp(params: PyTree, sparsity: float, batch: Split, key: Any) -> PyTree:
    last = f"dense_{len(params) - 1}"
    # The paper's temperature: logits over 200.
    cool = lambda p, split: loss({**p, last: jax.tree.map(lambda x: x / 200, p[last])}, split)
    return jaxprune.prune(
        params, sparsity, criterion=criteria.grasp(cool, batch), allocation=allocation.one_ranking
    ).masks


def synflow(params: PyTree, sparsity: float, batch: Split, key: Any) -> PyTree:
    return criteria.synflow_masks(apply, params, sparsity, jnp.ones((1, batch.images.shape[1])))


WAYS: dict[str, Callable[..., PyTree]] = {
    "random, ERK": random, "magnitude": magnitude, "SNIP": snip, "GraSP": grasp, "SynFlow": synflow,
}  # fmt: skip


def on_a_path(params: PyTree, held: PyTree) -> PyTree:
    """The kept weights through which something flows when all weights and inputs are positive."""
    ones = jax.tree.map(lambda w: jnp.ones_like(w) if w.ndim > 1 else jnp.zeros_like(w), params)
    inputs = jnp.ones((1, len(params["dense_0"]["kernel"])))
    flow = jax.grad(lambda p: apply(p, inputs).sum())(masks.apply(ones, held))
    return jax.tree.map(lambda f, m: m & (f > 0), flow, held)


def one(way: Callable[..., PyTree], sparsity: float, widths: tuple[int, ...], steps: int, key: Any, data: Data) -> Any:
    """Kept and live weights of each layer and, where there are steps, the accuracy; traceable."""
    first, drawn, order = jax.random.split(key, 3)
    params = init(first, data.train.images.shape[1], widths)
    batch = Split(data.train.images[:1000], data.train.labels[:1000])
    held = way(params, sparsity, batch, drawn)
    count = lambda found: jnp.stack([found[f"dense_{i}"]["kernel"].sum() for i in range(len(widths))])
    result = {"kept": count(held), "live": count(on_a_path(params, held))}
    if steps:
        params, _, _ = fit(params, training.fixed(held), order, data, steps=steps, look_every=steps)
        right = apply(params, data.test.images).argmax(-1) == data.test.labels
        result["accuracy"] = right.mean()
    return result


def line(network: str, sparsity: float, name: str, found: dict[str, list]) -> str:
    kept, live = (np.array(found[what]) for what in ("kept", "live"))
    lost = f"{int((live.min(1) == 0).sum())} of {len(kept)}"
    accuracy = ""
    if "accuracy" in found:
        accuracy = f"  {np.mean(found['accuracy']):.2%} ({100 * np.std(found['accuracy'], ddof=1):.2f})"
    smallest = f"{kept.min(1).mean():8.1f}  {live.sum(1).mean() / kept.sum(1).mean():6.1%}"
    return f"{network:15}  {sparsity:8.2%}  {name:11}  {lost:>12}  {smallest}{accuracy}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four IDX files")
    parser.add_argument("--output", type=Path, required=True, help="a folder for at_initialisation.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.99, 0.995, 0.999])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=2000, help="of LeNet's training; 0 for none")
    parser.add_argument("--size", type=int, help="only so many images of each split")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    data = load(options.data, size=options.size)
    note = options.output / "at_initialisation.json"
    rows = json.loads(note.read_text()) if note.exists() else {}
    keys = jnp.stack([jax.random.key(seed) for seed in options.seeds])
    print(f"{len(keys)} seeds; LeNet trained for {options.steps} steps, accuracy (standard deviation)")
    print("network          sparsity  masks        lost a layer  smallest    live  accuracy")
    for network in options.networks:
        widths = NETWORKS[network]
        steps = options.steps if widths == WIDTHS else 0
        for sparsity in options.sparsities:
            for name, way in WAYS.items():
                label = json.dumps([network, sparsity, name, steps, options.size, options.seeds])
                if label not in rows:
                    run = jax.jit(jax.vmap(partial(one, way, sparsity, widths, steps), in_axes=(0, None)))
                    rows[label] = jax.tree.map(lambda x: np.asarray(x).tolist(), run(keys, data))
                    note.write_text(json.dumps(rows, indent=1) + "\n")
                print(line(network, sparsity, name, rows[label]), flush=True)


if __name__ == "__main__":
    main()
