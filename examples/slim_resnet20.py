"""A trained ResNet-20 made physically smaller: accuracy against FLOPs, before and after a short fine-tune.

    python examples/slim_resnet20.py --data ../shared/data

reads what sparsegpt_resnet20.py reads. For each way of scoring channels and each reduction of FLOPs it removes whole
channels of all groups by the same share, and prints the accuracy on held-out images at once, with batch statistics
re-estimated, and after a fine-tune on the other images (mean and spread over seeds: of the order of training, and of
the random choice); without training, but with the kept weights fitted to what is removed, at once and with batch
statistics re-estimated; and how much faster 100 images are than through the whole net, beside it in turns. With
`--save` what is done is kept, line by line, and a second run goes on from there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sparsegpt_resnet20 import apply, images, network

from jaxprune import calibrate, criteria, slimming
from jaxprune.reconstruction import recalibrate_statistics

PyTree = Any


def predict(variables: PyTree, x: jax.Array) -> jax.Array:
    return apply(variables["params"], variables["running"], x, train=False)[0]


def train_mode(variables: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
    return apply(variables["params"], variables["running"], x, train=True)


def loss(forward: Callable[..., Any], params: PyTree, running: PyTree, x: Any, labels: Any) -> tuple[Any, PyTree]:
    logits, running = forward({"params": params, "running": running}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), running


def unit_scores(groups: slimming.Groups, variables: PyTree, grads: PyTree, method: str, seed: int) -> np.ndarray:
    """Scores of channels: larger is kept."""
    if method == "random":
        return np.random.default_rng(seed).uniform(size=groups.size)
    kernels = "*conv*weight"
    if method == "fpgm":
        return slimming.geometric_median_scores(groups, variables, where=kernels)
    if method == "taylor":
        return slimming.group_scores(groups, criteria.gradient(variables, grads=grads), reduce="sum")
    scores = criteria.magnitude(variables)
    if method == "l1":
        return slimming.group_scores(groups, scores, reduce="sum", where=kernels)
    return slimming.group_scores(groups, scores, reduce="l2", where=lambda name, leaf: "running" not in name)


def tune(small: slimming.Slimmed, x: np.ndarray, labels: np.ndarray, epochs: int, rate: float, seed: int) -> PyTree:
    """A short fine-tune in training mode, its running statistics smaller as well."""
    forward = small.rebind(train_mode)
    batch = 125
    steps = epochs * (len(x) // batch)
    optimizer = optax.sgd(optax.cosine_decay_schedule(rate, max(steps, 1)), momentum=0.9)

    @jax.jit
    def step(variables: PyTree, state: PyTree, x: Any, labels: Any) -> tuple[PyTree, PyTree]:
        params, running = variables["params"], variables["running"]
        grads, running = jax.grad(partial(loss, forward), has_aux=True)(params, running, x, labels)
        updates, state = optimizer.update(grads, state, params)
        return {"params": optax.apply_updates(params, updates), "running": running}, state

    variables, state = small.params, optimizer.init(small.params["params"])
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in rng.permutation(len(x))[: len(x) // batch * batch].reshape(-1, batch):
            variables, state = step(variables, state, x[rows], labels[rows])
    return variables


def accuracy(run: Callable[..., Any], variables: PyTree, x: np.ndarray, labels: np.ndarray) -> float:
    found = [np.asarray(run(variables, x[i : i + 500])).argmax(-1) for i in range(0, len(x), 500)]
    return float((np.concatenate(found) == labels[: len(x)]).mean())


def faster(run: Callable[..., Any], variables: PyTree, thin: Callable[..., Any], own: PyTree, x: np.ndarray) -> float:
    """How many times faster the smaller net is than the whole one, in turns: the ratio of the medians."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(12):
        for seconds, call, v in ((times[0], run, variables), (times[1], thin, own)):
            started = time.perf_counter()
            _ = jax.block_until_ready(call(v, x[:100]))
            seconds.append(time.perf_counter() - started)
    return statistics.median(times[0][2:]) / statistics.median(times[1][2:])


class Setting(NamedTuple):
    """What every cell of the table shares."""

    variables: PyTree
    groups: slimming.Groups
    grads: PyTree
    stats: Any
    run: Callable[..., Any]
    training: tuple[np.ndarray, np.ndarray]
    held: tuple[np.ndarray, np.ndarray]


def cell(at: Setting, reduction: float, method: str, seed: int, epochs: int, rate: float) -> dict[str, float]:
    """Removes channels and measures what is left."""
    shape = jax.ShapeDtypeStruct((100, 32, 32, 3), jnp.float32)
    cost = slimming.costs.flops(predict, at.variables, shape)
    whole = cost(slimming.Choice.remove(at.groups, {}))
    scores = unit_scores(at.groups, at.variables, at.grads, method, seed)
    choice = slimming.choose(at.groups, scores, cost=cost, target=whole / reduction)
    small = slimming.slim(predict, at.variables, choice, shape)
    thin, forward = jax.jit(small.fn), small.rebind(train_mode)
    fitted = slimming.slim(predict, at.variables, choice, shape, stats=at.stats, compensate=True).params
    batches = [at.training[0][i : i + 500] for i in range(0, len(at.training[0]), 500)]
    moving = jax.jit(lambda params, running, x: forward({"params": params, "running": running}, x)[1])
    moved, fitted_moved = (
        {**v, "running": recalibrate_statistics(partial(moving, v["params"]), v["running"], batches)}
        for v in (small.params, fitted)
    )
    tuned = tune(small, *at.training, epochs, rate, seed)
    found = {
        "at once": small.params,
        "statistics": moved,
        "tuned": tuned,
        "fitted": fitted,
        "fitted, statistics": fitted_moved,
    }
    return {
        "fewer FLOPs": whole / cost(choice),
        **{name: accuracy(thin, v, *at.held) for name, v in found.items()},
        "faster": faster(at.run, at.variables, thin, small.params, at.held[0]),
    }


def latencies(at: Setting, reductions: list[float]) -> None:
    """FLOPs and measured time, with any widths and with widths that are multiples of 8."""
    shape = jax.ShapeDtypeStruct((100, 32, 32, 3), jnp.float32)
    cost = slimming.costs.flops(predict, at.variables, shape)
    whole = cost(slimming.Choice.remove(at.groups, {}))
    scores = unit_scores(at.groups, at.variables, None, "l1", 0)
    print("fewer FLOPs  widths of  faster")
    for reduction in reductions:
        for multiple in (1, 8):
            limits = slimming.Limits(round_to=multiple)
            choice = slimming.choose(at.groups, scores, cost=cost, target=whole / reduction, limits=limits)
            small = slimming.slim(predict, at.variables, choice, shape)
            ratio = faster(at.run, at.variables, jax.jit(small.fn), small.params, at.held[0])
            print(f"{whole / cost(choice):11.2f}  {multiple:9}  {ratio:.2f}", flush=True)


def kept(path: Path | None) -> dict[str, dict[str, float]]:
    """The cells that an earlier run has saved."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {entry["key"]: entry["cell"] for entry in map(json.loads, lines)}


def table(cells: dict[tuple[float, str], list[dict[str, float]]]) -> str:
    """Mean and spread over seeds."""
    names = ("at once", "statistics", "tuned", "fitted", "fitted, statistics")
    lines = [f"fewer FLOPs  scores      seeds  {''.join(f'{n:22}' for n in names)}faster"]
    for (_, method), found in cells.items():
        row = f"{found[0]['fewer FLOPs']:11.2f}  {method:10}  {len(found):5}  "
        for name in names:
            values = [100 * c[name] for c in found]
            row += f"{np.mean(values):5.1f} ({min(values):.1f} to {max(values):.1f})".ljust(22)
        lines.append(row + f"{statistics.median(c['faster'] for c in found):.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with resnet20_cifar10 and cifar10_jpeg")
    parser.add_argument("--methods", nargs="+", default=["l1", "taylor", "group_norm", "fpgm", "random"])
    parser.add_argument("--reductions", type=float, nargs="+", default=[1.3, 1.5, 2.1, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--save", type=Path, help="keeps every cell of the table here, and goes on from what is there")
    parser.add_argument("--latency", action="store_true", help="only FLOPs beside measured time")
    options = parser.parse_args(arguments)
    x, labels = images(options.data / "cifar10_jpeg" / "half_a_5000.npz")
    params, running = network(options.data / "resnet20_cifar10" / "weights.npz")
    variables = {"params": params, "running": running}
    half = len(x) // 2
    training, held = (x[:half], labels[:half]), (x[half:], labels[half:])
    groups = slimming.find_groups(predict, variables, jax.ShapeDtypeStruct((100, 32, 32, 3), jnp.float32))
    print(groups)
    gradient = jax.jit(jax.grad(lambda v, x, y: loss(lambda v, x: (predict(v, x), None), **v, x=x, labels=y)[0]))
    grads = gradient(variables, training[0][:500], training[1][:500])
    some = [training[0][i : i + 125] for i in range(0, min(half, 500), 125)]
    stats = calibrate(predict, variables, some, collect=("gram", "total"))
    at = Setting(variables, groups, grads, stats, jax.jit(predict), training, held)
    print(f"\nwhole: {accuracy(at.run, variables, *held):.2%} of {len(held[0])} images")
    if options.latency:
        latencies(at, options.reductions)
        return
    saved, cells = kept(options.save), {}
    for seed, reduction, method in product(options.seeds, options.reductions, options.methods):
        key = f"{reduction} {method} {seed} {options.epochs} {options.rate}"
        if key not in saved:
            saved[key] = cell(at, reduction, method, seed, options.epochs, options.rate)
            if options.save:
                with options.save.open("a") as lines:
                    _ = lines.write(json.dumps({"key": key, "cell": saved[key]}) + "\n")
        cells.setdefault((reduction, method), []).append(saved[key])
    print(table(dict(sorted(cells.items(), key=lambda item: item[0][0]))))


if __name__ == "__main__":
    main()
