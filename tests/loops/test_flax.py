"""Loops of Flax whose parameters say how they are sharded: Linen with boxes, NNX with metadata."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import masks
from tests.loops.watch import Watch, batch, by_orbax, gradual


def boxed(init: Any, *axes: str | None) -> Any:
    return nn.with_partitioning(init, axes)


class Block(nn.Module):
    """A dense layer with annotated parameters, and a norm, which is not pruned."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        kernel = boxed(nn.initializers.lecun_normal(), None, "model")
        x = nn.Dense(8, kernel_init=kernel, bias_init=boxed(nn.initializers.zeros_init(), "model"))(x)
        return nn.LayerNorm(scale_init=boxed(nn.initializers.ones_init(), "model"), use_bias=False)(nn.relu(x))


class Linen(nn.Module):
    """Two blocks."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return Block(name="second")(Block(name="first")(x))


@pytest.mark.parametrize(
    ("pattern", "packed"),
    [
        pytest.param(masks.Unstructured(), False, id="unstructured-bool"),
        pytest.param(masks.Unstructured(), True, id="unstructured-packed", marks=pytest.mark.slow),
        pytest.param(masks.Channel(), False, id="channel-bool", marks=pytest.mark.slow),
        pytest.param(masks.Channel(), True, id="channel-packed"),
    ],
)
def test_linen_state_with_the_shardings_of_its_annotations(pattern, packed, devices, tmp_path):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=devices[:2])
    model = Linen()
    optimizer = jaxprune.sparsify(optax.adamw(0.01), gradual(pattern=pattern), packed=packed)

    def init(key: jax.Array) -> TrainState:
        return TrainState.create(apply_fn=model.apply, params=model.init(key, batch(0))["params"], tx=optimizer)

    shardings = nn.get_sharding(jax.eval_shape(init, jax.random.key(0)), mesh)
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))

    def step(state: TrainState, x: jax.Array) -> TrainState:
        loss = lambda params: jnp.mean((jnp.asarray(model.apply({"params": params}, x)) - jnp.sin(x)) ** 2)
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    watch = Watch()
    jitted = jax.jit(watch.traced(step), in_shardings=(shardings, None), out_shardings=shardings, donate_argnums=0)
    run = lambda state, i: jitted(state, batch(i))
    state = watch.train(run, state, lambda state: (state.params, state.opt_state), by_orbax, tmp_path)
    # Orbax returns the scalar `step` without a mesh in its type, so JAX traces once more; also with a dense optimizer.
    watch.expect({"first/Dense_0/kernel": 32, "second/Dense_0/kernel": 32}, resumed=1)
    # Masks of the whole shape lie as their parameters do.
    kept: Any = jaxprune.get_masks(state.opt_state)
    if not packed and pattern == masks.Unstructured():
        assert kept["first"]["Dense_0"]["kernel"].sharding == NamedSharding(mesh, P(None, "model"))
    products = jax.tree.map(lambda w, m: w * m, nn.unbox(state.params), masks.unpack(kept, nn.unbox(state.params)))
    for a, b in zip(jax.tree.leaves(products), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


class Nnx(nnx.Module):
    """Two layers with annotated kernels and biases."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
        bias = nnx.with_partitioning(nnx.initializers.zeros_init(), ("model",))
        self.first = nnx.Linear(8, 8, kernel_init=kernel, bias_init=bias, rngs=rngs)
        self.second = nnx.Linear(8, 8, kernel_init=kernel, bias_init=bias, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.second(nnx.relu(self.first(x)))


def test_nnx_optimizer_with_the_shardings_of_its_metadata(devices, tmp_path):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=devices[:2])
    watch = Watch()

    @nnx.jit
    def create(key: jax.Array) -> Any:
        model = Nnx(nnx.Rngs(key))
        optimizer = nnx.Optimizer(model, jaxprune.sparsify(optax.adamw(0.01), gradual()), wrt=nnx.Param)
        for part in (model, optimizer):
            state = nnx.state(part)
            nnx.update(part, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
        return model, optimizer

    def step(model: Any, optimizer: Any, x: jax.Array) -> None:
        grads = nnx.grad(lambda model: jnp.mean((model(x) - jnp.sin(x)) ** 2))(model)
        optimizer.update(model, grads)

    jitted = nnx.jit(watch.traced(step))

    def run(carry: Any, i: int) -> Any:
        jitted(*carry, batch(i))
        return carry

    def save(carry: Any, folder: Any) -> Any:
        restore = by_orbax(nnx.state(carry), folder)

        def another() -> Any:
            made = create(jax.random.key(1))
            nnx.update(made, restore())
            return made

        return another

    look = lambda carry: (nnx.as_pure(nnx.state(carry[0], nnx.Param)), carry[1].opt_state)
    with jax.set_mesh(mesh):
        model, optimizer = watch.train(run, create(jax.random.key(0)), look, save, tmp_path)
    watch.expect({"first/kernel": 32, "second/kernel": 32})
    assert model.first.kernel.get_value().sharding.spec == P(None, "model")
    # Plain arrays, which jax.tree.map lays over the parameters: pure ones, or Variables behind them.
    kept, params = jaxprune.get_masks(optimizer.opt_state), nnx.state(model, nnx.Param)
    pure = nnx.as_pure(params)
    products = jax.tree.map(lambda w, m: w * m, pure, kept), jax.tree.map(lambda m, w: w * m, kept, params)
    for product in products:
        for a, b in zip(jax.tree.leaves(product), jax.tree.leaves(pure), strict=True):
            np.testing.assert_array_equal(a, b)
    assert float(masks.sparsity(params, kept)) == 0.5
