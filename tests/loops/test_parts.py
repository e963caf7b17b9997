"""Loops that train a part of the parameters: Equinox's partition, adapters of low rank by `optax.partition`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from tests.loops.watch import Watch, batch, by_equinox, by_msgpack, gradual


def test_equinox_with_frozen_layers(tmp_path):
    watch = Watch()
    model = eqx.nn.MLP(8, 8, 8, 2, key=jax.random.key(0))
    trained = eqx.tree_at(
        lambda m: (m.layers[-1].weight, m.layers[-1].bias), jax.tree.map(lambda _: False, model), (True, True)
    )
    optimizer = jaxprune.sparsify(optax.adamw(0.01), gradual())
    # As Equinox does it: the optimizer gets the part that is trained.
    state = optimizer.init(eqx.filter(model, trained))
    before = model.layers[0].weight

    def step(model: Any, state: Any, x: jax.Array) -> Any:
        part, rest = eqx.partition(model, trained)
        loss = lambda part: jnp.mean((jax.vmap(eqx.combine(part, rest))(x) - jnp.sin(x)) ** 2)
        updates, state = optimizer.update(eqx.filter_grad(loss)(part), state, part)
        return eqx.combine(eqx.apply_updates(part, updates), rest), state

    jitted = eqx.filter_jit(watch.traced(step))
    run, look = (lambda carry, i: jitted(*carry, batch(i))), (lambda carry: (eqx.filter(carry[0], trained), carry[1]))
    model, _ = watch.train(run, (model, state), look, by_equinox, tmp_path)
    watch.expect({"layers/2/weight": 32})
    np.testing.assert_array_equal(model.layers[0].weight, before)


def labels(params: Any) -> Any:
    """Trains what is called lora, and leaves the rest alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "lora" if path[-1].key.startswith("lora") else "base", params
    )


def forward(params: Any, x: jax.Array) -> jax.Array:
    """Two layers, each with an adapter of rank 4."""
    for layer in ("first", "second"):
        p = params[layer]
        x = jnp.tanh(x @ p["kernel"] + x @ p["lora_a"] @ p["lora_b"])
    return x


def test_adapters_are_pruned_and_the_base_is_not(tmp_path):
    watch = Watch()
    keys = iter(jax.random.split(jax.random.key(0), 6))
    shapes = {"kernel": (8, 8), "lora_a": (8, 4), "lora_b": (4, 8)}
    params: Any = {
        layer: {name: jax.random.normal(next(keys), shape) / 4 for name, shape in shapes.items()}
        for layer in ("first", "second")
    }
    sparse = jaxprune.sparsify(optax.adam(0.01), gradual())
    optimizer = optax.partition({"lora": sparse, "base": optax.set_to_zero()}, labels)
    state, start = optimizer.init(params), params

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda p: jnp.mean((forward(p, x) - jnp.sin(x)) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(watch.traced(step))

    def look(carry: Any) -> Any:
        # The masks have a MaskedNode, which is no leaf, for what another optimizer trains.
        params, state = carry
        return jax.tree.map(
            lambda p, label: p if label == "lora" else optax.MaskedNode(), params, labels(params)
        ), state

    run = lambda carry, i: jitted(*carry, batch(i))
    params, _ = watch.train(run, (params, state), look, by_msgpack, tmp_path)
    watch.expect({f"{layer}/{name}": 16 for layer in ("first", "second") for name in ("lora_a", "lora_b")})
    np.testing.assert_array_equal(params["first"]["kernel"], start["first"]["kernel"])
