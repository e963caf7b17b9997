"""Masks for the modules of Flax NNX and Equinox; tests/loops has whole training loops."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxprune
from jaxprune import masks, training
from tests.training.loops import STEPS, batch, expect_zeros, gradual


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def target(x):
    return jnp.sin(x[:, :4])


def test_fixed_masks_of_pure_parameters_fit_the_variables_of_nnx():
    model = Nnx(nnx.Rngs(0))
    pruned = jaxprune.prune(nnx.as_pure(nnx.state(model, nnx.Param)), 0.75)
    optimizer = nnx.Optimizer(model, jaxprune.sparsify(optax.adamw(0.1), training.fixed(pruned.masks)), wrt=nnx.Param)

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


def test_equinox_with_all_arrays_as_parameters():
    kind = eqx.is_array
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
