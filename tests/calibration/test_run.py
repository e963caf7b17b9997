"""What calibrate accumulates over batches, what it names, and what it refuses."""

import contextlib

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxprune import _tree
from jaxprune.calibration import calibrate
from tests.cases import normal

KEY = jax.random.key(0)
X = normal(8, 4)


def two_layers(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS = {"a": normal(4, 5), "b": normal(5, 2)}


def test_batches_add_up_whatever_their_shapes():
    whole = calibrate(two_layers, PARAMS, [X], collect=("gram", "total", "zeros"))
    parts = calibrate(two_layers, PARAMS, iter([X[:3], X[3:6], X[6:]]), collect=("gram", "total", "zeros"))
    assert jax.tree.structure(whole) == jax.tree.structure(parts)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_each_shape_compiles_once():
    traces = []

    def fn(params, x):
        traces.append(x.shape)
        return two_layers(params, x)

    _ = calibrate(fn, PARAMS, [X, 2 * X, X[:3], X[:3], X])
    assert traces == [(8, 4), (3, 4)]


def test_leaves_that_meet_the_same_activation_share_their_sums():
    fn = lambda p, x: (x @ p["q"]) * (x @ p["k"]) + x[:, ::-1] @ p["v"]
    params = {"q": jnp.ones((3, 2)), "k": jnp.ones((3, 2)), "v": jnp.ones((3, 2))}
    stats = calibrate(fn, params, [normal(4, 3), normal(5, 3)])
    assert stats["q"].gram is stats["k"].gram
    np.testing.assert_allclose(stats["v"].gram, stats["q"].gram[:, ::-1, ::-1], rtol=1e-6)


def test_only_what_is_asked_for():
    stats = calibrate(two_layers, PARAMS, [X], collect="square", where="b")
    assert list(stats.inputs) == [("b",)]
    assert stats["b"].gram is None
    with pytest.raises(ValueError, match=r"collect=\('total',\)"):
        _ = stats["b"].mean
    with pytest.raises(ValueError, match=r"collect=\('zeros',\)"):
        _ = stats["b"].zero_fraction
    with pytest.raises(ValueError, match=r"collect=\('square',\)"):
        _ = calibrate(two_layers, PARAMS, [X], collect="total")["a"].norm
    with pytest.raises(KeyError, match="a: was not calibrated"):
        _ = stats["a"]


UNCOVERED = {
    "while": (lambda p, x: lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] @ p["w"], c[1] + 1), (x, 0)), "`while`"),
    "cond": (lambda p, x: lax.cond(x.sum() > 0, lambda: x @ p["w"], lambda: x), "`cond`"),
    "computed index": (
        lambda p, x: x @ lax.dynamic_index_in_dim(p["w3"], jnp.argmax(x[0]), keepdims=False),
        "dynamic_slice",
    ),
    "nothing": (lambda p, x: x * 2, "enters no matrix product"),
    "added to data": (lambda p, x: x + p["w"][:1], "`add` with data"),
    "lookup": (lambda p, x: p["w"][jnp.argmax(x, 1)], "enters no matrix product"),
    "a function of it": (lambda p, x: x @ jnp.exp(p["w"]), "`exp`"),
    "a divisor": (lambda p, x: x @ (1 / p["w"]), "`div`"),
    "backwards": (lambda p, x: x @ p["w"][::-1], "`rev`"),
    "cut by a pad": (lambda p, x: x @ lax.pad(p["w"], 0.0, [(-1, 1, 0), (0, 0, 0)]), "a pad that cuts off"),
    "an image": (
        lambda p, x: lax.conv_general_dilated(
            p["w"][None], x.T[None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        ),
        "as its image",
    ),
    "both ways": (lambda p, x: x @ p["w"] + x @ p["w"].T, "several ways"),
    "every second": (lambda p, x: x[:, :2] @ p["w"][::2], "`steps`|several|part"),
    "uneven parts": (lambda p, x: (x @ p["w"][:, :1], x @ p["w"][:, 1:]), "equal parts"),
    "outer product": (lambda p, x: jnp.einsum("n,io->nio", x[:, 0], p["w"]), "sums over no axis of it"),
    "changing carry": (lambda p, x: lax.scan(lambda c, y: (c * 0.5, y @ c), p["w"], x), "carry of a scan"),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_leaves_not_covered_are_named_with_the_reason(name):
    fn, reason = UNCOVERED[name]
    params = {"w": jnp.ones((4, 4)), "w3": jnp.ones((2, 4, 4)), "seen": jnp.ones((4, 2))}
    stats = calibrate(lambda p, x: (fn(p, x), x @ p["seen"]), params, [X])
    leaf = "w3" if name == "computed index" else "w"
    if name == "every second":  # inputs 0 and 2 of 4, as a slice with steps
        assert leaf in dict(stats.uncovered)
        return
    with pytest.raises(ValueError, match=reason):
        raise ValueError(dict(stats.uncovered)[leaf])
    assert ("seen",) in stats.inputs
    with pytest.raises(KeyError, match=f"{leaf}: "):
        _ = stats[leaf]


def test_use_that_is_partly_seen_is_named():
    fn = lambda p, x: (x @ p["w"], lax.cond(x.sum() > 0, lambda: x @ p["w"], lambda: x))
    stats = calibrate(fn, {"w": jnp.eye(4)}, [X])
    assert stats.partly == (("w", "`cond`"),)
    np.testing.assert_allclose(stats["w"].gram[0], X.T @ X, rtol=1e-5)


def test_products_without_data_are_named():
    params = {
        "w": jnp.eye(4),
        "a": jnp.ones((4, 2)),
        "b": jnp.ones((2, 4)),
        "queries": 2 * jnp.ones((3, 4)),
        "k": jnp.eye(4),
    }
    fn = lambda p, x: (x @ (p["w"] + p["a"] @ p["b"]), p["queries"] @ p["k"])
    stats = calibrate(fn, params, [X])
    # The summand is no part of what w meets; its factors meet each other, which is said.
    np.testing.assert_allclose(stats["w"].gram[0], X.T @ X, rtol=1e-5)
    assert dict(stats.partly) == dict.fromkeys(("a", "b", "k", "queries"), "`dot_general` with an operand without data")
    np.testing.assert_allclose(stats["k"].gram[0], 12 * np.ones((4, 4)), rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="at least one batch"):
        _ = calibrate(two_layers, PARAMS, [])
    with pytest.raises(ValueError, match="no parameter could be followed"):
        _ = calibrate(lambda p, x: x, PARAMS, [X])
    with pytest.raises(ValueError, match="one or more of gram, square"):
        _ = calibrate(two_layers, PARAMS, [X], collect="grams")
    with pytest.raises(ValueError, match=r"larger than max_bytes = 80(.|\n)*b: 1 of 5 x 5, 100 bytes"):
        _ = calibrate(two_layers, PARAMS, [X], max_bytes=80)
    with pytest.raises(ValueError, match=r"not finite(.|\n)*  a\n  b"):
        _ = calibrate(two_layers, PARAMS, [X.at[0, 0].set(jnp.nan)])
    with pytest.raises(ValueError, match="jax_enable_x64"):
        _ = calibrate(two_layers, PARAMS, [X], dtype=jnp.float64)
    with pytest.raises(ValueError, match="floating type, got int32"):
        _ = calibrate(two_layers, PARAMS, [X], dtype=jnp.int32)
    assert calibrate(two_layers, PARAMS, [X], max_bytes=80, collect="square")["a"].square.shape == (1, 4)


def test_float64_sums():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
        got = calibrate(two_layers, params, [jnp.asarray(X, jnp.float32)], dtype=jnp.float64)["a"].gram
        assert got.dtype == jnp.float64
        x = np.asarray(X, np.float64)
        np.testing.assert_allclose(got[0], x.T @ x, rtol=1e-13)


def test_statistics_go_through_jit_and_know_their_leaves():
    stats = calibrate(two_layers, PARAMS, [X], collect=("gram", "total"))
    same = jax.jit(lambda s: s)(stats)
    np.testing.assert_allclose(same["a"].mean, X.mean(0)[None], rtol=1e-4, atol=1e-6)
    assert [inputs.layout.shape for inputs in stats.leaves(PARAMS) if inputs] == [(4, 5), (5, 2)]
    assert stats.leaves({"a": PARAMS["a"], "c": jnp.ones(3)})[1] is None
    with pytest.raises(ValueError, match=r"a was calibrated with shape \(4, 5\), but has shape \(4, 6\) now"):
        _ = stats.leaves({"a": jnp.ones((4, 6))})


def test_linen_batch_norm_and_conv():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(6, (3, 3), strides=2, name="conv")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return nn.Dense(3, name="head")(x.mean((1, 2)))

    images = normal(4, 8, 8, 2)
    variables = Net().init(KEY, images, train=False)
    stats = calibrate(
        lambda p, b: Net().apply({**variables, "params": p}, b, train=False), variables["params"], [images]
    )
    assert stats["conv/kernel"].layout.sizes == (1, 18, 6)
    assert int(stats["conv/kernel"].count[0, 0]) == 4 * 4 * 4
    features = Net().apply(variables, images, train=False, capture_intermediates=True)[1]["intermediates"]
    x = nn.relu(jnp.asarray(features["BatchNorm_0"]["__call__"][0])).mean((1, 2))
    np.testing.assert_allclose(stats["head/kernel"].gram[0], x.T @ x, rtol=1e-4, atol=1e-5)


def test_nnx_and_equinox_models():
    model = nnx.MultiHeadAttention(2, 8, 6, decode=False, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = normal(2, 5, 8)
    stats = calibrate(lambda p, b: nnx.merge(graph, p, rest)(b, deterministic=True), params, [x])
    np.testing.assert_allclose(stats["query/kernel"].gram[0], np.einsum("bsi,bsj->ij", x, x), rtol=1e-4, atol=1e-4)
    assert stats["out/kernel"].layout.sizes == (1, 6, 8)
    assert len([entry for entry in stats.leaves(params) if entry is not None]) == 4

    mlp = eqx.nn.MLP(4, 3, 5, 2, key=KEY)
    stats = calibrate(lambda m, b: jax.vmap(m)(b), mlp, [X])
    np.testing.assert_allclose(stats["layers/0/weight"].gram[0], X.T @ X, rtol=1e-5)
    assert stats["layers/2/weight"].layout.sizes == (1, 5, 3)
    assert len(stats.inputs) == 3


def test_progress_names_what_to_install(monkeypatch):
    import importlib

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="needs tqdm: pip install tqdm"):
        _ = calibrate(two_layers, PARAMS, [X], progress=True)


def test_progress_counts_the_batches(capsys):
    _ = pytest.importorskip("tqdm", reason="the bar is in jaxprune[progress]")
    shown = calibrate(two_layers, PARAMS, [X, X, X], progress=True)
    assert "calibrate" in (said := capsys.readouterr().err)
    assert "3/3" in said
    np.testing.assert_array_equal(shown["a"].gram, calibrate(two_layers, PARAMS, [X, X, X])["a"].gram)


def test_leaves_without_names_in_common_are_told_apart():
    params = {"a/b": {"c": jnp.ones((4, 3))}, "a": {"b/c": jnp.ones((4, 2))}}
    stats = calibrate(lambda p, x: (x @ p["a/b"]["c"], 2 * x @ p["a"]["b/c"]), params, [X])
    assert [_tree.name(p) for p, _ in _tree.with_paths(params)] == ["a/b/c", "a/b/c"]
    np.testing.assert_allclose(stats.inputs["a", "b/c"].gram, 4 * stats.inputs["a/b", "c"].gram, rtol=1e-5)


def test_printed_statistics_are_a_table_and_no_matrices():
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2)), "c": jnp.ones((3, 3))}
    stats = calibrate(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, [jnp.ones((5, 4))])
    expected = ["leaf shape samples sums", "a 4x8 5 gram, square", "b 8x2 5 gram, square"]
    *rows, reason = str(stats).splitlines()
    assert [" ".join(row.split()) for row in rows] == expected
    assert reason == "c: enters no matrix product or convolution"
    assert "(1, 4)" in str(jax.tree.map(jnp.shape, stats))


ROWS = np.array([0.1, 3.0, 1.0], np.float32)
KEPT = np.array([[1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("weight", "scaled"),
    [
        (lambda w: ROWS[:, None] * w, True),
        (lambda w: w / ROWS[:, None], True),
        (lambda w: (ROWS * w.T).reshape(2, 3).T, True),
        (lambda w: 2 * w, False),
        (lambda w: ROWS[:2] * w, False),
        (lambda w: (ROWS[:2, None] * w.T).T, False),
        (lambda w: KEPT * w, False),
        (lambda w: jnp.where(KEPT > 0, w, 0), False),
        (lambda w: (KEPT > 0).astype(jnp.float32) * w, False),
    ],
)
def test_factor_that_varies_along_the_inputs_is_named(weight, scaled):
    fn = lambda p, x: x @ weight(p["w"])
    with contextlib.nullcontext() if not scaled else pytest.warns(UserWarning, match="multiplies w by a factor"):
        stats = calibrate(fn, {"w": jnp.ones((3, 2))}, [jnp.ones((4, 3))])
    assert stats.partly == ((("w", "a factor that varies along its inputs"),) if scaled else ())


def test_factor_of_another_parameter_inside_a_scan_is_named():
    layer = lambda x, p: (jnp.tanh(x @ (p[1][:, None] * p[0])), None)
    fn = lambda p, x: jax.lax.scan(layer, x, (p["w"], p["s"]))[0]
    with pytest.warns(UserWarning, match="multiplies s, w by a factor"):
        _ = calibrate(fn, {"w": jnp.ones((2, 3, 3)), "s": jnp.ones((2, 3))}, [jnp.ones((4, 3))])


def test_complex_inputs_are_not_followed():
    with pytest.raises(ValueError, match="w: complex inputs"):
        _ = calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, [jnp.ones((4, 3), complex)])
