"""SparseGPT's kernel against the published algorithm in NumPy float64, and the relations that must hold."""

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

I, O = 37, 12
sweep = jax.jit(kernel.sparsegpt, static_argnames=("block",))


@partial(jax.jit, static_argnames=("n", "m", "block"))
def sweep_groups(weight, gram, damping, *, n, m, block=16):
    return kernel.sparsegpt(weight, gram, Grouped(n, m), damping=damping, block=block)


def as_float32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize(("block", "removed"), [(16, 222), (16, 0), (16, 443), (128, 222), (5, 300)])
def test_unstructured_equals_the_published_algorithm(block, removed):
    w, x = problems.layer(0, I, O)
    got, mask = sweep(*as_float32(w, x.T @ x), Entries(jnp.int32(removed)), block=block)
    want, kept = twins.sparsegpt(w, x.T @ x, removed=removed, block=block)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert int((~mask).sum()) == removed
    assert not np.any(np.asarray(got)[~np.asarray(mask)])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 12)])
def test_groups_equal_the_published_algorithm(n, m):
    w, x = problems.layer(1, 24, O)
    got, mask = sweep_groups(*as_float32(w, x.T @ x), 0.01, n=n, m=m)
    want, kept = twins.sparsegpt(w, x.T @ x, nm=(n, m), block=16)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert (np.asarray(mask).reshape(-1, m, O).sum(1) == n).all()


def test_given_mask_equals_the_published_algorithm():
    w, x = problems.layer(2, I, O)
    mask = np.random.default_rng(0).random((I, O)) < 0.4
    got, same = sweep(*as_float32(w, x.T @ x), Given(jnp.asarray(mask)), block=16)
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_allclose(got, twins.sparsegpt(w, x.T @ x, mask=mask)[0], atol=1e-4)


def test_one_compilation_for_every_sparsity():
    w, x = problems.layer(0, I, O)
    traces = []

    @jax.jit
    def run(weight, gram, removed):
        traces.append(removed)
        return kernel.sparsegpt(weight, gram, Entries(removed), block=16)

    for removed in (1, 100, 200):
        _, mask = run(*as_float32(w, x.T @ x), jnp.int32(removed))
        assert int((~mask).sum()) == removed
    assert len(traces) == 1


def test_stacked_layers_by_vmap_equal_one_by_one():
    pairs = [problems.layer(seed, 24, O) for seed in range(3)]
    w, gram = as_float32(np.stack([w for w, _ in pairs]), np.stack([x.T @ x for _, x in pairs]))
    prune = jax.jit(partial(kernel.sparsegpt, target=Entries(140), block=8))
    together = jax.vmap(prune)(w, gram)
    for i in range(3):
        new, mask = prune(w[i], gram[i])
        np.testing.assert_array_equal(together[1][i], mask)
        np.testing.assert_allclose(together[0][i], new, atol=1e-5)


def test_dead_inputs_go_first_and_change_nothing():
    w, x = problems.layer(3, I, O)
    x[:, [4, 20]] = 0.0
    got, mask = sweep(*as_float32(w, x.T @ x), Entries(jnp.int32(222)), block=16)
    want, kept = twins.sparsegpt(w, x.T @ x, removed=222, block=16)
    assert not np.asarray(mask)[[4, 20]].any()
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(got, want, atol=1e-4)
    untouched, _ = sweep(*as_float32(w, x.T @ x), Given(jnp.ones((I, O), bool)), block=16)
    np.testing.assert_array_equal(untouched, jnp.asarray(w, jnp.float32))


def test_all_inputs_dead_removes_and_keeps_without_repair():
    w, x = problems.layer(3, 8, O)
    got, mask = sweep(*as_float32(w, 0 * x.T @ x), Entries(jnp.int32(40)), block=16)
    assert int((~mask).sum()) == 40
    np.testing.assert_array_equal(got, np.where(mask, np.float32(w), 0))


def test_singular_gram_is_nan_undamped_and_right_damped():
    w, x = problems.layer(4, 16, O, samples=5)
    gram = np.round(x * 4).T @ np.round(x * 4)
    undamped, kept = sweep(*as_float32(w, np.ones((16, 16))), Entries(jnp.int32(90)), damping=0.0, block=16)
    assert np.isnan(undamped[kept]).all()
    got, mask = sweep(*as_float32(w, gram), Entries(jnp.int32(90)), damping=0.01, block=16)
    assert np.isfinite(got).all()
    assert int((~mask).sum()) == 90


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    correlation=st.floats(0, 0.999),
    damping=st.sampled_from([1e-4, 0.01, 0.3]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    samples=st.sampled_from([6, 60]),
)
def test_never_a_larger_error_than_the_mask_alone(seed, correlation, damping, dtype, samples):
    w, x = problems.layer(seed, 16, 6, samples=samples, correlation=correlation)
    w = np.asarray(jnp.asarray(w, dtype), np.float64)
    gram = np.asarray(x.T @ x, np.float32)
    for got, mask in (
        sweep(jnp.asarray(w, dtype), gram, Entries(jnp.int32(48)), damping=damping, block=8),
        sweep_groups(jnp.asarray(w, dtype), gram, damping, n=2, m=4),
    ):
        assert got.dtype == dtype
        repaired = twins.error(np.asarray(got, np.float64) - w, gram.astype(np.float64))
        plain = twins.error(np.where(mask, 0, w), gram.astype(np.float64))
        assert (repaired <= plain * (1 + 1e-4) + 1e-5 * twins.error(w, gram)).all()


def test_what_does_not_fit_is_named():
    w, gram = jnp.ones((6, 2)), jnp.eye(6)
    with pytest.raises(ValueError, match="m = 4 do not divide 6 inputs"):
        _ = kernel.sparsegpt(w, gram, Grouped(2, 4))
    with pytest.raises(ValueError, match="0 < n < m"):
        _ = kernel.sparsegpt(w, gram, Grouped(4, 4))
    with pytest.raises(ValueError, match=r"\[inputs, inputs\], got \(6, 2\) and \(5, 5\)"):
        _ = kernel.sparsegpt(w, jnp.eye(5), Entries(1))
    with pytest.raises(ValueError, match=r"shape of the weights, got \(3, 2\)"):
        _ = kernel.sparsegpt(w, gram, Given(jnp.ones((3, 2), bool)))
    with pytest.raises(ValueError, match="block must be at least 1"):
        _ = kernel.sparsegpt(w, gram, Entries(1), block=0)
    with pytest.raises(ValueError, match="too large to be counted"):
        jax.eval_shape(
            lambda w, g: kernel.sparsegpt(w, g, Entries(1)),
            jax.ShapeDtypeStruct((50_000, 2), jnp.float32),
            jax.ShapeDtypeStruct((50_000, 50_000), jnp.float32),
        )
