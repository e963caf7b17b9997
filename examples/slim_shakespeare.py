"""A small language model made physically smaller: heads, MLP width, embedding width and depth.

    python examples/slim_shakespeare.py --text ../shared/data/tinyshakespeare/input.txt --save output

takes the decoder of sparsegpt_shakespeare.py (trained once, then read from `--save`), removes a share of its heads, its
MLP, its embedding, its layers, and some of each, and prints the perplexity on held-out text at once and after a short
distillation in which the smaller decoder learns the whole one's predictions. What goes is chosen by the Taylor term of
the loss on training text, added up over a unit; the layers are run by a scan, and each loses units of its own.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sparsegpt_shakespeare import Size, forward, loss, read, trained, windows

from jaxprune import criteria, ensembles, slimming
from jaxprune.calibration import accumulate_gradients

PyTree = Any


class Kinds(NamedTuple):
    """The names of the decoder's groups."""

    heads: str
    mlp: str
    width: str
    depth: str


def kinds(groups: slimming.Groups) -> Kinds:
    """Tells the groups apart by what they hold."""

    def one(holds: Callable[[slimming.Group], bool]) -> str:
        [found] = [g.name for g in groups if holds(g)]
        return found

    members = lambda g: {(m.name, m.axis) for m in g.members}
    return Kinds(
        heads=one(lambda g: ("blocks/out/kernel", 1) in members(g) and g.block > 1),
        mlp=one(lambda g: ("blocks/up/kernel", 2) in members(g)),
        width=one(lambda g: ("embed", 1) in members(g)),
        depth=one(lambda g: ("blocks/norm1", 0) in members(g)),
    )


def choices(found: Kinds) -> dict[str, Mapping[str, float]]:
    """What goes of each group, by the name of a row."""
    return {
        "half the heads": {found.heads: 0.5},
        "half the MLP": {found.mlp: 0.5},
        "a quarter of the width": {found.width: 0.25},
        "one layer": {found.depth: 0.34},
        "half of heads and MLP": {found.heads: 0.5, found.mlp: 0.5},
        "some of each": {found.heads: 0.25, found.mlp: 0.25, found.width: 0.125, found.depth: 0.34},
    }


def distil(
    small: slimming.Slimmed,
    teacher: Callable[[jax.Array], jax.Array],
    text: np.ndarray,
    size: Size,
    steps: int,
    seed: int,
) -> PyTree:
    """Trains the smaller decoder on the predictions of the whole one, and the text itself."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, max(steps // 10, 1), max(steps, 2), 1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01))

    @jax.jit
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree]:
        tokens, labels = batch[:, :-1], batch[:, 1:]
        objective = lambda p: ensembles.distillation_loss(small.fn(p, tokens), teacher(tokens), labels, weight=0.5)
        updates, state = optimizer.update(jax.grad(objective)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = small.params, optimizer.init(small.params)
    for batch in windows(text, size, np.random.default_rng(seed), steps):
        params, state = step(params, state, batch)
    return params


def perplexity(run: Callable[[PyTree, jax.Array], jax.Array], params: PyTree, text: np.ndarray, size: Size) -> float:
    """Perplexity on a text, in windows that do not overlap."""
    n = (len(text) - 1) // (size.context * 128) * 128
    index = np.arange(n)[:, None] * size.context + np.arange(size.context + 1)
    rows = jnp.asarray(text[index].reshape(-1, 128, size.context + 1))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    mean = jax.jit(lambda p: jax.lax.map(lambda r: cross_entropy(run(p, r[:, :-1]), r[:, 1:]).mean(), rows).mean())
    return float(jnp.exp(mean(params)))


def rows(params: PyTree, text: Any, size: Size, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Perplexity and cost of the whole decoder and of every smaller one."""
    fn = partial(forward, size.heads)
    shape = jax.ShapeDtypeStruct((size.batch, size.context), jnp.int32)
    groups = slimming.find_groups(fn, params, shape)
    batches = list(windows(text.train, size, np.random.default_rng(1000 + seed), 16))
    squares = accumulate_gradients(partial(loss, size.heads), params, batches).square
    scores = slimming.group_scores(groups, criteria.fisher(params, squared_grads=squares), reduce="sum")
    cost = slimming.costs.flops(fn, params, shape)
    whole = slimming.Choice.remove(groups, {})
    table = {"whole": {"weights": slimming.costs.parameters(whole), "fewer FLOPs": 1.0}}
    table["whole"]["at once"] = table["whole"]["distilled"] = perplexity(fn, params, text.test, size)
    for name, shares in choices(kinds(groups)).items():
        choice = slimming.choose(groups, scores, shares, limits=slimming.Limits(inexact=True))
        small = slimming.slim(fn, params, choice, shape)
        tuned = distil(small, partial(fn, params), text.train, size, steps, seed)
        table[name] = {
            "weights": slimming.costs.parameters(choice),
            "fewer FLOPs": cost(whole) / cost(choice),
            "at once": perplexity(small.fn, small.params, text.test, size),
            "distilled": perplexity(small.fn, tuned, text.test, size),
        }
        print(f"{name:24} seed {seed}: {table[name]['at once']:.3f}, {table[name]['distilled']:.3f}", flush=True)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="any plain text; a tenth is held out")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--distil", type=int, default=150, help="steps of distillation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the decoders and of the distillation")
    parser.add_argument("--width", type=int, default=Size().width)
    parser.add_argument("--layers", type=int, default=Size().layers)
    parser.add_argument("--save", type=Path, default=Path("output"), help="a folder for what is trained and measured")
    options = parser.parse_args(arguments)
    text, size = read(options.text), Size(width=options.width, layers=options.layers)
    tables = []
    for seed in options.seeds:
        kept = (
            options.save / f"slim_shakespeare_{'_'.join(map(str, (*size, options.steps, options.distil, seed)))}.json"
        )
        if not kept.exists():
            params = trained(text, size, steps=options.steps, seed=seed, save=options.save)
            if seed == options.seeds[0]:
                print(slimming.find_groups(partial(forward, size.heads), params, jnp.zeros((1, size.context), int)))
            found = rows(params, text, size, options.distil, seed)
            kept.parent.mkdir(parents=True, exist_ok=True)
            _ = kept.write_text(json.dumps(found))
        tables.append(json.loads(kept.read_text()))
    print(f"\n{'':24}  weights  fewer FLOPs  at once   distilled: mean (spread over {len(tables)} decoders)")
    for name, first in tables[0].items():
        at_once, after = ([t[name][k] for t in tables] for k in ("at once", "distilled"))
        line = f"{name:24} {first['weights'] / 1e6:6.2f} M  {first['fewer FLOPs']:11.2f}  {np.mean(at_once):7.3f}   "
        print(line + f"{np.mean(after):7.3f} ({min(after):.3f} to {max(after):.3f})")


if __name__ == "__main__":
    main()
