"""How fast groups are found, and how fast the smaller function is, beside the whole one and one built at that width.

    python benchmarks/bench_slimming.py [analysis] [choosing] [resnet18] [gpt] [mlp cnn transformer] [layers]
        [--output folder]

Analysis works on shapes alone: nothing of a net of eight billion parameters is allocated. Timings are medians over
rounds in which the contestants take turns, in any order, so that a busy machine hits all of them; ratios are medians
(and quartiles) of the ratios within a round.

`mlp`, `cnn` and `transformer` have no timings: accuracy and loss of a network on scikit-learn's digits after units are
removed, by which units are ranked together: as they are, with the means of what is removed in the biases, and with the
kept weights fitted. `layers` chooses an architecture for each layer of the transformer, within a part of its FLOPs and
within the same part of its measured seconds.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxprune
from jaxprune import masks, sensitivity, slimming
from jaxprune._jaxprs import count_flops, trace
from jaxprune.slimming._labels.analysis import couple
from jaxprune.slimming.compensate import compensated
from jaxprune.slimming.groups import group

Row = dict[str, Any]


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck."""

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        conv = functools.partial(nn.Conv, use_bias=False)
        steps = (self.stride, self.stride)
        if self.bottleneck:
            y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
            y = nn.relu(norm()(conv(self.width, (3, 3), steps)(y)))
            y = norm()(conv(4 * self.width, (1, 1))(y))
        else:
            y = nn.relu(norm()(conv(self.width, (3, 3), steps)(x)))
            y = norm()(conv(self.width, (3, 3))(y))
        if x.shape != y.shape:
            x = norm()(conv(y.shape[-1], (1, 1), steps)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-18 for 32x32 images, or ResNet-50."""

    width: int
    blocks: tuple[int, ...]
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        stem: dict[str, Any] = (
            {"kernel_size": (7, 7), "strides": (2, 2)} if self.bottleneck else {"kernel_size": (3, 3)}
        )
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.width, use_bias=False, **stem)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME") if self.bottleneck else x
        for i, count in enumerate(self.blocks):
            for j in range(count):
                x = Block(self.width * 2**i, 2 if i and not j else 1, self.bottleneck)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def decoder_block(x: Any, w: Any, heads: int, kv: int) -> Any:
    """RMS norm, grouped-query attention with rotary positions, SwiGLU."""
    b, t, _ = x.shape
    norm = lambda x, g: x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5) * g
    dim = w["q"].shape[-1] // heads
    angle = jnp.arange(t)[:, None] / 10000 ** (jnp.arange(0, dim, 2) / dim)
    cos, sin = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))

    def rotate(x: Any) -> Any:
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    h = norm(x, w["n1"])
    q = rotate((h @ w["q"]).reshape(b, t, heads, dim)).reshape(b, t, kv, heads // kv, dim)
    k = rotate((h @ w["k"]).reshape(b, t, kv, dim))
    v = (h @ w["v"]).reshape(b, t, kv, dim)
    score = jnp.einsum("btkrd,bskd->bkrts", q, k) / float(np.sqrt(dim))
    score = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((t, t), bool)), score, -1e9))
    x = x + jnp.einsum("bkrts,bskd->btkrd", score, v).reshape(b, t, heads * dim) @ w["o"]
    h = norm(x, w["n2"])
    return x + (jax.nn.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]


def decoder_shapes(
    vocabulary: int, layers: int, width: int, heads: int, kv: int, dim: int, hidden: int, dtype: Any
) -> Any:
    """The parameters of an unrolled decoder."""
    shapes = {"q": (width, heads * dim), "k": (width, kv * dim), "v": (width, kv * dim), "o": (heads * dim, width)}
    shapes |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width), "n1": (width,), "n2": (width,)}
    layer = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    ends = {"embedding": (vocabulary, width), "head": (width, vocabulary)}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in ends.items()} | {"layers": [layer] * layers}


def decoder(heads: int, kv: int) -> Callable[[Any, Any], Any]:
    """A function of parameters and tokens."""

    def apply(params: Any, tokens: Any) -> Any:
        x = params["embedding"][tokens]
        for w in params["layers"]:
            x = decoder_block(x, w, heads, kv)
        return x @ params["head"]

    return apply


def stacked_decoder(heads: int, kv: int) -> Callable[[Any, Any], Any]:
    """The same with a scan over stacked layers."""

    def apply(params: Any, tokens: Any) -> Any:
        step = lambda x, w: (decoder_block(x, w, heads, kv), None)
        return jax.lax.scan(step, params["embedding"][tokens], params["layers"])[0] @ params["head"]

    return apply


def analysis(rounds: int) -> list[Row]:
    """Time and memory to find groups, from shapes."""
    image = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    resnet = ResNet(64, (3, 4, 6, 3), bottleneck=True)
    tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    llama = decoder_shapes(128256, 32, 4096, 32, 8, 128, 14336, jnp.bfloat16)
    stacked = llama | {
        "layers": jax.tree.map(lambda *x: jax.ShapeDtypeStruct((32, *x[0].shape), x[0].dtype), *llama["layers"])
    }
    cases = [
        ("ResNet-50", resnet.apply, jax.eval_shape(resnet.init, jax.random.key(0), image), image),
        ("Llama-8B, 32 layers unrolled", decoder(32, 8), llama, tokens),
        ("Llama-8B, scanned", stacked_decoder(32, 8), stacked, tokens),
    ]
    rows: list[Row] = []
    for name, fn, params, x in cases:
        seconds, groups, equations = [], None, 0
        for _ in range(min(rounds, 3)):
            started = time.perf_counter()
            jaxpr = trace(fn, params, x)
            traced = time.perf_counter()
            found = couple(jaxpr, params, fix_outputs=True)
            followed = time.perf_counter()
            groups, equations = group(found), len(jaxpr.closed.jaxpr.eqns)
            seconds.append([traced - started, followed - traced, time.perf_counter() - followed])
        assert groups is not None
        _, labels, sorting = np.median(seconds, 0)
        tracing = seconds[0][0]  # later ones find it in JAX's cache
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{name}: {equations} equations, traced in {tracing:.2f} s, analysed in "
            f"{labels + sorting:.2f} s; {len(groups)} groups, {groups.size} units; peak of the process {peak:.2f} GiB",
            flush=True,
        )
        rows.append({"case": name, "trace_s": float(tracing), "analysis_s": float(labels + sorting), "peak_GiB": peak})
    return rows


def choosing(rounds: int) -> list[Row]:
    """Time to choose units of a ResNet-56 down to half of its FLOPs, after its groups are found."""
    model, image = ResNet(16, (9, 9, 9)), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = draw(jax.eval_shape(model.init, jax.random.key(0), image))
    groups = slimming.find_groups(model.apply, params, image)
    scores = slimming.group_scores(groups, params)
    target = 0.5 * count_flops(trace(model.apply, params, image).closed).total

    def choose(scope: str, *function: Any) -> slimming.Choice:
        cost = slimming.costs.flops(*(function or (groups,)))
        return slimming.choose(groups, scores, cost=cost, target=target, scope=scope)

    seconds = in_turns(
        {
            "group": lambda: choose("group").keep,
            "global": lambda: choose("global").keep,
            "global, traced again": lambda: choose("global", model.apply, params, image).keep,
        },
        rounds,
    )
    print(f"choosing half the FLOPs of a ResNet-56: {len(groups)} groups, {groups.size} units")
    for scope, own in seconds.items():
        low, middle, high = np.percentile(own, [25, 50, 75])
        print(f"  {scope:21} {middle:.3f} s ({low:.3f} to {high:.3f})", flush=True)
    return [{"case": f"choosing, {scope}", "s": float(np.median(own))} for scope, own in seconds.items()]


def in_turns(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each in every round, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        _ = jax.block_until_ready(run())
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        # In another order each round: who comes after the largest buffers were freed pays for it.
        for name in rng.permutation(list(contestants)):
            started = time.perf_counter()
            _ = jax.block_until_ready(contestants[name]())
            times[name].append(time.perf_counter() - started)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, str]:
    """The median of a / b over the rounds, and the same with its quartiles in words."""
    low, middle, high = np.percentile(a / b, [25, 50, 75])
    return float(middle), f"{middle:.2f} ({low:.2f} to {high:.2f})"


def draw(shapes: Any, seed: int = 0) -> Any:
    """Numbers for shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(np.abs(rng.normal(size=s.shape)) * 0.02 + 0.01, s.dtype), shapes)


def compare(
    name: str, fn: Any, params: Any, choice: slimming.Choice, x: Any, native: Any, own: Any, rounds: int
) -> list[Row]:
    """Prints the times of the whole, masked, smaller and natively smaller function, forward and in a training step."""
    small = slimming.slim(fn, params, choice, x)
    masks = choice.masks()
    in_graph = lambda p, m, x: fn(jax.tree.map(lambda a, b: jnp.where(b, a, 0), p, m), x)
    masked = jax.tree.map(lambda a, b: jnp.where(b, a, 0), params, masks)
    flops = [count_flops(trace(f, p, x).closed).total for f, p in ((fn, params), (small.fn, small.params))]
    jits = {
        "whole": jax.jit(fn),
        "in graph": jax.jit(in_graph),
        "smaller": jax.jit(small.fn),
        "native": jax.jit(native),
    }
    forward = in_turns(
        {
            "whole": lambda: jits["whole"](params, x),
            "masked params": lambda: jits["whole"](masked, x),
            "masks in graph": lambda: jits["in graph"](params, masks, x),
            "smaller": lambda: jits["smaller"](small.params, x),
            "native": lambda: jits["native"](own, x),
        },
        rounds,
    )
    step = lambda f: jax.jit(jax.grad(lambda p, x: jnp.mean(f(p, x) ** 2)))
    steps = {"whole": step(fn), "smaller": step(small.fn)}
    training = in_turns(
        {"whole": lambda: steps["whole"](params, x), "smaller": lambda: steps["smaller"](small.params, x)}, rounds
    )
    fewer = flops[0] / flops[1]
    ratios = {f"whole / {who}": ratio(forward["whole"], s) for who, s in forward.items() if who != "whole"}
    ratios["smaller / native"] = ratio(forward["smaller"], forward["native"])
    ratios["gradient: whole / smaller"] = ratio(training["whole"], training["smaller"])
    print(f"{name}: {fewer:.2f} times fewer FLOPs, whole {1e3 * np.median(forward['whole']):.1f} ms")
    for what, (_, text) in ratios.items():
        print(f"  seconds, {what:26} {text}")
    share = ratios["whole / smaller"][0] / fewer
    print(f"  speed-up / FLOP reduction           {share:.2f}", flush=True)
    found: Row = {"case": name, "fewer_FLOPs": fewer, "speed_up_of_FLOPs": share}
    return [found | {what: middle for what, (middle, _) in ratios.items()}]


def half(groups: slimming.Groups, globs: Any) -> slimming.Choice:
    """Removes every second unit of the groups that a predicate selects."""
    removed = {g.name: range(0, g.count, 2) for g in groups if globs(g)}
    return slimming.Choice.remove(groups, removed)


def resnet18(rounds: int) -> list[Row]:
    """ResNet-18 on 32x32 images, half of each group's channels."""
    model, thin = ResNet(64, (2, 2, 2, 2)), ResNet(32, (2, 2, 2, 2))
    x = jnp.ones((16, 32, 32, 3))
    shapes = [jax.eval_shape(m.init, jax.random.key(0), x) for m in (model, thin)]
    params, own = draw(shapes[0]), draw(shapes[1])
    groups = slimming.find_groups(model.apply, params, x)
    return compare(
        "ResNet-18, half the channels", model.apply, params, half(groups, lambda g: True), x, thin.apply, own, rounds
    )


def gpt(rounds: int) -> list[Row]:
    """A decoder of 4 layers, 512 wide, half the heads and half the MLP."""
    shapes = decoder_shapes(256, 4, 512, 8, 8, 64, 1536, jnp.float32)
    thin = decoder_shapes(256, 4, 512, 4, 4, 64, 768, jnp.float32)
    params, own, tokens = draw(shapes), draw(thin), jnp.zeros((4, 256), jnp.int32)
    fn = decoder(8, 8)
    groups = slimming.find_groups(fn, params, tokens)
    selected = lambda g: g.block == 64 or g.count == 1536
    name = "decoder, half the heads and MLP"
    return compare(name, fn, params, half(groups, selected), tokens, decoder(4, 4), own, rounds)


class Mlp(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


class Cnn(nn.Module):
    """Three padded convolutions and a hidden layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Conv(16, (3, 3), (2, 2))(x[..., None]))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), (2, 2))(x))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1))))


class Transformer(nn.Module):
    """Two blocks of attention and an MLP; each row of an image is a token."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(32)(x) + self.param("position", nn.initializers.normal(0.1), (x.shape[1], 32))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(96)(nn.LayerNorm()(x)))
            x = x + nn.Dense(32)(hidden)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def digits(model: Any, rounds: int) -> list[Row]:
    """Loss and accuracy on held-out digits after units are removed down to a part of the FLOPs, nothing trained on."""
    del rounds
    x, y = digit_images()
    rows: list[Row] = []
    cross_entropy = lambda outputs, y: optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
    accuracy = lambda outputs: 100 * float((outputs.argmax(-1) == y[1297:]).mean())
    loss = lambda p, x, y: cross_entropy(model.apply(p, x), y)
    for seed in range(3):
        params = fitted(loss, model.init(jax.random.key(seed), x[:1]), x[:1297], y[:1297], seed)
        groups = slimming.find_groups(model.apply, params, x[:1])
        both = jaxprune.calibrate(model.apply, params, [x[:1297]], collect=("gram", "total"))
        means = {name: dataclasses.replace(own, gram=None) for name, own in both.inputs.items()}
        repairs = {"none": None, "means": dataclasses.replace(both, inputs=means), "fitted": both}
        cost = slimming.costs.flops(groups)
        whole, run = cost(slimming.Choice.remove(groups, {})), jax.jit(model.apply)
        dense = accuracy(run(params, x[1297:]))
        for part, scope, normalise in itertools.product((0.6, 0.4), ("group", "global", "isomorphic"), ("mean", None)):
            scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params), normalise=normalise)
            choice = slimming.choose(groups, scores, cost=cost, target=part * whole, scope=scope)
            row: Row = {"net": type(model).__name__, "seed": seed, "FLOPs": part, "scope": scope, "scores": normalise}
            for repair, stats in repairs.items():
                # What slim(compensate=...) does, without finding the groups and compiling a function for each choice.
                new = params if stats is None else compensated(groups, params, choice.manifest(), stats)
                outputs = run(masks.apply(new, choice.masks()), x[1297:])
                row[f"accuracy {repair}"] = accuracy(outputs)
                row[f"loss {repair}"] = float(cross_entropy(outputs, y[1297:]))
            rows.append(row | {"whole": dense})
        print(f"{type(model).__name__}, seed {seed}: {dense:.1f} %", flush=True)
    for net, part, scope, normalise in dict.fromkeys((r["net"], r["FLOPs"], r["scope"], r["scores"]) for r in rows):
        own = [r for r in rows if (r["net"], r["FLOPs"], r["scope"], r["scores"]) == (net, part, scope, normalise)]
        cells = []
        for what in ("accuracy", "loss"):
            for repair in ("none", "means", "fitted"):
                values = np.asarray([r[f"{what} {repair}"] for r in own])
                cells.append(f"{values.mean():.3g} ({values.min():.3g} to {values.max():.3g})")
        kept = np.mean([r["whole"] for r in own])
        print(f"| {net} ({kept:.1f}) | {part:.0%} | {scope} | {normalise or 'raw'} | {' | '.join(cells)} |", flush=True)
    return rows


def layers(rounds: int) -> list[Row]:
    """An architecture for each layer within half of the FLOPs and of the time, and one level for all layers."""
    model: Any = Transformer()
    x, y = digit_images()
    loss = lambda p, x, y: optax.softmax_cross_entropy_with_integer_labels(model.apply(p, x), y).mean()
    params = fitted(loss, model.init(jax.random.key(0), x[:1]), x[:1297], y[:1297], 0)
    groups = slimming.find_groups(model.apply, params, x[:1])
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    stats = jaxprune.calibrate(model.apply, params, [x[:1297]], collect=("gram", "total"))
    evaluate = lambda p: loss(p, x[:1297], y[:1297])
    found = sensitivity.group_sensitivity(evaluate, params, groups, scores, [0.25, 0.5, 0.75, 1.0])
    whole = functools.partial(jax.jit(model.apply), params, x[:256])

    def relative(fn: Callable[..., Any], *inputs: Any) -> float:
        """Returns the time of the fastest call over that of the whole network; both take turns, so load slows both."""
        taken = in_turns({"small": functools.partial(jax.jit(fn), *inputs), "whole": whole}, 10 * rounds)
        return float(taken["small"].min() / taken["whole"].min())

    flops, seconds = (
        slimming.costs.flops(groups),
        slimming.costs.latency(model.apply, params, x[:256], measure=relative),
    )
    all_flops = flops(slimming.Choice.remove(groups, {}))
    choices: dict[str, slimming.Choice] = {}
    for name, cost, target in (("FLOPs", flops, 0.5 * all_flops), ("time", seconds, 0.5)):
        choices[name], levels = sensitivity.choose_levels(groups, scores, found, found.changes, cost, target)
        print(f"half of the {name}: {levels.sparsities(found)}", flush=True)
    alike = (slimming.choose(groups, scores, share) for share in np.arange(1, 20) / 20)
    choices["time, all alike"] = next(choice for choice in alike if seconds(choice) <= 0.5)
    rows: list[Row] = []
    for name, choice in choices.items():
        small = slimming.slim(model.apply, params, choice, x, stats=stats, compensate=True)
        right = small.fn(small.params, x[1297:]).argmax(-1) == y[1297:]
        row: Row = {"case": name, "FLOPs": flops(choice) / all_flops, "time": relative(small.fn, small.params, x[:256])}
        rows.append(row | {"accuracy": 100 * float(right.mean())})
        print(f"half of the {name}: {rows[-1]}", flush=True)
    return rows


def digit_images() -> tuple[jax.Array, jax.Array]:
    """The images of scikit-learn's digits, in a fixed order, and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return jnp.asarray(images[order] / 16, jnp.float32).reshape(-1, 8, 8), jnp.asarray(labels[order])


def fitted(loss: Callable[..., Any], params: Any, x: Any, y: Any, seed: int) -> Any:
    """Trains for 400 steps of 64 rows."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, 400))

    def step(carry: Any, key: Any) -> Any:
        rows = jax.random.randint(key, (64,), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(carry[0], x[rows], y[rows]), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    keys = jax.random.split(jax.random.key(100 + seed), 400)
    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys)[0][0])(params)


def main() -> None:
    parts = {"analysis": analysis, "choosing": choosing, "resnet18": resnet18, "gpt": gpt}
    nets = {"mlp": Mlp(), "cnn": Cnn(), "transformer": Transformer()}
    parts |= {name: functools.partial(digits, net) for name, net in nets.items()}
    parts["layers"] = layers
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="part", help=f"of {', '.join(parts)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="a folder to write slimming.json into")
    options = parser.parse_args()
    unknown = sorted(set(options.what) - set(parts))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    machine = f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device, jax {jax.__version__}"
    print(machine)
    rows = [row for name in options.what or parts for row in parts[name](options.rounds)]
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "rounds": options.rounds, "rows": rows}
        _ = (options.output / "slimming.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
