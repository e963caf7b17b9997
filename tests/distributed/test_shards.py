"""Parameters that the devices of a `shard_map` share: their masks are those of one device."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from benchmarks.collectives import collectives, total
from jaxprune import _tree, allocation, criteria, masks, training
from tests.distributed import layouts, problem
from tests.distributed.test_masks import CASES

STACKED = {"layers/*": 1}
PRUNE = partial(jaxprune.prune, where=layouts.WHERE)
MORE: dict[str, Any] = {
    **CASES,
    "lamp stacked": lambda p, **on: PRUNE(p, 0.8, allocation=allocation.lamp, batch_axes=STACKED, **on),
    "owl": lambda p, **on: PRUNE(p, 0.7, allocation=allocation.owl, batch_axes=STACKED, **on),
    "global of slices": lambda p, **on: jaxprune.prune(
        p, 0.7, allocation=allocation.one_ranking, where="layers/[du]*", batch_axes=1, **on
    ),
}


def specs_like(arrays: Any, params: Any, specs: Any) -> Any:
    """Of arrays below the names of parameters the specs: cut as the parameter is, along the axes of its length."""
    named = _tree.with_paths(params)
    known = {
        _tree.identity(path): (leaf.shape, [*spec, *[None] * (leaf.ndim - len(spec))])
        for (path, leaf), spec in zip(named, jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)), strict=True)
    }

    def of(path: Any, leaf: Any) -> P:
        names = _tree.identity(path)
        shape, parts = next((known[names[i:]] for i in range(len(names)) if names[i:] in known), ((), []))
        if len(shape) != leaf.ndim:
            return P()
        return P(*(part if n == m else None for n, m, part in zip(leaf.shape, shape, parts, strict=True)))

    return jax.tree_util.tree_map_with_path(of, arrays)


def check_masks(layout: str, kind: str, names: Any, devices: list[Any]) -> None:
    mesh, specs, params = layouts.make_mesh(kind, devices), layouts.LAYOUTS[layout], layouts.init_params()
    placed = layouts.place(params, mesh, layout)
    expected = {name: MORE[name](params).masks for name in names}

    def prune(p: Any) -> Any:
        return {name: MORE[name](p, specs=specs).masks for name in names}

    out_specs = specs_like(expected, params, specs)
    found = jax.jit(jax.shard_map(prune, mesh=mesh, in_specs=(specs,), out_specs=out_specs))(placed)
    layouts.expect_same(found, expected)
    for name in names:
        if "channel" not in name:
            layouts.expect_sharded_like(found[name], placed)


def test_masks_are_those_of_one_device(devices):
    check_masks("mixed", "auto", ("leaf stacked", "random"), devices)


@pytest.mark.slow
@pytest.mark.parametrize("kind", layouts.KINDS)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_masks_are_those_of_one_device_everywhere(layout, kind, devices):
    check_masks(layout, kind, tuple(MORE), devices)


@pytest.mark.slow
def test_scores_are_those_of_one_device(devices):
    mesh, specs, params = layouts.make_mesh("auto", devices), layouts.LAYOUTS["mixed"], layouts.init_params()
    norms: dict[str, Any] = {
        norm: partial(criteria.magnitude, normalise=norm, batch_axes=STACKED) for norm in ("l1", "l2", "mean", "max")
    }

    def scores(p: Any) -> Any:
        return {name: score(p, specs=specs) for name, score in norms.items()}

    expected = jax.jit(scores)(params)  # outside of a shard_map nothing is cut
    mapped = jax.shard_map(scores, mesh=mesh, in_specs=(specs,), out_specs=specs_like(expected, params, specs))
    layouts.expect_same(jax.jit(mapped)(layouts.place(params, mesh, "mixed")), expected)


def make_step(optimizer: Any, specs: Any) -> Any:
    """A step on parts of parameters and of gradients; the loss is that of the whole."""

    def loss(params: Any, batch: Any) -> jax.Array:
        products = jax.tree.map(lambda w, g: (w * g.mean(0)).sum(), params, batch)
        parts = zip(jax.tree.leaves(products), jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)), strict=True)
        return sum((_over(product, spec) for product, spec in parts), jnp.zeros(()))

    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return step


def _over(value: jax.Array, spec: P) -> jax.Array:
    names = tuple(name for part in spec if part for name in ((part,) if isinstance(part, str) else part))
    return jax.lax.psum(value, names) if names else value


def check_training(name: str, layout: str, devices: list[Any]) -> None:
    mesh, specs, params = layouts.make_mesh("auto", devices), layouts.LAYOUTS[layout], layouts.init_params()
    optimizer = jaxprune.sparsify(optax.sgd(0.125, momentum=0.5), problem.METHODS[name](specs=specs))
    state = optimizer.init(params)
    state_specs = specs_like(state, params, specs)
    examples = jax.tree.map(lambda spec: P(None, *spec), specs, is_leaf=lambda s: isinstance(s, P))
    step = jax.shard_map(
        make_step(optimizer, specs), mesh=mesh, in_specs=(specs, state_specs, examples), out_specs=(specs, state_specs)
    )
    place = lambda x, to: jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), x, to)
    found = problem.train(
        jax.jit(step), place(params, specs), place(state, state_specs), lambda batch: place(batch, examples)
    )
    for a, b in zip(found, problem.alone(name), strict=True):
        layouts.expect_same(a, b)


def test_training_ends_in_the_bits_of_one_device(devices):
    check_training("rigl", "mixed", devices)


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("name", problem.METHODS)
def test_every_method_ends_in_the_bits_of_one_device_everywhere(name, layout, devices):
    if (name, layout) == ("sr_ste", "fully sharded"):  # the only one that cuts groups of N:M
        with pytest.raises(ValueError, match=r"layers/scale: groups of m=4 .* extend over several devices"):
            check_training(name, layout, devices)
        return
    check_training(name, layout, devices)


def test_a_global_selection_moves_counts_only_whatever_the_size(devices):
    mesh = layouts.make_mesh("auto", devices)
    specs = {"down": P("x", "y"), "out": P(("x", "y"), None), "up": P(None, "x")}
    moved = {}
    for width in (1024, 16384):
        named = {"down": (4 * width, width), "out": (8 * width, width), "up": (width, 4 * width)}
        shapes = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, specs[name]))
            for name, shape in named.items()
        }
        prune = partial(masks.select_global, sparsity=0.9, specs=specs)
        mapped = jax.shard_map(prune, mesh=mesh, in_specs=(specs,), out_specs=specs)
        found = collectives(jax.jit(mapped).lower(shapes).compile(), turns=(2, 8))
        moved[width] = total(found)
        assert {each.kind for each in found} == {"all-reduce"}, found
        assert max(each.largest for each in found) <= 3 * 4 * 1024, found
    assert moved[16384] == moved[1024] < 64 * 1024, moved


def in_shards(fn: Any, specs: Any, value: Any, devices: list[Any]) -> Any:
    mesh = jax.sharding.Mesh(np.array(devices).reshape(4, 2), ("x", "y"))
    return jax.shard_map(fn, mesh=mesh, in_specs=(specs,), out_specs=specs)(value)


@pytest.mark.parametrize(
    ("pattern", "spec", "message"),
    [
        (masks.NM(2, 4, axis=0), P("x"), r"w: groups of m=4.*several devices.*\(2, 8\)"),
        (masks.NM(2, 4, axis=(0, 1)), P(None, "x"), r"w: groups of m=4.*several devices"),
        (masks.Block((4, 4)), P("x"), r"w: blocks of \(4, 4\) do not divide the parts \(2, 8\)"),
        (masks.Unstructured(), P("x", "y", None), r"w: specs is for 3 axes"),
    ],
)
def test_units_on_several_devices_are_refused(pattern, spec, message, devices):
    prune = lambda p: masks.select(p, 0.5, pattern, specs={"w": spec})
    with pytest.raises(ValueError, match=message):
        in_shards(prune, {"w": P("x", "y") if len(spec) > 2 else spec}, {"w": jnp.ones((8, 8))}, devices)


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        ("x", TypeError, r"takes PartitionSpecs.*got 'x'"),
        ({"v": P("x")}, ValueError, "structure of the parameters"),
        ({"w": P("x", "z")}, ValueError, r"mesh axes z are not bound here, but x is"),
        ({"w": P(None, "y")}, ValueError, r"(?s)differ.*in_specs.*w: x"),
    ],
)
def test_an_axis_name_that_does_not_fit_is_refused(specs, error, message, devices):
    prune = lambda p: masks.select(p, 0.5, specs=specs)
    with pytest.raises(error, match=message):
        in_shards(prune, {"w": P("x")}, {"w": jnp.ones((8, 8))}, devices)


def test_what_needs_whole_leaves_refuses_parts(devices):
    def prune(p: Any) -> Any:
        return criteria.ria(p, specs={"w": P("x")})

    with pytest.raises(ValueError, match=r"(?s)criteria\.ria needs whole leaves.*w: "):
        in_shards(prune, {"w": P("x")}, {"w": jnp.ones((8, 8))}, devices)


@pytest.mark.parametrize(
    ("optimizer", "packed", "message"),
    [
        (optax.sgd(0.1), True, r"(?s)packed masks know the width.*w: "),
        (
            optax.apply_if_finite(optax.sgd(0.1), 3),
            False,
            "apply_if_finite inside the optimizer receives only one",
        ),
    ],
)
def test_what_would_go_another_way_on_each_device_is_refused(optimizer, packed, message, devices):
    specs = {"w": P(None, "x")}
    pruned = jaxprune.sparsify(optimizer, training.one_shot(0.5, specs=specs), packed=packed)
    step = lambda p: pruned.update(p, pruned.init(p), p)[0]
    with pytest.raises(ValueError, match=message):
        in_shards(step, specs, {"w": jnp.ones((8, 32))}, devices)
