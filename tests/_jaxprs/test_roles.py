"""Roles of leaves and axes, for every framework and every kind of layer."""

import time

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxprune
from jaxprune import _jaxprs, find_roles

KEY = jax.random.key(0)


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def conv(w, x, groups=1, numbers=("NHWC", "HWIO", "NHWC")):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def sharded(fn, of_weight, out, of_data=None):
    """`fn` on two devices, traced without them."""
    mesh = jax.sharding.AbstractMesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (of_weight, jax.P() if of_data is None else of_data)
    return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)


X, IMAGE, TOKENS = shape(2, 4), shape(2, 8, 8, 4), shape(2, 5, dtype=jnp.int32)
MULTIPLIED = {
    "kernel": (lambda w, x: x @ w, (4, 6), X, "input output"),
    "[out, in]": (lambda w, x: x @ w.T, (6, 4), X, "output input"),
    "[out, in], first": (lambda w, x: w @ x.T, (6, 4), X, "output input"),
    "one vector": (lambda w, x: jax.vmap(lambda v: w @ v)(x), (6, 4), X, "output input"),
    "query heads": (lambda w, x: jnp.einsum("bi,ihd->bhd", x, w), (4, 2, 3), X, "input output output"),
    "output of heads": (
        lambda w, x: jnp.einsum("bhd,hdo->bo", x, w),
        (2, 3, 4),
        shape(5, 2, 3),
        "input input output",
    ),
    "one matrix each": (
        lambda w, x: jnp.einsum("ebi,eio->ebo", x, w),
        (3, 4, 6),
        shape(3, 2, 4),
        "stacked input output",
    ),
    "vmap": (jax.vmap(lambda w, x: x @ w), (3, 4, 6), shape(3, 2, 4), "stacked input output"),
    "scanned": (lambda w, x: lax.scan(lambda c, v: (c @ v, None), x, w)[0], (3, 4, 4), X, "stacked input output"),
    "scan axis 1": (
        lambda w, x: lax.scan(lambda c, v: (c @ v, None), x, jnp.moveaxis(w, 1, 0))[0],
        (4, 3, 4),
        X,
        "input stacked output",
    ),
    "unrolled": (
        lambda w, x: x @ w[0] @ w[1] @ w[2],
        (3, 4, 4),
        X,
        "stacked input output",
    ),
    "scan of experts": (
        lambda w, x: lax.scan(lambda c, v: (jnp.einsum("bei,eio->bo", jnp.stack([c, c], 1), v), None), x, w)[0],
        (3, 2, 4, 4),
        X,
        "stacked input input output",
    ),
    "expert by index": (
        lambda w, x: jnp.einsum("bi,bio->bo", x, w[jnp.argmax(x, -1)]),
        (3, 4, 6),
        X,
        "stacked input output",
    ),
    "expert by slice": (lambda w, x: x @ w[jnp.argmax(x[0])], (3, 4, 6), X, "stacked input output"),
    "experts of sorted rows": (
        lambda w, x: lax.ragged_dot(x, w, jnp.array([1, 0, 1], jnp.int32)),
        (3, 4, 6),
        X,
        "stacked input output",
    ),
    "fused queries and keys": (
        lambda w, x: [x @ part for part in jnp.split(w, 2, 1)],
        (4, 6),
        X,
        "input stacked+output",
    ),
    "through time": (
        lambda w, x: lax.scan(lambda c, y: (jnp.tanh(c @ w + y), None), x[0], x)[0],
        (4, 4),
        X,
        "input output",
    ),
    "in a branch": (lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), (4, 4), X, "input output"),
    "in a while": (lambda w, x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x), (4, 4), X, "input output"),
    "remat and jit": (jax.checkpoint(jax.jit(lambda w, x: x @ w)), (4, 6), X, "input output"),
    "in a shard_map that shares the data": (
        lambda w, x: jax.shard_map(
            jnp.matmul,
            mesh=jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=(jax.P("x"), jax.P()),
            out_specs=jax.P("x"),
        )(x, w),
        (4, 6),
        X,
        "input output",
    ),
    "outputs cut by a shard_map": (
        sharded(lambda w, x: x @ w, jax.P(None, "x"), jax.P(None, "x")),
        (4, 6),
        X,
        "input output",
    ),
    "heads cut by a shard_map": (
        sharded(lambda w, x: lax.psum(x @ w.reshape(-1, 4).T, "x"), jax.P("x"), jax.P(), jax.P(None, "x")),
        (4, 3, 4),
        shape(2, 8),
        "output output input",
    ),
    "layers cut by a shard_map": (
        sharded(
            lambda w, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0], jax.P("x"), jax.P("x"), jax.P("x")
        ),
        (6, 4, 4),
        shape(4, 4),
        "stacked input output",
    ),
    "inputs gathered in a shard_map": (
        sharded(lambda w, x: x @ lax.all_gather(w, "x", axis=0, tiled=True), jax.P("x"), jax.P("x"), jax.P("x")),
        (4, 6),
        X,
        "input output",
    ),
    "masked by data": (lambda w, x: x @ jnp.where(x[0, 0] > 0, w, 0), (4, 6), X, "input output"),
    "mask of numbers": (lambda w, x: x @ (w * (x.T > 0)[:, :1].astype(w.dtype)), (4, 6), X, "input output"),
    "standardised": (lambda w, x: x @ ((w - w.mean(0)) / (w.std(0) + 1e-5)), (4, 6), X, "input output"),
    "cast": (lambda w, x: x @ w.astype(jnp.bfloat16), (4, 6), X, "input output"),
    "stacked again": (lambda w, x: jnp.einsum("bi,nio->bno", x, jnp.stack([w, w])), (4, 6), X, "input output"),
    "conv": (conv, (3, 3, 4, 6), IMAGE, "window window input output"),
    "conv OIHW": (
        lambda w, x: conv(w, x, numbers=("NHWC", "OIHW", "NHWC")),
        (6, 4, 3, 3),
        IMAGE,
        "output input window window",
    ),
    "conv grouped": (lambda w, x: conv(w, x, 2), (3, 3, 2, 6), IMAGE, "window window input group+output"),
    "conv, vmapped": (
        jax.vmap(lambda w, x: lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))),
        (3, 2, 4, 6),
        shape(3, 2, 9, 4),
        "group window input output",
    ),
    "conv depthwise": (lambda w, x: conv(w, x, 4), (3, 3, 1, 4), IMAGE, "window window single group"),
}


@pytest.mark.parametrize("name", MULTIPLIED)
def test_axes_of_what_is_multiplied(name):
    fn, sizes, x, axes = MULTIPLIED[name]
    leaf = find_roles(lambda p, x: fn(p["w"], x), {"w": shape(*sizes)}, x)["w"]
    assert (leaf.role, " ".join(leaf.axes)) == ("multiplied", axes)
    assert leaf.layout is not None
    assert leaf.layout.shape == sizes
    kinds = [set(kind.split("+")) for kind in leaf.axes]
    assert leaf.inputs == tuple(a for a, kind in enumerate(kinds) if kind & {"input", "window"})
    depthwise = {3} if name == "conv depthwise" else set()  # its groups are its outputs
    assert leaf.stacked == tuple(a for a, k in enumerate(kinds) if k <= {"stacked", "group"} and a not in depthwise)


OTHERS = {
    "bias": (lambda w, x: x + w, (4,), X, "elementwise", "entry"),
    "scale": (lambda w, x: x * w, (4,), X, "elementwise", "entry"),
    "scale, not linear": (lambda w, x: x * jnp.exp(w), (4,), X, "elementwise", "unknown"),
    "position embedding": (lambda w, x: x + w[:2], (5, 4), X, "elementwise", "entry entry"),
    "class token": (lambda w, x: jnp.concatenate([w, x]), (1, 4), X, "elementwise", "entry entry"),
    "first state": (lambda w, x: lax.scan(lambda c, y: (c + y, None), w, x)[0], (4,), X, "elementwise", "entry"),
    "scanned scale": (
        lambda w, x: lax.scan(lambda c, v: (c * v, None), x, w)[0],
        (3, 4),
        X,
        "elementwise",
        "stacked entry",
    ),
    "unrolled scale": (lambda w, x: x * w[0] * w[1] * w[2], (3, 4), X, "elementwise", "stacked entry"),
    "embedding": (lambda w, t: w[t], (9, 4), TOKENS, "embedding", "indexed output"),
    "embedding, on": (lambda w, t: jnp.take(w, t, axis=0) * 2.0 + 1, (9, 4), TOKENS, "embedding", "indexed output"),
    "embedding, attended": (
        lambda w, t: w[t] @ jnp.swapaxes(w[t], 1, 2),
        (9, 4),
        TOKENS,
        "embedding",
        "indexed output",
    ),
    "tied embedding": (lambda w, t: w[t] @ w.T, (9, 4), TOKENS, "several", "output input"),
    "unused": (lambda w, x: x, (4, 6), X, "unused", "unknown unknown"),
    "returned": (lambda w, x: (x, w), (4, 6), X, "other", "unknown unknown"),
    "both ways": (lambda w, x: x @ w @ w.T, (4, 6), X, "several", "unknown unknown"),
    "through a sort": (lambda w, x: x @ jnp.sort(w), (4, 6), X, "other", "unknown unknown"),
    "packed": (lambda w, x: x @ (w & 15).astype(jnp.float32), (4, 6), X, "other", "unknown unknown"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_roles_of_what_is_not_multiplied(name):
    fn, sizes, x, role, axes = OTHERS[name]
    w = shape(*sizes, dtype=jnp.int8 if name == "packed" else jnp.float32)
    leaf = find_roles(lambda p, x: fn(p["w"], x), {"w": w}, x)["w"]
    assert (leaf.role, " ".join(leaf.axes)) == (role, axes)
    assert bool(leaf.note) == (role == "other" or name == "both ways")


def test_tied_embedding_has_a_layout():
    leaf = find_roles(lambda p, t: jnp.tanh(p["e"][t]) @ p["e"].T, {"e": shape(9, 4)}, TOKENS)["e"]
    assert leaf.uses == ("multiplied", "embedding")
    assert leaf.layout is not None
    assert leaf.layout.sizes == (1, 4, 9)


@pytest.mark.parametrize("per", ["output", "input", "block"])
def test_an_int8_kernel_and_its_scales(per):
    scales = {"output": shape(6), "input": shape(8, 1), "block": shape(2, 6)}[per]

    def fn(p, x):
        kernel = p["q"].astype(jnp.float32)
        return x @ ((kernel.reshape(2, 4, 6) * p["s"][:, None]).reshape(8, 6) if per == "block" else kernel * p["s"])

    found = find_roles(fn, {"q": shape(8, 6, dtype=jnp.int8), "s": scales}, shape(2, 8))
    assert (found["q"].role, found["q"].axes) == ("multiplied", ("input", "output"))
    assert found["s"].role == "elementwise"


def test_weight_normalisation():
    fn = lambda p, x: x @ (p["v"] * (p["g"] / jnp.linalg.norm(p["v"], axis=0)))
    found = find_roles(fn, {"v": shape(4, 6), "g": shape(6)}, X)
    assert (found["v"].role, found["v"].axes, found["g"].role) == ("multiplied", ("input", "output"), "elementwise")


def test_low_rank_factors_that_meet_each_other_are_not_guessed():
    params = {"w": shape(4, 6), "a": shape(4, 2), "b": shape(2, 6)}
    apart = find_roles(lambda p, x: x @ p["w"] + x @ p["a"] @ p["b"], params, X)
    assert [leaf.role for leaf in apart] == ["multiplied"] * 3
    merged = find_roles(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, X)
    assert [leaf.role for leaf in merged] == ["other", "other", "multiplied"]
    assert "another parameter" in merged["a"].note


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(y))), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens) + self.param("position", nn.initializers.normal(), (5, 8))
        layers = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = layers()(x, None)
        return embed.attend(nn.RMSNorm()(x))


def test_linen_transformer_scanned():
    params = jax.eval_shape(Net().init, KEY, jnp.zeros((2, 5), int))
    found = find_roles(Net().apply, params, TOKENS)
    role = {leaf.name.removeprefix("params/"): (leaf.role, " ".join(leaf.axes)) for leaf in found}
    block = "ScanCheckpointBlock_0/"
    attention = block + "MultiHeadDotProductAttention_0/"
    assert role == {
        "Embed_0/embedding": ("several", "output input"),
        "position": ("elementwise", "entry entry"),
        "RMSNorm_0/scale": ("elementwise", "entry"),
        block + "LayerNorm_0/scale": ("elementwise", "stacked entry"),
        block + "LayerNorm_0/bias": ("elementwise", "stacked entry"),
        block + "Dense_0/kernel": ("multiplied", "stacked input output"),
        block + "Dense_0/bias": ("elementwise", "stacked entry"),
        block + "Dense_1/kernel": ("multiplied", "stacked input output"),
        block + "Dense_1/bias": ("elementwise", "stacked entry"),
        **{attention + f"{n}/kernel": ("multiplied", "stacked input output output") for n in ("query", "key", "value")},
        **{attention + f"{n}/bias": ("elementwise", "stacked entry entry") for n in ("query", "key", "value")},
        attention + "out/kernel": ("multiplied", "stacked input input output"),
        attention + "out/bias": ("elementwise", "stacked entry"),
    }


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(5)(x.mean((1, 2)))


def test_linen_convolution_and_batch_norm():
    variables = jax.eval_shape(Small().init, KEY, jnp.zeros((1, 8, 8, 4)))
    found = find_roles(Small().apply, variables, IMAGE)
    assert {leaf.name: leaf.role for leaf in found} == {
        "batch_stats/BatchNorm_0/mean": "elementwise",
        "batch_stats/BatchNorm_0/var": "elementwise",
        "params/BatchNorm_0/bias": "elementwise",
        "params/BatchNorm_0/scale": "elementwise",
        "params/Conv_0/bias": "elementwise",
        "params/Conv_0/kernel": "multiplied",
        "params/Dense_0/bias": "elementwise",
        "params/Dense_0/kernel": "multiplied",
    }


def test_nnx_module():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(11, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.linear = nnx.Linear(4, 6, rngs=rngs)

        def __call__(self, t):
            return self.linear(self.norm(self.embed(t)))

    graph, state = nnx.split(Model(nnx.Rngs(0)), nnx.Param)
    found = find_roles(lambda p, t: nnx.merge(graph, p)(t), state, TOKENS)
    assert {leaf.name: leaf.role for leaf in found} == {
        "embed/embedding": "embedding",
        "linear/bias": "elementwise",
        "linear/kernel": "multiplied",
        "norm/bias": "elementwise",
        "norm/scale": "elementwise",
    }


def test_equinox_modules_are_outputs_first():
    net = eqx.nn.Sequential([eqx.nn.Linear(4, 6, key=KEY), eqx.nn.LayerNorm(6), eqx.nn.Linear(6, 2, key=KEY)])
    found = find_roles(lambda n, x: jax.vmap(n)(x), net, X)
    kernels = [leaf for leaf in found if leaf.role == "multiplied"]
    assert [(leaf.shape, leaf.axes) for leaf in kernels] == [
        ((6, 4), ("output", "input")),
        ((2, 6), ("output", "input")),
    ]
    assert [leaf.role for leaf in found].count("elementwise") == 4
    attention = eqx.nn.MultiheadAttention(2, 8, key=KEY)
    found = find_roles(lambda n, x: n(x, x, x), attention, shape(5, 8))
    assert [leaf.axes for leaf in found if leaf.role == "multiplied"] == [("output", "input")] * 4


def test_llama_of_hugging_face():
    names = {"q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8), "gate": (16, 8), "up": (16, 8), "down": (8, 16)}
    params = {f"model.layers.0.{n}.weight": shape(*s, dtype=jnp.bfloat16) for n, s in names.items()}
    params |= {"model.embed_tokens.weight": shape(11, 8), "model.norm.weight": shape(8)}

    def fn(p, t):
        x = p["model.embed_tokens.weight"][t]
        at = lambda n: p[f"model.layers.0.{n}.weight"].T
        x = x * lax.rsqrt((x * x).mean(-1, keepdims=True)) * p["model.norm.weight"]
        q, k, v = ((x @ at(n)).reshape(2, 5, -1, 4) for n in "qkv")
        x = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(2, 5, 8) @ at("o")
        return (jax.nn.silu(x @ at("gate")) * (x @ at("up"))) @ at("down")

    found = find_roles(fn, params, TOKENS)
    for n, sizes in names.items():
        leaf = found[f"model.layers.0.{n}.weight"]
        assert (leaf.axes, leaf.inputs, leaf.outputs) == (("output", "input"), (1,), (0,))
        assert leaf.layout is not None
        assert leaf.layout.sizes == (1, sizes[1], sizes[0])
    assert found["model.embed_tokens.weight"].role == "embedding"
    assert found["model.norm.weight"].role == "elementwise"


def test_roles_pass_jit_in_every_way():
    params = {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}
    fn = lambda p, x: x @ p["w"] + p["b"]
    roles = find_roles(fn, params, X)
    again = find_roles(fn, jax.eval_shape(lambda: params), X)
    assert roles == again
    assert hash(roles) == hash(again)
    assert not jax.tree.leaves(roles)
    traces = []

    def use(p, r):
        traces.append(r)
        return sum(
            leaf.sum() for leaf, role in zip(jax.tree.leaves(p), r.of(p), strict=True) if role.role == "multiplied"
        )

    for jitted in (jax.jit(use), jax.jit(use, static_argnums=1)):
        traces.clear()
        for r in (roles, again):
            assert jitted(params, r) == 24
        assert len(traces) == 1
    assert jax.jit(lambda p: use(p, roles))(params) == 24


def test_roles_of_other_parameters():
    roles = find_roles(lambda p, x: x @ p["w"], {"w": shape(4, 6)}, X)
    assert [leaf.name for leaf in roles.of({"w": shape(4, 6)})] == ["w"]
    with pytest.raises(ValueError, match=r"find_roles again:\n  w: has shape \(4, 5\), but had \(4, 6\)"):
        _ = roles.of({"w": shape(4, 5)})
    with pytest.raises(ValueError, match="  v: was not among the parameters"):
        _ = roles.of({"v": shape(4, 6)})
    with pytest.raises(KeyError, match="no leaf 'v'; there are: w"):
        _ = roles["v"]


def test_stats_and_groups_carry_roles():
    params = {"w": jnp.ones((4, 6)), "v": jnp.ones((6, 2)), "b": jnp.ones(6)}
    fn = lambda p, x: (x @ p["w"] + p["b"]) @ p["v"]
    x = jnp.asarray(np.eye(4), jnp.float32)
    roles = find_roles(fn, params, x)
    assert jaxprune.calibrate(fn, params, [x]).roles == roles
    assert jaxprune.find_groups(fn, params, x).roles == roles


def test_an_unrolled_decoder_of_eight_billion_parameters_takes_less_than_a_second():
    layer = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096), "n": (4096,)}
    layer |= {"gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}
    params = {f"{i}.{n}": shape(*s, dtype=jnp.bfloat16) for i in range(32) for n, s in layer.items()}

    def fn(p, x):
        for i in range(32):
            at = lambda n, i=i: p[f"{i}.{n}"].T
            y = x * lax.rsqrt((x * x).mean(-1, keepdims=True)) * at("n")
            q, k, v = ((y @ at(n)).reshape(1, 64, -1, 128) for n in "qkv")
            x = x + jax.nn.dot_product_attention(q, k, v).reshape(1, 64, 4096) @ at("o")
            x = x + (jax.nn.silu(x @ at("gate")) * (x @ at("up"))) @ at("down")
        return x

    traced = _jaxprs.trace(fn, params, shape(1, 64, 4096, dtype=jnp.bfloat16))
    took, found = [], None
    for _ in range(3):  # in a process that has run many tests, one garbage collection takes a second
        began = time.process_time()
        found = _jaxprs.roles_of(traced, _jaxprs.leaves_of(params))
        took.append(time.process_time() - began)
    assert found is not None
    assert min(took) < 1
    assert [leaf.role for leaf in found].count("multiplied") == 32 * 7
