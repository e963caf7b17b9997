"""Which experts of a small mixture can go: perplexity by criterion, and whether planted copies are found.

    python benchmarks/bench_experts.py --text ../shared/data/tinyshakespeare/input.txt --output output/experts

trains for each seed a decoder of characters with 4 blocks of 8 experts, of which each character takes 2, and removes a
quarter and half of the experts of each block by each criterion, without training afterwards. Then it overwrites two
experts of each block by copies of two others, with their columns of the router, trains on, and counts how often a
criterion removes one expert of each pair. The results of each seed are stored when it is done, and are not made again.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from small_decoder import CONTEXT, WINDOWS, optimizer, perplexity, print_table, train

from jaxprune import slimming
from jaxprune.calibration import calibrate

from sparsegpt_shakespeare import read, windows  # isort: skip  (small_decoder adds the folder of examples)

PyTree = Any
BLOCKS, WIDTH, HEADS, EXPERTS, HIDDEN, TAKEN = 4, 64, 4, 8, 64, 2
COPIES = ((0, 6), (1, 7))  # an expert, and the expert that its copy replaces
CRITERIA: dict[str, Callable[[Any], Any] | None] = {
    "REAP": None,
    "frequency": lambda e: e.tokens,
    "mean gate": lambda e: e.gate / e.tokens,
    "mean norm": lambda e: e.norm / e.tokens,
    "mean squared norm": lambda e: e.square / e.tokens,
}
RANDOM_DRAWS = 5


def init(key: jax.Array, characters: int) -> PyTree:
    """Initial weights; those of the blocks are stacked on the first axis."""
    shapes = {
        "query": (BLOCKS, WIDTH, WIDTH),
        "key": (BLOCKS, WIDTH, WIDTH),
        "value": (BLOCKS, WIDTH, WIDTH),
        "out": (BLOCKS, WIDTH, WIDTH),
        "router": (BLOCKS, WIDTH, EXPERTS),
        "gate": (BLOCKS, EXPERTS, WIDTH, HIDDEN),
        "up": (BLOCKS, EXPERTS, WIDTH, HIDDEN),
        "down": (BLOCKS, EXPERTS, HIDDEN, WIDTH),
    }
    keys = iter(jax.random.split(key, 2 + len(shapes)))
    draw = lambda shape: shape[-2] ** -0.5 * jax.random.normal(next(keys), shape)
    blocks = {name: draw(shape) for name, shape in shapes.items()}
    norms = {"first norm": jnp.ones((BLOCKS, WIDTH)), "second norm": jnp.ones((BLOCKS, WIDTH))}
    tables = {"characters": draw((characters, WIDTH)), "places": draw((CONTEXT, WIDTH))}
    return {**tables, "norm": jnp.ones(WIDTH), "blocks": {**blocks, **norms}}


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def attention(p: PyTree, x: jax.Array) -> jax.Array:
    split = lambda name: (x @ p[name]).reshape(*x.shape[:2], HEADS, WIDTH // HEADS)
    products = jnp.einsum("bqhd,bkhd->bhqk", split("query"), split("key")) * (WIDTH // HEADS) ** -0.5
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal, products, -1e9))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, split("value")).reshape(x.shape) @ p["out"]


def mixture(p: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The output, and how unevenly the experts are used (Fedus et al., 2022, arXiv:2101.03961, eq. 4)."""
    logits = x @ p["router"]
    top, chosen = lax.top_k(logits, TAKEN)
    taken = jax.nn.one_hot(chosen, logits.shape[-1])
    weight = (taken * jax.nn.softmax(top)[..., None]).sum(-2)
    hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, p["gate"])) * jnp.einsum("btd,edf->btef", x, p["up"])
    uneven = (taken.sum(-2).mean((0, 1)) * jax.nn.softmax(logits).mean((0, 1))).sum() * EXPERTS / TAKEN
    return jnp.einsum("bte,btef,efd->btd", weight, hidden, p["down"]), uneven


def both(params: PyTree, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits, and how unevenly the experts of all blocks are used."""

    def block(x: jax.Array, p: PyTree) -> tuple[jax.Array, jax.Array]:
        x = x + attention(p, norm(x, p["first norm"]))
        out, uneven = mixture(p, norm(x, p["second norm"]))
        return x + out, uneven

    x, uneven = lax.scan(block, params["characters"][tokens] + params["places"][: tokens.shape[1]], params["blocks"])
    return norm(x, params["norm"]) @ params["characters"].T, uneven.mean()


def network(params: PyTree, tokens: jax.Array) -> jax.Array:
    return both(params, tokens)[0]


def objective(params: PyTree, batch: jax.Array) -> jax.Array:
    logits, uneven = both(params, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean() + 0.01 * uneven


def with_copies(params: PyTree) -> PyTree:
    """The parameters with two experts of each block replaced by copies of two others, which the router cannot tell."""
    blocks = dict(params["blocks"])
    for source, copy in COPIES:
        blocks["router"] = blocks["router"].at[:, :, copy].set(blocks["router"][:, :, source])
        for name in ("gate", "up", "down"):
            blocks[name] = blocks[name].at[:, copy].set(blocks[name][:, source])
    return {**params, "blocks": blocks}


def measured(params: PyTree, text: Any, seed: int) -> dict[str, Any]:
    """The perplexity with fewer experts by each criterion, the experts that were removed, and seconds."""
    batches = [batch[:, :-1] for batch in windows(text.train, WINDOWS, np.random.default_rng(1000 + seed), 32)]
    began = time.perf_counter()
    stats = calibrate(network, params, batches, collect="square")
    groups = slimming.find_groups(network, params, batches[0])
    out: dict[str, Any] = {
        "dense": perplexity(network, params, text.test),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "seconds": time.perf_counter() - began,
    }
    chances = {
        f"random {i}": lambda e, i=i: jax.random.uniform(jax.random.key(100 * seed + i), e.tokens.shape)
        for i in range(RANDOM_DRAWS)
    }
    for name, criterion in (CRITERIA | chances).items():
        scores = slimming.expert_scores(groups, stats, criterion)
        for share in (0.25, 0.5):
            choice = slimming.choose(groups, scores, share)
            small = slimming.slim(network, params, choice, batches[0])
            kept = choice.kept("blocks/router[2]").reshape(BLOCKS, EXPERTS)
            out[f"{name} {share:.0%}"] = {
                "perplexity": perplexity(small.fn, small.params, text.test),
                "parameters": sum(x.size for x in jax.tree.leaves(small.params)),
                "pairs that lost one": sum(int(row[list(pair)].sum() == 1) for row in kept for pair in COPIES),
                "removed": [np.flatnonzero(~row).tolist() for row in kept],
            }
            print(f"  {name} {share:.0%}: {out[f'{name} {share:.0%}']}", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="any plain text; a tenth is held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    text = read(options.text)
    for seed in options.seeds:
        path = options.output / f"experts_{seed}.json"
        if path.exists():
            continue
        began = time.perf_counter()
        params = init(jax.random.key(seed), text.characters)
        params = train(objective, params, optimizer(options.steps, 4e-3), text.train, options.steps, seed)
        found: dict[str, Any] = {"training": time.perf_counter() - began, "trained": measured(params, text, seed)}
        steps = options.steps // 5
        params = train(objective, with_copies(params), optimizer(steps, 1e-3), text.train, steps, 50 + seed)
        found["with copies"] = measured(params, text, seed)
        _ = path.write_text(json.dumps(found, indent=1) + "\n")
    print_table([options.output / f"experts_{seed}.json" for seed in options.seeds])


if __name__ == "__main__":
    main()
