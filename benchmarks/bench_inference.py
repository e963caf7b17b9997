"""Which zeros make a matrix product faster through XLA, and which do not: single entries, 2:4, blocks, channels.

    python benchmarks/bench_inference.py --output output/bench

Each contestant multiplies a batch by one kernel from which the same share of weights is gone. The dense product and the
contestant take turns; the table has medians (quartiles) of how many times less CPU time than dense it takes, below 1
for more.
`jax.experimental.sparse` has the only general sparse products of JAX, and its authors no longer develop it.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

import jaxprune
from jaxprune import masks

Product = tuple[Callable[..., jax.Array], tuple[Any, ...]]


def two_of_four(kernel: jax.Array) -> Product:
    """2:4 with the kept values and their positions packed: half the multiply-adds, and a gather of the inputs."""
    inputs, outputs = kernel.shape
    kept = jaxprune.prune({"w": kernel}, 0.5, pattern=masks.NM(2, 4, axis=0), where="w").masks["w"]
    place = np.argsort(~np.asarray(kept).reshape(inputs // 4, 4, outputs), axis=1, kind="stable")[:, :2]
    values = jnp.asarray(np.take_along_axis(np.asarray(kernel).reshape(inputs // 4, 4, outputs), place, axis=1))

    def product(x: jax.Array, values: jax.Array, place: jax.Array) -> jax.Array:
        fours = x.reshape(len(x), inputs // 4, 4)
        # Of each four inputs the two that an output keeps: [batch, fours, 2, outputs].
        found = jnp.take_along_axis(fours[..., None], place[None], axis=2)
        return jnp.einsum("bfko,fko->bo", found, values)

    return product, (values, jnp.asarray(place))


def blocks(kernel: jax.Array, size: int, sparsity: float) -> Product:
    """Square blocks, equally many in each column of blocks: a gather of whole blocks of inputs, and dense products."""
    rows, columns = (n // size for n in kernel.shape)
    tiles = np.asarray(kernel).reshape(rows, size, columns, size).transpose(2, 0, 1, 3)  # [columns, rows, size, size]
    keep = rows - int(sparsity * rows + 0.5)
    place = np.sort(np.argsort(-np.abs(tiles).sum((2, 3)), axis=1)[:, :keep], axis=1)  # [columns, keep]
    values = np.take_along_axis(tiles, place[:, :, None, None], axis=1)

    def product(x: jax.Array, values: jax.Array, place: jax.Array) -> jax.Array:
        parts = x.reshape(len(x), rows, size)[:, place]  # [batch, columns, keep, size]
        return jnp.einsum("bcki,ckio->bco", parts, values).reshape(len(x), -1)

    return product, (jnp.asarray(values), jnp.asarray(place))


def contestants(kernel: jax.Array, sparsity: float) -> dict[str, Product]:
    """Functions of the batch and of what is left of the kernel."""
    mask = masks.select({"w": jnp.abs(kernel)}, sparsity)["w"]
    zeros = jnp.where(mask, kernel, 0)
    dense = lambda x, w: x @ w
    keep = kernel.shape[1] - int(sparsity * kernel.shape[1] + 0.5)
    table: dict[str, Product] = {
        "zeros in a dense kernel": (dense, (zeros,)),
        "single entries, BCOO": (lambda x, w: (w.T @ x.T).T, (sparse.BCOO.fromdense(zeros),)),
        "blocks of 64 x 64": blocks(kernel, 64, sparsity),
        "channels": (dense, (kernel[:, :keep],)),
    }
    if sparsity == 0.5:
        table["2:4, packed"] = two_of_four(kernel)
    return table


def ratios(whole: Callable[[], Any], other: Callable[[], Any], rounds: int) -> np.ndarray:
    """How many times less CPU time the second takes in each round; other programs on the machine do not count."""
    seconds = np.zeros((rounds, 2))
    _ = jax.block_until_ready((whole(), other()))
    for row in seconds:
        for which, call in enumerate((whole, other)):
            began = time.process_time()
            _ = jax.block_until_ready(call())
            row[which] = time.process_time() - began
    return seconds[:, 0] / seconds[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="of the square kernel, a multiple of 64")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="a folder to write inference.json into")
    options = parser.parse_args()
    machine = f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device, jax {jax.__version__}"
    print(machine)
    kernel = jax.random.normal(jax.random.key(0), (options.size, options.size)) / options.size**0.5
    rows = []
    for batch in options.batches:
        x = jax.random.normal(jax.random.key(1), (batch, options.size))
        dense = jax.jit(lambda x, w: x @ w)
        for sparsity in options.sparsities:
            for name, (product, arrays) in contestants(kernel, sparsity).items():
                found = ratios(partial(dense, x, kernel), partial(jax.jit(product), x, *arrays), options.rounds)
                low, middle, high = map(float, np.quantile(found, [0.25, 0.5, 0.75]))
                row = f"batch {batch:4}, {sparsity:.0%} gone, {name:24} {middle:6.2f} ({low:.2f} to {high:.2f})"
                print(row, flush=True)
                rows.append({"batch": batch, "sparsity": sparsity, "case": name, "times": [low, middle, high]})
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "size": options.size, "rounds": options.rounds, "rows": rows}
        _ = (options.output / "inference.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
