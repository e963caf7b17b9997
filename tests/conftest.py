"""Fixtures for all tests: the repository, the real data where there are any, eight devices."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Scripts that write reference values with packages which the tests do not install.
collect_ignore = ["reference/torch_masks.py", "reference/torch_sparsegpt.py"]


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


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compiles the programs of a test with all optimizations of XLA; `make test` turns the slow ones off."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def devices() -> list[Any]:
    """Eight devices, for tests that shard; the conftest beside pyproject.toml asks for them."""
    found = jax.devices()[:8]
    if len(found) < 8:
        pytest.skip(f"needs 8 devices, found {len(found)}")
    return found
