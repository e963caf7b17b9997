"""Sparse parameters in a file: the same bits back, few bytes, and nothing wrong taken for right."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

import jaxprune
from jaxprune import checkpoints, masks, training
from jaxprune.checkpoints import _disk
from tests.cases import few


def make(dtype: Any = jnp.float32) -> Any:
    """Parameters of several ranks, with an integer and a scalar among them."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 4, 8), dtype), "bias": jnp.arange(8, dtype=dtype)},
        "dense": jax.random.normal(keys[1], (48, 10), dtype),
        "step": jnp.int32(7),
    }


def prune(params: Any) -> masks.Pruned:
    """Two of eight channels of one leaf, a quarter of the entries of the other."""
    held = {
        "conv": {"kernel": (jnp.arange(8) % 4 == 1).reshape(1, 1, 1, 8), "bias": jnp.array(True)},
        "dense": (jnp.arange(480) * 7 % 4 == 0).reshape(48, 10),
        "step": jnp.array(True),
    }
    return masks.Pruned(masks.apply(params, held), held)


def expect_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def saved(tmp_path) -> Any:
    """A file, with what is in it."""
    pruned = prune(make())
    return checkpoints.save(tmp_path / "net.safetensors", pruned.params, pruned.masks, about={"a": [1]}), pruned


DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize(
    ("dtype", "packed"),
    few(itertools.product(DTYPES, [False, True]), (jnp.float32, False), (jnp.bfloat16, True)),
)
def test_what_is_saved_is_loaded(tmp_path, dtype, packed):
    pruned = prune(make(dtype))
    path = tmp_path / "net.safetensors"
    held = masks.pack(pruned.masks) if packed else pruned.masks
    assert checkpoints.save(path, pruned.params, held, about=[None, "ä"]).path == path
    found = checkpoints.load(path, jax.eval_shape(lambda: make(dtype)))
    expect_equal(found.params, pruned.params)
    expect_equal(found.masks, pruned.masks)
    assert found.about == [None, "ä"]
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_it_holds_what_is_kept_and_a_bit_an_entry(saved):
    sizes, _ = saved
    # Of the kernel 2 of 8 channels, 120 of 480 of the matrix, the bias and the step; masks of 8 and 480 bits.
    assert sizes.values == 4 * (3 * 3 * 4 * 2 + 120 + 8 + 1)
    assert sizes.masks == 1 + 60
    assert sizes.dense == 4 * (3 * 3 * 4 * 8 + 480 + 8 + 1)
    assert sizes.bytes == sizes.path.stat().st_size
    assert f"{sizes.bytes / sizes.dense:.1%} of the parameters in memory" in str(sizes)
    with safe_open(sizes.path, "np") as file:  # as any other program reads it
        assert sorted(file.keys())[:3] == ["conv/bias", "conv/kernel.mask", "conv/kernel.values"]
        assert file.get_tensor("dense.values").dtype == np.float32


def test_a_network_without_masks_is_saved_whole(tmp_path):
    params = make()
    assert checkpoints.save(tmp_path / "slim", params).masks == 0
    found = checkpoints.load(tmp_path / "slim", params)
    expect_equal(found.params, params)
    assert all(mask.ndim == 0 for mask in jax.tree.leaves(found.masks))


def test_it_is_put_where_it_belongs(saved, devices):
    sizes, pruned = saved
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place if x.ndim == 2 else None), make()
    )
    found = checkpoints.load(sizes.path, like)
    assert found.params["dense"].sharding == found.masks["dense"].sharding == place
    expect_equal(found.params, pruned.params)
    again = checkpoints.save(sizes.path.with_name("again"), found.params, found.masks, about={"a": [1]})
    assert again.path.read_bytes() == sizes.path.read_bytes()


def test_a_flipped_bit_is_found_wherever_it_is(saved):
    sizes, _ = saved
    whole = sizes.path.read_bytes()
    like = make()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        _ = sizes.path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|no safetensors file|not from jaxprune"):
            _ = checkpoints.load(sizes.path, like)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_file_is_found(saved, length):
    sizes, _ = saved
    _ = sizes.path.write_bytes(sizes.path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged, truncated, or not a safetensors file"):
        _ = checkpoints.load(sizes.path, make())


def test_a_file_of_others_is_told(tmp_path):
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "other", {"format": "pt"})
    with pytest.raises(ValueError, match=r"not from jaxprune\.checkpoints\.save"):
        _ = checkpoints.load(tmp_path / "other", {"w": jnp.ones(2)})


def test_another_network_is_told_by_its_leaves(saved):
    sizes, _ = saved
    before = sizes.path.read_bytes()
    other = make() | {"dense": jnp.ones((48, 11)), "new": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"another network") as caught:
        _ = checkpoints.load(sizes.path, other)
    assert "  dense: saved float32[48, 10], expected float32[48, 11]" in str(caught.value)
    assert "  new: saved nothing, expected float32[1]" in str(caught.value)
    with pytest.raises(ValueError, match=r"conv/bias: saved float32\[8\], expected bfloat16\[8\]"):
        _ = checkpoints.load(sizes.path, make(jnp.bfloat16))
    assert sizes.path.read_bytes() == before


def test_nothing_is_overwritten_and_nothing_is_left_behind(saved, monkeypatch):
    sizes, pruned = saved
    before = sizes.path.read_bytes()
    with pytest.raises(FileExistsError, match="is not overwritten"):
        _ = checkpoints.save(sizes.path, pruned.params, pruned.masks)
    assert sizes.path.read_bytes() == before

    def fail(path):
        _ = path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _ = _disk.write_new(sizes.path.with_name("next"), fail)
    # Another process may have made the file while this one wrote.
    with pytest.raises(FileExistsError):
        _ = _disk.write_new(
            sizes.path.with_name("raced"), lambda p: (p.write_bytes(b"a"), p.parent.joinpath("raced").touch())
        )
    assert sorted(p.name for p in sizes.path.parent.iterdir()) == ["net.safetensors", "raced"]
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        _ = checkpoints.save(sizes.path.parent / "none" / "x", pruned.params)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="needs safetensors: pip install safetensors"):
        _ = checkpoints.save(sizes.path.with_name("next"), pruned.params)


def test_what_would_be_lost_is_refused(tmp_path):
    params = make()
    with pytest.raises(ValueError, match=r"(?s)zero them first.*dense: 360 of 360"):
        _ = checkpoints.save(tmp_path / "x", params, prune(params).masks)
    with pytest.raises(TypeError, match=r"(?s)key_data.*  key: key"):
        _ = checkpoints.save(tmp_path / "x", {"key": jax.random.key(0)})
    with pytest.raises(TypeError, match="  fn: function"):
        _ = checkpoints.save(tmp_path / "x", {"fn": lambda x: x, "w": jnp.ones(2)})
    with pytest.raises(ValueError, match="must have different names in the file"):
        _ = checkpoints.save(tmp_path / "x", {"a": {"mask": jnp.ones(1)}, "a.mask": jnp.ones(1), "a/mask": jnp.ones(1)})
    with pytest.raises(TypeError, match="not JSON serializable"):
        _ = checkpoints.save(tmp_path / "x", params, about={1, 2})
    assert not list(tmp_path.iterdir())


def test_without_a_tree_to_follow_it_comes_in_nested_dicts(saved):
    sizes, pruned = saved
    found = checkpoints.load(sizes.path)
    expect_equal(found.params, pruned.params)
    expect_equal(found.masks, pruned.masks)
    path = sizes.path.with_name("list")
    _ = checkpoints.save(path, [jnp.ones(2), {"a/b": jnp.zeros(1)}])
    assert jax.tree.map(jnp.shape, checkpoints.load(path).params) == {"0": (2,), "1": {"a/b": (1,)}}
    _ = checkpoints.save(path.with_name("leaf"), jnp.ones(3))
    assert checkpoints.load(path.with_name("leaf")).params.tolist() == [1, 1, 1]


def test_masks_in_the_variables_of_an_optimizer_are_those_of_the_parameters(tmp_path):
    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jaxprune.sparsify(optax.adam(1e-2), training.one_shot(0.5)), wrt=nnx.Param)
    _ = optimizer.update(model, nnx.grad(lambda m: (m(jnp.ones((2, 8))) ** 2).mean())(model))
    params, held = nnx.state(model, nnx.Param), jaxprune.get_masks(optimizer.opt_state)
    assert checkpoints.save(tmp_path / "net", masks.apply(params, held), held).masks == 8
    found = checkpoints.load(tmp_path / "net", params)
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    assert float(masks.sparsity(found.params, found.masks)) == 0.5


@pytest.mark.parametrize("pruned", [False, True])
def test_a_state_of_nnx_comes_back_with_and_without_masks(tmp_path, pruned):
    state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    params, held = jaxprune.prune(state, 0.5) if pruned else (state, None)
    _ = checkpoints.save(tmp_path / "net", params, held)
    found, masks, _ = checkpoints.load(tmp_path / "net", state)
    assert jax.tree.structure(found) == jax.tree.structure(state) == jax.tree.structure(masks)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, want)
    assert masks["kernel"].get_value().sum() == (16 if pruned else 1)
