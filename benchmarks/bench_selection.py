"""How long exact selection takes, beside what else finds a threshold; prints a table and writes JSON.

    python benchmarks/bench_selection.py --output output/bench
    python benchmarks/bench_selection.py --first
    python benchmarks/bench_selection.py --first "ResNet-50"
    python benchmarks/bench_selection.py --quick

Times are medians of interleaved runs, so that a busy machine slows all alike; compare ratios, which are medians of the
ratios within a round, or for what is too slow to repeat the ratio of medians. `floor` is what any selection has to do:
read the scores once, and make a mask from a threshold.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import allocation, criteria, masks, prune
from jaxprune.masks._exact import counts

SPARSITY = 0.9
Runs = dict[str, Callable[[], Any]]


def interleaved(runs: Runs, repeat: int, once: tuple[str, ...] = ()) -> dict[str, list[float]]:
    """Seconds of each run, round by round; those in `once` are too slow to repeat, and take part in one round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for number in range(repeat):
        for name, run in runs.items():
            if name in once and number:
                continue
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - started)
    return times


def report(title: str, times: dict[str, list[float]], of: str) -> dict[str, Any]:
    """Prints one block of the table, each run against `of` and against the floor where it was timed, and returns it."""
    others = [of, *(name for name in ("floor",) if name in times)]
    heads = "".join(f"{'times ' + other:>16}" for other in others)
    print(f"\n{title}\n{'':28}{'median ms':>12}{'quartiles':>20}{heads}")
    found = {}
    for name, seconds in times.items():
        low, middle, high = np.percentile(np.array(seconds) * 1e3, [25, 50, 75])
        ratios = {f"times_{other}": _ratio(seconds, times[other]) for other in others}
        found[name] = {"ms": middle, "quartiles_ms": [low, high], **ratios}
        shown = "".join(f"{ratio:16.2f}" for ratio in ratios.values())
        print(f"{name:28}{middle:12.2f}{f'{low:.2f} - {high:.2f}':>20}{shown}")
    return {"title": title, "runs": found}


def _ratio(seconds: list[float], of: list[float]) -> float:
    if len(seconds) < len(of):
        return statistics.median(seconds) / statistics.median(of)
    return statistics.median(a / b for a, b in zip(seconds, of, strict=True))


def leaf(entries: int, repeat: int, argsort: bool) -> dict[str, Any]:
    """One leaf of so many entries."""
    scores = jnp.abs(jax.random.normal(jax.random.key(0), (entries // 1000, 1000)))
    kept = scores.size - int(counts.removed(SPARSITY, scores.size))
    host = np.asarray(scores)
    threshold = float(np.partition(host.ravel(), -kept)[-kept])
    select = jax.jit(lambda x: masks.select([x], SPARSITY)[0])
    floor = jax.jit(lambda x: (x.sum(), x >= threshold))
    runs: Runs = {
        "select": lambda: select(scores),
        "floor": lambda: floor(scores),
        "np.partition and mask": lambda: host >= np.partition(host.ravel(), -kept)[-kept],
    }
    slow: Runs = {}
    if argsort:
        order = jax.jit(partial(jnp.argsort, axis=None))
        top = jax.jit(lambda x: jax.lax.top_k(x.ravel(), kept)[1])
        slow = {"jnp.argsort, no mask": lambda: order(scores), "lax.top_k, no mask": lambda: top(scores)}
    torch_run = _torch(host, scores.size - kept)
    if torch_run:
        slow["torch.kthvalue and mask"] = torch_run
    times = interleaved(runs | slow, repeat, once=tuple(slow) if entries >= 5_000_000 else ())
    return report(f"one leaf of {scores.size:,} float32, {SPARSITY:.0%} removed", times, "select")


def _torch(host: np.ndarray, removed: int) -> Callable[[], Any] | None:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # compared with where it is installed
    except ImportError:
        return None
    tensor = torch.from_numpy(host.copy())

    def run() -> Any:
        return (tensor > torch.kthvalue(tensor.flatten(), removed).values).numpy()

    return run


def tree(entries: int, repeat: int) -> dict[str, Any]:
    """The leaves of a ResNet-like net, 61 of them, with so many entries together."""
    widths = [64 * 2 ** (i // 15) for i in range(60)]
    scale = (entries / sum(9 * w * w for w in widths)) ** 0.5
    shapes = [(3, 3, max(4, round(w * scale)), max(4, round(w * scale))) for w in widths] + [(64, 10)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    scores = [jnp.abs(jax.random.normal(k, s)) for k, s in zip(keys, shapes, strict=True)]
    select = jax.jit(lambda s: masks.select(s, SPARSITY))
    together = jax.jit(lambda s: masks.select_global(s, SPARSITY))
    floor = jax.jit(lambda s: [(x.sum(), x >= 1.645) for x in s])
    runs: Runs = {
        "select": lambda: select(scores),
        "select_global": lambda: together(scores),
        "floor": lambda: floor(scores),
    }
    total = sum(x.size for x in scores)
    return report(f"61 leaves, {total:,} float32, {SPARSITY:.0%} removed", interleaved(runs, repeat), "select")


def groups(size: int, repeat: int) -> list[dict[str, Any]]:
    """Selects n of m on a square matrix, against argsort of argsort."""
    scores = jnp.abs(jax.random.normal(jax.random.key(0), (size, size)))
    found = []
    for n, m in ((2, 4), (4, 8), (1, 16)):
        select = jax.jit(lambda x, n=n, m=m: masks.select([x], 1 - n / m, masks.NM(n, m, axis=-2))[0])
        twice = jax.jit(lambda x, n=n, m=m: _by_argsort(x, n, m))
        runs: Runs = {"select": lambda f=select: f(scores), "argsort of argsort": lambda f=twice: f(scores)}
        times = interleaved(runs, repeat, once=("argsort of argsort",))
        found.append(report(f"{n}:{m} at {size} x {size}", times, "select"))
    patterns = {
        "block 16 x 16": masks.Block((16, 16), (0, 1)),
        "channel": masks.Channel(-1),
        "input channel": masks.Channel(-2),
    }
    compiled = {name: jax.jit(lambda x, p=p: masks.select([x], 0.5, p)[0]) for name, p in patterns.items()}
    read = jax.jit(jnp.sum)
    runs = {"read": lambda: read(scores)}
    runs |= {name: lambda f=f: f(scores) for name, f in compiled.items()}
    found.append(report(f"blocks and channels at {size} x {size}", interleaved(runs, repeat), "read"))
    return found


def _by_argsort(x: jax.Array, n: int, m: int) -> jax.Array:
    groups = x.reshape(-1, m, x.shape[1]).swapaxes(1, 2)
    return (jnp.argsort(jnp.argsort(groups, axis=-1), axis=-1) >= m - n).swapaxes(1, 2).reshape(x.shape)


def compiling(leaves: int) -> dict[str, Any]:
    """Seconds to trace, lower and compile a mask update over so many leaves, alike or not."""
    kinds = {
        "50 shapes, 0.1M to 0.7M entries": [(256 + 64 * (i % 10), 384 + 128 * (i // 10 % 5)) for i in range(leaves)],
        "10 shapes, 0.1M to 0.7M entries": [(256 + 64 * (i % 10), 384 + 128 * (i % 5)) for i in range(leaves)],
        "6 shapes, below 64K entries": [(64 + 16 * (i % 6), 192) for i in range(leaves)],
    }
    found = {}
    print(f"\ncompiling a mask update over {leaves} leaves\n{'':32}{'seconds':>10}{'of which lowering':>20}")
    for name, shapes in kinds.items():
        scores = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        jax.clear_caches()
        started = time.perf_counter()
        lowered = jax.jit(masks.select).lower(scores, jax.ShapeDtypeStruct((), jnp.float32))
        lowering = time.perf_counter() - started
        _ = lowered.compile()
        found[name] = {"seconds": time.perf_counter() - started, "lowering": lowering}
        print(f"{name:32}{found[name]['seconds']:10.1f}{lowering:20.1f}")
    return {"title": f"compiling over {leaves} leaves", "runs": found}


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of the 161 parameters of ResNet-50, 25.6 million entries."""
    kernels = [(7, 7, 3, 64)]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, inputs = 64 * 2**stage, 128 * 2**stage if stage else 64
        kernels.append((1, 1, inputs, 4 * width))
        for block in range(blocks):
            into = 4 * width if block else inputs
            kernels += [(1, 1, into, width), (3, 3, width, width), (1, 1, width, 4 * width)]
    return [*kernels, *(shape[-1:] for shape in kernels for _ in ("scale", "bias")), (2048, 1000), (1000,)]


MANY = [(256 + 64 * (i % 10), 384 + 128 * (i // 10 % 5)) for i in range(300)]
# The shapes, the sparsity and the options of a first call of `prune`.
FIRST: dict[str, tuple[list[tuple[int, ...]], float | None, Any]] = {
    "ResNet-50": (resnet50(), SPARSITY, {}),
    "one ranking": (resnet50(), SPARSITY, {"allocation": allocation.one_ranking}),
    "2:4": (resnet50(), None, {"pattern": masks.NM(2, 4), "where": "layer_[1-9]*/kernel"}),
    "SNIP": (resnet50(), SPARSITY, {"criterion": criteria.snip}),
    "channels": (resnet50(), SPARSITY, {"pattern": masks.Channel()}),
    "300 leaves": (MANY, SPARSITY, {}),
}


def first(name: str) -> None:
    """Prints the seconds of the first `prune` of a process, of the second one, and of printing the result."""
    shapes, sparsity, how = FIRST[name]
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    params = {f"layer_{i}": {"kernel" if x.ndim > 1 else "scale": x} for i, x in enumerate(arrays)}
    grads = params if "criterion" in how else None
    pruned: list[Any] = []
    call = lambda: pruned.append(jax.block_until_ready(prune(params, sparsity, grads=grads, **how)))
    print(f"{name}: {len(shapes)} leaves, {sum(x.size for x in arrays):,} entries")
    print(f"{'':10}{'processor s':>14}{'wall s':>10}")
    for step, run in {"first": call, "second": call, "print": lambda: str(pruned[0])}.items():
        used, started = time.process_time(), time.perf_counter()
        _ = run()
        print(f"{step:10}{time.process_time() - used:14.2f}{time.perf_counter() - started:10.2f}")


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "devices": [str(d) for d in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "load": load,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000_000, 20_000_000, 100_000_000])
    parser.add_argument("--argsort-up-to", type=int, default=20_000_000, help="entries up to which arrays are sorted")
    parser.add_argument("--tree", type=int, default=20_000_000, help="entries of the 61 leaves together; 0: leave out")
    parser.add_argument("--size", type=int, default=4096, help="of the matrix for n of m; 0: leave out")
    parser.add_argument("--leaves", type=int, default=300, help="of the mask update that is compiled; 0: leave out")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--output", type=Path, help="a folder to write selection.json into")
    parser.add_argument("--first", choices=FIRST, help="only the first `prune` of this process, compilation included")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs: the numbers mean nothing")
    options = parser.parse_args(arguments)
    if options.first:
        first(options.first)
        return
    if options.quick:
        options.entries, options.tree, options.size, options.leaves, options.repeat = [10_000], 0, 64, 2, 2
    found = machine()
    print(", ".join(f"{key}: {value}" for key, value in found.items()))
    blocks = [leaf(n, options.repeat, n <= options.argsort_up_to) for n in options.entries]
    blocks += [tree(options.tree, options.repeat)] if options.tree else []
    blocks += groups(options.size, options.repeat) if options.size else []
    blocks += [compiling(options.leaves)] if options.leaves else []
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "selection.json").write_text(json.dumps({"machine": found, "blocks": blocks}, indent=1))


if __name__ == "__main__":
    main()
