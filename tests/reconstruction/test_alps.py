"""ALPS: smaller output errors than SparseGPT on the same Gram matrices, at every sparsity and for groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import Entries, Given, Grouped, alps, least_squares, sparsegpt
from tests.reconstruction import problems, twins

I, O = 32, 12


@pytest.mark.parametrize("kind", ["entries", "groups"])
def test_the_error_is_below_that_of_sparsegpt_every_time(kind):
    target = Entries if kind == "entries" else lambda removed: Grouped(2, 4)
    run = {f: jax.jit(lambda w, g, k, f=f: f(w, g, target(k))) for f in (alps, sparsegpt)}
    for seed in range(3):
        weight, x = problems.layer(seed, I, O)
        for share in (0.5, 0.7, 0.9) if kind == "entries" else (0.5,):
            removed = int(share * I * O)
            arrays = jnp.asarray(weight, jnp.float32), jnp.asarray(x.T @ x, jnp.float32), jnp.int32(removed)
            (ours, mask), (theirs, _) = run[alps](*arrays), run[sparsegpt](*arrays)
            ours_error, error = (twins.error(weight - np.float64(new), x.T @ x).sum() for new in (ours, theirs))
            assert ours_error < 0.9 * error
            assert int((~mask).sum()) == removed
            assert not np.asarray(ours)[~np.asarray(mask)].any()


def test_a_given_mask_is_refitted_by_least_squares():
    weight, x = problems.layer(3, I, O)
    arrays = jnp.asarray(weight, jnp.float32), jnp.asarray(x.T @ x, jnp.float32)
    mask = Given(jnp.asarray(np.random.default_rng(0).random((I, O)) < 0.5))
    new, _ = jax.jit(lambda w, g: alps(w, g, mask, damping=0.1))(*arrays)
    want, _ = jax.jit(lambda w, g: least_squares(w, g, mask, damping=0.1))(*arrays)
    np.testing.assert_allclose(new, want, atol=1e-6)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        _ = alps(*arrays, mask, steps=0)
