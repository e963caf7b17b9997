"""Group lasso and the growing penalty."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import slimming
from tests.slimming import checks

FN = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
X = np.random.default_rng(0).normal(size=(32, 3)).astype("f4")


@pytest.fixture
def params() -> Any:
    return checks.random_params(
        {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in {"a": (3, 8), "b": (8, 2)}.items()}
    )


def train(params: Any, optimizer: Any, steps: int) -> Any:
    loss = lambda p: jnp.mean((FN(p, X) - X[:, :2]) ** 2)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_group_lasso_drives_whole_units_to_zero(params: Any) -> None:
    groups = slimming.find_groups(FN, params, X)
    after = train(params, optax.chain(optax.sgd(0.1), slimming.group_lasso(groups, 0.004)), 300)
    norms = np.sqrt((np.asarray(after["a"]) ** 2).sum(0) + (np.asarray(after["b"]) ** 2).sum(1))
    assert 0 < (norms == 0).sum() < 8
    choice = slimming.Choice.from_masks(groups, jax.tree.map(lambda p: p != 0, after), partial="keep")
    np.testing.assert_array_equal(choice.keep, norms > 0)
    small = slimming.slim(FN, after, choice, X)
    assert checks.difference(FN(after, X), small.fn(small.params, X)) < 1e-5


def test_one_proximal_step_is_the_formula(params: Any) -> None:
    groups = slimming.find_groups(FN, params, X)
    link = slimming.group_lasso(groups, lambda step: 0.01 * (step + 1))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates: Any
    state: Any
    updates, state = link.update(zero, link.init(params), params)
    norms = np.sqrt((params["a"] ** 2).sum(0) + (params["b"] ** 2).sum(1))
    np.testing.assert_allclose(updates["a"], -params["a"] * 0.01 * np.sqrt(5) / norms, rtol=1e-4, atol=1e-7)
    assert int(state.count) == 1
    with pytest.raises(ValueError, match="group_lasso needs params"):
        _ = link.update(zero, state)


def test_growing_penalty_shrinks_only_what_is_to_go(params: Any) -> None:
    groups = slimming.find_groups(FN, params, X)
    choice = slimming.Choice.remove(groups, {"a[1]": [0, 3]})
    after = train(params, optax.chain(slimming.growing_penalty(choice, 0.05, limit=5.0), optax.sgd(0.1)), 200)
    norms = slimming.group_scores(groups, after, normalise=None)
    assert norms[[0, 3]].max() < 1e-3 and norms[[1, 2, 4, 5, 6, 7]].min() > 0.05
    link = slimming.growing_penalty(choice, lambda step: 2.0, limit=0.5)
    updates: Any
    updates, _ = link.update(jax.tree.map(jnp.zeros_like, params), link.init(params), params)
    np.testing.assert_allclose(updates["a"][:, 0], 0.5 * params["a"][:, 0], rtol=1e-6)
    assert not np.asarray(updates["a"])[:, 1].any()
    with pytest.raises(ValueError, match="growing_penalty needs params"):
        _ = link.update(params, link.init(params))
