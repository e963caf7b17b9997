"""A trained ResNet-20 made physically smaller: accuracy against FLOPs, before and after a short fine-tune.

    python examples/slim_resnet20.py --data ../shared/data

reads what sparsegpt_resnet20.py reads. For each way of scoring channels and each reduction of FLOPs it removes whole
channels of all groups by the same share, and prints the accuracy on held-out images at once, with batch statistics
re-estimated, and after a fine-tune on the other images; and the measured latency of 100 images beside the whole net's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sparsegpt_resnet20 import apply, images, network

from jaxprune import slimming
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
    if method == "taylor":
        scores = jax.tree.map(lambda w, g: jnp.abs(w * g), variables, grads)
        return slimming.group_scores(groups, scores, reduce="sum")
    scores = jax.tree.map(jnp.abs, variables)
    if method == "l1":
        return slimming.group_scores(groups, scores, reduce="sum", where=kernels)
    return slimming.group_scores(groups, scores, reduce="l2", where=lambda name: "running" not in name)


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


def latency(run: Callable[..., Any], variables: PyTree, x: np.ndarray) -> float:
    times = []
    for _ in range(12):
        started = time.perf_counter()
        _ = jax.block_until_ready(run(variables, x[:100]))
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with resnet20_cifar10 and cifar10_jpeg")
    parser.add_argument("--methods", nargs="+", default=["l1", "taylor", "group_norm", "random"])
    parser.add_argument("--reductions", type=float, nargs="+", default=[1.3, 1.5, 2.1, 3.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.01)
    options = parser.parse_args(arguments)
    x, labels = images(options.data / "cifar10_jpeg" / "half_a_5000.npz")
    params, running = network(options.data / "resnet20_cifar10" / "weights.npz")
    variables = {"params": params, "running": running}
    training, held = (x[:2500], labels[:2500]), (x[2500:], labels[2500:])
    shape = jax.ShapeDtypeStruct((100, 32, 32, 3), jnp.float32)
    groups = slimming.find_groups(predict, variables, shape)
    print(groups)
    gradient = jax.jit(jax.grad(lambda v, x, y: loss(lambda v, x: (predict(v, x), None), **v, x=x, labels=y)[0]))
    grads = gradient(variables, training[0][:500], training[1][:500])
    cost = slimming.costs.flops(predict, variables, shape)
    whole, run = cost(slimming.choice_from(groups, {})), jax.jit(predict)
    dense = latency(run, variables, held[0])
    print(f"\nwhole: {accuracy(run, variables, *held):.2%} of {len(held[0])} images, {1e3 * dense:.0f} ms")
    print("fewer FLOPs  scores      seed  at once  statistics  tuned   faster")
    for reduction in options.reductions:
        for method in options.methods:
            for seed in options.seeds:
                scores = unit_scores(groups, variables, grads, method, seed)
                choice = slimming.choose_budget(groups, scores, cost, whole / reduction, scope="group")
                small = slimming.slim(predict, variables, choice, shape)
                thin, forward = jax.jit(small.fn), small.rebind(train_mode)
                moved = recalibrate_statistics(
                    lambda r, x, p=small.params["params"], f=forward: f({"params": p, "running": r}, x)[1],
                    small.params["running"],
                    [training[0][i : i + 500] for i in range(0, 2500, 500)],
                )
                tuned = tune(small, *training, options.epochs, options.rate, seed)
                found = [small.params, {"params": small.params["params"], "running": moved}, tuned]
                at_once, fresh, after = (accuracy(thin, v, *held) for v in found)
                faster = dense / latency(thin, small.params, held[0])
                line = f"{whole / cost(choice):11.2f}  {method:10}  {seed:4}  {at_once:7.2%}  {fresh:10.2%}"
                print(f"{line}  {after:6.2%}  {faster:.2f}", flush=True)


if __name__ == "__main__":
    main()
