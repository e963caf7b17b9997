"""Slimming as built: the smaller function is the model that is built with the smaller hyperparameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slim, slimming
from tests.cases import normal
from tests.slimming import checks

WIDTH, HEADS, HIDDEN, T = 24, 3, 40, 5
SMALLER = 18, 2, 30  # a quarter of all units but one head of three
X = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, 6)), jnp.float32)


def slimmed(fn: Callable[..., Any], params: Any, x: Any = X, **options: Any) -> slimming.Slimmed:
    """Removes a quarter of the residual width and of the hidden units, and a head of three."""
    groups = slimming.find_groups(fn, params, x)
    removed = {group.name: range(0, group.count, 4) for group in groups if group.count in (WIDTH, HIDDEN)}
    removed |= {group.name: [1] for group in groups if group.count == HEADS}
    assert len(removed) == 3, str(groups)
    return slim(fn, params, slimming.Choice.remove(groups, removed), x, as_built=True, **options)


def check_same(small: slimming.Slimmed, built: Callable[[Any, Any], Any], x: Any = X) -> None:
    """Values and gradients agree with the model that was built smaller, on another batch size too."""
    inputs = jnp.concatenate([x, x[:1]])

    def both(params: Any) -> Any:
        square = lambda fn: jax.value_and_grad(lambda p: jnp.sum(fn(p, inputs) ** 2))(params)
        return square(built), square(small.fn)

    (value, expected), (own, got) = jax.device_get(jax.jit(both)(small.params))
    assert abs(value - own) < 2e-6 * abs(value)
    # The bias of the keys has a gradient of zero but for rounding: compare with the largest gradient of all.
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) < 1e-5 * max(np.abs(a).max() for a in jax.tree.leaves(expected))


def gap(small: slimming.Slimmed, built: Callable[..., Any], *inputs: Any) -> float:
    """The difference of the values of the smaller function and the model that was built smaller."""
    return checks.difference(*jax.jit(lambda p: (built(p, *inputs), small.fn(p, *inputs)))(small.params))


def norm(x: Any, p: Any) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def plain(p: Any, x: Any) -> jax.Array:
    """A transformer block with a norm in two passes, whose sizes all come from its parameters."""
    x = (x @ p["in"]) * p["in"].shape[1] ** 0.5
    h = norm(x, p["ln1"])
    q, k, v = (jnp.einsum("btc,chd->bthd", h, p[name]) for name in "qkv")
    logits = jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    x = x + jnp.einsum("bhts,bshd,hdc->btc", jax.nn.softmax(logits), v, p["o"])
    x = x + jax.nn.gelu(norm(x, p["ln2"]) @ p["up"]) @ p["down"]
    return norm(x, p["ln3"]).mean(1) @ p["out"]


def plain_params() -> Any:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)
    norms = {f"ln{k}": {"scale": 1 + draw(WIDTH), "bias": draw(WIDTH)} for k in (1, 2, 3)}
    heads = {name: draw(WIDTH, HEADS, 8) for name in "qkv"} | {"o": draw(HEADS, 8, WIDTH)}
    dense = {"in": 1 + draw(6, WIDTH), "up": draw(WIDTH, HIDDEN), "down": draw(HIDDEN, WIDTH), "out": draw(WIDTH, 4)}
    return norms | heads | dense


def test_a_function_of_its_parameters() -> None:
    small = slimmed(plain, plain_params())
    assert small.params["q"].shape == (18, 2, 8)
    check_same(small, plain)
    # The dimensions of the heads change the scale of attention.
    params = plain_params()
    groups = slimming.find_groups(plain, params, X)
    removed = {group.name: [0, 5, 6] for group in groups if group.count == 8}
    small = slim(plain, params, slimming.Choice.remove(groups, removed), X, as_built=True)
    assert small.params["q"].shape == small.params["v"].shape == (WIDTH, HEADS, 5)
    assert gap(small, plain, X) < 2e-6


def test_a_sparsity_shrinks_inexact_groups_too_as_built() -> None:
    params = plain_params()
    small = slim(plain, params, 0.5, X, as_built=True)
    assert small.params["in"].shape == (6, 12)
    assert small.params["up"].shape == (12, 20)
    assert gap(small, plain, X) < 2e-6


class Linen(nn.Module):
    width: int = WIDTH
    heads: int = HEADS
    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(self.width, name="in")(x) * jnp.sqrt(self.width)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=8 * self.heads, out_features=self.width, name="attention"
        )
        x = x + attention(nn.LayerNorm(name="ln1")(x))
        h = nn.GroupNorm(num_groups=2, name="ln2")(x)
        return nn.Dense(4)(nn.RMSNorm()(x + nn.Dense(self.width)(nn.gelu(nn.Dense(self.hidden)(h)))).mean(1))


def test_linen() -> None:
    params = checks.random_params(jax.eval_shape(Linen().init, jax.random.key(0), X))
    groups = slimming.find_groups(Linen().apply, params, X)
    # The width is two groups of channels; the first quarter of both goes.
    removed = {group.name: range(0, group.count, 4) for group in groups if group.count in (WIDTH // 2, HIDDEN)}
    removed |= {group.name: [1] for group in groups if group.count == HEADS}
    small = slim(Linen().apply, params, slimming.Choice.remove(groups, removed), X, as_built=True)
    check_same(small, Linen(*SMALLER).apply)


@pytest.mark.slow
def test_nnx() -> None:
    class Net(nnx.Module):
        def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Linear(6, width, rngs=rngs)
            self.ln1, self.ln2 = (nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs) for _ in range(2))
            self.attention = nnx.MultiHeadAttention(heads, width, 8 * heads, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)
            self.out = nnx.Linear(width, 4, rngs=rngs)

        def __call__(self, x: Any) -> jax.Array:
            x = self.embed(x)
            x = x + self.attention(self.ln1(x))
            return self.out(x + self.down(nnx.gelu(self.up(self.ln2(x)))))

    split = lambda a, b, c: nnx.split(nnx.eval_shape(lambda: Net(a, b, c, nnx.Rngs(0))))
    call = lambda graph: lambda state, x: nnx.merge(graph, state)(x)
    graph, shapes = split(WIDTH, HEADS, HIDDEN)
    small = slimmed(call(graph), checks.random_params(shapes))
    check_same(small, call(split(*SMALLER)[0]))


def test_equinox() -> None:
    class Net(eqx.Module):
        embed: Any
        norms: Any
        attention: Any
        mlp: Any
        out: Any

        def __init__(self, width: int, heads: int, hidden: int) -> None:
            keys = iter(jax.random.split(jax.random.key(0), 6))
            self.embed = eqx.nn.Embedding(11, width, key=next(keys))
            self.norms = [eqx.nn.LayerNorm(width), eqx.nn.RMSNorm(width)]
            sizes = dict.fromkeys(("qk_size", "vo_size"), 8)
            self.attention = eqx.nn.MultiheadAttention(heads, width, **sizes, key=next(keys))
            self.mlp = [
                eqx.nn.Linear(width, hidden, key=next(keys)),
                eqx.nn.Linear(hidden, width, key=next(keys)),
            ]
            self.out = eqx.nn.Linear(width, 4, key=next(keys))

        def __call__(self, tokens: Any) -> Any:
            x = jax.vmap(self.embed)(tokens)
            h = jax.vmap(self.norms[0])(x)
            x = x + self.attention(h, h, h)
            h = jax.vmap(self.norms[1])(x)
            return jax.vmap(self.out)(x + jax.vmap(self.mlp[1])(jax.nn.relu(jax.vmap(self.mlp[0])(h))))

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, T)))
    arrays = lambda *sizes: eqx.partition(eqx.filter_eval_shape(Net, *sizes), lambda x: hasattr(x, "shape"))
    call = lambda static: lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    shapes, static = arrays(WIDTH, HEADS, HIDDEN)
    small = slimmed(call(static), checks.random_params(shapes), tokens)
    expected, built = arrays(*SMALLER)
    structure = jax.tree.structure(expected)
    assert jax.tree.map(np.shape, jax.tree.leaves(expected)) == jax.tree.map(np.shape, jax.tree.leaves(small.params))
    fn = lambda params, x: call(built)(jax.tree.unflatten(structure, jax.tree.leaves(params)), x)
    check_same(small, fn, tokens)


@pytest.mark.slow
def test_haiku() -> None:
    hk = pytest.importorskip("haiku")

    def net(width: int, heads: int, hidden: int) -> Any:
        def run(x: Any) -> Any:
            norm = lambda x: hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)  # noqa: PLW0108  # two norms
            x = hk.Linear(width)(x)
            attention = hk.MultiHeadAttention(heads, 8, w_init=hk.initializers.Constant(0.1), model_size=width)
            h = norm(x)
            x = x + attention(h, h, h)
            return hk.Linear(4)(x + hk.Linear(width)(jax.nn.relu(hk.Linear(hidden)(norm(x)))))

        return hk.without_apply_rng(hk.transform(run))

    whole = net(WIDTH, HEADS, HIDDEN)
    params = checks.random_params(jax.eval_shape(whole.init, jax.random.key(0), X))
    check_same(slimmed(whole.apply, params), net(*SMALLER).apply)


# Numbers that count, and numbers that only equal a count.
W = jnp.asarray(np.random.default_rng(3).normal(size=(6, 16)), jnp.float32)
TWO = {"a": W, "b": W.T[:, :4]}
GONE = {"a[1]": [0, 3, 7, 8]}


@pytest.mark.parametrize(
    "between",
    [
        lambda h: h - jnp.var(h, -1, keepdims=True, ddof=1),
        lambda h: h / jnp.std(h, (0, 1, 2), keepdims=True),
        lambda h: h + jnp.sum(h, -1, keepdims=True) * (1 / h.shape[-1]),
        lambda h: h + jax.lax.scan(lambda c, _: (c + h.mean(-1, keepdims=True), None), 0 * h[..., :1], None, 3)[0],
        lambda h: h * jax.lax.cond(h[0, 0, 0] > 0, lambda h: h.mean(-1, keepdims=True), lambda h: h[..., :1] * 0, h),
        jax.checkpoint(lambda h: h - h.mean(-1, keepdims=True)),
    ],
)
def test_counts_follow_the_width(between: Callable[[Any], Any]) -> None:
    fn = lambda p, x: between(x @ p["a"]) @ p["b"]
    small = slim(fn, TWO, GONE, X, as_built=True)
    assert small.params["a"].shape == (6, 12)
    assert gap(small, fn, X) < 2e-6
    assert gap(slim(fn, TWO, GONE, X), fn, X) > 1e-3  # masked, it keeps the counts


def test_a_number_that_may_be_a_count_is_an_error_until_it_is_told() -> None:
    fn = lambda p, x: jnp.tanh(x @ p["a"] * 0.25) @ p["b"]  # the root of 16, or just a quarter
    with pytest.raises(ValueError, match=r"0\.25 at .*test_as_built\.py.*: an axis shrinks from 16 to 12"):
        _ = slim(fn, TWO, GONE, X, as_built=True)
    small = slim(fn, TWO, GONE, X, as_built={0.25: 0.25})
    assert gap(small, fn, X) < 2e-6
    small = slim(fn, TWO, GONE, X, as_built={0.25: 12**-0.5})
    rooted = lambda p, x: jnp.tanh(x @ p["a"] * 12**-0.5) @ p["b"]
    assert gap(small, rooted, X) < 2e-6
    # The manifest keeps what was told, in JSON too.
    again = slim(fn, TWO, slimming.Manifest.from_json(small.manifest.to_json()), X)
    assert again.manifest.as_built == {0.25: 12**-0.5}
    assert gap(again, rooted, X) < 2e-6
    # A number that equals no count of an axis that shrinks is no question.
    assert slim(lambda p, x: jnp.tanh(x @ p["a"] * 0.3) @ p["b"] * 0.5, TWO, GONE, X, as_built=True).params


@jax.custom_jvp
def centred(h: Any) -> jax.Array:
    return h - h.mean(-1, keepdims=True)


_ = centred.defjvp(lambda primals, tangents: (centred(*primals), centred(*tangents)))


@pytest.mark.parametrize(
    ("between", "problem"),
    [
        (centred, "a custom derivative of a function with such numbers"),
        (lambda h: h * jnp.arange(16.0), "positions are numbered along an axis of 16 that shrinks"),
        (lambda h: h * np.linspace(0, 1, 16, dtype=np.float32), r"a constant of shape \(16,\): axis 0 shrinks"),
    ],
)
def test_what_the_function_does_not_tell_is_an_error(between: Callable[[Any], Any], problem: str) -> None:
    fn = lambda p, x: between(x @ p["a"]) @ p["b"]
    with pytest.raises(ValueError, match=problem):
        _ = slim(fn, TWO, GONE, X, as_built=True)
    assert slim(fn, TWO, GONE, X).params["a"].shape == (6, 12)


def test_random_bits_are_those_of_the_smaller_model() -> None:
    def fn(p: Any, x: Any, key: Any) -> jax.Array:
        h = x @ p["a"]
        return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0) @ p["b"]

    small = slim(fn, TWO, GONE, X, jax.random.key(0), as_built=True)
    key = jax.random.key(1)
    assert gap(small, fn, X, key) < 2e-6


@pytest.mark.parametrize(
    ("move", "same", "other"),
    [
        (lambda x: x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape), [0, 4], [0, 1]),  # a shuffle
        (lambda x: jnp.roll(x, 3, -1), [0, 1], [3, 7]),
        (lambda x: jnp.roll(x, x.shape[-1] // 2, -1), [1, 6], [6, 7]),
    ],
)
def test_channels_that_would_be_moved_elsewhere_are_refused(
    move: Callable[..., Any], same: list[int], other: list[int]
) -> None:
    fn = lambda p, x: jnp.tanh(move(jnp.tanh(x @ p["a"]))) @ p["b"]
    params = {"a": X[0, :4, :6].T @ normal(4, 8), "b": normal(8, 3, seed=1)}
    x = X[0]
    small = slim(fn, params, {"a[1]": same}, x, as_built=True)
    np.testing.assert_allclose(small.fn(small.params, x), fn(small.params, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="shuffles or rolls its channels"):
        _ = slim(fn, params, {"a[1]": other}, x, as_built=True)
