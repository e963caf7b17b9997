"""Whole layers go: of a scan over stacked layers, alone and together with what goes within the layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from jaxprune.slimming.groups import Frozen
from tests.slimming import checks

LAYERS, WIDTH, HIDDEN = 4, 6, 8
X = np.random.default_rng(1).normal(size=(2, 3)).astype("f4")


def stack(p: Any, x: Any) -> Any:
    """A residual branch of each layer, times the number of the layer; the sums before each layer are stacked."""

    def layer(x: Any, w: Any) -> Any:
        w, k = w
        return x + jnp.tanh(x @ w["up"]) @ w["down"] * (k + 1), x.sum(-1)

    layers = {name: p[name].astype(jnp.float32) for name in ("up", "down")}
    x, sums = jax.lax.scan(layer, x @ p["in"], (layers, jnp.arange(LAYERS)))
    return x @ p["out"] + sums.sum(0)[:, None]


@pytest.fixture(scope="module")
def params() -> Any:
    shapes = {"in": (3, WIDTH), "up": (LAYERS, WIDTH, HIDDEN), "down": (LAYERS, HIDDEN, WIDTH), "out": (WIDTH, 2)}
    return checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


@pytest.fixture(scope="module")
def groups(params: Any) -> slimming.Groups:
    return slimming.find_groups(stack, params, X)


def by_hand(p: Any, x: Any, layers: list[int]) -> np.ndarray:
    x, sums = x @ p["in"], 0
    for k in layers:
        sums = sums + x.sum(-1)
        x = x + np.tanh(x @ p["up"][k]) @ p["down"][k] * (k + 1)
    return np.asarray(x @ p["out"] + np.asarray(sums)[:, None])


def test_layers_of_a_scan_are_units(groups: slimming.Groups) -> None:
    depth = groups["down[0]"]
    assert depth.count == LAYERS and [(m.name, m.axis) for m in depth.members] == [("down", 0), ("up", 0)]
    assert not depth.exact and "a layer that a scan runs over" in str(groups)
    # They go only where one asks for what is not the same as masking.
    assert slimming.choose(groups, np.arange(groups.size), 0.5).kept("down[0]").all()
    loose = slimming.choose(groups, np.zeros(groups.size), {"down[0]": 0.5}, limits=slimming.Limits(inexact=True))
    assert loose.kept("down[0]").tolist() == [True, True, False, False]


@pytest.mark.parametrize("layers", [[0, 2, 3], [1], [0, 3]])
def test_what_is_left_is_the_net_of_those_layers(params: Any, groups: slimming.Groups, layers: list[int]) -> None:
    gone = [k for k in range(LAYERS) if k not in layers]
    small = slimming.slim(stack, params, slimming.Choice.remove(groups, {"down[0]": gone}), X)
    assert small.params["up"].shape == (len(layers), WIDTH, HIDDEN)
    np.testing.assert_allclose(jax.jit(small.fn)(small.params, X), by_hand(params, X, layers), rtol=1e-4, atol=1e-5)


def test_layers_go_together_with_units_within_them(params: Any, groups: slimming.Groups) -> None:
    rng = np.random.default_rng(5)
    units = [HIDDEN * k + i for k in range(LAYERS) for i in rng.permutation(HIDDEN)[:3]]
    [inside] = [g.name for g in groups if g.count == LAYERS * HIDDEN]
    removed = {"down[0]": [1], inside: units, "down[2]": [0, 4]}
    choice = slimming.Choice.remove(groups, removed)
    small = slimming.slim(stack, params, choice, X)
    assert jax.tree.map(np.shape, small.params) == {"in": (3, 4), "up": (3, 4, 5), "down": (3, 5, 4), "out": (4, 2)}
    others = slimming.Choice.remove(groups, {k: v for k, v in removed.items() if k != "down[0]"})
    expected = by_hand(checks.masked(params, others), X, [0, 2, 3])
    np.testing.assert_allclose(small.fn(small.params, X), expected, rtol=1e-4, atol=1e-5)
    # Back into the whole shapes, from JSON; masks; and a second round.
    manifest = slimming.Manifest.from_json(small.manifest.to_json())
    expected = checks.masked(params, choice)
    assert checks.difference(expected, manifest.expand(small.params)) == 0
    masks = jax.tree.unflatten(jax.tree.structure(params), manifest.masks())
    assert checks.difference(expected, jax.tree.map(lambda p, m: np.where(m, p, 0), params, masks)) == 0
    again = slimming.find_groups(small.fn, small.params, X)
    assert sorted(g.count for g in again) == [3, 4, 15]


def test_gradients_of_the_layers_that_are_left(params: Any, groups: slimming.Groups) -> None:
    small = slimming.slim(stack, params, slimming.Choice.remove(groups, {"down[0]": [0, 3]}), X)
    got = jax.grad(lambda p: jnp.sum(small.fn(p, X) ** 2))(small.params)
    loss = lambda p: float((by_hand({k: np.asarray(v, np.float64) for k, v in p.items()}, X, [1, 2]) ** 2).sum())
    step = 1e-5 * (np.arange(WIDTH)[:, None] == 2)
    moved = [{**params, "up": params["up"] + sign * step * (np.arange(LAYERS) == 1)[:, None, None]} for sign in (1, -1)]
    slope = (loss(moved[0]) - loss(moved[1])) / 2e-5
    np.testing.assert_allclose(np.asarray(got["up"])[0, 2].sum(), slope, rtol=1e-3)


def test_a_sequence_keeps_its_length() -> None:
    params = {"w": np.ones((3, 4), np.float32), "o": np.ones((4, 2), np.float32)}
    fn = lambda p, x: jax.lax.scan(lambda h, x: (jnp.tanh(h + x @ p["w"]), None), jnp.zeros(4), x)[0] @ p["o"]
    groups = slimming.find_groups(fn, params, X)
    assert [g.name for g in groups] == ["w[1]"]


def test_layers_that_the_output_shows_stay(params: Any) -> None:
    seen = lambda p, x: jax.lax.scan(lambda x, w: (x + w["b"], x), x @ p["in"], {"b": p["b"]})[1]
    groups = slimming.find_groups(seen, {"in": params["in"], "b": np.ones((LAYERS, WIDTH), np.float32)}, X)
    assert Frozen("b", 0, LAYERS, LAYERS, "output 0 of the function") in groups.frozen
