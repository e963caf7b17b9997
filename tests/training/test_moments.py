"""Which leaves of an optimizer's state are taken for moments, and of which parameter."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import masks, training
from jaxprune.training.enforce import zero_removed
from tests.cases import normal


def kernel(seed: int) -> jax.Array:
    return normal(4, 6, seed=seed)


def train(optimizer: Any, params: Any, kept: Any) -> tuple[Any, Any]:
    sparse = jaxprune.sparsify(optimizer, training.fixed(kept))
    params = masks.apply(params, kept)
    state: Any = sparse.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda p, step=step: jnp.cos(p + step), params)
        updates, state = sparse.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state.inner


CLASHES = {
    "mu": optax.adam(0.1),
    "nu": optax.adam(0.1),
    "trace": optax.sgd(0.1, momentum=0.9),
    "ema": optax.chain(optax.ema(0.9), optax.sgd(0.1)),
    "inner": optax.masked(optax.adam(0.1), {"inner": {"w": True}, "w": True}),
}


@pytest.mark.parametrize("name", CLASHES)
def test_a_parameter_named_like_a_field_of_the_state_disturbs_no_other(name):
    half = jnp.broadcast_to(jnp.arange(6) < 3, (4, 6))
    both: Any = {name: {"w": kernel(0)}, "w": kernel(1)}
    optimizer = CLASHES[name]
    beside, _ = train(optimizer, both, {name: {"w": half}, "w": jnp.ones((4, 6), bool)})
    only: Any = optax.masked(optax.adam(0.1), {"w": True}) if name == "inner" else optimizer
    alone, _ = train(only, {"w": both["w"]}, {"w": jnp.ones((4, 6), bool)})
    np.testing.assert_allclose(beside["w"], alone["w"], rtol=1e-6)


def test_lists_in_a_state_that_is_a_bare_tree():
    bare = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.ones_like, params), lambda updates, state, params=None: (updates, state)
    )
    a, b, c = (jnp.arange(24).reshape(4, 6) % n > 0 for n in (2, 3, 4))
    params: Any = [[kernel(0), kernel(1)], kernel(2)]
    state: Any = optax.chain(bare, bare).init(params)
    cleaned = zero_removed(state, params, [[a, b], c])
    expected = jax.tree.map(lambda mask: mask.astype(jnp.float32), [[a, b], c])
    chex.assert_trees_all_equal(cleaned, (expected, expected))


def test_a_complex_parameter_beside_a_pruned_one():
    params: Any = {"w": kernel(0), "z": jnp.ones((2, 2), jnp.complex64)}
    kept: Any = {"w": params["w"] > 0, "z": jnp.array(True)}
    optimizer = optax.contrib.split_real_and_imaginary(optax.adam(0.1))
    _, state = train(optimizer, params, kept)
    leaves = [x for x in jax.tree.leaves(state) if x.shape == (4, 6)]
    assert len(leaves) == 2
    for moment in leaves:
        assert np.count_nonzero(moment[~kept["w"]]) == 0
        assert np.count_nonzero(moment[kept["w"]]) == int(kept["w"].sum())


def test_a_part_of_the_parameters_is_no_mirror():
    params: Any = {"a": kernel(0), "b": kernel(1)}
    state = {"notes": {"a": jnp.ones((4, 6))}, "moments": {"a": jnp.ones((4, 6)), "b": jnp.ones((4, 6))}}
    cleaned = zero_removed(state, params, {"a": params["a"] > 0, "b": jnp.array(True)})
    assert int(cleaned["notes"]["a"].sum()) == 24
    assert int(cleaned["moments"]["a"].sum()) == int((params["a"] > 0).sum())
