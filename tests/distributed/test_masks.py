"""Masks of arrays that lie on eight devices: those of one device, where their parameters lie, and little moved."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxprune
from benchmarks.collectives import collectives, total
from jaxprune import allocation, criteria, masks
from jaxprune.masks._exact import counts, rows
from tests.cases import few
from tests.distributed import layouts

PRUNE = partial(jaxprune.prune, where=layouts.WHERE, key=jax.random.key(0))
STACKED = {"layers/*": 1}
# Every pattern and every allocation; `params` is both the parameters and, turned round, their gradients.
CASES: dict[str, Any] = {
    "leaf": lambda p, **on: PRUNE(p, 0.9, **on),
    "leaf stacked": lambda p, **on: PRUNE(p, 0.7, batch_axes=STACKED, **on),
    "fan-in": lambda p, **on: PRUNE(p, 0.5, pattern=masks.Unstructured(axes=-2), batch_axes=STACKED, **on),
    "n of m": lambda p, **on: PRUNE(p, 0.5, pattern=masks.NM(2, 4, axis=-2), batch_axes=STACKED, **on),
    "n of m along outputs": lambda p, **on: PRUNE(p, 0.5, pattern=masks.NM(2, 4, axis=-1), **on),
    "block": lambda p, **on: PRUNE(p, 0.5, pattern=masks.Block((4, 2), (-2, -1)), **on),
    "channel": lambda p, **on: PRUNE(p, 0.5, pattern=masks.Channel(-1), batch_axes=STACKED, **on),
    "channel, global": lambda p, **on: PRUNE(
        p, 0.5, pattern=masks.Channel(-2), allocation=allocation.one_ranking, **on
    ),
    "global": lambda p, **on: PRUNE(p, 0.8, allocation=allocation.one_ranking, **on),
    "er": lambda p, **on: PRUNE(p, 0.8, allocation=allocation.er, **on),
    "erk": lambda p, **on: PRUNE(p, 0.8, allocation=allocation.erk, **on),
    "lamp": lambda p, **on: PRUNE(p, 0.8, allocation=allocation.lamp, **on),
    "random": lambda p, **on: PRUNE(p, 0.9, criterion=criteria.random, allocation=allocation.one_ranking, **on),
}
CRITERIA: dict[str, Any] = {
    "magnitude": criteria.magnitude,
    "squares": partial(criteria.magnitude, power=2),
    "l1": partial(criteria.magnitude, normalise="l1"),
    "l2": partial(criteria.magnitude, normalise="l2"),
    "max": partial(criteria.magnitude, normalise="max", batch_axes=STACKED),
    "random": criteria.random,
    "gradient": criteria.gradient,
    "snip": criteria.snip,
    "fisher": criteria.fisher,
}


# What is compiled in every run; for the other patterns that is done in tests/masks/test_sharded.py.


def all_masks(params: Any, names: Any = tuple(CASES)) -> Any:
    return {name: CASES[name](params).masks for name in names}


def all_scores(params: Any) -> Any:
    grads = jax.tree.map(lambda x: x[::-1], params)
    return {name: score(params, grads=grads, key=jax.random.key(1)) for name, score in CRITERIA.items()}


@cache
def alone(names: Any) -> Any:
    """What one device gives."""
    params = layouts.init_params()
    found = jax.jit(partial(all_masks, names=names))(params), jax.jit(all_scores)(params)
    return jax.tree.map(np.asarray, found)


def check(layout: str, kind: str, devices: list[Any], names: Any) -> None:
    mesh = layouts.make_mesh(kind, devices)
    params = layouts.place(layouts.init_params(), mesh, layout)
    with jax.set_mesh(mesh):
        scores = jax.jit(all_scores)(params)
        found = jax.jit(partial(all_masks, names=names))(params)
    expected = alone(names)
    layouts.expect_same(scores, expected[1])
    layouts.expect_same(found, expected[0])
    for name in names:
        # On Auto axes the compiler places what is drawn, for nothing ties it to the parameter.
        if "channel" not in name and (name, kind) != ("random", "auto"):
            layouts.expect_sharded_like(found[name], params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", layouts.KINDS)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_masks_and_scores_are_those_of_one_device_everywhere(layout, kind, devices):
    check(layout, kind, devices, tuple(CASES))


def shapes(mesh: Any, width: int) -> Any:
    """Leaves of a model so wide, sharded in both ways; no arrays are made."""
    named = {"down": (4 * width, width), "embed": (8 * width, width), "up": (width, 4 * width)}
    spec = {"down": jax.P("x", "y"), "embed": jax.P(("x", "y"), None), "up": jax.P(None, "x")}
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec[name]))
        for name, shape in named.items()
    }


@pytest.mark.parametrize("kind", few(layouts.KINDS, "explicit"))
def test_a_global_selection_moves_counts_only_whatever_the_size(kind, devices):
    mesh = layouts.make_mesh(kind, devices)
    moved = {}
    for width in (1024, 16384):
        with jax.set_mesh(mesh):
            compiled = jax.jit(lambda s: masks.select_global(s, 0.9)).lower(shapes(mesh, width)).compile()
        # The keys take 8 passes at most, and so does the index where keys tie.
        found = collectives(compiled, turns=(2, 8))
        moved[width] = total(found)
        # All it asks of a leaf is a sample, once, and eight counts a pass; the smallest leaf has 16 MB.
        assert max(each.largest for each in found) <= 3 * 4 * 1024, found
    assert max(moved.values()) < 64 * 1024, moved
    # The largest leaf then has 2^31 entries, and each of its counts two integers: 8 probes, 8 devices, 16 passes.
    assert moved[16384] - moved[1024] <= 8 * 8 * 16 * 4, moved


@pytest.mark.parametrize("kind", layouts.KINDS)
def test_beyond_31_bits_nothing_is_gathered_and_no_index_kept(kind, devices):
    mesh = layouts.make_mesh(kind, devices)
    scores = [jax.ShapeDtypeStruct((131072, 16384), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("x", "y")))]
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda s: masks.select(s, 0.9)).lower(scores).compile()
    found = collectives(compiled, turns=(2, 8))
    assert {each.kind for each in found} == {"all-reduce"}, found
    assert total(found) < 16 * 1024, found
    memory = compiled.memory_analysis()
    assert memory is not None
    # A device holds 1 GB of the scores, and its share of eight counts for each of 65,536 stretches.
    assert memory.temp_size_in_bytes < 2 << 20


def largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """The mask by sorting."""
    kept = np.zeros(scores.size, bool)
    order = np.argsort(-scores, kind="stable")
    kept[order[: scores.size - int(counts.removed(sparsity, scores.size))]] = True
    return kept


def test_one_device_counts_in_parts_what_several_count_at_once(monkeypatch):
    # A shape that no other test has, so that nothing of it is compiled yet.
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(521, 509)), jnp.bfloat16)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    found = masks.select({"w": scores}, 0.9)["w"]
    np.testing.assert_array_equal(np.asarray(found).ravel(), largest(np.asarray(scores, np.float32).ravel(), 0.9))


def test_beyond_31_bits_counts_are_carried_and_still_exact(monkeypatch, devices):
    # As if integers had 11 bits. Another shape than any other test has, so that nothing of it is compiled yet.
    monkeypatch.setattr(rows, "_INT32", 1 << 11)
    mesh = layouts.make_mesh("auto", devices)
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 488, 132)), jnp.bfloat16)
    placed = jax.device_put(scores, jax.NamedSharding(mesh, jax.P(None, "x", "y")))
    found = np.asarray(masks.select({"w": placed}, 0.9, batch_axes=1)["w"]).reshape(2, -1)
    for slice_, mask in zip(np.asarray(scores, np.float32).reshape(2, -1), found, strict=True):
        np.testing.assert_array_equal(mask, largest(slice_, 0.9))


@pytest.mark.parametrize(("width", "kind"), few([(1024, "explicit"), (132, "auto")], (132, "auto")))
def test_many_devices_add_their_counts_up(width, kind, monkeypatch, devices):
    # As if eight devices were many; a width that is cut into stretches, and one that is not. Another shape than any
    # other test has.
    monkeypatch.setattr(rows, "_GATHERED", 4)
    mesh = layouts.make_mesh(kind, devices)
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(488, width)), jnp.bfloat16)
    placed = jax.device_put(scores, jax.NamedSharding(mesh, jax.P("x", "y")))
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda w: masks.select({"w": w}, 0.9)["w"]).lower(placed).compile()
    found = np.asarray(compiled(placed)).ravel()
    np.testing.assert_array_equal(found, largest(np.asarray(scores, np.float32).ravel(), 0.9))
    assert {each.kind for each in collectives(compiled)} == {"all-reduce"}
    # Along x and along y: a sample, once, and 8 counts of 4 bytes in each of 16 passes.
    sample = max(64, scores.size // 1024)
    assert total(collectives(compiled, turns=(2, 8))) <= 2 * 4 * (sample + 8 * 16)


def test_points_of_a_sample_are_spread_evenly():
    for shape in [(4096,), (64, 64), (8, 32, 1000)]:
        places = rows.points(shape, 512)
        for index, size in zip(places, shape, strict=True):
            assert index.min() >= 0
            assert index.max() < size
            # Each eighth of an axis has its share, which is 64, within the few that a sequence may be off.
            assert np.all(np.abs(np.bincount(index * 8 // size, minlength=8) - 64) <= 12)


def test_packed_masks_of_few_entries_a_device_come_back_where_their_parameter_lies(devices):
    mesh = layouts.make_mesh("explicit", devices)
    place = NamedSharding(mesh, PartitionSpec(None, ("x", "y")))
    weights = jax.device_put(jnp.arange(64.0).reshape(4, 16), place)  # two on each device: no whole byte
    with jax.set_mesh(mesh):
        held = masks.pack(weights > 20)
        found = masks.unpack(held, weights)
    assert jax.typeof(found).sharding.spec == place.spec
    np.testing.assert_array_equal(found, np.arange(64).reshape(4, 16) > 20)
    np.testing.assert_array_equal(masks.apply(weights, held), np.where(found, weights, 0))
