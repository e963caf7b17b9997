"""What reconstruction returns goes straight into training, and every zero stays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import masks, sparsify, training
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import reconstruct
from tests.cases import normal

PARAMS = {"a": normal(8, 16), "b": normal(16, 4, seed=1), "bias": jnp.zeros(4)}
X, Y = normal(64, 8, seed=2), normal(64, 4, seed=3)


def net(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"] + params["bias"]


def pruned():
    stats = calibrate(net, PARAMS, [X])
    return reconstruct(PARAMS, stats, pattern=masks.NM(2, 4))


def train(loss, params: dict, optimizer, steps=20) -> dict:
    state: Any = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(loss)(p), s, p))
    for _ in range(steps):
        updates, state = step(params, state)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("optimizer", [optax.adamw(0.01), optax.sgd(0.1, momentum=0.9)])
def test_full_fine_tuning_keeps_every_zero(optimizer):
    new, kept = pruned()
    loss = lambda p: ((net(p, X) - Y) ** 2).mean()
    tuned = train(loss, new, sparsify(optimizer, training.fixed(kept)))
    for name in ("a", "b"):
        assert not np.asarray(tuned[name])[~np.asarray(kept[name])].any()
    assert loss(tuned) < loss(new)


def test_low_rank_fine_tuning_keeps_every_zero_once_merged():
    new, kept = pruned()
    low = {"down": 0.1 * normal(16, 2), "up": jnp.zeros((2, 4))}
    merged = lambda low: masks.apply({**new, "b": new["b"] + low["down"] @ low["up"]}, kept)
    loss = lambda low: ((net(merged(low), X) - Y) ** 2).mean()
    tuned = merged(train(loss, low, optax.adam(0.02)))
    assert not np.asarray(tuned["b"])[~np.asarray(kept["b"])].any()
    assert not np.array_equal(tuned["b"], new["b"])
