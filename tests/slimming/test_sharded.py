"""Functions that run on a mesh: shard_map, pmap and the collectives inside, against the masked function."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import slim, slimming
from tests.slimming import checks

X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)


def mesh_of(**sizes: int) -> Mesh:
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def draw(**shapes: tuple[int, ...]) -> Any:
    return checks.random_params({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})


def on(mesh: Mesh, into: Any, out: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return functools.partial(jax.shard_map, mesh=mesh, in_specs=into, out_specs=out)


def columns_then_rows(mesh: Mesh, axes: Any = "m") -> Callable[..., Any]:
    """A two-layer network whose hidden units a mesh axis cuts."""

    @on(mesh, (P(None, axes), P(axes), P()), P())
    def net(a: Any, b: Any, x: Any) -> Any:
        return lax.psum(jax.nn.relu(x @ a) @ b, axes)

    return net


def counts(groups: slimming.Groups) -> dict[str, tuple[int, int]]:
    """For each group the number of units and of layers or shards that lose equally many."""
    return {group.name: (group.count, group.layers) for group in groups}


@pytest.mark.parametrize("shards", [1, 2])
def test_hidden_units_on_several_devices(shards: int, devices: list[Any]) -> None:
    mesh = mesh_of(m=shards)
    net, params = columns_then_rows(mesh), draw(a=(6, 8), b=(8, 6), o=(6, 5))
    fn = lambda p, x: net(p["a"], p["b"], x) @ p["o"]
    groups = slimming.find_groups(fn, params, X)
    assert counts(groups) == {"a[1]": (8, shards), "b[1]": (6, 1)}
    assert all(group.exact for group in groups)
    # Each shard loses two units of its own: of eight units, the first of two shards has 0 to 3.
    choice = slimming.Choice.remove(groups, {"a[1]": [0, 1, 5, 6], "b[1]": [2]})
    small = slim(fn, params, choice, X)
    square = lambda f: jax.jit(jax.value_and_grad(lambda p: jnp.sum(f(p, X) ** 2)))
    placed = {name: jax.device_put(x, NamedSharding(mesh, P())) for name, x in small.params.items()}
    (value, slope), (own, got) = square(fn)(checks.masked(params, choice)), square(small.fn)(placed)
    assert abs(value - own) < 1e-6 * abs(value)
    assert checks.difference(small.shrink(slope), got) < 1e-5
    if shards == 2:
        with pytest.raises(ValueError, match="layers would keep from 2 to 4 units"):
            _ = slimming.Choice.remove(groups, {"a[1]": [0, 1]})


def test_heads_of_layers_on_two_axes_of_a_mesh(devices: list[Any]) -> None:
    params = draw(q=(3, 6, 4, 2), k=(3, 6, 4, 2), v=(3, 6, 4, 2), o=(3, 4, 2, 6), h=(6, 5))

    @on(mesh_of(d=2, m=2), (*[P(None, None, "m")] * 3, P(None, "m"), P("d")), P("d"))
    def layers(q: Any, k: Any, v: Any, o: Any, x: Any) -> Any:
        def layer(x: Any, weights: Any) -> Any:
            *into, out = weights
            q, k, v = (jnp.einsum("btc,chd->bthd", x, w) for w in into)
            seen = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), -1)
            return x + lax.psum(jnp.einsum("bhts,bshd,hdc->btc", seen, v, out), "m"), None

        return lax.scan(layer, x, (q, k, v, o))[0]

    fn = lambda p, x: layers(*(p[name] for name in "qkvo"), x) @ p["h"]
    groups, _, _ = checks.check_agrees(fn, params, (jnp.stack([X, 2 * X]),))
    assert {(12, 6), (6, 3)} <= set(counts(groups).values())  # heads of each layer and shard; dimensions of each layer


def test_collectives(devices: list[Any]) -> None:
    params = draw(a=(6, 8), b=(8, 8), c=(8, 8), d=(8, 8), e=(8, 8), h=(8, 5))

    @on(mesh_of(m=2), (P(None, "m"), *[P("m")] * 3, P(None, "m"), P()), P())
    def net(a: Any, b: Any, c: Any, d: Any, e: Any, x: Any) -> Any:
        x = lax.psum_scatter(jax.nn.relu(x @ a) @ b, "m", scatter_dimension=1, tiled=True)
        x = lax.all_gather(jnp.tanh(x) @ c, "m", axis=0, tiled=True)  # rows side by side
        x = lax.all_to_all(x, "m", 1, 0, tiled=True)  # from columns of all rows to rows of half the columns
        x = lax.ppermute(jnp.tanh(x) @ d, "m", [(0, 1), (1, 0)])
        whole = lax.all_gather(e, "m", axis=1, tiled=True)
        return lax.psum(jnp.tanh(x) @ whole, "m")

    fn = lambda p, x: net(*(p[name] for name in "abcde"), x) @ p["h"]
    groups, _, _ = checks.check_agrees(fn, params, (X,))
    assert counts(groups) == {"a[1]": (8, 2), "b[1]": (8, 2), "c[1]": (8, 2), "d[1]": (8, 1), "e[1]": (8, 2)}


def test_a_pmap_is_followed(devices: list[Any]) -> None:
    params = draw(a=(6, 8), b=(8, 5))
    mean = lambda p, x: lax.pmean(jax.nn.relu(x @ p["a"]) @ p["b"], "i")
    fn = lambda p, x: jax.pmap(mean, "i", in_axes=(None, 0), devices=devices[:2])(p, x.reshape(2, 2, 6))[0]
    groups = slimming.find_groups(fn, params, X)
    assert counts(groups) == {"a[1]": (8, 1)}
    small = slim(fn, params, {"a[1]": [0, 3]}, X)
    expected = np.maximum(X @ small.params["a"], 0) @ small.params["b"]
    np.testing.assert_allclose(jax.jit(small.fn)(small.params, X), (expected[:2] + expected[2:]) / 2, rtol=1e-5)


def rows(mesh: Mesh) -> Callable[..., Any]:
    """A layer whose inputs a mesh axis cuts."""
    return on(mesh, (P(None, "m"), P("m")), P())(lambda x, b: lax.psum(jnp.tanh(x) @ b, "m"))


def test_a_softmax_over_shards_closes_its_slots(devices: list[Any]) -> None:
    params = draw(a=(6, 8), bias=(8,), b=(8, 5))

    @on(mesh_of(m=2), (P(None, "m"), P("m"), P("m"), P()), P())
    def net(a: Any, bias: Any, b: Any, x: Any) -> Any:
        logits = x @ a + bias
        own = jnp.exp(logits - lax.pmax(lax.stop_gradient(logits.max(-1, keepdims=True)), "m"))
        return lax.psum(own @ b, "m") / lax.psum(own.sum(-1, keepdims=True), "m")

    fn = lambda p, x: net(p["a"], p["bias"], p["b"], x)
    group = slimming.find_groups(fn, params, X)["a[1]"]
    assert (group.count, group.layers, group.exact, group.routed, group.least) == (8, 2, True, True, 1)
    small, gone = slim(fn, params, {"a[1]": [0, 3, 5, 6]}, X), np.array([0, 3, 5, 6])
    closed = params | {"bias": jnp.asarray(params["bias"]).at[gone].set(-jnp.inf)}
    slope = lambda f: jax.jit(jax.value_and_grad(lambda p: jnp.sum(f(p, X) ** 2)))
    (value, whole), (got, own) = slope(fn)(closed), slope(small.fn)(small.params)
    assert abs(value - got) < 1e-6 * abs(value)
    assert checks.difference(small.shrink(whole), own) < 1e-5


def test_several_cuts_of_one_axis(devices: list[Any]) -> None:
    two, four = rows(mesh_of(m=2)), rows(mesh_of(m=4))
    params = draw(a=(6, 8), b=(8, 5), c=(8, 5))

    def found(order: Any, second: Any = two) -> slimming.Groups:
        fn = lambda p, x: two(x @ p["a"], p["b"]) + second(order(x @ p["a"]), p["c"])
        return slimming.find_groups(fn, params, X)

    assert counts(found(lambda y: y, four)) == {"a[1]": (8, 4)}
    assert counts(found(lambda y: y[:, ::-1])) == {"a[1]": (8, 2)}
    # Shifted by one position, 0 to 3 and 1 to 4 are shards: no removal of one unit each keeps both even.
    reasons = {frozen.reason for frozen in found(lambda y: jnp.roll(y, 1, 1)).frozen if frozen.name == "a"}
    assert "mesh axes cut it into shards with different numbers of removable units" in str(reasons)


def test_what_stays_whole_says_why(devices: list[Any]) -> None:
    def fn(p: Any, x: Any) -> Any:
        q, k = ((x @ p[name]).reshape(4, 2, 4) for name in "qk")
        return rows(mesh_of(m=4))(jnp.einsum("ahd,bhd,bhe->ahe", q, k, k).reshape(4, 8), p["o"])

    groups = slimming.find_groups(fn, draw(q=(6, 8), k=(6, 8), o=(8, 5)), X)
    reasons = {frozen.reason for frozen in groups.frozen if frozen.name == "q"}
    assert "a cut of its 2 units into 4 shards; a mesh axis whose size divides 2 cuts none" in reasons


def test_counts_of_all_devices_follow_the_width(devices: list[Any]) -> None:
    @on(mesh_of(m=2), (P(None, "m"), P("m"), P()), P())
    def net(a: Any, b: Any, x: Any) -> Any:
        y = x @ a
        mean = lax.psum(jnp.sum(y**2, -1, keepdims=True), "m") / WIDTH
        return lax.psum(y * lax.rsqrt(mean + 1e-6) @ b, "m")

    WIDTH = 24
    fn = lambda p, x: net(p["a"], p["b"], x)
    params = draw(a=(6, 24), b=(24, 5))
    small = slim(fn, params, {"a[1]": [0, 3, 7, 12, 13, 14]}, X, as_built=True)
    got = jax.jit(small.fn)(small.params, X)
    WIDTH = 18
    np.testing.assert_allclose(got, jax.jit(fn)(small.params, X), rtol=1e-5, atol=1e-6)
