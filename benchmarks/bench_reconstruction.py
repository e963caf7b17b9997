"""How long SparseGPT takes on one large layer, beside one matrix product of its size, and what calibration costs.

    python benchmarks/bench_reconstruction.py --size 4096

Prints one line a measurement. Compilation and running are timed apart, running as the best of some repetitions.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration import calibrator
from jaxprune.reconstruction import Entries, Grouped, reconstruct, sparsegpt


def timed(fn: Callable[..., Any], *args: Any, repeat: int) -> float:
    """Seconds of the fastest run."""
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        jax.block_until_ready(fn(*args))
        best = min(best, time.perf_counter() - started)
    return best


def compiled(fn: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
    """The compiled function and the seconds that took, tracing included."""
    started = time.perf_counter()
    ready = jax.jit(fn).lower(*args).compile()
    return ready, time.perf_counter() - started


def kernels(size: int, repeat: int) -> None:
    """SparseGPT on a square layer against one matrix product."""
    keys = jax.random.split(jax.random.key(0), 3)
    weight = jax.random.normal(keys[0], (size, size)) / size**0.5
    x = jax.random.normal(keys[1], (size + 256, size)) * jnp.exp(jax.random.normal(keys[2], (size,)))
    gram = x.T @ x
    product, _ = compiled(jnp.matmul, weight, gram)
    seconds = timed(product, weight, gram, repeat=repeat)
    print(f"matmul {size}: {seconds:.3f} s, {2 * size**3 / seconds / 1e9:.0f} GFLOP/s")
    factor, _ = compiled(lambda g: jnp.linalg.cholesky(g + jnp.eye(size)), gram)
    print(f"cholesky {size}: {timed(factor, gram, repeat=repeat):.3f} s")
    half = size * size // 2
    for name, fn in (
        ("unstructured", lambda w, g: sparsegpt(w, g, Entries(half))),
        ("2:4", lambda w, g: sparsegpt(w, g, Grouped(2, 4))),
    ):
        run, compiling = compiled(fn, weight, gram)
        taken = timed(run, weight, gram, repeat=repeat)
        # The factor (n^3 / 3 and n^3) and the updates (n^3 for a triangle, counted once though twice is computed).
        flops = (4 / 3 + 1) * size**3
        rate = f"{flops / taken / 1e9:.0f} GFLOP/s, {taken / seconds:.1f} matmuls"
        print(f"sparsegpt {size} {name}: {taken:.3f} s, {rate}, compiled in {compiling:.1f} s")


def decoder(params: Any, x: jax.Array) -> jax.Array:
    """Blocks of attention and MLP, without norms, scanned."""

    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5)
        x = x + jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, p["o"])
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    return lax.scan(block, x, params)[0]


def calibration(width: int, layers: int, repeat: int) -> None:
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
    forward = timed(plain, params, x, repeat=repeat)
    print(f"forward, {layers} layers of {width}: {forward * 1e3:.0f} ms, compiled in {compiling:.1f} s")
    for collect in ("square", "gram"):
        run = calibrator(decoder, params, collect=collect)
        started = time.perf_counter()
        stats = run(params, [x])
        first = time.perf_counter() - started
        one, five = (timed(partial(run, params, [x] * n), repeat=repeat) for n in (1, 5))
        each = (five - one) / 4  # without what a call costs whatever the number of batches
        print(
            f"calibrate {collect}: {each * 1e3:.0f} ms a batch, {each / forward:.2f} forwards, first call {first:.1f} s"
        )
    started = time.perf_counter()
    jax.block_until_ready(reconstruct(params, stats, 0.5))
    first = time.perf_counter() - started
    again = timed(partial(reconstruct, params, stats, 0.6), repeat=1)
    print(f"reconstruct {layers} stacked layers of {width}: {again:.2f} s, compilation {first - again:.2f} s more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="of the square layer")
    parser.add_argument("--width", type=int, default=256, help="of the decoder")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", choices=("kernels", "calibration"))
    options = parser.parse_args()
    if options.only != "calibration":
        kernels(options.size, options.repeat)
    if options.only != "kernels":
        calibration(options.width, options.layers, options.repeat)


if __name__ == "__main__":
    main()
