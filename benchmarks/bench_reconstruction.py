"""How long SparseGPT takes on one large layer, beside one matrix product of its size, and what calibration costs.

    python benchmarks/bench_reconstruction.py --only kernels --output output/bench
    python benchmarks/bench_reconstruction.py --only calibration --output output/bench

Contestants take turns, so that what else the machine does touches all of them; medians are reported with the fastest
and the slowest run. Compilation, tracing included, is timed apart.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.calibration import calibrator
from jaxprune.reconstruction import Entries, Grouped, reconstruct, sparsegpt

Row = dict[str, Any]


def timed(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """Seconds of every run, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """The compiled function and the seconds that took, tracing included."""
    started = time.perf_counter()
    ready = jax.jit(fn).lower(*args).compile()
    return ready, time.perf_counter() - started


def row(name: str, seconds: list[float], compiling: float | None = None, **more: Any) -> Row:
    """A row of the table, printed."""
    out = {"name": name, "seconds": float(np.median(seconds)), "all": seconds, "compile": compiling, **more}
    line = f"{name:34} {out['seconds']:9.4f} s ({min(seconds):.4f} to {max(seconds):.4f})"
    line += "".join(f", {key.replace('_', ' ')} {value:.2f}" for key, value in more.items())
    print(line + (f", compiled in {compiling:.1f} s" if compiling is not None else ""), flush=True)
    return out


def kernels(size: int, repeat: int) -> list[Row]:
    """SparseGPT on a square layer against one matrix product."""
    keys = jax.random.split(jax.random.key(0), 3)
    weight = jax.random.normal(keys[0], (size, size)) / size**0.5
    x = jax.random.normal(keys[1], (size + 256, size)) * jnp.exp(jax.random.normal(keys[2], (size,)))
    gram = x.T @ x
    half = size * size // 2
    # Of SparseGPT: the factor (n^3 / 3) and its inverse (n^3 / 3), the updates (n^3: each row by those before it), and
    # what is never worse than the mask alone (two products).
    contestants = {
        "matmul": (jnp.matmul, 2.0),
        "cholesky": (lambda w, g: jnp.linalg.cholesky(g + jnp.eye(size)), 1 / 3),
        "sparsegpt 50 %": (lambda w, g: sparsegpt(w, g, Entries(half)), 1 / 3 + 1 / 3 + 1 + 4),
        "sparsegpt 2:4": (lambda w, g: sparsegpt(w, g, Grouped(2, 4)), 1 / 3 + 1 / 3 + 1 + 4),
    }
    ready = {name: compiled(fn, weight, gram) for name, (fn, _) in contestants.items()}
    seconds = timed({name: partial(fn, weight, gram) for name, (fn, _) in ready.items()}, repeat)
    product = np.median(seconds["matmul"])
    return [
        row(
            f"{name}, {size} x {size}",
            seconds[name],
            ready[name][1],
            GFLOP_per_s=contestants[name][1] * size**3 / np.median(seconds[name]) / 1e9,
            matmuls=float(np.median(seconds[name]) / product),
        )
        for name in contestants
    ]


def decoder(params: Any, x: jax.Array) -> jax.Array:
    """Blocks of attention and MLP, without norms, scanned."""

    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5)
        x = x + jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, p["o"])
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    return lax.scan(block, x, params)[0]


def calibration(width: int, layers: int, repeat: int) -> list[Row]:
    """The plain forward pass against calibration, by what is summed; and pruning a stacked tree."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    shapes = dict.fromkeys("qkv", (width, 8, width // 8)) | {
        "o": (8, width // 8, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    params = {n: jax.random.normal(next(keys), (layers, *s)) / width for n, s in shapes.items()}
    x = jax.random.normal(next(keys), (8, 128, width))
    plain, compiling = compiled(decoder, params, x)
    runs: dict[str, Callable[[], Any]] = {"forward": lambda: [plain(params, x) for _ in range(5)]}
    first, stats = {"forward": compiling}, None
    for collect in ("square", "gram"):
        run = calibrator(decoder, params, collect=collect)
        started = time.perf_counter()
        stats = jax.block_until_ready(run(params, [x]))
        first[f"calibrate, {collect}"] = time.perf_counter() - started
        runs[f"calibrate, {collect}"] = partial(run, params, [x] * 5)
    seconds = timed(runs, repeat)
    forward = np.median(seconds["forward"])
    rows = [
        row(
            f"{name}, {layers} layers of {width}",
            [s / 5 for s in seconds[name]],  # a batch
            first[name],
            forwards=float(np.median(seconds[name]) / forward),
        )
        for name in runs
    ]
    started = time.perf_counter()
    jax.block_until_ready(reconstruct(params, stats, 0.5))
    once = time.perf_counter() - started
    again = timed({"": partial(reconstruct, params, stats, 0.6)}, 1)[""]
    return [*rows, row(f"reconstruct, {layers} layers of {width}", again, once - again[0])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="of the square layer")
    parser.add_argument("--width", type=int, default=256, help="of the decoder")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("kernels", "calibration"))
    parser.add_argument("--output", type=Path, help="a folder to write reconstruction.json into")
    options = parser.parse_args()
    rows = [] if options.only == "calibration" else kernels(options.size, options.repeat)
    rows += [] if options.only == "kernels" else calibration(options.width, options.layers, options.repeat)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device, jax {jax.__version__}"
        report = {"machine": machine, "options": vars(options) | {"output": str(options.output)}, "rows": rows}
        name = "reconstruction" if options.only is None else f"reconstruction_{options.only}"
        (options.output / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
