"""The factor of the inverse: equal to NumPy's inverse for one and for many blocks, in little memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import gram


def system(inputs):
    x = np.random.default_rng(inputs).normal(size=(2 * inputs, inputs))
    return x.T @ x / (2 * inputs) + 0.1 * np.eye(inputs)


@pytest.mark.parametrize("inputs", [1, 16, 40, 37])  # one block; four equal blocks; three blocks with padding
def test_factor_of_the_inverse(inputs, monkeypatch):
    monkeypatch.setattr(gram, "_BLOCK", 16)
    matrix = system(inputs)
    factor = np.asarray(gram.inverse_factor(jnp.asarray(matrix, jnp.float32)))
    assert (np.tril(factor, -1) == 0).all()
    upper = factor.T[::-1, ::-1]
    np.testing.assert_allclose(upper.T @ upper, np.linalg.inv(matrix), atol=1e-4)
    np.testing.assert_allclose(upper, np.linalg.cholesky(np.linalg.inv(matrix)).T, atol=1e-4)


def test_no_factor_of_an_indefinite_matrix():
    matrix = jnp.eye(9).at[5, 5].set(-1.0)
    assert jnp.isnan(gram.inverse_factor(matrix)).any()


def test_factor_takes_the_memory_of_two_matrices_at_most(optimized):  # of one with jax 0.10; 0.12 copies it once
    shape = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
    factor = jax.jit(lambda x: gram.inverse_factor(gram.damped(x, 0.01)))
    memory: Any = factor.lower(shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2.2 * 4 * 2048**2


@pytest.mark.parametrize("whole", [False, True])
def test_better_takes_the_result_of_the_smaller_output_error(whole):
    random = np.random.default_rng(0)
    weight, one, other = (random.normal(size=(8, 5)).astype(np.float32) for _ in range(3))
    matrix = system(8).astype(np.float32)
    errors = [np.einsum("io,ij,jo->o", weight - new, matrix, weight - new) for new in (one, other)]
    mine, others = (e.sum() if whole else e for e in errors)
    got = gram.better(jnp.asarray(weight), jnp.asarray(matrix), jnp.asarray(one), jnp.asarray(other), whole=whole)
    np.testing.assert_array_equal(got, np.where(others < mine, other, one))
    assert whole or len(set(others < mine)) == 2  # each result wins somewhere
