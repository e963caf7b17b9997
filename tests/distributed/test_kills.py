"""A process that is killed, again and again, ends in the bits of one that is not."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import storage
from tests.distributed import resumed


def start(root: Path, folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    script = root / "tests" / "distributed" / "resumed.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
    )


def run_until(process: subprocess.Popen[str], steps: int, delay: float) -> tuple[int, int]:
    """Reads so many steps, waits a little, and kills. The step that it began from, and the last one it told of."""
    assert process.stdout is not None
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        told = [process.stdout.readline().split() for _ in range(1 + steps)]
        time.sleep(delay)
    finally:
        watchdog.cancel()
        process.kill()
        _ = process.wait()
    assert all(told), "it ended or hung before it was killed"
    return 0 if told[0][1] == "None" else int(told[0][1]), int(told[-1][1])


def plain(state: Any) -> Any:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), state)


@pytest.fixture(scope="module")
def uninterrupted() -> Any:
    """Where the training ends that nothing interrupts."""
    state = resumed.start()
    for number in range(resumed.STEPS):
        state = resumed.step(state, number)
    return plain(state)


def check(root: Path, folder: Path, kills: int, seed: int, uninterrupted: Any) -> None:
    rng = random.Random(seed)
    before = 0
    for _ in range(kills):
        # So few steps that it has not ended, and then any moment of the next ones, saving among them.
        process = start(root, folder)
        began, made = run_until(process, rng.randint(1, resumed.STEPS // (kills + 2)), rng.uniform(0, 0.05))
        assert began >= before - 2  # saving is behind by no more: nothing older is fallen back to
        before = made
    last = start(root, folder)
    assert last.stdout is not None
    try:
        told = last.communicate(timeout=300)[0].splitlines()
    finally:
        last.kill()
    assert last.returncode == 0
    assert told[0] != "from None", "nothing was saved before the kills"
    found = storage.restore(folder / str(resumed.STEPS) / "default", jax.eval_shape(resumed.start))
    chex.assert_trees_all_equal(plain(found), uninterrupted)


def test_three_kills_change_no_bit(root, tmp_path, uninterrupted):
    check(root, tmp_path / "run", 3, 0, uninterrupted)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(root, tmp_path, uninterrupted):
    check(root, tmp_path / "run", 20, 1, uninterrupted)
