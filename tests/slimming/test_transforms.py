"""The smaller function is an ordinary JAX function; grouped queries; averages of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import slimming
from tests.slimming import checks

X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("f4")
FN = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]


@pytest.fixture(scope="module")
def small() -> slimming.Slimmed:
    params = checks.random_params(
        {"a": jax.ShapeDtypeStruct((3, 6), jnp.float32), "b": jax.ShapeDtypeStruct((6, 2), jnp.float32)}
    )
    return slimming.slim(FN, params, {"a[1]": [1, 4]}, X[0])


def test_scan_remat_and_pmap(small: slimming.Slimmed, devices: list[Any]) -> None:
    expected = np.stack([np.maximum(x @ small.params["a"], 0) @ small.params["b"] for x in X])
    _, scanned = jax.lax.scan(lambda c, x: (c, small.fn(small.params, x)), 0, X)
    np.testing.assert_allclose(scanned, expected, rtol=1e-5, atol=1e-6)
    mapped = jax.pmap(small.fn, in_axes=(None, 0), devices=devices[:4])(small.params, X)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-6)
    loss = lambda p, f: jnp.sum(f(p, X[0]) ** 2)
    plain, again = (jax.grad(loss)(small.params, f) for f in (small.fn, jax.checkpoint(small.fn)))
    assert checks.difference(plain, again) < 1e-6


def test_averages_of_parameters_shrink_with_them(small: slimming.Slimmed) -> None:
    whole = small.expand(small.params)
    average = optax.ema(0.9)
    state: Any
    _, state = average.update(whole, average.init(whole))
    shrunk: Any = small.shrink(state)
    np.testing.assert_allclose(shrunk.ema["a"], 0.1 * small.params["a"], rtol=1e-5)
    assert shrunk.ema["b"].shape == (4, 2)


def test_grouped_queries_go_with_their_keys_or_evenly() -> None:
    kv, queries, dim = 2, 3, 4

    def fn(p: Any, x: Any) -> Any:
        q = (x @ p["q"]).reshape(5, kv, queries, dim)
        k, v = ((x @ p[name]).reshape(5, kv, dim) for name in "kv")
        weights = jax.nn.softmax(jnp.einsum("tgrd,sgd->grts", q, k))
        return jnp.einsum("grts,sgd->tgrd", weights, v).reshape(5, -1) @ p["o"]

    wide = kv * queries * dim
    sizes = {"q": (3, wide), "k": (3, kv * dim), "v": (3, kv * dim), "o": (wide, 2)}
    params = checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in sizes.items()})
    groups = slimming.find_groups(fn, params, X[0])
    held = {frozenset((m.name, m.positions) for m in g.members): g for g in groups}
    heads = held[frozenset({("q", queries * dim), ("k", dim), ("v", dim), ("o", queries * dim)})]
    evenly = held[frozenset({("q", kv * dim), ("o", kv * dim)})]
    assert (heads.count, evenly.count, len(groups)) == (kv, queries, 4)
    removed = {heads.name: [0], evenly.name: [1]}
    small = slimming.slim(fn, params, slimming.Choice.remove(groups, removed), X[0])
    assert jax.tree.map(np.shape, small.params) == {"q": (3, 8), "k": (3, 4), "v": (3, 4), "o": (8, 2)}
    kept = np.arange(wide).reshape(kv, queries, dim)[1:, [0, 2]].ravel()
    np.testing.assert_array_equal(small.params["q"], params["q"][:, kept])
    # At least one head stays, whatever the ratio.
    chosen = slimming.choose(groups, np.ones(groups.size), {heads.name: 1.0}, limits=slimming.Limits(min_units=1))
    assert chosen.kept(heads.name).tolist() == [True, False]
    _ = checks.check_agrees(fn, params, (X[0],))


def test_convolutions_vmapped_over_members() -> None:
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    cnn = lambda p, x: jax.nn.relu(conv(jax.nn.relu(conv(x, p["a"])), p["b"])).mean((1, 2)) @ p["o"]
    shapes = {"a": (4, 3, 3, 3, 8), "b": (4, 3, 3, 8, 6), "o": (4, 6, 5)}
    params = checks.random_params({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("f4")
    groups, _, small = checks.check_agrees(jax.vmap(cnn, (0, None)), params, [x])
    assert [(g.name, g.count) for g in groups] == [("a[4]", 8), ("b[4]", 6)]
    assert jax.tree.map(jnp.shape, small.params) == {"a": (4, 3, 3, 3, 4), "b": (4, 3, 3, 4, 3), "o": (4, 3, 5)}


def test_callbacks_that_look_get_the_smaller_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def fn(p: Any, x: Any) -> jax.Array:
        h = jnp.tanh(x @ p["a"])
        jax.debug.print("{}", h.shape[-1] + 0 * h.sum())
        jax.debug.callback(lambda h: seen.append(h.shape), h)
        return h @ p["b"]

    params = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}
    small = slimming.slim(fn, params, {"a[1]": [1, 4]}, jnp.ones((5, 3)))
    expected = jnp.tanh(jnp.full((5, 4), 3.0)) @ jnp.ones((4, 2))
    assert checks.difference(expected, jax.jit(small.fn)(small.params, jnp.ones((5, 3)))) < 1e-6
    jax.effects_barrier()
    assert seen == [(5, 4)]
    assert capsys.readouterr().out == "6.0\n"
