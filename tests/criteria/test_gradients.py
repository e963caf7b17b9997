"""Gradient criteria against NumPy in float64, in every dtype, and their errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import criteria
from jaxprune.calibration import accumulate_gradients

FIRST_ORDER = [criteria.gradient, criteria.snip, criteria.fisher, partial(criteria.gradient, power=2)]


def pair(dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(0)
    params = {"a": {"kernel": jnp.asarray(rng.normal(size=(4, 5)), dtype), "step": jnp.int32(3)}, "b": None}
    grads = {"a": {"kernel": jnp.asarray(scale * rng.normal(size=(4, 5)), dtype), "step": jnp.int32(0)}, "b": None}
    return params, grads


def as_float64(tree):
    return np.asarray(tree["a"]["kernel"], np.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("criterion", FIRST_ORDER, ids=["gradient", "snip", "fisher", "squared"])
def test_values_in_float32_where_16_bits_would_underflow(criterion, dtype):
    params, grads = pair(dtype, scale=1e-6)
    power = 1 if criterion in FIRST_ORDER[:2] else 2
    wanted = np.abs(as_float64(params) * as_float64(grads)) ** power
    scores = jax.jit(lambda p, g: criterion(p, grads=g))(params, grads)
    assert scores["a"]["kernel"].dtype == jnp.float32
    assert np.allclose(scores["a"]["kernel"], wanted, rtol=1e-6, atol=0)
    assert (np.asarray(scores["a"]["kernel"]) > 0).all()


def test_float64_stays():
    with jax.enable_x64(True):
        params, grads = pair(jnp.float64)
        for criterion in FIRST_ORDER:
            assert criterion(params, grads=grads)["a"]["kernel"].dtype == jnp.float64


@pytest.mark.parametrize("criterion", FIRST_ORDER)
def test_structure_is_that_of_params(criterion):
    params, grads = pair()
    scores = criterion(params, grads=grads, stats=None, key=None, epoch=3)
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    assert scores["a"]["step"].shape == ()
    assert scores["a"]["step"] == 0


def test_fisher_of_single_examples_against_numpy():
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(3, 2)), rng.normal(size=(7, 3))
    params = {"kernel": jnp.asarray(w, jnp.float32), "count": jnp.int32(1)}

    def loss(params, example):
        return jnp.square(example @ params["kernel"]).sum() / 2

    # d/dw |x w|^2 / 2 = x^T (x w)
    per_example = np.stack([np.outer(row, row @ w) for row in x])
    examples = [jnp.asarray(x, jnp.float32)]
    squared = accumulate_gradients(loss, params, examples, per_example=True).square
    assert np.allclose(squared["kernel"], (per_example**2).mean(0), rtol=1e-5)
    scores = criteria.fisher(params, squared_grads=squared)
    assert np.allclose(scores["kernel"], w**2 * (per_example**2).mean(0), rtol=1e-5)
    # Jensen: the mean of squares is no less than the square of the mean.
    with_mean = criteria.fisher(params, grads={"kernel": jnp.asarray(per_example.mean(0)), "count": jnp.int32(0)})
    assert (np.asarray(scores["kernel"]) >= np.asarray(with_mean["kernel"]) * (1 - 1e-5)).all()


@pytest.mark.parametrize(
    ("criterion", "name"), [(criteria.gradient, "gradient"), (criteria.snip, "snip"), (criteria.fisher, "fisher")]
)
def test_missing_and_misfitting_grads(criterion, name):
    params, grads = pair()
    with pytest.raises(ValueError, match=rf"criteria.{name} needs grads: pass grads=jax.grad\(loss\)\(params, batch\)"):
        _ = criterion(params)
    with pytest.raises(
        ValueError, match=r"(?s)grads must have the structure of params.*a/step: in params, not in grads"
    ):
        _ = criterion(params, grads={"a": {"kernel": grads["a"]["kernel"]}, "b": None})
    turned = {"a": {"kernel": grads["a"]["kernel"].T, "step": jnp.int32(0)}, "b": None}
    with pytest.raises(ValueError, match=r"a/kernel: grads \(5, 4\), parameter \(4, 5\)"):
        _ = criterion(params, grads=turned)


def test_powers_are_checked():
    params, grads = pair()
    with pytest.raises(ValueError, match="power must be 1 or 2; got 3"):
        _ = criteria.gradient(params, grads=grads, power=3)
