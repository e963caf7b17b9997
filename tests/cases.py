"""What many tests are made of: the few cases that run on every change, and numbers that cost nothing to draw."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def few(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """The cases, all but the `quick` ones marked slow; a case that is a tuple gives several arguments."""
    cases = list(cases)
    assert all(case in cases for case in quick), "a quick case is none of the cases"
    slow = lambda case: pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
    return [case if case in quick else slow(case) for case in cases]


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Standard normal numbers in float32, drawn by NumPy: JAX would compile a program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
