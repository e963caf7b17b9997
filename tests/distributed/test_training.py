"""Every method under pmap, jit with shardings and shard_map: the masks of one device, on all devices."""

import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import jax_utils
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import masks
from tests.cases import few
from tests.distributed import layouts, problem

alone = cache(problem.alone)


def expect(found: list[Any], name: str) -> None:
    for a, b in zip(found, alone(name), strict=True):
        layouts.expect_same(a, b)


def copies(tree: Any) -> Any:
    """What every device holds, one after another."""
    held = [[np.asarray(shard.data) for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(tree)]
    return [list(one) for one in zip(*held, strict=True)]


def check_pmap(name: str, devices: list[Any]) -> None:
    state = TrainState.create(
        apply_fn=problem.loss, params=layouts.init_params(), tx=problem.make_optimizer(name, packed=True)
    )
    state = jax_utils.replicate(state, devices)

    @partial(jax.pmap, axis_name="batch", devices=devices)
    def step(state: Any, examples: Any) -> Any:
        grads = jax.lax.pmean(jax.grad(problem.loss)(state.params, examples), "batch")
        return state.apply_gradients(grads=grads)

    found = []
    for i in range(problem.STEPS):
        # Each device has one example of its own.
        state = step(state, jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), problem.batch(i)))
        held = jaxprune.get_masks(state.opt_state)
        for each in copies(held)[1:]:
            layouts.expect_same(each, copies(held)[0])
        one: Any = jax_utils.unreplicate(state)
        found.append(jax.tree.map(np.asarray, (one.params, masks.unpack(jaxprune.get_masks(one.opt_state)))))
    expect(found, name)


def check_jit(name: str, layout: str, kind: str, devices: list[Any]) -> None:
    mesh = layouts.make_mesh(kind, devices)
    places = layouts.shardings(mesh, layout)
    params = layouts.place(layouts.init_params(), mesh, layout)
    optimizer = problem.make_optimizer(name, packed=True)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(optimizer.init, params)
        state_places = problem.infer(shapes, params, places)
        state = jax.jit(optimizer.init, out_shardings=state_places)(params)
        step: Any = jax.jit(problem.make_step(optimizer), donate_argnums=1, out_shardings=(places, state_places))
        put = lambda x: jax.device_put(x, NamedSharding(mesh, P("x")))
        found = problem.train(step, params, state, lambda examples: jax.tree.map(put, examples))
    expect(found, name)


def check_shard_map(name: str, devices: list[Any]) -> None:
    mesh = jax.make_mesh((8,), ("batch",), devices=devices)
    optimizer = problem.make_optimizer(name, packed=True)

    def step(params: Any, state: Any, examples: Any) -> Any:
        # The gradient of the mean of the losses: the same on every device, which the types then say.
        mean = lambda p: jax.lax.pmean(problem.loss(p, examples), "batch")
        updates, state = optimizer.update(jax.grad(mean)(params), state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=P()))
    params = layouts.init_params()
    everywhere = NamedSharding(mesh, P())
    params, state = jax.device_put((params, optimizer.init(params)), everywhere)
    put = lambda x: jax.device_put(x, NamedSharding(mesh, P("batch")))
    expect(problem.train(mapped, params, state, lambda examples: jax.tree.map(put, examples)), name)


WAYS: dict[str, Any] = {
    "pmap": check_pmap,
    "shard_map": check_shard_map,
    **{
        f"jit {layout} {kind}": partial(check_jit, layout=layout, kind=kind)
        for layout in layouts.LAYOUTS
        for kind in layouts.KINDS
    },
}
ALL = itertools.product(problem.METHODS, WAYS)


@pytest.mark.parametrize(("name", "way"), few(ALL, ("rigl", "pmap")))
def test_every_method_ends_in_the_bits_of_one_device_everywhere(name, way, devices):
    WAYS[way](name, devices=devices)


def test_states_are_replicated_and_come_back(devices):
    params = layouts.init_params()
    states: dict[str, Any] = {
        f"{name} {packed}": problem.make_optimizer(name, packed=packed).init(params)
        for name, packed in (("rigl", False), ("gradual random", True))
    }
    states["statistics"] = jaxprune.calibrate(lambda p, x: x @ p["head"]["kernel"], params, [jnp.ones((2, 64))])
    for state in states.values():
        back: Any = jax_utils.unreplicate(jax_utils.replicate(state, devices))
        assert jax.tree.structure(back) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
            is_key = jnp.issubdtype(b.dtype, jax.dtypes.prng_key)
            x, y = (np.asarray(jax.random.key_data(x) if is_key else x) for x in (a, b))
            np.testing.assert_array_equal(x, y)


def test_masks_of_scores_that_differ_between_devices_are_refused(devices):
    mesh = jax.sharding.Mesh(devices, ("batch",))
    prune = lambda p: masks.select(p, 0.5)
    mapped = jax.shard_map(prune, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    with pytest.raises(ValueError, match=r"(?s)differ.*pmean.*outside.*  w: batch"):
        mapped({"w": jnp.ones((16, 4))})
