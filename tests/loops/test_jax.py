"""Loops in plain JAX: a policy gradient under scan and vmap, layers stacked by scan, pmap, minimisers."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils
from flax.training.train_state import TrainState

import jaxprune
from jaxprune import masks, schedules, training
from tests.loops.watch import STEPS, Watch, batch, gradual


class ActorCritic(nn.Module):
    """A policy and a value from one hidden layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.tanh(nn.Dense(8, name="body")(x))
        return nn.Dense(4, name="policy")(x), nn.Dense(1, name="value")(x)[..., 0]


def test_a_policy_gradient_under_scan_and_vmap_over_seeds():
    watch, net = Watch(), ActorCritic()
    epochs, parts = 2, 2
    schedule = schedules.cubic(0, 6, 0.5)
    optimizer = jaxprune.sparsify(
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)), training.gradual(schedule)
    )

    def train(key: jax.Array) -> Any:
        params = net.init(key, jnp.zeros(4))["params"]
        state = TrainState.create(apply_fn=net.apply, params=params, tx=optimizer)

        def collect(carry: Any, _: Any) -> Any:
            state, obs, key = carry
            key, act = jax.random.split(key)
            logits, value = state.apply_fn({"params": state.params}, obs)
            action = jax.random.categorical(act, logits)
            reward = -jnp.abs(obs[..., 0] - action / 4)
            following = jnp.roll(obs, 1, -1) * 0.9 + jax.nn.one_hot(action, 4) * 0.1
            log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
            return (state, following, key), (obs, action, reward, value, log_prob)

        def minibatch(state: Any, part: Any) -> Any:
            obs, action, reward, value, log_prob = part

            def loss(params: Any) -> jax.Array:
                logits, new_value = state.apply_fn({"params": params}, obs)
                log_probs = jax.nn.log_softmax(logits)
                new_log_prob = jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]
                ratio, gain = jnp.exp(new_log_prob - log_prob), reward - value
                clipped = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain)
                entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
                return jnp.mean((new_value - reward) ** 2 - clipped - 0.01 * entropy)

            state = state.apply_gradients(grads=jax.grad(loss)(state.params))
            return state, (state.params, jaxprune.get_masks(state.opt_state))

        def update(carry: Any, _: Any) -> Any:
            (state, obs, key), seen = jax.lax.scan(collect, carry, None, 4)
            shaped = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[2:]), seen)
            epoch = lambda state, _: jax.lax.scan(minibatch, state, shaped)
            state, history = jax.lax.scan(epoch, state, None, epochs)
            return (state, obs, key), history

        start = state, jax.random.normal(key, (4, 4)), key
        (state, *_), history = jax.lax.scan(update, start, None, 2)
        return state, history

    states, history = jax.jit(watch.traced(jax.vmap(train)))(jax.random.split(jax.random.key(0), 3))
    params, kept = history
    assert len(watch.traces) == 1
    for name, size in (("body", 32), ("policy", 32), ("value", 8)):
        weights, mask = np.asarray(params[name]["kernel"]), np.asarray(kept[name]["kernel"])
        assert weights.shape[:4] == (3, 2, epochs, parts)
        assert np.count_nonzero(weights[~mask]) == 0
        # Of 8 updates the seventh is the last to revise.
        assert (np.count_nonzero(~mask[:, -1, -1, -1], axis=(1, 2)) == size // 2).all()
    assert bool(jax.vmap(training.is_finished)(states.opt_state).all())


class Layer(nn.Module):
    """A residual layer that is scanned over: its parameters get a stacked axis."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return x + nn.Dense(8, use_bias=False, name="mlp")(nn.relu(x)), None


class Decoder(nn.Module):
    """Layers stacked along axis 1 of their kernels."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        stacked = nn.scan(Layer, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)
        return nn.Dense(4, use_bias=False, name="head")(stacked(name="layers")(x, None)[0])


def test_layers_stacked_along_axis_one():
    watch, model = Watch(), Decoder()
    params: Any = model.init(jax.random.key(0), batch(0))["params"]
    assert params["layers"]["mlp"]["kernel"].shape == (8, 3, 8)
    # Along the inputs, so that every output of every layer keeps half of them.
    pattern = {"layers/*": masks.Unstructured(axes=0)}
    optimizer = jaxprune.sparsify(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)), gradual(pattern=pattern)
    )
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    def step(state: TrainState, x: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), {"loss": value, "norm": optax.tree.norm(grads)}

    jitted = jax.jit(watch.traced(step), donate_argnums=0)
    for i in range(STEPS):
        state, metrics = jitted(state, batch(i))
        assert jnp.isfinite(metrics["loss"])
        watch.look(state.params, state.opt_state)
    watch.expect({"layers/mlp/kernel": 96, "head/kernel": 16})
    kept = jaxprune.get_masks(state.opt_state)["layers"]["mlp"]["kernel"]
    assert (kept.sum(0) == 4).all()


def test_pmap_with_accumulated_gradients(devices):
    watch = Watch()
    params: Any = {"w": jax.random.normal(jax.random.key(0), (8, 8)), "b": jnp.zeros(8)}
    accumulate = optax.MultiSteps(jaxprune.sparsify(optax.adam(0.01), gradual()), every_k_schedule=2)
    state = accumulate.init(params)
    params, state = jax_utils.replicate((params, state), devices[:2])

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        loss = lambda p: jnp.mean((x @ p["w"] + p["b"] - jnp.sin(x)) ** 2)
        grads = jax.lax.pmean(jax.grad(loss)(params), "batch")
        updates, state = accumulate.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.pmap(watch.traced(step), axis_name="batch", devices=devices[:2])
    updated = []
    for i in range(2 * STEPS):
        params, state = jitted(params, state, batch(i).reshape(2, 2, 8))
        one, own = jax_utils.unreplicate((params, state))
        updated.append(bool(accumulate.has_updated(own)))
        watch.look(one, own)
    assert updated == [False, True] * STEPS
    # pmap traces anew for its own outputs, also without pruning.
    watch.expect({"w": 32}, traces=2)


def minimise(loss: Any, params: Any, optimizer: Any, steps: int, *, send: bool) -> Any:
    """A minimiser that may be written without parameters in the update, as many are."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params) if send else optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)[0]


def test_a_minimiser_without_parameters_in_the_update_is_told():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    run = partial(minimise, lambda p: ((p["w"] - 1) ** 2).sum(), params, jaxprune.sparsify(optax.sgd(0.1), gradual()))
    with pytest.raises(ValueError, match=r"sparsify needs the parameters.*optimizer\.update\(grads, state, params\)"):
        _ = run(STEPS, send=False)
    watch = Watch()
    watch.look(*run(STEPS, send=True))
    watch.expect({"w": 32}, traces=0)
