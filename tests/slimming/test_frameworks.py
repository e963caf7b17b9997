"""Modules of other frameworks, export, sharding."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from tests.cases import few
from tests.slimming import checks
from tests.slimming.test_slim import CASES, build


def test_nnx_module() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.dense = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dense(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    fn = lambda state, x: nnx.merge(graph, state)(x)
    x = np.ones((2, 8, 8, 3), np.float32)
    groups, _, small = checks.check_agrees(fn, state, (x,))
    assert [(g.name, g.count) for g in groups] == [("conv/kernel[3]", 8)]
    assert {m.name for m in groups[0].members} >= {"norm/mean", "norm/var", "norm/scale", "dense/kernel"}
    assert small.params["conv"]["kernel"][...].shape == (3, 3, 3, 4)


def test_equinox_module() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, 16, 2, key=jax.random.key(0))
    x = np.ones((5, 3), np.float32)
    params, static = eqx.partition(model, eqx.is_array)
    groups, choice, small = checks.check_agrees(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, (x,))
    assert [g.count for g in groups] == [16, 16]
    assert small.params.layers[0].weight.shape == (8, 3)
    # The module itself, whose leaves are arrays, functions and numbers, is a tree of parameters as well.
    fn = lambda model, x: jax.vmap(model)(x)
    whole = slimming.slim(
        fn, model, slimming.Choice.remove(slimming.find_groups(fn, model, x), {groups[0].name: [0]}), x
    )
    assert whole.params.layers[0].weight.shape == (15, 3)
    assert whole.fn(whole.params, x).shape == (5, 2)
    assert choice.keep.sum() == 16


def test_export_needs_neither_the_model_nor_flax(tmp_path: Path) -> None:
    _ = pytest.importorskip("flatbuffers")
    params = {"a": np.ones((3, 4), np.float32), "b": np.ones((4, 2), np.float32)}
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    small = slimming.slim(fn, params, {"a[1]": [0]}, jnp.ones((5, 3)))
    args = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), small.params)
    exported = jax.export.export(jax.jit(small.fn))(args, jax.ShapeDtypeStruct((5, 3), jnp.float32))
    _ = (tmp_path / "fn").write_bytes(exported.serialize())
    script = (
        "import sys, jax, numpy as np; from jax import export\n"
        f"fn = export.deserialize(bytearray(open({str(tmp_path / 'fn')!r}, 'rb').read()))\n"
        "p = {'a': np.ones((3, 3), 'f4'), 'b': np.ones((3, 2), 'f4')}\n"
        "print(fn.call(p, np.ones((5, 3), 'f4')).sum())\n"
        "assert not {'flax', 'jaxprune'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 90


@pytest.mark.parametrize("name", few(["lenet", "llama scanned"], "lenet"))
def test_export_for_any_batch(name: str) -> None:
    model, make, _ = CASES[name]
    x = make()
    params = build(model, x)
    choice = checks.random_choice(slimming.find_groups(model.apply, params, x))
    small = slimming.slim(model.apply, params, choice, x)
    [batch] = jax.export.symbolic_shape("batch")
    args = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), small.params)
    exported = jax.export.export(jax.jit(small.fn))(args, jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    for n in (1, 3):
        many = jnp.concatenate([x, x])[:n]
        expected = jax.jit(model.apply)(checks.masked(params, choice), many)
        assert checks.difference(expected, exported.call(small.params, many)) < 1e-5


def test_a_batch_of_any_size_cannot_be_merged_with_what_shrinks() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    fn = lambda p, x: jnp.tanh(x @ p["a"]).reshape(-1).reshape(-1, 4) @ p["b"]
    small = slimming.slim(fn, params, {"a[1]": [0]}, jnp.ones((5, 3)))
    np.testing.assert_allclose(small.fn(small.params, jnp.ones((7, 3))), 3 * np.tanh(3) * np.ones((7, 2)), rtol=1e-6)
    [batch] = jax.export.symbolic_shape("batch")
    with pytest.raises(ValueError, match="symbolic size batch is merged with one that shrinks; export for a fixed"):
        _ = jax.export.export(jax.jit(small.fn))(small.params, jax.ShapeDtypeStruct((batch, 3), jnp.float32))


def test_sharded_parameters(devices: list[Any]) -> None:
    mesh = jax.sharding.Mesh(np.array(devices[:4]), ("x",))
    shard = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 16)).astype("f4"), "b": rng.normal(size=(16, 2)).astype("f4")}
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    x = np.ones((5, 3), np.float32)
    small = slimming.slim(fn, params, {"a[1]": list(range(8))}, x)
    placed = {
        "a": jax.device_put(small.params["a"], shard(None, "x")),
        "b": jax.device_put(small.params["b"], shard("x", None)),
    }
    assert (
        checks.difference(fn({"a": params["a"][:, 8:], "b": params["b"][8:]}, x), jax.jit(small.fn)(placed, x)) < 1e-5
    )
