"""The diagonal of the Hessian against the exact one, and what is made of it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxprune
from jaxprune import criteria

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(6, 6))
FULL = ROOT @ ROOT.T  # positive, far from diagonal
WEIGHTS = {"a": jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32), "b": jnp.arange(2.0), "step": jnp.int32(3)}
KEY = jax.random.key(0)


def quadratic(params: Any, matrix: jax.Array) -> jax.Array:
    w = jnp.concatenate([params["a"].ravel(), params["b"]])
    return w @ matrix @ w / 2


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(tree["a"], np.float64).ravel(), tree["b"]])


def test_a_diagonal_hessian_is_exact_from_one_sample():
    diagonal = np.array([3.0, 0.5, -2.0, 0.0, 1.0, 7.0])
    found = criteria.hessian_diagonal(quadratic, WEIGHTS, [jnp.diag(jnp.asarray(diagonal))], key=KEY, samples=1)
    assert np.array_equal(flat(found), diagonal)
    assert found["step"].shape == ()


def test_error_has_the_variance_of_the_entries_beside_the_diagonal():
    replicas = 400  # independent copies of one problem: as many estimates from one call
    off = FULL - np.diag(np.diag(FULL))
    copies = {"w": jnp.zeros((replicas, 6))}
    loss = lambda p, matrix: jnp.einsum("ri,ij,rj->", p["w"], matrix, p["w"]) / 2
    batches = [jnp.asarray(FULL, jnp.float32), jnp.asarray(2 * FULL, jnp.float32)]
    for samples in (1, 16):
        found = criteria.hessian_diagonal(loss, copies, batches, key=KEY, samples=samples)["w"]
        errors = np.asarray(found, np.float64) - 1.5 * np.diag(FULL)
        # The mean of H and 2 H: a sample of each has the variance sum_j H_ij^2, and 4 times that.
        variance = (off**2).sum(1) * (1 + 4) / 4 / samples
        assert (np.abs(errors.mean(0)) < 4 * np.sqrt(variance / replicas)).all()  # unbiased
        # Squares of a distribution with light tails: their mean over 400 is known to a tenth or better.
        assert np.allclose((errors**2).mean(0), variance, rtol=0.3)
    assert len(np.unique(found[:, 0])) > 10  # no two copies share their signs


def test_keys_decide():
    batches = [jnp.asarray(FULL, jnp.float32)]
    one, again, other = (
        flat(criteria.hessian_diagonal(quadratic, WEIGHTS, batches, key=jax.random.key(seed), samples=2))
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_network_against_jax_hessian():
    shapes = {"a": (3, 4), "bias": (4,), "b": (4, 2)}
    params = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x, y = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), jnp.asarray(RNG.integers(0, 2, 5))

    def loss(p: Any, batch: Any) -> jax.Array:
        logits = jnp.tanh(batch[0] @ p["a"] + p["bias"]) @ p["b"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], 1).mean()

    values, unravel = ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda v: loss(unravel(v), (x, y))))(values), np.float64)
    samples = 2000
    found = criteria.hessian_diagonal(loss, params, [(x, y)], key=KEY, samples=samples)
    deviation = np.sqrt(((hessian - np.diag(np.diag(hessian))) ** 2).sum(1) / samples)
    error = np.abs(np.asarray(ravel_pytree(found)[0]) - np.diag(hessian))
    assert (error < 4.5 * deviation + 1e-6).all()
    # 1000 times less of it is 30 times as far off, so that the bound above says something.
    few = criteria.hessian_diagonal(loss, params, [(x, y)], key=KEY, samples=2)
    assert (np.abs(np.asarray(ravel_pytree(few)[0]) - np.diag(hessian)) > 5 * deviation).any()
    scores = criteria.obd(params, hessian_diagonal=found)
    assert np.allclose(scores["a"], np.asarray(params["a"]) ** 2 * np.asarray(found["a"]) / 2, rtol=1e-6)


def test_saliency_is_the_change_in_loss_of_a_separable_quadratic_at_its_minimum():
    best, curvature = jnp.array([[3.0, -1.0], [0.5, 2.0]]), jnp.array([[0.1, 4.0], [9.0, 0.2]])
    loss = lambda p, _: (curvature * (p["w"] - best) ** 2).sum() / 2
    found = criteria.hessian_diagonal(loss, {"w": best}, [None], key=KEY, samples=1)
    scores = criteria.obd({"w": best}, hessian_diagonal=found)["w"]
    without = [loss({"w": best.at[i, j].set(0)}, None) for i in range(2) for j in range(2)]
    assert np.allclose(scores.ravel(), without, rtol=1e-6)
    # By magnitude 0.5 and -1 would go; by what the loss pays 3 and 2 are the cheap ones.
    pruned = jaxprune.prune({"w": best}, 0.5, criterion=partial(criteria.obd, hessian_diagonal=found))
    assert pruned.masks["w"].tolist() == [[False, True], [True, False]]


def test_narrow_and_wide_dtypes():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, WEIGHTS)
    matrix = jnp.diag(jnp.arange(6.0))
    found = criteria.hessian_diagonal(quadratic, narrow, [matrix], key=KEY, samples=3)
    assert found["a"].dtype == jnp.float32 and np.array_equal(flat(found), np.arange(6.0))
    with jax.enable_x64(True):
        wide = {"a": jnp.ones((2, 2), jnp.float64), "b": jnp.ones(2, jnp.float64)}
        found = criteria.hessian_diagonal(quadratic, wide, [jnp.asarray(FULL)], key=KEY)
        assert criteria.obd(wide, hessian_diagonal=found)["a"].dtype == jnp.float64


def test_sharded_batches_give_the_same(devices):
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)
    loss = lambda p, x: jnp.mean(jnp.tanh(x @ p["w"]) ** 2)
    params = {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}
    one = criteria.hessian_diagonal(loss, params, [x], key=KEY)
    two = criteria.hessian_diagonal(loss, params, [jax.device_put(x, rows)], key=KEY)
    assert np.allclose(one["w"], two["w"], atol=1e-6)


def test_each_shape_of_batch_compiles_once():
    traced = []

    def loss(p: Any, x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return jnp.sum(p["w"] ** 2 * x)

    batches = [jnp.ones(2), jnp.zeros(2), jnp.ones((1, 2)), jnp.ones(2)]
    _ = criteria.hessian_diagonal(loss, {"w": jnp.ones(2)}, batches, key=KEY)
    assert traced == [(2,), (1, 2)]


def test_errors():
    with pytest.raises(ValueError, match="samples must be 1 or more; got 0"):
        _ = criteria.hessian_diagonal(quadratic, WEIGHTS, [jnp.eye(6)], key=KEY, samples=0)
    with pytest.raises(ValueError, match="needs at least one batch"):
        _ = criteria.hessian_diagonal(quadratic, WEIGHTS, [], key=KEY)
    with pytest.raises(ValueError, match=r"(?s)not finite for:\n  a\n  b"):
        _ = criteria.hessian_diagonal(quadratic, WEIGHTS, [jnp.full((6, 6), jnp.nan)], key=KEY)
    with pytest.raises(ValueError, match=r"criteria\.obd needs hessian_diagonal: pass hessian_diagonal=criteria\.hess"):
        _ = criteria.obd(WEIGHTS)
    with pytest.raises(ValueError, match=r"b: hessian_diagonal \(3,\), parameter \(2,\)"):
        _ = criteria.obd(WEIGHTS, hessian_diagonal={**WEIGHTS, "b": jnp.ones(3)})
