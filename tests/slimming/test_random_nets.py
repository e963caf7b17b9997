"""Nets drawn at random from pieces: for exact groups the masked and the smaller function agree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.slimming import checks

Piece = Callable[["Weights", jax.Array], jax.Array]


class Weights:
    """Hands out parameters by name; the first run, over shapes, collects them."""

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params, self.shapes, self.count = params, {}, 0

    def __call__(self, *shape: int, kind: str = "w") -> jax.Array:
        name, self.count = f"{kind}{self.count}", self.count + 1
        self.shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jnp.ones(shape) if self.params is None else self.params[name]


def dense(width: int, act: str) -> Piece:
    act_fn = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu}[act]
    return lambda w, x: act_fn(x @ w(x.shape[-1], width) + w(width))


def conv(width: int, groups: int) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        g = groups if x.shape[-1] % groups == 0 and width % groups == 0 else 1
        kernel = w(3, x.shape[-1] // g, width)
        return jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=g
            )
        )

    return apply


def batch_norm() -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        y = (x - w(c)) * jax.lax.rsqrt(w(c, kind="var") + 1e-3)
        return y * w(c, kind="scale") + w(c)

    return apply


def residual(inner: Piece) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        y = inner(w, x)
        return x + y @ w(y.shape[-1], x.shape[-1])

    return apply


def join(inner: Piece) -> Piece:
    return lambda w, x: jnp.concatenate([x, inner(w, x)], -1)


def attention(kv: int, queries: int, dim: int) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        b, t, c = x.shape
        q = (x @ w(c, kv * queries * dim)).reshape(b, t, kv, queries, dim)
        k, v = ((x @ w(c, kv * dim)).reshape(b, t, kv, dim) for _ in range(2))
        weights = jax.nn.softmax(jnp.einsum("btkrd,bskd->bkrts", q, k) / np.sqrt(dim))
        out = jnp.einsum("bkrts,bskd->btkrd", weights, v).reshape(b, t, -1)
        return x + out @ w(out.shape[-1], c)

    return apply


def fused_attention(heads: int, dim: int) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        b, t, c = x.shape
        q, k, v = (part.reshape(b, t, heads, dim) for part in jnp.split(x @ w(c, 3 * heads * dim), 3, -1))
        out = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), v)
        return x + out.reshape(b, t, -1) @ w(heads * dim, c)

    return apply


def flatten_and_back(width: int) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        b, t, c = x.shape
        y = jax.nn.relu(x.reshape(b, t * c) @ w(t * c, t * width))
        return y.reshape(b, t, width)

    return apply


def scanned(layers: int, width: int) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        stack = (w(layers, c, width), w(layers, width), w(layers, width, c))
        step = lambda x, p: (x + jax.nn.silu(x @ p[0] + p[1]) @ p[2], None)
        return jax.lax.scan(step, x, stack)[0]

    return apply


def shuffle(groups: int) -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        b, t, c = x.shape
        g = groups if c % groups == 0 else 1
        return x.reshape(b, t, g, c // g).swapaxes(2, 3).reshape(b, t, c)

    return apply


def halves() -> Piece:
    def apply(w: Weights, x: jax.Array) -> jax.Array:
        c = x.shape[-1] // 2
        return jax.nn.sigmoid(x[..., :c]) * x[..., c : 2 * c]

    return apply


widths = st.sampled_from([4, 6, 8, 12])
simple = st.one_of(
    st.builds(dense, widths, st.sampled_from(["relu", "gelu", "sigmoid", "silu"])),
    st.builds(conv, widths, st.sampled_from([1, 1, 2, 4])),
    st.builds(batch_norm),
    st.builds(attention, st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.sampled_from([2, 4])),
    st.builds(fused_attention, st.sampled_from([2, 3]), st.sampled_from([2, 4])),
    st.builds(flatten_and_back, widths),
    st.builds(scanned, st.sampled_from([2, 3]), widths),
    st.builds(shuffle, st.sampled_from([2, 3])),
    st.builds(halves),
)
pieces = st.lists(st.one_of(simple, st.builds(residual, simple), st.builds(join, simple)), min_size=1, max_size=5)


def check_net(net: list[Piece], seed: int, share: float) -> None:
    x = jnp.asarray(np.random.default_rng(7).normal(size=(2, 3, 5)), jnp.float32)

    def run(w: Weights, x: jax.Array) -> jax.Array:
        x = x @ w(5, 8)
        for piece in net:
            x = piece(w, x)
        return x @ w(x.shape[-1], 3)

    collect = Weights()
    _ = jax.eval_shape(lambda x: run(collect, x), x)
    params = checks.random_params(collect.shapes, seed)
    fn = lambda p, x: run(Weights(p), x)
    groups, choice, small = checks.check_agrees(fn, params, (x,), seed, share, tokens=True)
    for group in groups:
        assert choice.kept(group.name).sum() >= group.layers
    # What was removed can be put back, as zeros.
    back = small.expand(small.params)
    assert checks.difference(checks.masked(params, choice), back) == 0


def test_tokens_that_a_dense_layer_makes() -> None:
    """Attention chooses among them, and the next dense layer contracts tokens and channels as one axis."""
    check_net([flatten_and_back(4), fused_attention(2, 2), flatten_and_back(4)], 0, 0.5)


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(net=pieces, seed=st.integers(0, 99), share=st.sampled_from([0.25, 0.5, 0.8]))
def test_masked_and_smaller_agree(net: list[Piece], seed: int, share: float) -> None:
    check_net(net, seed, share)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(net=pieces, seed=st.integers(0, 99), share=st.sampled_from([0.25, 0.5, 0.8]))
def test_masked_and_smaller_agree_in_many_nets(net: list[Piece], seed: int, share: float) -> None:
    check_net(net, seed, share)
