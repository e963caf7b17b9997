"""Gram matrices of every kind of layer: what they say of a change of the weights is what happens to the outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune.calibration import calibrate
from tests.cases import few, normal

KEY = jax.random.key(0)


def conv(w, x, strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **kwargs):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **kwargs)


IMAGE = (2, 9, 8, 6)
LINEAR = {
    "dense": (lambda w, x: x @ w, (4, 3), (2, 5, 4)),
    "dense transposed": (lambda w, x: x @ w.T, (3, 4), (7, 4)),
    "weight first": (lambda w, x: w @ x, (3, 4), (4, 7)),
    "query heads": (lambda w, x: jnp.einsum("bsd,dhk->bshk", x, w), (4, 2, 3), (2, 5, 4)),
    "output of heads": (lambda w, x: jnp.einsum("bshk,hkd->bsd", x, w), (2, 3, 4), (2, 5, 2, 3)),
    "one matrix each head": (lambda w, x: jnp.einsum("bshk,hkd->bshd", x, w), (2, 3, 4), (2, 5, 2, 3)),
    "reshaped in the function": (lambda w, x: x @ w.reshape(4, 6).T, (2, 2, 6), (7, 6)),
    "reshaped, inputs merged": (lambda w, x: x @ w.reshape(12, 2), (3, 4, 2), (7, 12)),
    "inputs split": (lambda w, x: jnp.einsum("nab,abo->no", x, w.reshape(2, 3, 4)), (6, 4), (7, 2, 3)),
    "folded blocks": (lambda w, x: jnp.einsum("ngi,gio->ngo", x, w.reshape(2, 3, 4)), (6, 4), (7, 2, 3)),
    "masked": (lambda w, x: x @ (w * (np.arange(12).reshape(4, 3) % 2)), (4, 3), (7, 4)),
    "selected": (lambda w, x: x @ jnp.where(np.arange(12).reshape(4, 3) % 2 == 0, w, 0.0), (4, 3), (7, 4)),
    "jit and remat": (jax.checkpoint(jax.jit(lambda w, x: x @ w)), (4, 3), (7, 4)),
    "custom jvp": (jax.custom_jvp(lambda w, x: x @ w), (4, 3), (7, 4)),
    "custom vjp": (jax.custom_vjp(lambda w, x: x @ w), (4, 3), (7, 4)),
    "vmap over data": (lambda w, x: jax.vmap(lambda y: y @ w)(x), (4, 3), (7, 4)),
    "vmap over weights": (jax.vmap(lambda v, y: y @ v), (3, 4, 2), (3, 7, 4)),
    "vmap over weights, data shared": (lambda w, x: jax.vmap(lambda v: x @ v)(w), (3, 4, 2), (7, 4)),
    "split outputs": (lambda w, x: jnp.concatenate([x[0] @ w[:, :2], x[1] @ w[:, 2:]], -1), (4, 4), (2, 7, 4)),
    "split, equal parts": (lambda w, x: [x[i] @ p for i, p in enumerate(jnp.split(w, 3, 1))], (4, 6), (3, 7, 4)),
    "one of a stack": (lambda w, x: [x[i] @ w[i] for i in range(3)], (3, 4, 2), (3, 7, 4)),
    "one of a stack, from the end": (lambda w, x: x @ w[-1], (3, 4, 2), (7, 4)),
    "concatenated with another": (lambda w, x: x @ jnp.concatenate([normal(4, 2, seed=9), w], 1), (4, 3), (7, 4)),
    "beside another along inputs": (lambda w, x: x @ jnp.concatenate([normal(2, 3, seed=9), w], 0), (4, 3), (7, 6)),
    "padded": (lambda w, x: x @ jnp.pad(w, ((1, 1), (0, 2))), (4, 3), (7, 6)),
    "used twice": (lambda w, x: (x @ w, (2 * x + 1) @ w), (4, 3), (7, 4)),
    "spread along a sum": (lambda w, x: jnp.einsum("nab,bo->no", x, w), (4, 3), (7, 2, 4)),
    "scanned over layers": (lambda w, x: lax.scan(lambda c, v: (c, c @ v), x, w)[1], (3, 4, 2), (7, 4)),
    "scanned, last first": (
        lambda w, x: lax.scan(lambda c, v: (c, v[1] @ v[0]), 0, (w, x), reverse=True)[1],
        (3, 4, 2),
        (3, 7, 4),
    ),
    "scanned over time": (lambda w, x: lax.scan(lambda c, y: (c, y @ w), 0, x)[1], (4, 3), (5, 7, 4)),
    "carried through time": (lambda w, x: lax.scan(lambda c, y: (c, y @ c), w, x)[1], (4, 3), (5, 7, 4)),
    "scan in a scan": (
        lambda w, x: lax.scan(lambda c, v: (c, lax.scan(lambda _, y: (0, y @ v), 0, x)[1]), 0, w)[1],
        (3, 4, 2),
        (5, 7, 4),
    ),
    "conv": (conv, (3, 3, 6, 4), IMAGE),
    "conv strided": (lambda w, x: conv(w, x, (2, 3)), (3, 2, 6, 4), IMAGE),
    "conv valid dilated": (lambda w, x: conv(w, x, padding="VALID", rhs_dilation=(2, 3)), (3, 2, 6, 4), IMAGE),
    "conv transposed": (lambda w, x: lax.conv_transpose(x, w, (2, 2), "SAME"), (3, 3, 6, 4), IMAGE),
    "conv grouped": (lambda w, x: conv(w, x, (2, 2), feature_group_count=3), (3, 3, 2, 12), IMAGE),
    "conv depthwise": (lambda w, x: conv(w, x, feature_group_count=6), (3, 3, 1, 6), IMAGE),
    "conv OIHW": (lambda w, x: conv(w, x, numbers=("NHWC", "OIHW", "NHWC")), (4, 6, 3, 3), IMAGE),
    "conv NCHW": (lambda w, x: conv(w, x, numbers=("NCHW", "OIHW", "NCHW")), (4, 6, 3, 3), (2, 6, 5, 7)),
    "conv 1d": (
        lambda w, x: lax.conv_general_dilated(x, w, (2,), [(3, 1)], dimension_numbers=("NWC", "WIO", "NWC")),
        (4, 6, 2),
        (2, 9, 6),
    ),
    "conv 1d, vmapped": (
        jax.vmap(lambda w, x: lax.conv_general_dilated(x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))),
        (3, 4, 6, 2),
        (3, 2, 9, 6),
    ),
    "bfloat16": (lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (4, 3), (7, 4)),
}


LINEAR["custom vjp"][0].defvjp(lambda w, x: (x @ w, x), lambda x, g: (x.T @ g, x))
LINEAR["custom jvp"][0].defjvp(lambda values, tangents: (values[1] @ values[0], values[1] @ tangents[0]))


def quadratic(stats, change):
    """The trace of change^T H change, over all matrices of the leaf."""
    matrices = np.asarray(stats.layout.matrices(change), np.float64)
    return np.einsum("bio,bij,bjo->", matrices, np.asarray(stats.gram, np.float64), matrices)


QUICK = (
    *("dense", "weight first", "output of heads", "one matrix each head", "reshaped, inputs merged", "inputs split"),
    *("jit and remat", "vmap over weights, data shared", "split, equal parts", "one of a stack, from the end"),
    *("used twice", "scanned, last first", "carried through time", "scan in a scan"),
    *("conv grouped", "conv NCHW", "conv transposed"),
)


@pytest.mark.parametrize("name", few(LINEAR, *QUICK))
def test_the_gram_matrix_tells_what_a_change_of_weights_does(name):
    fn, shape, data = LINEAR[name]
    w, x, change = normal(*shape), normal(*data, seed=1), normal(*shape, seed=2)
    stats = calibrate(lambda p, b: fn(p["w"], b), {"w": w}, [x])
    if name == "bfloat16":
        x = x.astype(jnp.bfloat16).astype(jnp.float32)
        fn = LINEAR["dense"][0]
    flat = lambda p: np.concatenate([np.ravel(y) for y in jax.tree.leaves(fn(p, x))]).astype(np.float64)
    masked = name in ("masked", "selected")
    seen = jnp.where(np.arange(12).reshape(4, 3) % 2 == (name == "masked"), change, 0) if masked else change
    moved = ((flat(w + change) - flat(w)) ** 2).sum()
    np.testing.assert_allclose(quadratic(stats["w"], seen), moved, rtol=2e-5)
    assert not stats.uncovered


MOMENTS = ("dense", "conv grouped", "scanned over layers", "output of heads", "split, equal parts")


@pytest.mark.parametrize("name", few(MOMENTS, "conv grouped", "scanned over layers"))
def test_moments_fit_the_gram_matrix(name):
    fn, shape, data = LINEAR[name]
    w, x = normal(*shape), jax.nn.relu(normal(*data, seed=1))
    call = lambda p, b: fn(p["w"], b)
    all_of = calibrate(call, {"w": w}, [x, 2 * x], collect=("gram", "total", "zeros"))["w"]
    alone = calibrate(call, {"w": w}, [x, 2 * x], collect=("square", "total", "zeros"))["w"]
    assert alone.gram is None
    np.testing.assert_allclose(all_of.square, alone.square, rtol=1e-5)
    np.testing.assert_allclose(all_of.gram.diagonal(0, 1, 2), alone.square, rtol=1e-5)
    np.testing.assert_array_equal(all_of.zeros, alone.zeros)
    np.testing.assert_allclose(all_of.mean, alone.mean, rtol=1e-5)
    assert (np.asarray(all_of.mean) ** 2 <= np.asarray(all_of.square) / all_of.count + 1e-6).all()
    if name == "dense":
        np.testing.assert_allclose(all_of.zero_fraction[0], (x == 0).mean((0, 1)), rtol=1e-6)


def test_layouts_put_leaves_into_matrices_and_back():
    for name in ("conv grouped", "output of heads", "query heads", "conv OIHW", "split outputs", "folded blocks"):
        fn, shape, data = LINEAR[name]
        layout = calibrate(lambda p, b, fn=fn: fn(p["w"], b), {"w": normal(*shape)}, [normal(*data)])["w"].layout
        leaf = normal(*shape, seed=3)
        np.testing.assert_array_equal(layout.leaf(layout.matrices(leaf)), leaf)
        spread = jnp.broadcast_to(layout.along_inputs(jnp.ones(layout.sizes[:2]) * 2), shape)
        np.testing.assert_array_equal(spread, jnp.full(shape, 2.0))


def test_inputs_are_in_the_order_of_the_leaf():
    x = jnp.zeros((5, 2, 3)).at[:, 1, 2].set(1.0)
    stats = calibrate(lambda w, b: jnp.einsum("nhk,hkd->nd", b, w), normal(2, 3, 4), [x], collect=("square", "total"))[
        ""
    ]
    np.testing.assert_array_equal(stats.square, [[0, 0, 0, 0, 0, 5]])
    assert stats.layout.along_inputs(stats.total).shape == (2, 3, 1)
    np.testing.assert_array_equal(stats.layout.along_inputs(stats.total)[..., 0], [[0, 0, 0], [0, 0, 5]])


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, name="attention")(x, x)


@pytest.mark.parametrize(
    ("strides", "dilation", "groups"), [((2, 3), (1, 1), 1), ((1, 1), (2, 3), 1), ((2, 1), (1, 2), 3)]
)
def test_convolution_by_hand(strides, dilation, groups):
    w, x = normal(3, 2, 6 // groups, 12), np.asarray(normal(*IMAGE, seed=1), np.float64)
    fn = lambda w, x: conv(w, x, strides, "VALID", rhs_dilation=dilation, feature_group_count=groups)
    got = calibrate(fn, w, [jnp.asarray(x, jnp.float32)])[""]
    rows, columns = (dilation[0] * np.arange(3), dilation[1] * np.arange(2))
    _, height, width, _ = fn(w, jnp.asarray(x, jnp.float32)).shape
    for group in range(groups):
        own = x[..., 6 // groups * group : 6 // groups * (group + 1)]
        patches = [
            own[n][np.ix_(i * strides[0] + rows, j * strides[1] + columns)].ravel()  # height, width, channel
            for n in range(2)
            for i in range(height)
            for j in range(width)
        ]
        np.testing.assert_allclose(got.gram[group], np.transpose(patches) @ patches, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got.count, 2 * height * width)


def test_multi_head_attention_by_hand():
    x = normal(3, 5, 8)
    params = Attention().init(KEY, x)
    stats = calibrate(Attention().apply, params, [x])
    gram = np.einsum("bsi,bsj->ij", x, x)
    own = params["params"]["attention"]
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(stats[f"params/attention/{name}/kernel"].gram[0], gram, rtol=1e-5, atol=1e-5)
    project = lambda n: jnp.einsum("bsd,dhk->bshk", x, own[n]["kernel"]) + jnp.asarray(own[n]["bias"])
    q, k, v = (project(n) for n in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(3))
    heads = jnp.einsum("bhqs,bshk->bqhk", weights, v).reshape(15, 6)
    np.testing.assert_allclose(stats["params/attention/out/kernel"].gram[0], heads.T @ heads, rtol=1e-4, atol=1e-4)
    first, second = stats.together
    assert sorted(first.names) == [f"params/attention/{n}/kernel" for n in ("key", "query", "value")]
    assert second.names == ("params/attention/out/kernel",)
    assert first.loop is None


def test_lstm_by_hand():
    cell, x = nn.OptimizedLSTMCell(features=3), normal(4, 6, 5)
    lstm = nn.RNN(cell)
    params = lstm.init(KEY, x)
    stats = calibrate(lstm.apply, params, [x])
    inputs = np.einsum("bti,btj->ij", x, x)
    hidden = jnp.concatenate([jnp.zeros((4, 1, 3)), jnp.asarray(lstm.apply(params, x))[:, :-1]], 1)
    state = np.einsum("bti,btj->ij", hidden, hidden)
    names = [name for name in params["params"]["cell"] if "kernel" in params["params"]["cell"][name]]
    assert sorted(names) == ["hf", "hg", "hi", "ho", "if", "ig", "ii", "io"]
    for name in names:
        got = stats[f"params/cell/{name}/kernel"]
        np.testing.assert_allclose(got.gram[0], inputs if name[0] == "i" else state, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(got.count, np.full(got.count.shape, 24))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, name="dense")(x)), None


def test_scanned_and_rematted_layers_by_hand():
    stack = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = normal(7, 4)
    params = stack.init(KEY, x, None)
    got = calibrate(lambda p, b: stack.apply(p, b, None), params, [x])["params/dense/kernel"]
    dense = params["params"]["dense"]
    for i in range(3):
        np.testing.assert_allclose(got.gram[i], x.T @ x, rtol=1e-4, atol=1e-5)
        x = jnp.tanh(x @ jnp.asarray(dense["kernel"][i]) + jnp.asarray(dense["bias"][i]))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 4, name="embed")
        return embed.attend(jnp.tanh(embed(tokens)))


def test_tied_embedding_by_hand_and_its_lookup_is_named():
    tokens = jnp.arange(10).reshape(2, 5)
    params = Tied().init(KEY, tokens)
    stats = calibrate(Tied().apply, params, [tokens])
    x = jnp.tanh(jnp.asarray(params["params"]["embed"]["embedding"])[tokens.ravel()])
    np.testing.assert_allclose(stats["params/embed/embedding"].gram[0], x.T @ x, rtol=1e-4)
    assert stats["params/embed/embedding"].layout.sizes == (1, 4, 11)
    [(name, reason)] = stats.partly
    assert name == "params/embed/embedding"
    assert "gather" in reason
