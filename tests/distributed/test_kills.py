"""A process that is killed, again and again, ends in the bits of one that is not."""

import os
import random
import signal
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

from jaxprune import checkpoints
from tests.distributed import resumed


def start(root: Path, folder: Path, steps: int) -> subprocess.Popen[str]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    command = [sys.executable, str(root / "tests" / "distributed" / "resumed.py"), str(folder), str(steps)]
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)


def run_until(process: subprocess.Popen[str], steps: int, delay: float) -> tuple[int, int]:
    """Reads so many steps, waits a little, and kills. The step that it began from, and the last one it told of."""
    assert process.stdout is not None
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    with process:
        try:
            told = [process.stdout.readline().split() for _ in range(1 + steps)]
            time.sleep(delay)
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert all(told), "it hung before it was killed"
    return 0 if told[0][1] == "None" else int(told[0][1]), int(told[-1][1])


def plain(state: Any) -> Any:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), state)


def uninterrupted(steps: int) -> Any:
    """Where the training ends that nothing interrupts."""
    state = resumed.start()
    for number in range(steps):
        state = resumed.step(state, number)
    return plain(state)


def check(root: Path, folder: Path, kills: int, steps: int, seed: int) -> None:
    rng = random.Random(seed)
    before = 0
    for _ in range(kills):
        # So few steps that it has not ended, and then any moment of the next ones, saving among them.
        process = start(root, folder, steps)
        began, made = run_until(process, rng.randint(1, steps // (2 * kills)), rng.uniform(0, 0.05))
        assert began >= before - 2  # saving is behind by no more: nothing older is fallen back to
        before = made
    # The rest is made here, which is yet another process.
    resumed.main(folder, steps)
    found = checkpoints.restore(folder / str(steps) / "default", jax.eval_shape(resumed.start))
    chex.assert_trees_all_equal(plain(found), uninterrupted(steps))


@pytest.mark.slow
def test_two_kills_change_no_bit(root, tmp_path):
    check(root, tmp_path / "run", kills=2, steps=40, seed=0)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(root, tmp_path):
    check(root, tmp_path / "run", kills=20, steps=240, seed=1)
