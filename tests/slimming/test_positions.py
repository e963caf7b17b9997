"""Reads and writes at constant positions of channels: the smaller function equals the masked one, or says why not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import slimming
from tests.cases import few, normal
from tests.slimming import checks

X = normal(4, 6, seed=1)
ORDER = np.array([3, 1, 2, 0, 7, 5, 4, 6])


def draw(**shapes: tuple[int, ...]) -> Any:
    return checks.random_params({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()})


P = draw(a=(6, 8), b=(8, 5), c=(6, 3))


def hidden(p: Any, x: Any, name: str = "a") -> Any:
    return jnp.tanh(x @ p[name])


def partial_convolution(p: Any, x: Any) -> Any:
    """FasterNet: only the first channels are convolved, in each layer of a scan."""

    def layer(x: Any, own: Any) -> tuple[Any, None]:
        mixed = x.at[:, :3].set(jnp.tanh(x[:, :3] @ own["conv"]))
        return x + jax.nn.relu(mixed @ own["up"]) @ own["down"], None

    names = ("conv", "up", "down")
    return lax.scan(layer, x @ p["a"], {name: p[name] for name in names})[0] @ p["b"]


def temporal_shift(p: Any, x: Any) -> Any:
    """A quarter of the channels moves one step ahead in time, a quarter one step back."""
    y = hidden(p, x)
    shifted = jnp.zeros_like(y).at[:-1, :2].set(y[1:, :2]).at[1:, 2:4].set(y[:-1, 2:4]).at[:, 4:].set(y[:, 4:])
    return shifted @ p["b"]


def read_before_and_after(p: Any, x: Any) -> Any:
    y = hidden(p, x)
    z = y.at[:, 1:4].set(y[:, 1:4] * 2).at[:, 3:6].add(hidden(p, x, "c"))
    return (y + z) @ p["b"]


def list_of_positions(p: Any, x: Any) -> Any:
    return hidden(p, x).at[:, np.array([6, 1, 4])].add(hidden(p, x, "c")) @ p["b"]


def rows_that_the_data_choose(p: Any, x: Any) -> Any:
    return hidden(p, x).at[jnp.argmax(x[:, 0]), 5:].set(hidden(p, x, "c")[0]) @ p["b"]


def in_half_precision(p: Any, x: Any) -> Any:
    y, z = (hidden(p, x, name).astype(jnp.bfloat16) for name in "ac")
    return lax.dynamic_update_slice(y, z, (0, 5)).astype(jnp.float32) @ p["b"]


def over_ones(p: Any, x: Any) -> Any:
    return jnp.ones((len(x), 8)).at[:, ORDER].set(hidden(p, x)) @ p["b"]


def in_another_order(p: Any, x: Any) -> Any:
    y = hidden(p, x)
    return (y[:, ORDER] + jnp.take(y, jnp.arange(8).reshape(2, 4).T.reshape(-1), axis=1)) @ p["b"]


def shuffled_by_reshapes(p: Any, x: Any) -> Any:
    y = jnp.concatenate([hidden(p, x), hidden(p, x, "c")], 1)
    return y.reshape(-1, 3, 4).swapaxes(1, 2).reshape(-1, 12)[:, :5] @ p["b"]


def shuffled_and_read_between(p: Any, x: Any) -> Any:
    z = hidden(p, x).reshape(-1, 2, 4).swapaxes(1, 2)
    return z.reshape(-1, 8) @ p["b"] + z.sum((1, 2))[:, None]


def shuffled_in_layers(p: Any, x: Any) -> Any:
    def layer(y: Any, q: Any) -> Any:
        z = jnp.tanh(y @ q["up"])
        return y + z.reshape(-1, 2, 3).swapaxes(1, 2).reshape(z.shape) @ q["down"], None

    return lax.scan(layer, x, {k: p[k] for k in ("up", "down")})[0]


def twice_by_a_grid(p: Any, x: Any) -> Any:
    return hidden(p, x)[:, np.stack([ORDER, ORDER])].sum(1) @ p["b"]


LAYERS = draw(a=(6, 8), b=(8, 5), conv=(2, 3, 3), up=(2, 8, 6), down=(2, 6, 8))
SHUFFLED = draw(a=(6, 8), c=(6, 4), b=(5, 5))
SLICED = draw(a=(6, 8), b=(3, 5))
PROGRAMS: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "partial convolution": (partial_convolution, LAYERS, {"conv[1]": 3, "conv[2]": 6, "up[2]": 12}),
    "temporal shift": (temporal_shift, P, {"a[1]": 8}),
    "read before and after": (read_before_and_after, P, {"c[1]": 3}),
    "list of positions": (list_of_positions, P, {"a[1] #0": 5, "a[1] #1": 3}),
    "rows that the data choose": (rows_that_the_data_choose, P, {"a[1] #0": 5, "a[1] #1": 3}),
    "in half precision": (in_half_precision, P, {"a[1] #0": 5, "a[1] #1": 3, "c[1]": 3}),
    "over ones": (over_ones, P, {"a[1]": 8}),
    "in another order": (in_another_order, P, {}),
    # Of [a0 .. a7, c0 .. c3] the first five are then a0, a4, c0, a1, a5.
    "shuffled by reshapes": (shuffled_by_reshapes, SHUFFLED, {"a[1] #0": 4, "a[1] #1": 4, "c[1] #0": 1, "c[1] #1": 3}),
    "shuffled and read between": (shuffled_and_read_between, P, {"a[1] block of 4": 2, "a[1] every 4": 4}),
    "shuffled in layers": (shuffled_in_layers, draw(up=(2, 6, 6), down=(2, 6, 6)), {"up[2]": 6}),
    "twice by a grid": (twice_by_a_grid, P, {"a[1]": 8}),
    "a position": (lambda p, x: hidden(p, x).at[:, -1].add(x[:, 0]) @ p["b"], P, {"a[1]": 8}),
    "a slice": (lambda p, x: lax.dynamic_slice_in_dim(hidden(p, x), 3, 3, 1) @ p["b"], SLICED, {"a[1] #1": 3}),
    "mapped": (lambda p, x: jax.vmap(lambda y: y[ORDER].at[2:5].multiply(3))(hidden(p, x)) @ p["b"], P, {}),
}


@pytest.mark.parametrize(
    "name", few(PROGRAMS, "partial convolution", "temporal shift", "in another order", "shuffled by reshapes")
)
def test_units_at_constant_positions_go(name: str) -> None:
    fn, params, counts = PROGRAMS[name]
    groups, choice, small = checks.check_agrees(fn, params, (X,))
    assert {group: groups[group].count for group in counts} == counts
    assert not any(f.name in ("a", "b") and f.axis == int(f.name == "a") for f in groups.frozen)
    slope = lambda f: jax.jit(jax.grad(lambda p: jnp.sum(f(p, normal(7, 6)) ** 2)))
    whole, got = slope(fn)(checks.masked(params, choice)), slope(small.fn)(small.params)
    assert checks.difference(small.shrink(whole), got) < 1e-5


def test_an_order_that_differs_in_each_layer_is_tied() -> None:
    """New positions are numbers in the program of all layers, so that each layer loses the same units."""
    params = draw(a=(2, 6, 8), b=(2, 8, 6))
    fn = lambda p, x: lax.scan(lambda x, q: (x + hidden(q, x)[:, ORDER] @ q["b"], None), x, p)[0]
    groups, _, _ = checks.check_agrees(fn, params, (X,))
    assert (groups["a[2]"].count, groups["a[2]"].layers) == (8, 1)
    # A slice is moved to the same place in each layer.
    params = draw(a=(2, 6, 8), b=(2, 3, 6))
    fn = lambda p, x: lax.scan(lambda x, q: (x + hidden(q, x)[:, 3:6] @ q["b"], None), x, p)[0]
    for seed in range(3):
        groups, _, _ = checks.check_agrees(fn, params, (X,), seed)


def step(y: Any, i: Any) -> Any:
    return lax.dynamic_update_slice(y, jnp.zeros((4, 2)), (0, 2 * i))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y, x: lax.fori_loop(0, 4, lambda i, y: step(y, i), y), "a write whose start the function computes"),
        (lambda y, x: y[:, jnp.argsort(x.sum(1))], "a gather at indices that the function computes"),
        (lambda y, x: lax.scan(lambda y, i: (y.at[:, i].set(1.0), None), y, ORDER)[0], "a write at indices that the"),
        (lambda y, x: y.at[:, 5:].set(y[:, :3], mode="drop").at[:, np.array([9])].set(0.0), "a write at indices that"),
    ],
)
def test_positions_that_the_function_computes_keep_all_units(change: Any, reason: str) -> None:
    params = draw(a=(6, 8), b=(8, 5))
    fn = lambda p, x: (y := change(hidden(p, x), x)) @ p["b"][: y.shape[1]]
    frozen = {(f.name, f.axis): f.reason for f in slimming.find_groups(fn, params, X).frozen}
    assert frozen["a", 1].startswith(reason)


def test_updates_that_change_more_than_their_own_position_are_inexact() -> None:
    params = draw(a=(6, 8), b=(5, 5))
    into = lambda p, x, method: getattr(jnp.ones((4, 5)).at[:, jnp.arange(8) % x[0, 0].astype(int)], method)(
        hidden(p, x)
    )
    for method, exact in (("add", True), ("set", False)):
        fn = lambda p, x, method=method: into(p, x, method) @ p["b"]
        assert slimming.find_groups(fn, params, X)["a[1]"].exact == exact


@pytest.mark.parametrize(
    ("change", "exact"),
    [(jnp.tanh, True), (jnp.exp, False), (lambda y: y[:, ::-1].astype(jnp.bfloat16), True)],
)
def test_a_cumulative_sum_over_units(change: Any, exact: bool) -> None:
    fn = lambda p, x: jnp.cumsum(change(x @ p["a"]), 1).astype(jnp.float32) @ p["b"]
    params = draw(a=(6, 8), b=(8, 5))
    assert slimming.find_groups(fn, params, X)["a[1]"].exact == exact
    if exact:
        _ = checks.check_agrees(fn, params, (X,))


REDUCED: dict[str, tuple[Any, str | None]] = {
    "cummax": (lambda y: lax.cummax(y, 1), "cummax along it, where a masked unit counts as zero"),
    "cumprod": (lambda y: jnp.cumprod(y, 1), "cumprod along it, where a masked unit counts as zero"),
    "max": (lambda y: y - y.max(1, keepdims=True), "reduce_max over it, where a masked unit counts as zero"),
    "prod": (lambda y: y * y.prod(1, keepdims=True), "reduce_prod over it, where a masked unit counts as zero"),
    "largest absolute value": (lambda y: y / jnp.abs(y).max(1, keepdims=True), None),
    "any": (lambda y: jnp.where((y > 1).any(1, keepdims=True), y, 2 * y), None),
}


@pytest.mark.parametrize("name", few(REDUCED, "max", "cumprod", "largest absolute value"))
def test_reductions_over_units_are_offered_as_built(name: str) -> None:
    change, inexact = REDUCED[name]
    fn, params = lambda p, x: change(x @ p["a"]) @ p["b"], draw(a=(6, 8), b=(8, 5))
    groups = slimming.find_groups(fn, params, X)
    assert groups["a[1]"].inexact == inexact
    choice = checks.random_choice(groups)
    small = slimming.slim(fn, params, choice, X, as_built=True)
    assert small.params["a"].shape == (6, 4)
    assert checks.difference(fn(small.params, X), small.fn(small.params, X)) < 1e-6
    if inexact is None:
        assert checks.difference(fn(checks.masked(params, choice), X), small.fn(small.params, X)) < 1e-6


@jax.custom_vjp
def ordered(y: Any, index: Any) -> Any:
    return jnp.sin(y[:, index])


_ = ordered.defvjp(
    lambda y, index: (ordered(y, index), (y, index)),
    lambda saved, g: (jnp.zeros_like(saved[0]).at[:, saved[1]].add(g * jnp.cos(saved[0][:, saved[1]])), None),
)


@jax.custom_jvp
def widened(y: Any) -> Any:
    return jnp.concatenate([y, jnp.ones_like(y)], 1)


widened.defjvps(lambda tangent, out, y: jnp.concatenate([tangent, jnp.zeros_like(tangent)], 1))


@pytest.mark.parametrize(
    ("fn", "params"),
    [
        (lambda p, x: ordered(hidden(p, x), jnp.asarray(ORDER)) @ p["b"], draw(a=(6, 8), b=(8, 5))),
        (lambda p, x: widened(hidden(p, x)) @ p["b"], draw(a=(6, 4), b=(8, 5))),
    ],
)
def test_custom_derivatives_know_constants_and_units_of_their_own(fn: Any, params: Any) -> None:
    _, choice, small = checks.check_agrees(fn, params, (X,))
    slope = lambda f: jax.jit(jax.grad(lambda p: jnp.sum(f(p, X) ** 2)))
    whole, got = slope(fn)(checks.masked(params, choice)), slope(small.fn)(small.params)
    assert checks.difference(small.shrink(whole), got) < 1e-5
