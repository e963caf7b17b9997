"""Patterns of a user's own work wherever a pattern is an argument, and in what masks go through afterwards."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import allocation, checkpoints, masks, schedules, training
from tests.cases import few


@dataclass(frozen=True)
class Tile(masks.Pattern):
    """One unit per 2 x 2 positions and all inputs of a (height, width, inputs, outputs) kernel."""

    def check(self, leaf: masks.Leaf) -> str | None:
        """Height and width must be even."""
        odd = leaf.ndim != 4 or leaf.shape[0] % 2 or leaf.shape[1] % 2
        return f"needs even height and width, not {leaf.shape}" if odd else None

    def units(self, scores: jax.Array, leaf: masks.Leaf) -> jax.Array:
        """(height / 2, width / 2, 1, outputs)."""
        height, width, inputs, outputs = leaf.shape
        tiles = scores.reshape(height // 2, 2, width // 2, 2, inputs, outputs)
        return leaf.sum(tiles, (1, 3, 4)).reshape(height // 2, width // 2, 1, outputs)

    def expand(self, kept: jax.Array, leaf: masks.Leaf) -> jax.Array:
        """(height, width, 1, outputs)."""
        return kept.repeat(2, axis=0).repeat(2, axis=1)


@dataclass(frozen=True)
class Head(masks.Pattern):
    """One unit per head of an (inputs, heads, head size) kernel."""

    def units(self, scores: jax.Array, leaf: masks.Leaf) -> jax.Array:
        """(1, heads, 1)."""
        return leaf.sum(scores, (0, 2))

    def expand(self, kept: jax.Array, leaf: masks.Leaf) -> jax.Array:
        """(1, heads, 1)."""
        return kept


PATTERN = {"conv*": Tile(), "query": Head()}
SHAPES = {"conv_0": (4, 4, 3, 5), "conv_1": (2, 4, 5, 8), "query": (12, 10, 6), "bias": (5,)}
UNITS = {"conv_0": 20, "conv_1": 16, "query": 10}


def init_params() -> Any:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def unit_scores(params: Any) -> dict[str, np.ndarray]:
    """The sums of magnitudes over units, by NumPy; an entry of the result for each unit."""
    sizes = {name: np.abs(np.asarray(x, np.float64)) for name, x in params.items()}
    tiles = {
        name: sizes[name].reshape(h // 2, 2, w // 2, 2, i, o).sum((1, 3, 4)).ravel()
        for name, (h, w, i, o) in ((name, SHAPES[name]) for name in ("conv_0", "conv_1"))
    }
    return {**tiles, "query": sizes["query"].sum((0, 2))}


def kept_units(found: Any) -> dict[str, np.ndarray]:
    """A bool for each unit; fails unless all entries of a unit are kept, or none."""
    units = {}
    for name, shape in SHAPES.items():
        mask = np.broadcast_to(np.asarray(masks.unpack(found[name])), shape)
        if name == "bias":
            assert mask.all()
            continue
        parts = (
            mask.reshape(shape[0] // 2, 2, shape[1] // 2, 2, *shape[2:]).transpose(0, 2, 5, 1, 3, 4)
            if name.startswith("conv")
            else mask.transpose(1, 0, 2)
        )
        parts = parts.reshape(UNITS[name], -1)
        assert (parts.all(1) == parts.any(1)).all()
        units[name] = parts.all(1)
    return units


def test_prune_removes_the_lowest_units():
    params = init_params()
    pruned = jaxprune.prune(params, 0.5, pattern=PATTERN)
    for name, kept in kept_units(pruned.masks).items():
        scores = unit_scores(params)[name]
        assert (~kept).sum() == UNITS[name] // 2
        assert scores[kept].min() > scores[~kept].max()
    assert pruned.masks["query"].shape == (1, 10, 1)
    assert not np.asarray(pruned.params["query"])[:, ~np.asarray(pruned.masks["query"])[0, :, 0]].any()


def test_one_ranking_and_erk_share_units():
    params = init_params()
    together = jaxprune.prune(params, 0.3, pattern=PATTERN, allocation=allocation.one_ranking).masks
    kept, scores = kept_units(together), unit_scores(params)
    assert sum(int((~x).sum()) for x in kept.values()) == round(0.3 * 46 + 1e-9)
    assert min(s[kept[n]].min() for n, s in scores.items()) > max(
        s[~kept[n]].max(initial=-np.inf) for n, s in scores.items()
    )
    shared = allocation.erk(params, 0.5, pattern=PATTERN)
    found = masks.select(jax.tree.map(jnp.abs, params), shared.sparsities, PATTERN)
    for name, kept in kept_units(found).items():
        assert (~kept).sum() == int(shared.sparsities[name] * UNITS[name] + 0.5)
    assert np.isclose(masks.sparsity(params, found), shared.achieved)


@pytest.mark.parametrize("packed", few([False, True], True))
def test_training_keeps_whole_units_at_zero(packed):
    params = init_params()
    method = training.gradual(schedules.cubic(0, 4, 0.5), when=schedules.every(2), pattern=PATTERN)
    optimizer = jaxprune.sparsify(optax.adam(0.1), method, packed=packed)
    state = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update(jax.tree.map(jnp.ones_like, p), s, p))
    for _ in range(5):
        updates, state = step(params, state)
        params: Any = optax.apply_updates(params, updates)
    kept = kept_units(jaxprune.get_masks(state))
    assert {name: int((~x).sum()) for name, x in kept.items()} == {"conv_0": 10, "conv_1": 8, "query": 5}
    dropped = ~np.broadcast_to(np.asarray(masks.unpack(jaxprune.get_masks(state))["query"]), SHAPES["query"])
    assert not np.asarray(params["query"])[dropped].any()


def test_masks_come_back_from_disk(tmp_path):
    params = init_params()
    pruned = jaxprune.prune(params, 0.5, pattern=PATTERN)
    _ = checkpoints.save(tmp_path / "pruned.safetensors", pruned.params, masks=masks.pack(pruned.masks))
    back = checkpoints.load(tmp_path / "pruned.safetensors", params)
    for name, kept in kept_units(back.masks).items():
        assert np.array_equal(kept, kept_units(pruned.masks)[name])
    assert np.array_equal(back.params["query"], pruned.params["query"])


def test_a_leaf_that_does_not_fit_and_a_class_that_lacks_a_part_are_named():
    with pytest.raises(ValueError, match=r"(?s)the pattern does not fit.*w: needs even height and width, not \(3, 4\)"):
        _ = masks.select({"w": jnp.ones((3, 4))}, 0.5, Tile())

    class Half:
        def units(self, scores: Any, leaf: Any) -> Any: ...
        def expand(self, kept: Any, leaf: Any) -> Any: ...

    class Empty(masks.Pattern):
        def units(self, scores: Any, leaf: Any) -> Any: ...

    half: Any = Half()
    empty: Any = Empty
    with pytest.raises(TypeError, match=r"lacks check, .*derive its class from masks\.Pattern"):
        _ = masks.select({"w": jnp.ones((3, 4))}, 0.5, half)
    with pytest.raises(TypeError, match=r"lacks expand; derive"):
        _ = masks.select({"w": jnp.ones((3, 4))}, 0.5, empty())


def test_parts_that_devices_hold_are_refused_where_the_pattern_cannot_say_what_its_units_are(devices):
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("x",))
    spec = {"query": jax.sharding.PartitionSpec("x")}
    select = lambda p: masks.select(p, 0.5, Head(), specs=spec)
    with pytest.raises(ValueError, match=r"query: Head\(\) does not say what its units are in a part"):
        _ = jax.shard_map(select, mesh=mesh, in_specs=(spec,), out_specs=spec)({"query": jnp.ones((4, 2, 3))})
