"""Loops in plain JAX: a policy gradient under scan and vmap, layers stacked by scan, pmap, minimisers, privacy."""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import masks, schedules, training
from tests.cases import few
from tests.loops.watch import STEPS, Watch, batch, bits, by_msgpack, by_names, by_orbax, by_pickle, gradual


class ActorCritic(nn.Module):
    """A policy and a value from one hidden layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.tanh(nn.Dense(8, name="body")(x))
        return nn.Dense(4, name="policy")(x), nn.Dense(1, name="value")(x)[..., 0]


def test_a_policy_gradient_under_scan_and_vmap_over_seeds(tmp_path):
    watch, net = Watch(), ActorCritic()
    epochs, parts = 2, 2
    schedule = schedules.cubic(0, 6, 0.5)
    optimizer = jaxprune.sparsify(
        optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01)), training.gradual(schedule)
    )

    def start(key: jax.Array) -> Any:
        params = net.init(key, jnp.zeros(4))["params"]
        state = TrainState.create(apply_fn=net.apply, params=params, tx=optimizer).replace(step=jnp.int32(0))
        return state, jax.random.normal(key, (4, 4)), jax.random.key_data(key)

    def train(carry: Any) -> Any:
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

        state, obs, data = carry
        (state, obs, key), seen = jax.lax.scan(collect, (state, obs, jax.random.wrap_key_data(data)), None, 4)
        shaped = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[2:]), seen)
        epoch = lambda state, _: jax.lax.scan(minibatch, state, shaped)
        state, history = jax.lax.scan(epoch, state, None, epochs)
        return (state, obs, jax.random.key_data(key)), history

    jitted = jax.jit(watch.traced(jax.vmap(train)))
    carry = jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), 3))
    carry, history = jitted(carry)
    restore = by_msgpack(carry, tmp_path)
    carry, later = jitted(carry)
    assert bits(jitted(restore())) == bits((carry, later))
    assert len(watch.traces) == 1
    for params, kept in (history, later):
        for name in ("body", "policy", "value"):
            weights, mask = np.asarray(params[name]["kernel"]), np.asarray(kept[name]["kernel"])
            assert weights.shape[:3] == (3, epochs, parts)
            assert np.count_nonzero(weights[~mask]) == 0
    for name, size in (("body", 32), ("policy", 32), ("value", 8)):
        # Of 8 updates the seventh is the last to revise.
        mask = np.asarray(later[1][name]["kernel"])[:, -1, -1]
        assert (np.count_nonzero(~mask, axis=(1, 2)) == size // 2).all()
    assert bool(jax.vmap(training.is_finished)(carry[0].opt_state).all())


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


def test_layers_stacked_along_axis_one(tmp_path):
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
    run = lambda state, i: jitted(state, batch(i))[0]
    state = watch.train(run, state, lambda state: (state.params, state.opt_state), by_orbax, tmp_path)
    watch.expect({"layers/mlp/kernel": 96, "head/kernel": 16})
    kept = jaxprune.get_masks(state.opt_state)["layers"]["mlp"]["kernel"]
    assert (kept.sum(0) == 4).all()


def test_pmap_with_accumulated_gradients(devices, tmp_path):
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

    def run(carry: Any, i: int) -> Any:
        carry = jitted(*carry, batch(i).reshape(2, 2, 8))
        updated.append(bool(accumulate.has_updated(jax_utils.unreplicate(carry[1]))))
        return carry

    def save(carry: Any, folder: Any) -> Any:
        restore = by_msgpack(jax_utils.unreplicate(carry), folder)
        return lambda: jax_utils.replicate(restore(), devices[:2])

    # The middle falls between two updates, while gradients are accumulated.
    _ = watch.train(run, (params, state), jax_utils.unreplicate, save, tmp_path, steps=2 * STEPS - 2)
    assert updated[: 2 * STEPS - 2] == [False, True] * (STEPS - 1)
    # pmap traces anew for its own outputs, also without pruning.
    watch.expect({"w": 32}, traces=2)


def minimise(loss: Any, start: Any, optimizer: Any, steps: int, *, send: bool) -> Any:
    """A minimiser that may be written without parameters in the update, as many are."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params) if send else optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, start, None, steps)[0]


def test_a_minimiser_without_parameters_in_the_update_is_told(tmp_path):
    params: Any = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    optimizer = jaxprune.sparsify(optax.sgd(0.1, momentum=0.9), gradual())
    loss = lambda p: ((p["w"] - 1) ** 2).sum()
    start = params, optimizer.init(params)
    with pytest.raises(ValueError, match=r"sparsify needs the parameters.*optimizer\.update\(grads, state, params\)"):
        _ = minimise(loss, start, optimizer, STEPS, send=False)
    watch = Watch()
    half = jax.jit(watch.traced(lambda carry: minimise(loss, carry, optimizer, STEPS // 2, send=True)))
    _ = watch.train(lambda carry, i: half(carry), start, lambda carry: carry, by_msgpack, tmp_path, steps=2)
    watch.expect({"w": 32})


def test_private_gradients_of_single_examples(tmp_path):
    watch = Watch()
    keys = jax.random.split(jax.random.key(0), 2)
    params: Any = {
        "w": jax.random.normal(keys[0], (8, 8)),
        "head": jax.random.normal(keys[1], (8, 1)),
        "b": jnp.zeros(8),
    }
    private = optax.contrib.differentially_private_aggregate(1.0, 0.5, jax.random.key(2))
    optimizer = jaxprune.sparsify(optax.chain(private, optax.adam(0.01)), gradual())

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum((jnp.tanh(x @ params["w"] + params["b"]) @ params["head"] - jnp.sin(x[:1])) ** 2)

    @jax.jit
    @watch.traced
    def step(params: Any, state: Any, x: jax.Array) -> Any:
        # Each example has its own gradients, which the first link clips, adds up and adds noise to.
        grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, x)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = lambda carry, i: step(*carry, batch(i))
    _ = watch.train(run, (params, optimizer.init(params)), lambda carry: carry, by_pickle, tmp_path)
    watch.expect({"w": 32, "head": 4})


class Vision:
    """A small network over patches in the manner of big_vision, with its rule for shardings and its masks by name."""

    @staticmethod
    def init(key: jax.Array) -> Any:
        keys = iter(jax.random.split(key, 4))
        dense = lambda n, m: {"kernel": jax.random.normal(next(keys), (n, m)) / 4, "bias": jnp.zeros(m)}
        return {"embedding": dense(8, 16), "mlp": {"in": dense(16, 32), "out": dense(32, 16)}, "head": dense(16, 4)}

    @staticmethod
    def apply(params: Any, x: jax.Array) -> jax.Array:
        layer = lambda p, x: x @ p["kernel"] + p["bias"]
        x = layer(params["embedding"], x)
        return layer(params["head"], x + layer(params["mlp"]["out"], jax.nn.gelu(layer(params["mlp"]["in"], x))))

    @staticmethod
    def named(pattern: str, tree: Any) -> Any:
        """Where the name of a leaf matches."""
        name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.tree_util.tree_map_with_path(lambda path, _: re.fullmatch(pattern, name(path)) is not None, tree)

    @staticmethod
    def shardings(tree: Any, mesh: Mesh) -> Any:
        """Each array of more than 64 entries is cut along its longest axis, all others lie on every device."""

        def rule(x: Any) -> NamedSharding:
            cut = int(np.argmax(x.shape)) if x.size > 64 else None
            return NamedSharding(mesh, P(*["data" if i == cut else None for i in range(x.ndim)]))

        return jax.tree.map(rule, tree)


@pytest.mark.parametrize("packed", few([True, False], True), ids=["packed", "bool"])
def test_masked_transforms_and_a_state_sharded_by_a_rule_over_shapes(packed, devices, tmp_path):
    watch, mesh = Watch(), jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:2])
    frozen, decayed = partial(Vision.named, "embedding/.*"), partial(Vision.named, ".*/kernel")
    trained = lambda tree: jax.tree.map(lambda x: not x, frozen(tree))
    inner = optax.chain(
        optax.masked(optax.clip_by_global_norm(1.0), trained),
        optax.masked(optax.scale_by_adam(mu_dtype=jnp.bfloat16), trained),
        optax.masked(optax.add_decayed_weights(1e-3), decayed),
        optax.scale_by_schedule(optax.cosine_decay_schedule(0.05, STEPS)),
        optax.scale(-1.0),
        optax.masked(optax.set_to_zero(), frozen),
    )
    optimizer = jaxprune.sparsify(inner, gradual(where=["mlp/*", "head/*"]), packed=packed)

    def init(key: jax.Array) -> Any:
        params = Vision.init(key)
        return {"params": params, "opt": optimizer.init(params)}

    shardings = Vision.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    start = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    embedding = np.asarray(start["params"]["embedding"]["kernel"])

    def update(state: Any, x: jax.Array) -> Any:
        loss = lambda params: jnp.mean((Vision.apply(params, x) - jnp.sin(x[:, :4])) ** 2)
        updates, opt = optimizer.update(jax.grad(loss)(state["params"]), state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    jitted = jax.jit(watch.traced(update), donate_argnums=0, in_shardings=(shardings, None), out_shardings=shardings)
    run, look = (lambda state, i: jitted(state, batch(i))), (lambda state: (state["params"], state["opt"]))
    end = watch.train(run, start, look, by_names, tmp_path)
    watch.expect({"mlp/in/kernel": 256, "mlp/out/kernel": 256, "head/kernel": 32})
    np.testing.assert_array_equal(end["params"]["embedding"]["kernel"], embedding)
    assert end["params"]["mlp"]["in"]["kernel"].sharding.spec == P(None, "data")
    assert end["opt"][1].inner_state.mu["mlp"]["in"]["kernel"].sharding.spec == P(None, "data")
    if not packed:
        assert jaxprune.get_masks(end["opt"])["mlp"]["in"]["kernel"].sharding.spec == P(None, "data")


def test_haiku_parameters_of_two_levels(tmp_path):
    watch = Watch()

    def forward(x: jax.Array) -> jax.Array:
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(hk.nets.MLP([8, 8], activate_final=True)(x))
        return hk.Linear(4, name="head")(x)

    net = hk.without_apply_rng(hk.transform(forward))
    params = net.init(jax.random.key(0), batch(0))
    optimizer = jaxprune.sparsify(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)), gradual())

    @jax.jit
    @watch.traced
    def update(params: Any, state: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda p: jnp.mean((net.apply(p, x) - jnp.sin(x[:, :4])) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = lambda carry, i: update(*carry, batch(i))
    _ = watch.train(run, (params, optimizer.init(params)), lambda carry: carry, by_pickle, tmp_path)
    watch.expect({"mlp/~/linear_0/w": 32, "mlp/~/linear_1/w": 32, "head/w": 16})
