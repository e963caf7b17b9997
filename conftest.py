"""What tests and doctests find set up: JAX on eight simulated CPU devices, and the names that examples use."""

import atexit
import os
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import pytest

# A GPU, where there is one, is for `make gpu`, which sets this itself; in the environment for the tests' subprocesses.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
# Must be said before the first array. Eight cost nothing where only the first is used: 30 compilations, 3000
# eager additions and a matrix product took the same time with one device and with eight.
jax.config.update("jax_num_cpu_devices", 8)
# `make test` asks for quick compilation: XLA's older code generator takes a third of the time. JAX 0.11 has it no more.
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") and jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
# What one test compiled, another reads. The folder is of this process alone, for JAX does not write into it atomically.
_COMPILED = tempfile.mkdtemp(prefix="jaxprune-tests-")
_ = atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    """`jax` and `jnp` in doctests, so that an example shows only what it is about."""
    doctest_namespace.update(jax=jax, jnp=jnp)
