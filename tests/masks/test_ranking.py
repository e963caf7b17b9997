import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks
from jaxprune.masks._exact import ranking, rows
from tests.masks import twins


@pytest.fixture
def small_integers(monkeypatch):
    """As if counts and indices overflowed from 2000 entries on; nothing traced with them outlives the test."""
    monkeypatch.setattr(rows, "_INT32", 2000)
    monkeypatch.setattr(rows, "_SMALL", 100)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
def test_slices_of_which_neither_count_nor_index_fits(small_integers):
    rng = np.random.default_rng(0)
    assert rows.digits((50, 41)) == [(50,), (41,)]
    assert rows.digits((4, 40, 41)) == [(4,), (40, 41)]
    assert rows.digits((10, 10)) == [(10, 10)]
    leaves = [np.round(rng.normal(size=s), 1).astype(np.float32) for s in [(50, 41), (30, 20), (4, 40, 41)]]
    scores = [jnp.asarray(x) for x in leaves]
    for sparsity in (0.3, 0.9):
        for found, x in zip(masks.select(scores, sparsity), leaves, strict=True):
            np.testing.assert_array_equal(np.asarray(found), twins.keep(x, sparsity))
        together = masks.select_global(scores, sparsity)
        for found, expected in zip(together, twins.keep_globally(leaves, sparsity), strict=True):
            np.testing.assert_array_equal(np.asarray(found), expected)
    with pytest.raises(ValueError, match="an axis is too long"):
        _ = rows.digits((2, 2000))


def test_small_leaves_alike_are_stacked_and_ties_fall_as_if_they_were_not():
    scores = {name: jnp.ones(shape) for name, shape in zip("abcd", [(4, 6), (3, 5), (4, 6), (3, 5)], strict=True)}
    assert ranking.stack(list(scores.values()), [0, 0, 0, 0]).members == [[0, 2], [1, 3]]
    for sparsity in (0.1, 0.5, 0.8):
        found = masks.select_global(scores, sparsity)
        flat = np.concatenate([np.ravel(mask) for mask in found.values()])
        np.testing.assert_array_equal(flat, twins.keep(np.ones(flat.size), sparsity))
    each = dict(zip(scores, (0.1, 0.2, 0.3, 0.4), strict=True))
    for name, mask in masks.select(scores, each).items():
        np.testing.assert_array_equal(np.asarray(mask), twins.keep(scores[name], each[name]))


def test_a_large_leaf_stays_alone():
    large = jnp.ones((256, 256))
    assert ranking.stack([large, large], [0, 0]).members == [[0], [1]]


def test_a_count_for_each_slice():
    scores = {"w": jnp.arange(12.0).reshape(3, 4), "v": jnp.arange(6.0).reshape(2, 3)}
    gone = {"w": masks.Count(jnp.zeros(3, jnp.int32), jnp.array([0, 1, 3])), "v": masks.Count.of(5)}
    found = masks.select(scores, gone, batch_axes={"w": 1}, where=lambda *_: True)
    assert found["w"].sum(1).tolist() == [4, 3, 1]
    assert int(found["v"].sum()) == 1


def test_nothing_and_everything_kept():
    scores = [jnp.arange(6.0).reshape(2, 3), jnp.full((2, 3), jnp.nan)]
    for kept in (0, 6):
        counted = masks.Count(jnp.zeros(2, jnp.int32), jnp.full(2, kept, jnp.int32))
        found = ranking.keep_largest(scores, counted, batch_axes=[0, 0], shared=False)
        assert [int(mask.sum()) for mask in found] == [kept, kept]
    assert ranking.keep_largest([], counted, batch_axes=[], shared=False) == []


def test_members_mapped_over_are_those_alone_and_eager_is_jit():
    scores = jnp.asarray(np.round(np.random.default_rng(0).normal(size=(3, 8, 6)), 1), jnp.float32)
    select = lambda x, s: masks.select([x], s)[0]
    sparsities = jnp.array([0.2, 0.5, 0.9], jnp.float32)
    mapped = jax.vmap(select)(scores, sparsities)
    for member in range(3):
        np.testing.assert_array_equal(mapped[member], select(scores[member], sparsities[member]))
        np.testing.assert_array_equal(mapped[member], jax.jit(select)(scores[member], sparsities[member]))


def test_leaves_of_one_shape_share_their_kernels():
    """XLA compiles equal kernels once: that of a mask, as large as the leaf, must not have the leaf's number in it."""
    scores = [jax.ShapeDtypeStruct((512, 640), jnp.float32)] * 4
    text = jax.jit(partial(masks.select, sparsities=0.5)).lower(scores).compile().as_text() or ""
    kernels = re.findall(r"^%fused_computation\S* \([^\n]*\) -> pred\[512,640\]\S* \{\n(.*?)^\}", text, re.M | re.S)
    assert len(kernels) == 4
    assert len({_without_names(kernel) for kernel in kernels}) == 1


def _without_names(kernel: str) -> str:
    names: dict[str, str] = {}
    bare = re.sub(r", metadata=\{.*?\}", "", kernel)
    return re.sub(r"%[\w.-]+", lambda name: names.setdefault(name[0], f"%{len(names)}"), bare)
