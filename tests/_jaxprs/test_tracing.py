"""Tracing from shapes."""

import jax
import jax.numpy as jnp

from jaxprune._jaxprs import trace


def test_leaves_that_are_not_arrays_become_constants():
    params = {"act": jnp.tanh, "scale": 2.0, "w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    traced = trace(lambda p, x: {"y": p["act"](x @ p["w"]) * p["scale"]}, params, jnp.ones(3))
    assert traced.inputs == (None, None, 0, 1)
    assert [v.aval.shape for v in traced.closed.jaxpr.invars] == [(3, 2), (3,)]
    assert traced.out_tree == jax.tree.structure({"y": 0})


def test_nothing_is_allocated_for_shapes():
    huge = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16)
    traced = trace(jax.jit(jnp.dot), huge, huge)
    assert traced.closed.out_avals[0].shape == huge.shape


def test_weak_types_are_kept():
    weak = jnp.asarray(1.0)  # a Python float's array is weak: bf16 * weak stays bf16
    traced = trace(lambda x, s: x * s, jax.ShapeDtypeStruct((2,), jnp.bfloat16), jax.device_put(weak))
    direct = jax.eval_shape(lambda x, s: x * s, jax.ShapeDtypeStruct((2,), jnp.bfloat16), weak)
    assert traced.closed.out_avals[0].dtype == direct.dtype


def test_inside_jit():
    assert jax.jit(lambda x: x * len(trace(jnp.sin, x).closed.jaxpr.eqns))(3.0) == 3.0
