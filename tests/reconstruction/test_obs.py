"""Exact OBS against the published algorithm in NumPy float64, against SparseGPT, and against every mask there is."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import reconstruction as kernel
from jaxprune.reconstruction import Entries, Given, Grouped
from tests.reconstruction import problems, twins

obs = jax.jit(kernel.obs, static_argnames=("guard",))


@partial(jax.jit, static_argnames=("n", "m", "guard"))
def obs_groups(weight, gram, *, n, m, guard=True):
    return kernel.obs(weight, gram, Grouped(n, m), guard=guard)


sweep = jax.jit(kernel.sparsegpt)
sweep_groups = jax.jit(lambda w, g: kernel.sparsegpt(w, g, Grouped(2, 4)))


def test_unstructured_equals_the_published_algorithm():
    w, x = problems.layer(0, 12, 5)
    got, mask = obs(np.float32(w), np.float32(x.T @ x), Entries(jnp.int32(33)), guard=False)
    want = twins.obs(w, x.T @ x, removed=33)
    np.testing.assert_array_equal(mask, want != 0)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_groups_equal_the_published_algorithm():
    w, x = problems.layer(1, 12, 5)
    got, mask = obs_groups(np.float32(w), np.float32(x.T @ x), n=2, m=4, guard=False)
    want = twins.obs(w, x.T @ x, nm=(2, 4))
    np.testing.assert_array_equal(mask, want != 0)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_given_mask_is_least_squares():
    w, x = problems.layer(2, 12, 5)
    mask = np.random.default_rng(1).random(w.shape) < 0.5
    got, _ = obs(np.float32(w), np.float32(x.T @ x), Given(mask))
    np.testing.assert_allclose(got, twins.least_squares(w, x.T @ x, mask), atol=1e-4)


def test_one_output_is_close_to_the_best_of_all_masks():
    w, x = problems.layer(3, 8, 1)
    gram = x.T @ x
    got, _ = obs(np.float32(w), np.float32(gram), Entries(jnp.int32(4)))
    errors = []
    for kept in itertools.combinations(range(8), 4):
        mask = np.isin(np.arange(8), kept)[:, None]
        errors.append(twins.error(twins.least_squares(w, gram, mask, damping=0) - w, gram).sum())
    mine = twins.error(np.asarray(got, np.float64) - w, gram).sum()
    assert min(errors) * (1 - 1e-4) <= mine <= 1.2 * min(errors)


def test_dead_inputs_go_first():
    w, x = problems.layer(4, 12, 5)
    x[:, 3] = 0.0
    _, mask = obs(np.float32(w), np.float32(x.T @ x), Entries(jnp.int32(10)))
    assert not mask[3].any()
    assert int((~mask).sum()) == 10


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), correlation=st.floats(0, 0.99), removed=st.integers(0, 59))
def test_never_a_larger_error_than_sparsegpt(seed, correlation, removed):
    w, x = problems.layer(seed, 12, 5, correlation=correlation)
    gram = np.float32(x.T @ x)
    wide = np.asarray(np.float32(w), np.float64)
    error = lambda new: twins.error(np.asarray(new, np.float64) - wide, gram.astype(np.float64)).sum()
    slack = 1e-5 * error(0 * w)
    target = Entries(jnp.int32(removed))
    exact, mask = obs(np.float32(w), gram, target)
    assert error(exact) <= error(sweep(np.float32(w), gram, target)[0]) * (1 + 1e-4) + slack
    assert error(exact) <= error(np.where(mask, wide, 0)) * (1 + 1e-4) + slack
    assert int((~mask).sum()) == removed
    exact, mask = obs_groups(np.float32(w), gram, n=2, m=4)
    assert error(exact) <= error(sweep_groups(np.float32(w), gram)[0]) * (1 + 1e-4) + slack
    assert (np.asarray(mask).reshape(-1, 4, 5).sum(1) == 2).all()


def test_affordable_is_alps_within_the_budget_and_sparsegpt_beyond():
    shapes = jax.ShapeDtypeStruct((20, 10), jnp.float32), jax.ShapeDtypeStruct((20, 20), jnp.float32)
    of = lambda method: str(jax.make_jaxpr(lambda w, g: method(w, g, kernel.Entries(100)))(*shapes))
    limit = 300 * 20**2 * 10
    assert of(partial(kernel.affordable, operations=limit)) == of(kernel.alps)
    assert of(partial(kernel.affordable, operations=limit - 1)) == of(kernel.sparsegpt)
    with pytest.raises(ValueError, match="operations must be positive, got 0"):
        _ = of(partial(kernel.affordable, operations=0))
