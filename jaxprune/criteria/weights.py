"""The size of weights."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.criteria.signals import map_scores, wide

PyTree = Any


def magnitude(params: PyTree, *, power: int = 1, **signals: Any) -> PyTree:
    """The absolute value of each weight, or its square."""
    del signals
    if power not in (1, 2):
        raise ValueError(f"criteria.magnitude: power must be 1 or 2; got {power!r}")

    def score(w: jax.Array) -> jax.Array:
        return jnp.abs(w) if power == 1 else jnp.square(w.astype(wide(w.dtype)))

    return map_scores(score, params)
