"""Winning tickets of LeNet-300-100 on MNIST beside their controls: Frankle and Carbin 2019 in one compiled program.

    python examples/tickets_mnist.py --data ../shared/data/mnist --output output/tickets

Each round trains, removes a fifth of what is left over all layers together, and rewinds to the first weights; beside
the ticket it trains the same masks from other first weights, and the same first weights under random masks of the same
number in each layer. All rounds, all three of them and all seeds are one jitted function. It prints the test results of
each round and writes them to tickets.json (seeds found there are not run again) and, as a plot, to tickets.png.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lenet_mnist import Data, apply, fit, init, load

from jaxprune import assess, lottery, training

PyTree = Any
NAMES = "ticket", "reinitialised", "random masks"
VALUES = "accuracy", "nll", "ece", "step"


def search(key: Any, data: Data, *, rounds: int, steps: int, look_every: int) -> dict[str, dict[str, jax.Array]]:
    """All rounds of one seed: the metrics of each network, by round; traceable."""
    draw = partial(init, inputs=data.train.images.shape[1])

    def train(params: PyTree, held: PyTree, key: Any) -> tuple[PyTree, dict[str, jax.Array]]:
        method = training.fixed(held)
        params, _, best = fit(params, method, key, data, steps=steps, look_every=look_every)
        return params, best._asdict()

    def evaluate(params: PyTree, held: PyTree) -> dict[str, Any]:
        found = assess.evaluate(apply(params, data.test.images), data.test.labels)
        return {"accuracy": found.accuracy, "nll": found.nll, "ece": found.ece}

    first, own = jax.random.split(key)
    found = lottery.iterative_pruning(
        lottery.Training(train, evaluate, has_aux=True),
        draw(first),
        rounds=rounds,
        key=own,
        controls={"reinitialised": lottery.reinitialised(draw), "random masks": lottery.random_masks()},
    )
    return {"ticket": found.ticket.metrics} | {name: control.metrics for name, control in found.controls.items()}


def run(seeds: Sequence[int], data: Data, **how: int) -> dict[str, Any]:
    """The metrics of each seed, as lists by round, of one vmapped search over the seeds."""
    keys = jax.numpy.stack([jax.random.key(seed) for seed in seeds])
    found = jax.jit(jax.vmap(partial(search, **how), in_axes=(0, None)))(keys, data)
    member = lambda i: jax.tree.map(lambda x: np.asarray(x[i]).tolist(), found)
    return {str(seed): member(i) for i, seed in enumerate(seeds)}


def table(results: dict[str, Any]) -> str:
    """Mean and, in brackets, standard deviation over the seeds, a line for each round and network."""
    rounds = len(next(iter(results.values()))["ticket"]["accuracy"])
    lines = [f"weights left  {'network':13}  accuracy         NLL            ECE            best after"]
    for r in range(rounds):
        for name in NAMES:
            value = {v: np.array([seed[name][v][r] for seed in results.values()], float) for v in VALUES}
            mean, spread = ({v: f(x) for v, x in value.items()} for f in (np.mean, partial(np.std, ddof=1)))
            lines.append(
                f"{0.8**r:12.1%}  {name:13}  {mean['accuracy']:.2%} ({100 * spread['accuracy']:4.2f})  "
                f"{mean['nll']:.4f} ({spread['nll']:.4f})  {mean['ece']:.4f} ({spread['ece']:.4f})  "
                f"{mean['step']:5.0f} ({spread['step']:4.0f}) steps"
            )
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    curves = {
        name: [(1 - 0.8**r, a) for seed in results.values() for r, a in enumerate(seed[name]["accuracy"])]
        for name in NAMES
    }
    dense = float(np.mean([seed["ticket"]["accuracy"][0] for seed in results.values()]))
    figure = assess.plots.accuracy_by_sparsity(curves, dense=dense, ylabel="test accuracy")
    rounds = len(next(iter(results.values()))["ticket"]["accuracy"])
    shown = [0.8**r for r in range(0, rounds, 3)]
    figure.axes[0].set_xticks(shown, [f"{100 * left:.3g}" for left in shown])
    figure.axes[0].set_xlabel("weights left in %")
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four IDX files")
    parser.add_argument("--output", type=Path, required=True, help="a folder for tickets.json and tickets.png")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3000, help="a multiple of --look-every")
    parser.add_argument("--look-every", type=int, default=200)
    parser.add_argument("--size", type=int, help="only so many images of each split")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    data = load(options.data, size=options.size)
    how = {name: getattr(options, name) for name in ("rounds", "steps", "look_every")}
    note, asked = options.output / "tickets.json", how | {"size": options.size}
    held = json.loads(note.read_text()) if note.exists() else {"options": asked, "seeds": {}}
    if held["options"] != asked:
        parser.error(f"{note} holds results of other options, {held['options']}: choose another --output")
    missing = [seed for seed in options.seeds if str(seed) not in held["seeds"]]
    if missing:
        held["seeds"] |= run(missing, data, **how)
        note.write_text(json.dumps(held, indent=1) + "\n")
    results = {str(seed): held["seeds"][str(seed)] for seed in options.seeds}
    print(f"{len(results)} seeds, mean (standard deviation); {options.steps} steps a round")
    print(table(results))
    plot(results, options.output / "tickets.png")


if __name__ == "__main__":
    main()
