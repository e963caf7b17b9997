"""Real processes that work on the same arrays: the bits of one process in each of them."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune import checkpoints, masks
from tests.distributed import layouts, problem


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(root: Path, folder: Path, count: int, limit: float = 150) -> list[dict[str, np.ndarray]]:
    """What each of so many processes found."""
    port = free_port()
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    script = str(root / "tests" / "distributed" / "processes.py")
    logs = [(folder / f"log-{i}").open("w+") for i in range(count)]
    started = [
        subprocess.Popen(
            [sys.executable, script, str(i), str(count), str(port), str(folder)],
            env=env, stdout=logs[i], stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        codes = [process.wait(limit) for process in started]
    finally:
        for process in started:
            process.kill()
            _ = process.wait()
        for log in logs:
            log.close()
    assert codes == [0] * count, "\n".join((folder / f"log-{i}").read_text()[-3000:] for i in range(count))
    return [dict(np.load(folder / f"found-{count}-{i}.npz")) for i in range(count)]


def test_two_processes_find_what_one_device_finds(root, tmp_path):
    found = run(root, tmp_path, 2)
    params = layouts.init_params()
    trained, held = problem.alone("set")[-1]
    expected: Any = {"params": trained, "masks": held, "restored": trained}
    for each in found:
        leaves = [each[name] for name in sorted(each)]
        layouts.expect_same(jax.tree.unflatten(jax.tree.structure(expected), leaves), expected)
    # What two processes saved is read by one, on one device.
    loaded = checkpoints.load(tmp_path / "params-2", params)
    layouts.expect_same(loaded.params, masks.apply(trained, held))
    optimizer = problem.make_optimizer("set", packed=True)
    state = checkpoints.restore(tmp_path / "state-2", {"params": params, "state": optimizer.init(params)})
    layouts.expect_same(state["params"], trained)


@pytest.mark.slow
def test_one_two_and_four_processes_find_the_same(root, tmp_path):
    (one,) = run(root, tmp_path, 1)
    for count in (2, 4):
        for each in run(root, tmp_path, count):
            for name, array in one.items():
                np.testing.assert_array_equal(each[name], array)
