"""Orbax checkpoints: the same state, on other devices too, or an error and the old files as they were."""

import gc
import itertools
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import checkpoints, training
from tests.cases import few


def make(packed: bool = True, width: int = 64) -> Any:
    """A state with a key, a None and packed masks in it."""
    params = {"a": jax.random.normal(jax.random.key(0), (256, width)), "b": jnp.zeros(3)}
    optimizer = jaxprune.sparsify(optax.adam(0.1), training.rigl(0.5, 9, every=2, key=jax.random.key(1)), packed=packed)
    return {"params": params, "state": optimizer.init(params)}


def plain(tree: Any) -> Any:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint, which no test may change."""
    path = tmp_path_factory.mktemp("checkpoints") / "one"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, make())
    return path


def shardings(mesh: Any, like: Any) -> Any:
    return jax.tree.map(lambda x: NamedSharding(mesh, P("x") if x.ndim == 2 else P()), like)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_it_is_restored_onto_any_number_of_devices(checkpoint, devices, count):
    before = files(checkpoint)
    like = jax.eval_shape(make)
    mesh = jax.sharding.Mesh(np.array(devices[:count]), ("x",))
    wanted = shardings(mesh, like)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, wanted)
    found = checkpoints.restore(checkpoint, like)
    chex.assert_trees_all_equal(plain(found), plain(make()))
    assert jax.tree.structure(found) == jax.tree.structure(like)
    assert found["state"].masks["a"].bits.sharding == NamedSharding(mesh, P("x"))
    assert files(checkpoint) == before


def test_from_eight_devices_onto_one(checkpoint, devices, tmp_path):
    del checkpoint
    state = make()
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "eight", jax.device_put(state, shardings(mesh, state)))
    chex.assert_trees_all_equal(plain(checkpoints.restore(tmp_path / "eight", state)), plain(state))


def test_another_state_is_told_by_its_leaves(checkpoint):
    before = files(checkpoint)
    with pytest.raises(
        ValueError, match=r"(?s)it has packed masks: pass sparsify\(\.\.\., packed=True\).*masks/a/bits"
    ):
        _ = checkpoints.restore(checkpoint, jax.eval_shape(lambda: make(packed=False)))
    with pytest.raises(ValueError, match=r"params/a: saved float32\[256, 64\], expected float32\[256, 32\]"):
        _ = checkpoints.restore(checkpoint, jax.eval_shape(lambda: make(width=32)))
    none = jax.eval_shape(make)
    none["state"] = none["state"]._replace(method=(none["state"].method[0], jax.ShapeDtypeStruct((3,), jnp.float32)))
    with pytest.raises(ValueError, match=r"state/method/1: saved nothing, expected float32\[3\]"):
        _ = checkpoints.restore(checkpoint, none)
    with pytest.raises(ValueError, match="another state") as caught:
        _ = checkpoints.restore(checkpoint, {"other": jnp.ones(2)})
    assert "and " in str(caught.value).splitlines()[-1]
    assert files(checkpoint) == before


def test_bool_masks_into_a_packed_state_are_told(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "bool", make(packed=False))
    with pytest.raises(ValueError, match=r"it has bool masks: pass sparsify\(\.\.\., packed=False\)"):
        _ = checkpoints.restore(tmp_path / "bool", jax.eval_shape(make))


# Orbax lets the errors of the other arrays it reads at the same time go by unheard.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["largest", "_METADATA", "manifest.ocdbt"])
def test_a_truncated_checkpoint_is_told_and_left(checkpoint, tmp_path, what):
    copy = tmp_path / "copy"
    for name, content in files(checkpoint).items():
        copy.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        _ = copy.joinpath(name).write_bytes(content)
    victim = max((p for p in copy.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim = victim if what == "largest" else copy / what
    _ = victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    before = files(copy)
    with pytest.raises(ValueError, match=r"truncated|damaged"):
        _ = checkpoints.restore(copy, jax.eval_shape(make))
    assert files(copy) == before
    _ = gc.collect()  # what Orbax left behind speaks up here, and not in a later test


def test_what_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        _ = checkpoints.restore(tmp_path / "none", make())
    with pytest.raises(ValueError, match="not an Orbax checkpoint"):
        _ = checkpoints.restore(tmp_path, make())


PAIRS = itertools.product(("state", "values"), ("state", "shapes", "values"))


@pytest.mark.parametrize(("saved", "like"), few(PAIRS, ("state", "shapes"), ("values", "state")))
def test_a_training_state_of_nnx_with_or_without_its_variables(tmp_path, saved, like):
    def make_nnx(seed: int) -> Any:
        model = nnx.Linear(4, 4, rngs=nnx.Rngs(seed))
        optimizer = jaxprune.sparsify(optax.adam(1e-2), training.one_shot(0.5))
        return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    model, optimizer = make_nnx(0)
    optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((2, 4))) ** 2).sum())(model))
    state = nnx.state((model, optimizer))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state if saved == "state" else nnx.to_pure_dict(state))
    fresh = nnx.state(make_nnx(1))
    wanted = {
        "state": lambda: fresh,
        "shapes": lambda: jax.eval_shape(lambda: nnx.state(make_nnx(1))),
        "values": lambda: nnx.to_pure_dict(fresh),
    }[like]()
    found = checkpoints.restore(tmp_path / "state", wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    chex.assert_trees_all_equal(jax.tree.leaves(found), jax.tree.leaves(state))
    with pytest.raises(ValueError, match=r"another state(?s:.*)0/kernel.*: saved float32\[4, 4\], expected nothing"):
        _ = checkpoints.restore(tmp_path / "state", {1: wanted[1]})
