"""One-shot pruning of a small language model: what magnitude, Wanda and SparseGPT cost in perplexity.

    python examples/sparsegpt_shakespeare.py --text ../shared/data/tinyshakespeare/input.txt --save output

trains character-level decoders of 2.4 million weights, prunes their blocks at 50 %, 2:4, 4:8 and 70 %, and prints the
perplexity on held-out text for every method, with the spread over decoders (each has initial weights, an order of
training and a calibration set of its own). The blocks are stacked and run by a scan, so each kind of kernel is one
leaf of shape [layers, inputs, outputs]. `--save` keeps trained weights and perplexities, so that a rerun is cheap.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprune import allocation, masks, sparsify, training
from jaxprune.calibration import calibrate
from jaxprune.criteria import wanda
from jaxprune.masks import Pruned
from jaxprune.reconstruction import reconstruct, reconstruct_sequential, relative_errors

PyTree = Any
BLOCKS = "blocks/*/kernel"
METHODS = ("magnitude", "wanda", "sparsegpt")
SETTINGS = (
    ("50 %", 0.5, masks.Unstructured()),
    ("2:4", 0.5, masks.NM(2, 4)),
    ("4:8", 0.5, masks.NM(4, 8)),
    ("70 %", 0.7, masks.Unstructured()),
)


class Text(NamedTuple):
    """A text as indices of its characters, the last tenth held out."""

    characters: int
    train: np.ndarray
    test: np.ndarray


class Size(NamedTuple):
    """What the decoder is built of, and what it is trained on at a time."""

    width: int = 256
    layers: int = 3
    heads: int = 8
    context: int = 64
    batch: int = 16


def read(path: Path) -> Text:
    """Reads any plain text, byte by byte."""
    characters, text = np.unique(np.frombuffer(path.read_bytes(), np.uint8), return_inverse=True)
    held_out = -(-len(text) // 10)
    return Text(len(characters), text[:-held_out], text[-held_out:])


def init(key: jax.Array, size: Size, characters: int) -> PyTree:
    """Weights of the decoder; those of the blocks are stacked on a leading axis."""
    width, keys = size.width, jax.random.split(key, 6)
    dense = lambda k, n_in, n_out: {
        "kernel": jax.random.normal(k, (size.layers, n_in, n_out)) / np.sqrt(n_in),
        "bias": jnp.zeros((size.layers, n_out)),
    }
    return {
        "embed": jax.random.normal(keys[0], (characters, width)) * 0.02,
        "position": jax.random.normal(keys[1], (size.context, width)) * 0.02,
        "blocks": {
            "norm1": jnp.ones((size.layers, width)),
            "norm2": jnp.ones((size.layers, width)),
            "qkv": dense(keys[2], width, 3 * width),
            "out": dense(keys[3], width, width),
            "up": dense(keys[4], width, 4 * width),
            "down": dense(keys[5], 4 * width, width),
        },
        "norm": jnp.ones(width),
    }


def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMS normalisation."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def forward(heads: int, params: PyTree, tokens: jax.Array) -> jax.Array:
    """Logits [batch, context, characters] of tokens [batch, context]."""
    batch, length = tokens.shape
    mask = jnp.tril(jnp.ones((length, length), bool))

    def block(x: jax.Array, p: PyTree) -> tuple[jax.Array, None]:
        linear = lambda name, y: y @ p[name]["kernel"] + p[name]["bias"]
        q, k, v = jnp.split(linear("qkv", normed(x, p["norm1"])).reshape(batch, length, heads, -1), 3, -1)
        scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        x = x + linear("out", jnp.einsum("bhqs,bshk->bqhk", weights, v).reshape(batch, length, -1))
        return x + linear("down", jax.nn.gelu(linear("up", normed(x, p["norm2"])))), None

    x = params["embed"][tokens] + params["position"][:length]
    x, _ = lax.scan(block, x, params["blocks"])
    return normed(x, params["norm"]) @ params["embed"].T


def loss(heads: int, params: PyTree, text: jax.Array) -> jax.Array:
    """Mean cross-entropy of each character given those before it, for windows [batch, context + 1]."""
    logits = forward(heads, params, text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


def windows(text: np.ndarray, size: Size, rng: np.random.Generator, n: int) -> Iterator[jax.Array]:
    """Batches of windows of the text, n of them."""
    for _ in range(n):
        starts = rng.integers(0, len(text) - size.context - 1, size.batch)
        yield jnp.asarray(text[starts[:, None] + np.arange(size.context + 1)])


def train(
    params: PyTree, text: np.ndarray, size: Size, *, steps: int, rate: float, seed: int, kept: PyTree = None
) -> PyTree:
    """Trains with AdamW; with masks, what they remove stays exactly zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, rate / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01))
    if kept is not None:
        optimizer = sparsify(optimizer, training.fixed(kept))

    @jax.jit
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        value, grads = jax.value_and_grad(lambda p: loss(size.heads, p, batch))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, started = optimizer.init(params), time.perf_counter()
    for i, batch in enumerate(windows(text, size, np.random.default_rng(seed), steps)):
        params, state, value = step(params, state, batch)
        if kept is None and i % 100 == 0:
            print(f"step {i}: training loss {float(value):.3f}, {time.perf_counter() - started:.0f} s", flush=True)
    return params


def trained(text: Text, size: Size, *, steps: int, seed: int, save: Path | None = None) -> PyTree:
    """A decoder trained from a seed, read from the folder `save` if it was left there."""
    params = init(jax.random.key(seed), size, text.characters)
    leaves, treedef = jax.tree.flatten(params)
    kept = None if save is None else save / f"decoder_{named(size, steps, seed)}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as saved:
            return jax.tree.unflatten(treedef, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])
    params = train(params, text.train, size, steps=steps, rate=2e-3, seed=seed)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))}
        np.savez(kept, **arrays)
    return params


def named(size: Size, steps: int, seed: int) -> str:
    """What a decoder's files are called, by all that it depends on besides the text."""
    return "_".join(map(str, (*size, steps, seed)))


def evaluation(text: np.ndarray, size: Size) -> Callable[[PyTree], float]:
    """Perplexity on the whole of a text, in windows that do not overlap."""
    n = (len(text) - 1) // (size.context * 128) * 128
    index = np.arange(n)[:, None] * size.context + np.arange(size.context + 1)
    batches = jnp.asarray(text[index].reshape(-1, 128, size.context + 1))
    mean = jax.jit(lambda params: lax.map(partial(loss, size.heads, params), batches).mean())
    return lambda params: float(jnp.exp(mean(params)))


def prunings(params: PyTree, size: Size, batches: list[jax.Array], sparsity: float, pattern: Any) -> dict[str, Pruned]:
    """The pruned networks, by the name of the method."""
    fn = partial(forward, size.heads)
    stats = calibrate(fn, params, batches, where=BLOCKS)
    share = {BLOCKS: sparsity}
    out = {name: reconstruct(params, stats, share, method=name, pattern=pattern) for name in METHODS}
    out["sequential"] = reconstruct_sequential(fn, params, batches, share, pattern=pattern, where=BLOCKS)
    if sparsity >= 0.7:  # every block gets a sparsity of its own: blocks are stacked, so they are slices
        scores = wanda(params, stats=stats)
        owl = allocation.owl(scores, sparsity, where=BLOCKS, batch_axes={BLOCKS: 1}, layer_of=lambda name: "block")
        out["sparsegpt+owl"] = reconstruct(params, stats, owl.sparsities)
    return out


def with_outliers(params: PyTree, key: jax.Array, share: float = 0.05, factor: float = 16.0) -> PyTree:
    """The same function with outlier features, as large language models grow them (Dettmers et al. 2022, 2208.07339).

    In every block a share of the channels is made larger by the norms and smaller again by the kernels that read them;
    a power of two changes no bit of the result.
    """
    blocks = dict(params["blocks"])
    layers, width = blocks["norm1"].shape
    for norm, kernel, k in zip(("norm1", "norm2"), ("qkv", "up"), jax.random.split(key), strict=True):
        channels = jnp.argsort(jax.random.uniform(k, (layers, width))) < round(share * width)
        scale = jnp.where(channels, factor, 1.0)
        blocks[norm] = blocks[norm] * scale
        blocks[kernel] = {**blocks[kernel], "kernel": blocks[kernel]["kernel"] / scale[:, :, None]}
    return {**params, "blocks": blocks}


def spreads(params: PyTree, text: Text, size: Size, batches: list[jax.Array]) -> dict[str, float]:
    """What sets Wanda apart from magnitude: by how much the norms of a kernel's inputs differ, and what that gains.

    That is output errors, and the loss when one kind of kernel alone is pruned (on three tenths of the text held out).
    """
    stats = calibrate(partial(forward, size.heads), params, batches, where=BLOCKS)
    names = ["/".join(identity) for identity in stats.inputs]
    norms = [stats[name].norm for name in names]
    found = {
        f"{name}: largest norm / median": float((norm.max(1) / jnp.median(norm, axis=1)).max())
        for name, norm in zip(names, norms, strict=True)
    }
    for method in METHODS:
        new = reconstruct(params, stats, {BLOCKS: 0.5}, method=method).params
        for name, error in relative_errors(params, new, stats).items():
            found[f"{name}: output error, 50 %, {method}"] = error
    perplexity = evaluation(text.test[: len(text.test) * 3 // 10], size)
    dense = perplexity(params)
    for sparsity, method in itertools.product((0.5, 0.7), METHODS[:2]):
        for name in names:
            new = reconstruct(params, stats, {name: sparsity}, method=method).params
            found[f"{name}: nats added, {sparsity:.0%}, {method}"] = float(np.log(perplexity(new) / dense))
    return found


def tuned(pruned: Pruned, text: Text, size: Size, *, steps: int, seed: int) -> Pruned:
    """The pruned network after some steps of training in which every zero stays."""
    new = train(pruned.params, text.train, size, steps=steps, rate=3e-4, seed=seed, kept=pruned.masks)
    return replace(pruned, params=new)


def measured(params: PyTree, text: Text, size: Size, *, tune: int, seed: int) -> dict[str, float]:
    """The perplexity of the dense network, and of every method at every sparsity."""
    perplexity = evaluation(text.test, size)
    outliers = with_outliers(params, jax.random.key(seed))
    found = {"dense": perplexity(params), "dense, outliers": perplexity(outliers)}
    batches = [b[:, :-1] for b in windows(text.train, size, np.random.default_rng(1000 + seed), 16)]
    for title, sparsity, pattern in SETTINGS:
        pruned = prunings(params, size, batches, sparsity, pattern)
        for name in ("magnitude", "sparsegpt") if tune else ():
            pruned[f"{name}, tuned"] = tuned(pruned[name], text, size, steps=tune, seed=seed)
        if pattern == masks.Unstructured():
            stats = calibrate(partial(forward, size.heads), outliers, batches, where=BLOCKS)
            for name in METHODS:
                pruned[f"{name}, outliers"] = reconstruct(outliers, stats, {BLOCKS: sparsity}, method=name)
        for name, result in pruned.items():
            found[f"{title:>5} {name}"] = perplexity(result.params)
            print(f"{title:>5} {name:20} {found[f'{title:>5} {name}']:8.3f}", flush=True)
    return found | spreads(params, text, size, batches)


def remembered(path: Path | None, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `make` returns, or what it returned when this file was written."""
    if path is not None and path.exists():
        return json.loads(path.read_text())
    found = make()
    if path is not None:
        _ = path.write_text(json.dumps(found, indent=1))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="any plain text; a tenth is held out")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--tune", type=int, default=50, help="steps of masked fine-tuning after pruning; 0: none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one decoder and calibration set each")
    parser.add_argument("--width", type=int, default=Size().width)
    parser.add_argument("--layers", type=int, default=Size().layers)
    parser.add_argument(
        "--save", type=Path, help="a folder for trained weights and perplexities, read if they are there"
    )
    options = parser.parse_args(arguments)
    text, size = read(options.text), Size(width=options.width, layers=options.layers)
    each = []
    for seed in options.seeds:
        params = trained(text, size, steps=options.steps, seed=seed, save=options.save)
        counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, params["blocks"])]
        print(f"seed {seed}: {counts[0]:,} weights, {counts[1]:,} in blocks", flush=True)
        name = f"perplexity_{named(size, options.steps, seed)}_{options.tune}.json"
        make = partial(measured, params, text, size, tune=options.tune, seed=seed)
        each.append(remembered(options.save / name if options.save else None, make))
    print(f"perplexity on {len(text.test):,} characters: mean (least to greatest) of {len(each)} decoders")
    for name in each[0]:
        values = [found[name] for found in each]
        print(f"{name:47} {np.mean(values):7.4g}  ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main()
