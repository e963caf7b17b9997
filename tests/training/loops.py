"""A small regression that every training loop of the tests runs, and the check that all of them must pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import masks, schedules, training

PyTree = Any
STEPS = 7


def init_params(dtype: Any = jnp.float32) -> PyTree:
    """Two kernels, two biases."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "first": {"kernel": jax.random.normal(keys[0], (6, 8)).astype(dtype) / 2, "bias": jnp.zeros(8, dtype)},
        "second": {"kernel": jax.random.normal(keys[1], (8, 4)).astype(dtype) / 2, "bias": jnp.zeros(4, dtype)},
    }


def forward(params: PyTree, x: jax.Array) -> jax.Array:
    """A network of one hidden layer."""
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"]


def loss(params: PyTree, x: jax.Array) -> jax.Array:
    """Squared distance to a fixed function of the input."""
    return jnp.mean((forward(params, x) - jnp.sin(x[:, :4]).astype(x.dtype)) ** 2)


def batch(step: int, dtype: Any = jnp.float32) -> jax.Array:
    """The inputs of a step."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (16, 6)).astype(dtype)


def gradual() -> training.Method:
    """Three revisions within the steps, the last one at 75 %."""
    return training.gradual(schedules.cubic(1, 5, 0.75), when=schedules.every(2, 1, 5))


def expect_zeros(params: PyTree, mask_tree: PyTree, removed: dict[str, int]) -> None:
    """Fails unless so many entries of each kernel are removed, and each of them is exactly zero."""
    named = {name: np.asarray(leaf, np.float64) for name, leaf in _flat(params).items()}
    held = {name: np.asarray(mask) for name, mask in _flat(masks.unpack(mask_tree)).items()}
    assert named.keys() == held.keys()
    for name, leaf in named.items():
        full = np.broadcast_to(held[name], leaf.shape)
        assert (~full).sum() == removed.get(name, 0), name
        assert np.count_nonzero(leaf[~full]) == 0, name
        assert np.all(np.isfinite(leaf))
    assert set(removed) <= set(named)


def _flat(tree: PyTree) -> dict[str, Any]:
    from jaxprune._tree import named_leaves

    return dict(named_leaves(tree))


REMOVED = {"first/kernel": 36, "second/kernel": 24}
