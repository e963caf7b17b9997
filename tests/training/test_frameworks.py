"""Training loops as users write them; only the line that makes the optimizer knows of pruning."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from jaxprune import masks, training
from tests.training.loops import STEPS, batch, expect_zeros, gradual


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="out")(nn.tanh(nn.Dense(8, name="hidden")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def target(x):
    return jnp.sin(x[:, :4])


def test_flax_train_state():
    model = Linen()
    params = model.init(jax.random.key(0), batch(0))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=jaxprune.sparsify(optax.adamw(0.1), gradual()))

    @jax.jit
    def step(state, x):
        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, x) - target(x)) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for i in range(STEPS):
        state = step(state, batch(i))
    expect_zeros(state.params, jaxprune.get_masks(state.opt_state), {"hidden/kernel": 36, "out/kernel": 24})


@pytest.mark.parametrize("kind", ["gradual", "fixed"])
def test_nnx_optimizer(kind):
    model = Nnx(nnx.Rngs(0))
    # Masks made from the pure parameters fit the Variables that the optimizer is initialised with.
    pruned = jaxprune.prune(nnx.as_pure(nnx.state(model, nnx.Param)), 0.75)
    method = gradual() if kind == "gradual" else training.fixed(pruned.masks)
    optimizer = nnx.Optimizer(model, jaxprune.sparsify(optax.adamw(0.1), method), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda model: jnp.mean((model(x) - target(x)) ** 2))(model)
        optimizer.update(model, grads)

    for i in range(STEPS):
        step(model, optimizer, batch(i))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    found = nnx.as_pure(jaxprune.get_masks(optimizer.opt_state))
    expect_zeros(params, found, {"first/kernel": 36, "second/kernel": 24})
    # As they are in the optimizer, Variables of its own kind, they go onto the model's.
    applied = masks.apply(nnx.state(model, nnx.Param), jaxprune.get_masks(optimizer.opt_state))
    chex.assert_trees_all_equal(nnx.as_pure(applied), params)
    assert float(masks.sparsity(nnx.state(model, nnx.Param), jaxprune.get_masks(optimizer.opt_state))) == 0.75


@pytest.mark.parametrize("kind", [eqx.is_inexact_array, eqx.is_array], ids=["inexact", "arrays"])
def test_equinox(kind):
    model = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))
    optimizer = jaxprune.sparsify(optax.adamw(0.1), gradual())
    state = optimizer.init(eqx.filter(model, kind))

    @eqx.filter_jit
    def step(model, state, x):
        grads = eqx.filter_grad(lambda model: jnp.mean((jax.vmap(model)(x) - target(x)) ** 2))(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, kind))
        return eqx.apply_updates(model, updates), state

    for i in range(STEPS):
        model, state = step(model, state, batch(i))
    found = jaxprune.get_masks(state)
    expect_zeros(eqx.filter(model, kind), found, {"layers/0/weight": 36, "layers/1/weight": 24})


def test_masks_go_onto_a_model_with_static_leaves():
    model = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))
    pruned = jaxprune.prune(model, 0.5)
    assert np.count_nonzero(pruned.params.layers[0].weight) == 24
    assert pruned.params(jnp.ones(6)).shape == (4,)
    assert masks.apply(model, pruned.masks).activation is model.activation


def test_partitioned_boxes():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(4, kernel_init=init)(x)

    params = Boxed().init(jax.random.key(0), batch(0))["params"]
    optimizer = jaxprune.sparsify(optax.adam(0.1), gradual())
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x):
        grads = jax.grad(lambda p: jnp.mean((jnp.asarray(Boxed().apply({"params": p}, x)) - target(x)) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(STEPS):
        params, state = step(params, state, batch(i))
    expect_zeros(params, jaxprune.get_masks(state), {"Dense_0/kernel": 18})
