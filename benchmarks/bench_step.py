"""The price of pruning in a training step: sparsified beside dense, interleaved in one run.

    python benchmarks/bench_step.py --output output/bench

A convolutional network with Adam, whole steps (forward, backward, update), state donated. Each round times a stretch of
steps of every variant in turn; the ratio is taken within the round, and the median over the rounds is reported with the
quartiles, so that what else the machine does touches all variants alike.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from jaxprune import schedules, training


class Network(nn.Module):
    """A CNN of the main job's kind."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (self.width, 2 * self.width):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(8 * self.width)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def variants() -> dict[str, Any]:
    """The optimizers compared; each revision of the masks falls where it says, within the steps that are timed."""
    adam = optax.adam(1e-3)
    never = training.gradual(schedules.jump(0.9), when=lambda step: step == 0)
    every_100 = training.gradual(schedules.jump(0.9), when=schedules.every(100))
    every_10 = training.gradual(schedules.jump(0.9), when=schedules.every(10))
    return {
        "dense": adam,
        "dense again": optax.adam(1e-3),  # the noise of the comparison
        "between updates": jaxprune.sparsify(adam, never),
        "update every 100": jaxprune.sparsify(adam, every_100),
        "update every 10": jaxprune.sparsify(adam, every_10),
    }


def make_stretch(optimizer: Any, model: Network, images: jax.Array, labels: jax.Array) -> Callable[[int], float]:
    """A function that trains on for so many steps and returns the seconds it took."""
    params = model.init(jax.random.key(0), images)
    state = optimizer.init(params)

    def loss(params: Any) -> jax.Array:
        logits = jnp.asarray(model.apply(params, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
    held = [params, state]

    def stretch(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            held[:] = compiled(*held)
        jax.block_until_ready(held)
        return time.perf_counter() - began

    return stretch


def in_turns(stretches: dict[str, Callable[[int], float]], rounds: int, steps: int) -> dict[str, list[float]]:
    """The seconds of a step of each variant, round by round, after two steps that do not count."""
    for stretch in stretches.values():
        _ = stretch(2)
    seconds: dict[str, list[float]] = {name: [] for name in stretches}
    for i in range(rounds):
        # Another order each round: none is always first after a pause.
        names = list(stretches)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(stretches[name](steps) / steps)
    return seconds


def measure(width: int, batch: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Ratios to the dense step, a row for each variant."""
    images = jax.random.normal(jax.random.key(1), (batch, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
    stretches = {
        name: make_stretch(optimizer, Network(width), images, labels) for name, optimizer in variants().items()
    }
    seconds = in_turns(stretches, rounds, steps)
    dense = np.array(seconds["dense"])
    rows = []
    for name, values in seconds.items():
        low, middle, high = np.percentile(np.array(values) / dense, [25, 50, 75])
        rows.append({"variant": name, "ms": 1e3 * float(np.median(values)), "ratio": float(middle),
                     "quartiles": [float(low), float(high)]})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="features of the first convolution")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100, help="steps in a round; 100 holds one update of every 100")
    parser.add_argument("--quick", action="store_true", help="a small network and few rounds: does it run at all")
    parser.add_argument("--output", type=Path, help="a folder to write step.json into")
    options = parser.parse_args()
    if options.quick:
        options.width, options.batch, options.rounds, options.steps = 2, 4, 2, 10
    rows = measure(options.width, options.batch, options.rounds, options.steps)
    machine = f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device, jax {jax.__version__}"
    print(f"A training step beside the dense one ({machine}; median of {options.rounds} rounds, quartiles)")
    for row in rows:
        low, high = row["quartiles"]
        print(f"{row['variant']:>18}  {row['ms']:8.2f} ms  {row['ratio']:.3f} ({low:.3f} to {high:.3f})")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "options": vars(options) | {"output": str(options.output)}, "rows": rows}
        (options.output / "step.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
