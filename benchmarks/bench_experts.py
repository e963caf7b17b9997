"""Which experts of a mixture can go: perplexity at 25 and 50 % of the experts, by each criterion.

    python benchmarks/bench_experts.py --text ../shared/data/tinyshakespeare/input.txt [--seeds 3] [--output folder]

trains a small decoder of bytes with 8 experts in each layer, of which a router chooses 2 for each token. Then two
experts of each layer are replaced by copies of two others whose logits are lower by 3: a token that chooses an expert
chooses its copy too, with a twentieth of the gate, so that the copy can go at almost no loss although it is chosen
often. REAP finds both; the frequency does not. The perplexity is that of held-out text, without training after pruning.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprune import slimming
from jaxprune.calibration import calibrate

PyTree = Any
EXPERTS, TOP, LAYERS, WIDTH, HIDDEN, HEADS = 8, 2, 2, 64, 96, 4
MARGIN = 3.0
CRITERIA = {
    "REAP": None,
    "frequency": lambda e: e.tokens,
    "mean gate": lambda e: e.gate / e.tokens,
    "mean norm": lambda e: e.norm / e.tokens,
    "mean squared norm": lambda e: e.square / e.tokens,
}


def initial(key: jax.Array, *, symbols: int, context: int) -> PyTree:
    """The parameters of the decoder; the layers are stacked."""
    keys = iter(jax.random.split(key, 10))
    normal = lambda *shape: jax.random.normal(next(keys), shape) / shape[-2] ** 0.5
    return {
        "embed": 0.02 * jax.random.normal(next(keys), (symbols, WIDTH)),
        "places": 0.02 * jax.random.normal(next(keys), (context, WIDTH)),
        "head": normal(WIDTH, symbols),
        "layers": {
            "qkv": normal(LAYERS, WIDTH, 3 * WIDTH),
            "out": normal(LAYERS, WIDTH, WIDTH),
            "router": normal(LAYERS, WIDTH, EXPERTS),
            "bias": jnp.zeros((LAYERS, EXPERTS)),
            "up": normal(LAYERS, EXPERTS, WIDTH, HIDDEN),
            "down": normal(LAYERS, EXPERTS, HIDDEN, WIDTH),
        },
    }


def mixture(p: PyTree, x: jax.Array) -> jax.Array:
    """The experts of one layer: every expert computes all rows, and the router's gates add two of them up."""
    gate, index = lax.top_k(jax.nn.softmax(x @ p["router"] + p["bias"]), TOP)
    weight = (jax.nn.one_hot(index, p["bias"].size) * gate[..., None]).sum(-2)
    hidden = jax.nn.gelu(jnp.einsum("btd,edf->btef", x, p["up"]))
    return jnp.einsum("bted,bte->btd", jnp.einsum("btef,efd->bted", hidden, p["down"]), weight)


def forward(p: PyTree, tokens: jax.Array) -> jax.Array:
    """The logits of the next byte, (batch, context, symbols)."""
    norm = lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    x = p["embed"][tokens] + p["places"][: tokens.shape[1]]
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))

    def layer(x: jax.Array, own: PyTree) -> tuple[jax.Array, None]:
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(norm(x) @ own["qkv"], 3, -1))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(causal, scores, -1e9)), v)
        x = x + mixed.reshape(x.shape) @ own["out"]
        return x + mixture(own, norm(x)), None

    return norm(lax.scan(layer, x, p["layers"])[0]) @ p["head"]


def loss(p: PyTree, batch: jax.Array) -> jax.Array:
    """The mean negative log-likelihood, with the load-balancing loss left to the random initial router."""
    logits = forward(p, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def train(text: np.ndarray, symbols: int, seed: int, steps: int, batch: int, context: int) -> PyTree:
    """Trains a decoder on random windows of a text."""
    params = initial(jax.random.key(seed), symbols=symbols, context=context)
    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10 + 1, steps + 2), weight_decay=0.01
    )
    state, rng = optimizer.init(params), np.random.default_rng(seed)

    @jax.jit
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        starts = rng.integers(0, len(text) - context - 1, batch)
        params, state = step(params, state, jnp.asarray(np.stack([text[s : s + context + 1] for s in starts])))
    return params


def plant(params: PyTree, seed: int) -> tuple[PyTree, np.ndarray]:
    """Replaces two experts of each layer by copies of two others; returns the copies, (layers, 2)."""
    layers, rng = {k: np.array(v) for k, v in params["layers"].items()}, np.random.default_rng(seed)
    copies = np.zeros((LAYERS, 2), int)
    for k in range(LAYERS):
        a, b, *copies[k] = rng.permutation(EXPERTS)[:4]
        for source, copy in zip((a, b), copies[k], strict=True):
            for name in ("up", "down"):
                layers[name][k, copy] = layers[name][k, source]
            layers["router"][k, :, copy] = layers["router"][k, :, source]
            layers["bias"][k, copy] = layers["bias"][k, source] - MARGIN
    return params | {"layers": {k: jnp.asarray(v) for k, v in layers.items()}}, np.sort(copies, 1)


def perplexity(fn: Any, params: PyTree, windows: np.ndarray) -> float:
    """The perplexity on windows of text."""
    run = jax.jit(lambda p, b: optax.softmax_cross_entropy_with_integer_labels(fn(p, b[:, :-1]), b[:, 1:]).mean())
    return float(np.exp(np.mean([run(params, jnp.asarray(part)) for part in np.array_split(windows, 4)])))


def rows(
    text: bytes, seed: int, *, steps: int, batch: int = 24, context: int = 48, held: int = 128
) -> list[dict[str, Any]]:
    """One row for each criterion and share of the experts."""
    symbols, numbers = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    cut = int(0.9 * len(numbers))
    params = train(numbers[:cut], len(symbols), seed, steps, batch, context)
    params, copies = plant(params, seed)
    windows = lambda part, count: np.stack(
        [part[s : s + context + 1] for s in np.linspace(0, len(part) - context - 1, count).astype(int)]
    )
    test, seen = windows(numbers[cut:], held), windows(numbers[:cut], held)
    start = time.perf_counter()
    groups = slimming.find_groups(forward, params, jnp.asarray(test[:1, :-1]))
    experts = groups["layers/up[1]"]
    found = time.perf_counter() - start
    parts = [jnp.asarray(part[:, :-1]) for part in np.split(seen, 4)]
    start = time.perf_counter()
    stats = calibrate(forward, params, parts, collect="square", where=["layers/up", "layers/down"])
    calibrated = time.perf_counter() - start
    draw = np.random.default_rng(seed).uniform(size=stats.experts[0].tokens.shape)
    out = [{"seed": seed, "criterion": "whole", "share": 0.0, "perplexity": perplexity(forward, params, test)}]
    for name, criterion in {**CRITERIA, "random": lambda e: draw}.items():
        scores = slimming.expert_scores(groups, stats, criterion)
        for share in (0.25, 0.5):
            choice = slimming.choose(groups, scores, share)
            small = slimming.slim(forward, params, choice, jnp.asarray(test[:1, :-1]))
            gone = (
                np.flatnonzero(~choice.kept(experts.name).reshape(LAYERS, EXPERTS).ravel()).reshape(LAYERS, -1)
                % EXPERTS
            )
            hits = sum(len(set(a) & set(b)) for a, b in zip(gone, copies, strict=True))
            size = sum(x.nbytes for x in jax.tree.leaves(small.params))
            out.append(
                {
                    "seed": seed,
                    "criterion": name,
                    "share": share,
                    "perplexity": perplexity(small.fn, small.params, test),
                }
                | {"copies": hits, "bytes": size}
            )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    out[0] |= {"seconds_groups": found, "seconds_calibration": calibrated, "peak_mib": memory}
    out[0]["bytes"] = sum(x.nbytes for x in jax.tree.leaves(params))
    return out


def table(found: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = ["| criterion | 25 % of the experts | copies found | 50 % of the experts |", "| --- | --- | --- | --- |"]
    whole = [r["perplexity"] for r in found if r["criterion"] == "whole"]
    lines.append(f"| none removed | {np.mean(whole):.3f} ± {np.std(whole):.3f} | | |")
    for name in dict.fromkeys(r["criterion"] for r in found if r["criterion"] != "whole"):
        quarter, half = ([r for r in found if (r["criterion"], r["share"]) == (name, s)] for s in (0.25, 0.5))
        cells = [[r["perplexity"] for r in part] for part in (quarter, half)]
        hits = f"{sum(r['copies'] for r in quarter)} of {2 * LAYERS * len(quarter)}"
        first, second = (f"{np.mean(c):.3f} ± {np.std(c):.3f}" for c in cells)
        lines.append(f"| {name} | {first} | {hits} | {second} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the seeds that are not in the output folder yet, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=Path("output"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(given.seeds):
        file = given.output / f"experts_{given.steps}_{seed}.json"
        if not file.exists():
            start = time.perf_counter()
            done = rows(given.text.read_bytes(), seed, steps=given.steps)
            done[0]["seconds"] = time.perf_counter() - start
            file.write_text(json.dumps(done))
        found += json.loads(file.read_text())
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
