"""Selection on several devices: time, bytes moved and temporary memory, beside a sort; prints a table, writes JSON.

    python benchmarks/bench_distributed.py --output output/bench
    python benchmarks/bench_distributed.py --quick

One matrix is sharded over 1, 2, 4 and 8 simulated devices of one process, and over as many of two processes. Each row
is a process (or two) of its own. Simulated devices share the cores of this machine: their time says what the
communication and the partitioned program cost, not what more devices would gain. Times of the selection are medians
with quartiles; the sort runs once. The bytes are those that the compiled program gives a device (`collectives.py`), at
8 passes over the keys and 8 over the indices of those that tie; 3 to 5 and none are usual.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from collectives import collectives, total
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import masks
from jaxprune.masks._exact import counts

SPARSITY = 0.9
TURNS = (2, 8)  # keys, and the index where they tie; passes of each, at most


def by_sorting(scores: jax.Array) -> jax.Array:
    """What one would write otherwise: a threshold from a sorted copy. Ties are not broken, so counts are not exact."""
    kept = scores.size - int(counts.removed(SPARSITY, scores.size))
    return scores >= jnp.sort(scores.reshape(-1))[-kept]


def measure(size: int, repeat: int) -> dict[str, Any]:
    """One row, on the devices there are."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, P("x", None))
    rows = lambda index: np.random.default_rng(index[0].start or 0).normal(size=(size // mesh.size, size))
    make = lambda index: np.abs(rows(index)).astype(np.float32)
    scores = jax.make_array_from_callback((size, size), place, make)
    run: dict[str, Any] = {}
    row: dict[str, Any] = {"devices": mesh.size, "processes": jax.process_count()}
    programs = {"select": lambda x: masks.select([x], SPARSITY)[0], "sort": by_sorting}
    for name, fn in programs.items():
        run[name] = jax.jit(fn, out_shardings=place).lower(scores).compile()
        memory = run[name].memory_analysis()
        row[name] = {
            "bytes": total(collectives(run[name], turns=TURNS)),
            "temporary": None if memory is None else memory.temp_size_in_bytes,
        }
    kept = int(jax.jit(lambda m: m.sum(dtype=jnp.int32))(run["select"](scores)))
    assert kept == scores.size - int(counts.removed(SPARSITY, scores.size))
    # The first run of each has the page faults of its buffers; a sort is too slow to be run again for that.
    seconds = {"select": [_time(run["select"], scores) for _ in range(repeat + 1)][1:]}
    seconds["sort"] = [_time(run["sort"], scores)]
    for name, values in seconds.items():
        low, middle, high = np.percentile(np.array(values) * 1e3, [25, 50, 75])
        row[name] |= {"ms": float(middle), "quartiles_ms": [float(low), float(high)]}
    row["ratio"] = row["sort"]["ms"] / row["select"]["ms"]
    return row


def _time(compiled: Any, scores: jax.Array) -> float:
    began = time.perf_counter()
    jax.block_until_ready(compiled(scores))
    return time.perf_counter() - began


def work(options: argparse.Namespace) -> None:
    """What each process of a row does; the first prints it."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices // options.processes)
    if options.processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{options.port}", options.processes, options.process)
    row = measure(options.size, options.repeat)
    if jax.process_index() == 0:
        print(json.dumps(row), flush=True)


def start(devices: int, processes: int, options: argparse.Namespace) -> dict[str, Any]:
    """A row, measured in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--size", str(options.size), "--repeat", str(options.repeat)]
    command += ["--devices", str(devices), "--processes", str(processes), "--port", str(port)]
    started = [
        subprocess.Popen([*command, "--process", str(i)], stdout=subprocess.PIPE, text=True) for i in range(processes)
    ]
    try:
        told = [process.communicate(timeout=options.limit)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError(f"{devices} devices in {processes} processes failed; what they said stands above")
    return json.loads(told[0].splitlines()[-1])


def show(rows: list[dict[str, Any]], size: int) -> None:
    print(f"selection of {SPARSITY:.0%} of {size} x {size} float32, sharded by rows, beside a sort")
    print(
        "| devices | processes | select, ms | sort, ms | times | moved, kB | sort moves | temporary, MB | of the sort |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        (low, high), both = row["select"]["quartiles_ms"], (row["select"], row["sort"])
        cells = [row["devices"], row["processes"], f"{row['select']['ms']:.1f} ({low:.1f} - {high:.1f})"]
        cells += [f"{row['sort']['ms']:.0f}", f"{row['ratio']:.0f}"]
        cells += [f"{each['bytes'] / 1e3:,.1f}" for each in both] + [f"{each['temporary'] / 1e6:,.1f}" for each in both]
        print("| " + " | ".join(map(str, cells)) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="of the matrix")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--output", type=Path, help="a folder to write distributed.json into")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs: the numbers mean nothing")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a row")
    parser.add_argument("--devices", type=int, help="measure one row, in this process")
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.devices:
        work(options)
        return
    kinds = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (8, 2)]
    if options.quick:
        options.size, options.repeat, kinds = 256, 1, [(1, 1), (2, 2)]
    found = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load": os.getloadavg(),
    }
    print(", ".join(f"{key}: {value}" for key, value in found.items()))
    measured = [start(*kind, options) for kind in kinds]
    show(measured, options.size)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "distributed.json").write_text(json.dumps({"machine": found, "rows": measured}, indent=1))


if __name__ == "__main__":
    main()
