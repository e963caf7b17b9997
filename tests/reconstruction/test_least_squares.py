"""Least squares repair against NumPy, by Cholesky and by conjugate gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import Entries, Given
from jaxprune.reconstruction import gram as grams
from jaxprune.reconstruction import least_squares as kernel
from tests.reconstruction import problems, twins


@partial(jax.jit, static_argnames=("direct", "steps"))
def least_squares(weight, gram, mask, **options):
    return kernel(weight, gram, Given(mask), **options)[0]


def problem(seed, inputs=24, outputs=9, kept=0.5):
    w, x = problems.layer(seed, inputs, outputs)
    mask = np.random.default_rng(seed).random(w.shape) < kept
    return w, x.T @ x, mask


@pytest.mark.parametrize("direct", [True, False])
def test_equals_numpy(direct):
    w, gram, mask = problem(0)
    got = least_squares(np.float32(w), np.float32(gram), mask, damping=0.01, direct=direct)
    np.testing.assert_allclose(got, twins.least_squares(w, gram, mask, damping=0.01), atol=1e-4)


def test_no_mask_moves_nothing_and_an_empty_one_removes_all():
    w, gram, mask = problem(1)
    np.testing.assert_array_equal(least_squares(np.float32(w), np.float32(gram), mask | True), np.float32(w))
    assert not least_squares(np.float32(w), np.float32(gram), mask & False).any()


def test_a_removed_copy_of_an_input_is_made_up_for_exactly():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    x[:, 1] = x[:, 0]
    w = rng.normal(size=(4, 3))
    mask = np.ones((4, 3), bool)
    mask[1] = False
    for direct in (True, False):
        got = least_squares(np.float32(w), np.float32(x.T @ x), mask, damping=0.0, direct=direct)
        np.testing.assert_allclose(x @ np.asarray(got), x @ w, atol=1e-4)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_never_a_larger_error_than_the_mask_alone(direct, seed):
    w, gram, mask = problem(seed, kept=0.3)
    gram = np.float32(gram)
    got = least_squares(np.float32(w), gram, mask, damping=[0.0, 1e-6, 0.1, 3.0][seed], direct=direct, steps=20)
    repaired = twins.error(np.asarray(got, np.float64) - w, gram.astype(np.float64))
    assert (repaired <= twins.error(np.where(mask, 0, w), gram.astype(np.float64)) * (1 + 1e-5)).all()


def test_outputs_are_repaired_alone():
    w, gram, mask = problem(5)
    run = partial(least_squares, damping=0.01, direct=True)
    together = run(np.float32(w), np.float32(gram), mask)
    alone = run(np.float32(w[:, 3:4]), np.float32(gram), mask[:, 3:4])
    np.testing.assert_allclose(together[:, 3:4], alone, atol=1e-5)


def test_no_worse_takes_the_mask_alone_where_the_repair_is_worse():
    w, mask = jnp.array([[1.0, 1.0], [2.0, 2.0]]), jnp.array([[True, True], [False, False]])
    repaired = jnp.array([[1.5, 9.0], [7.0, 7.0]])
    got = grams.no_worse(w, repaired, mask, jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    np.testing.assert_array_equal(got, [[1.5, 1.0], [0.0, 0.0]])


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"shape of the weights, got \(2, 3\) and \(3, 2\)"):
        _ = kernel(jnp.ones((3, 2)), jnp.eye(3), Given(jnp.ones((2, 3), bool)))
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2, 2\)"):
        _ = kernel(jnp.ones((3, 2)), jnp.eye(2), Given(jnp.ones((3, 2), bool)))


def test_a_mask_must_be_given():
    with pytest.raises(ValueError, match="that a mask keeps: pass criterion= or masks="):
        _ = kernel(jnp.ones((3, 2)), jnp.eye(3), Entries(2))
