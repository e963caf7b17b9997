"""What sparse training costs: RigL beside static masks, and a ticket search over seeds beside single ones.

    python benchmarks/bench_sparse_training.py --output output/bench

RigL: stretches of 100 steps of Adam, each with one update of the masks, in turn with stretches under static masks; the
ratio is taken within a round, and its median over the rounds is reported with the quartiles. Tickets: a whole search
vmapped over the seeds against one compiled search called seed by seed, in turn; compilation is told apart. The network
is LeNet-300-100 on random images, with batches of 60.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import lottery, training

PyTree = Any
BATCH, RATE = 60, 1.2e-3


def init(key: Any, sizes: tuple[int, ...]) -> PyTree:
    keys = jax.random.split(key, len(sizes) - 1)
    draw = jax.nn.initializers.glorot_normal()
    return {f"{i}": {"kernel": draw(k, sizes[i : i + 2]), "bias": jnp.zeros(sizes[i + 1])} for i, k in enumerate(keys)}


def loss(params: PyTree, images: jax.Array, labels: jax.Array) -> jax.Array:
    x = images
    for i in range(len(params)):
        x = (jax.nn.relu(x) if i else x) @ params[f"{i}"]["kernel"] + params[f"{i}"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()


def steps(optimizer: Any, carry: tuple[PyTree, PyTree], images: jax.Array, labels: jax.Array) -> tuple[PyTree, PyTree]:
    """One pass over the batches [n, BATCH, ...]."""

    def step(carry: tuple[PyTree, PyTree], batch: tuple[jax.Array, jax.Array]) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, carry, (images, labels))[0]


def rigl(sizes: tuple[int, ...], batches: tuple[jax.Array, jax.Array], rounds: int, batch: int) -> dict[str, Any]:
    """RigL's seconds over those of static masks, round by round."""
    key, every = jax.random.key(0), len(batches[0])
    methods = {
        "static": training.static(0.9, key=key),
        "static again": training.static(0.9, key=key),  # the noise of the comparison
        "RigL": training.rigl(0.9, 10**6, key=key, every=every),
    }
    run: dict[str, Callable[..., Any]] = {}
    held: dict[str, Any] = {}
    for name, method in methods.items():
        optimizer = jaxprune.sparsify(optax.adam(RATE), method)
        params = init(key, sizes)
        state = optimizer.init(params)
        stretch = jax.jit(lambda p, s, x, y, o=optimizer: steps(o, (p, s), x, y), donate_argnums=(0, 1))
        run[name] = stretch.lower(params, state, *batches).compile()
        held[name] = jax.block_until_ready(run[name](params, state, *batches))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for i in range(rounds):
        names = list(methods)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            held[name] = jax.block_until_ready(run[name](*held[name], *batches))
            seconds[name].append(time.perf_counter() - began)
    static = np.array(seconds["static"])
    ratios = {name: np.percentile(np.array(s) / static, [25, 50, 75]).tolist() for name, s in seconds.items()}
    return {"batch": batch, "milliseconds": float(1e3 * np.median(static) / every), "ratios": ratios}


def tickets(
    sizes: tuple[int, ...], batches: tuple[jax.Array, jax.Array], seeds: int, rounds: int, repeats: int
) -> dict[str, Any]:
    """Seconds of one vmapped search, and of as many single ones."""

    def search(key: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        def train(params: PyTree, held: PyTree, key: Any) -> PyTree:
            optimizer = jaxprune.sparsify(optax.adam(RATE), training.fixed(held))
            order = jax.random.permutation(key, len(images))
            return steps(optimizer, (params, optimizer.init(params)), images[order], labels[order])[0]

        found = lottery.iterative_pruning(train, init(key, sizes), rounds=rounds, key=key)
        return found.ticket.params["0"]["kernel"].sum((1, 2))

    keys = jax.random.split(jax.random.key(1), seeds)
    began = time.perf_counter()
    single = jax.jit(search).lower(keys[0], *batches).compile()
    middle = time.perf_counter()
    many = jax.jit(jax.vmap(search, in_axes=(0, None, None))).lower(keys, *batches).compile()
    compiling = {"single": middle - began, "vmapped": time.perf_counter() - middle}
    seconds: dict[str, list[float]] = {"single": [], "vmapped": []}
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready([single(key, *batches) for key in keys])
        middle = time.perf_counter()
        jax.block_until_ready(many(keys, *batches))
        seconds["single"].append(middle - began)
        seconds["vmapped"].append(time.perf_counter() - middle)
    ratios = np.array(seconds["vmapped"]) / np.array(seconds["single"])
    return {"seconds": seconds, "compiling": compiling, "ratio": np.percentile(ratios, [25, 50, 75]).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 300, 100, 10])
    parser.add_argument("--small", type=int, nargs="+", default=[64, 32, 16, 10], help="for tickets, a small network")
    parser.add_argument("--steps", type=int, default=100, help="in a stretch, and between two updates of RigL")
    parser.add_argument("--rounds", type=int, default=15, help="of the comparison")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="of the ticket searches")
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds: does it run at all")
    parser.add_argument("--output", type=Path, help="a folder to write sparse_training.json into")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.small, options.steps, options.rounds = [16, 8, 4], None, 10, 2
        options.seeds, options.repeats = 2, 1
    machine = f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device, jax {jax.__version__}"
    print(f"Sparse training ({machine}; medians, quartiles in brackets)")
    report: dict[str, Any] = {"machine": machine, "rigl": [], "tickets": []}

    def data(inputs: int, batch: int) -> tuple[jax.Array, jax.Array]:
        shape = options.steps, batch
        return jax.random.uniform(jax.random.key(2), (*shape, inputs)), jax.random.randint(
            jax.random.key(3), shape, 0, 10
        )

    for batch in (BATCH,) if options.quick else (BATCH, 4 * BATCH):
        row = rigl(tuple(options.sizes), data(options.sizes[0], batch), options.rounds, batch)
        report["rigl"].append(row)
        for name, (low, middle, high) in row["ratios"].items():
            step = f"{name}, {row['milliseconds']:.2f} ms a static step of {batch}"
            print(f"{step:>50}  {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)
    for sizes in filter(None, (options.sizes, options.small)):
        row = tickets(tuple(sizes), data(sizes[0], BATCH), options.seeds, 2, options.repeats)
        report["tickets"].append({"sizes": sizes} | row)
        low, middle, high = row["ratio"]
        compiling = ", ".join(f"{name} {taken:.1f} s" for name, taken in row["compiling"].items())
        name = f"tickets of {'-'.join(map(str, sizes))}, {options.seeds} seeds at once"
        print(f"{name:>50}  {middle:.3f} ({low:.3f} to {high:.3f}) of one by one; compiled in: {compiling}", flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "sparse_training.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
