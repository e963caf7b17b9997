"""GraSP against a Hessian written out, SynFlow against a sum over all paths, and its conservation law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxprune
from jaxprune import criteria


def network(params, x):
    hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
    return hidden @ params["b"]["kernel"]


def parameters(rng, dtype=jnp.float32):
    return {
        "a": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), dtype), "bias": jnp.asarray(rng.normal(size=4), dtype)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(4, 2)), dtype)},
        "n": jnp.int32(1),
    }


def loss(params, x, y):
    return jnp.square(jnp.tanh(network(params, x)) - y).mean()


def test_grasp_is_w_times_hessian_times_gradient():
    rng = np.random.default_rng(0)
    params, x, y = parameters(rng), jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 2)))
    kernels = {name: params[name]["kernel"] for name in ("a", "b")}
    flat, unravel = ravel_pytree(kernels)

    def of_kernels(flat):
        parts = unravel(flat)
        return loss({"a": params["a"] | {"kernel": parts["a"]}, "b": {"kernel": parts["b"]}, "n": params["n"]}, x, y)

    wanted = unravel(jax.jit(lambda v: v * (jax.hessian(of_kernels)(v) @ jax.grad(of_kernels)(v)))(flat))
    scores = jax.jit(criteria.grasp(loss, x, y))(params)
    assert jax.tree.structure(scores) == jax.tree.structure(params)
    for name in ("a", "b"):
        assert np.allclose(scores[name]["kernel"], wanted[name], rtol=1e-3, atol=1e-6)
    assert scores["n"].shape == ()


def test_grasp_keeps_what_the_gradient_norm_owes_most_to():
    # For L = sum a w^2 / 2: g = a w, |g|^2 = sum a^2 w^2, and removing w_i lowers it by a_i^2 w_i^2 = w_i (H g)_i.
    curvature, w = jnp.array([[1.0, 3.0, -2.0]]), jnp.array([[2.0, 1.0, 0.5]])
    scores = criteria.grasp(lambda p: (curvature * p["w"] ** 2).sum() / 2)({"w": w})["w"]
    norm = [np.square(np.asarray(curvature * w * (jnp.arange(3) != i))).sum() for i in range(3)]
    lost = np.square(np.asarray(curvature * w)).sum() - np.array(norm)
    assert np.allclose(scores[0], lost)


def test_grasp_takes_the_gradient_of_the_chosen_leaves():
    rng = np.random.default_rng(2)
    params, x, y = parameters(rng), jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 2)))
    some, every = (
        criteria.grasp(loss, x, y, where=where)(params)["a"]["kernel"] for where in ("a/*", lambda n, w: n != "n")
    )
    assert not np.allclose(some, every)


def test_grasp_leaves_out_what_roles_say_is_no_weight():
    params, x = {"w": jnp.ones((2, 3)), "shift": jnp.ones((5, 2))}, jnp.ones((5, 2))
    fn = lambda p, x: jnp.tanh((x + p["shift"]) @ p["w"]).sum()
    by_use = criteria.grasp(fn, x, roles=jaxprune.find_roles(fn, params, x))(params)["w"]
    np.testing.assert_array_equal(by_use, criteria.grasp(fn, x, where=lambda name, _: name == "w")(params)["w"])
    assert not np.allclose(by_use, criteria.grasp(fn, x, where=lambda name, _: True)(params)["w"])


def test_synflow_is_the_sum_over_all_paths():
    rng = np.random.default_rng(3)
    params = {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(4, 2)))}
    a, b = np.abs(params["a"]), np.abs(params["b"])
    wanted_a, wanted_b = np.zeros((3, 4)), np.zeros((4, 2))
    for i, j, k in itertools.product(range(3), range(4), range(2)):
        wanted_a[i, j] += a[i, j] * b[j, k]
        wanted_b[j, k] += a[i, j] * b[j, k]
    scores = jax.jit(criteria.synflow(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], jnp.zeros((1, 3))))(params)
    assert np.allclose(scores["a"], wanted_a, rtol=1e-5)
    assert np.allclose(scores["b"], wanted_b, rtol=1e-5)
    # The flow into a hidden unit is the flow out of it, and every layer carries all of it.
    assert np.allclose(scores["a"].sum(0), scores["b"].sum(1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_synflow_of_16_bits_is_computed_in_float32(dtype):
    params = {"a": jnp.full((4, 4), 300.0, dtype), "b": jnp.full((4, 4), 300.0, dtype)}
    fn = criteria.synflow(lambda p, x: x @ p["a"] @ p["b"], jax.ShapeDtypeStruct((1, 4), dtype))
    scores = fn(params)
    assert scores["a"].dtype == jnp.float32
    assert np.allclose(scores["a"], 300.0 * 300 * 4)


def test_synflow_passes_token_indices_on_and_adds_all_outputs():
    params = {"embedding": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
    tokens = jnp.array([1, 1])
    scores = criteria.synflow(lambda p, t: {"x": p["embedding"][t], "n": t}, tokens)(params)
    assert np.array_equal(scores["embedding"], [[0, 0], [6, 8]])
    with pytest.raises(ValueError, match="fn returns no floating array"):
        _ = criteria.synflow(lambda p, t: t, tokens)(params)
