"""What every test finds set up: JAX on eight simulated CPU devices, and the real data where there are any."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

# A GPU, where there is one, is for `make gpu`, which sets this itself; in the environment for the tests' subprocesses.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
# Must be said before the first array. Eight cost nothing where only the first is used: 30 compilations, 3000
# eager additions and a matrix product took the same time with one device and with eight.
jax.config.update("jax_num_cpu_devices", 8)
# A test must see each compilation, and leave nothing in the user's cache.
jax.config.update("jax_enable_compilation_cache", False)

ROOT = Path(__file__).resolve().parents[1]
# Scripts that write reference values with packages which the tests do not install.
collect_ignore = ["reference/torch_masks.py"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from a name such as `mnist/train-images-idx3-ubyte.gz` to its path; skips where it is missing.

    The folder is the environment variable JAXPRUNE_DATA, else `../shared/data` beside the repository.
    """
    folder = Path(os.environ.get("JAXPRUNE_DATA") or ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"no real data at {path}: set JAXPRUNE_DATA to the folder that holds {name}")
        return path

    return find


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    """Eight devices, for tests that shard."""
    found = jax.devices()[:8]
    if len(found) < 8:
        pytest.skip(f"needs 8 devices, found {len(found)}")
    return found
