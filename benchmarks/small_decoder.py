"""A small Llama-type decoder of characters, trained once for each seed: the subject of bench_recovery.py.

`print_table` prints what the seeds of a benchmark stored.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.models import decoder, parts

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from sparsegpt_shakespeare import Size, Text, read, windows

PyTree = Any
BLOCKS, WIDTH, HIDDEN, HEADS, SHARED = 8, 64, 128, 4, 2
CONTEXT, BATCH = 32, 16
WINDOWS = Size(width=WIDTH, layers=BLOCKS, heads=HEADS, context=CONTEXT, batch=BATCH)
KERNELS = "blocks/*_proj.weight"


class Subject(NamedTuple):
    """A trained decoder and its texts; `params` by their names in a checkpoint."""

    fn: Callable[[PyTree, jax.Array], jax.Array]
    params: PyTree
    text: Text
    seed: int

    def calibration(self, batches: int = 16) -> list[jax.Array]:
        """Windows of training text, drawn by the seed."""
        rng = np.random.default_rng(1000 + self.seed)
        return [batch[:, :-1] for batch in windows(self.text.train, WINDOWS, rng, batches)]


def config(blocks: int = BLOCKS) -> dict[str, Any]:
    """The decoder's config.json."""
    return {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "num_hidden_layers": blocks,
        "head_dim": WIDTH // HEADS,
    }


def init(key: jax.Array, characters: int) -> PyTree:
    """Initial weights, by their names in a Hugging Face checkpoint, kernels [outputs, inputs]."""
    size = WIDTH // HEADS
    kernels = {
        "self_attn.q_proj": (HEADS * size, WIDTH),
        "self_attn.k_proj": (SHARED * size, WIDTH),
        "self_attn.v_proj": (SHARED * size, WIDTH),
        "self_attn.o_proj": (WIDTH, HEADS * size),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
    }
    keys = iter(jax.random.split(key, 1 + BLOCKS * len(kernels)))
    params = {"model.embed_tokens.weight": 0.1 * jax.random.normal(next(keys), (characters, WIDTH))}
    for block in range(BLOCKS):
        for name, shape in kernels.items():
            scale = shape[1] ** -0.5 * (1 if name not in ("self_attn.o_proj", "mlp.down_proj") else 0.25)
            params[f"model.layers.{block}.{name}.weight"] = scale * jax.random.normal(next(keys), shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            params[f"model.layers.{block}.{norm}.weight"] = jnp.ones(WIDTH)
    return params | {"model.norm.weight": jnp.ones(WIDTH)}


def stacked(params: PyTree) -> PyTree:
    """The parameters with those of all blocks stacked, for `scanned`: a scan compiles one block."""
    prefix, outer = "model.layers.", {name: x for name, x in params.items() if not name.startswith("model.layers.")}
    kinds = [name.removeprefix(f"{prefix}0.") for name in params if name.startswith(f"{prefix}0.")]
    every = {kind: jnp.stack([params[f"{prefix}{i}.{kind}"] for i in range(BLOCKS)]) for kind in kinds}
    return {"outer": outer, "blocks": every}


def states(params: PyTree, tokens: jax.Array, keep: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Logits, and the hidden states [blocks + 1, ...]; blocks that `keep` marks False pass their input on."""
    cut = parts(config())
    keep = jnp.ones(len(jax.tree.leaves(params["blocks"])[0]), bool) if keep is None else keep

    def block(hidden: jax.Array, own: tuple[PyTree, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new = jnp.where(own[1], cut.block(own[0], hidden, 0), hidden)
        return new, new

    first = cut.embed(params["outer"], tokens)
    last, hidden = jax.lax.scan(block, first, (params["blocks"], keep))
    return cut.head(params["outer"], last), jnp.concatenate([first[None], hidden])


def scanned(params: PyTree, tokens: jax.Array) -> jax.Array:
    """The logits of stacked parameters, of any number of blocks."""
    return states(params, tokens)[0]


def loss(fn: Callable[..., jax.Array], params: PyTree, text: jax.Array) -> jax.Array:
    """The mean cross-entropy of each character given the characters before it, for windows [batch, context + 1]."""
    return optax.softmax_cross_entropy_with_integer_labels(fn(params, text[:, :-1]), text[:, 1:]).mean()


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    """AdamW with warm-up and a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps, rate / 20)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01))


def train(
    objective: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    text: np.ndarray,
    steps: int,
    seed: int,
) -> PyTree:
    """Trains on windows of a text; `objective(params, windows)` is the loss."""

    @jax.jit
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        value, grads = jax.value_and_grad(objective)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, began = optimizer.init(params), time.perf_counter()
    for i, batch in enumerate(windows(text, WINDOWS, np.random.default_rng(seed), steps)):
        params, state, value = step(params, state, batch)
        if i % 250 == 0:
            print(f"step {i}: loss {float(value):.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return params


def trained(path: Path, seed: int, save: Path, steps: int = 1200) -> Subject:
    """The decoder of a seed, read from the folder `save` if it was trained before."""
    text, fn = read(path), decoder(config())
    params = init(jax.random.key(seed), text.characters)
    stored = save / f"small_decoder_{seed}_{steps}.npz"
    if stored.exists():
        with np.load(stored) as saved:
            return Subject(fn, {name: jnp.asarray(saved[name]) for name in params}, text, seed)
    params = train(lambda p, batch: loss(fn, p, batch), params, optimizer(steps, 4e-3), text.train, steps, seed)
    save.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in params.items()}
    np.savez(stored, **arrays)
    return Subject(fn, params, text, seed)


def perplexity(fn: Callable[..., jax.Array], params: PyTree, text: np.ndarray, batches: int = 8) -> float:
    """Perplexity on the first windows of a text, which do not overlap."""
    size = 256
    index = np.arange(batches * size)[:, None] * CONTEXT + np.arange(CONTEXT + 1)
    rows = jnp.asarray(text[index].reshape(batches, size, CONTEXT + 1))
    return float(jnp.exp(jax.jit(lambda p: jax.lax.map(lambda row: loss(fn, p, row), rows).mean())(params)))


def print_table(files: Sequence[Path]) -> None:
    """Prints the numbers that files of JSON share as a table: mean (smallest to largest), lists by their own mean."""
    found = [dict(_numbers(json.loads(file.read_text()))) for file in files]
    print(f"\n| {', '.join(file.stem for file in files)} | mean (smallest to largest) |\n|---|---|")
    for name in found[0]:
        values = [each[name] for each in found if name in each]
        print(f"| {name} | {np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g}) |")


def _numbers(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _numbers(value, f"{name}, {key}" if name else key)
    elif isinstance(tree, list) and tree and not isinstance(tree[0], list):
        yield name, float(np.mean(tree))
    elif isinstance(tree, int | float):
        yield name, float(tree)
