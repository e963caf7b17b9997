"""A slim network in one file: the same function, wherever it is loaded."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

import jaxprune
from jaxprune import checkpoints, slimming
from tests.cases import normal

X = normal(5, 3, seed=1)


def network(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    return {"logits": jnp.tanh(x @ params["in"]["kernel"]) @ params["out"]}


def params() -> Any:
    keys = jax.random.split(jax.random.key(0), 2)
    return {"in": {"kernel": jax.random.normal(keys[0], (3, 8))}, "out": jax.random.normal(keys[1], (8, 2))}


def slim(params: Any) -> slimming.Slimmed:
    return jaxprune.slim(network, params, {"in/kernel[1]": [0, 2, 5]}, X)


@pytest.mark.parametrize("kind", [dict, FrozenDict])
def test_what_is_saved_is_loaded(tmp_path, kind):
    small = slim(kind(params()))
    saved = checkpoints.save_slim(tmp_path / "slim", small, X)
    assert saved.values == 4 * (3 * 5 + 5 * 2)
    found = checkpoints.load_slim(tmp_path / "slim", small.params)
    assert jax.tree.structure(found.params) == jax.tree.structure(small.params)
    for read in (found, checkpoints.load_slim(tmp_path / "slim")):
        expected = small.fn(small.params, X)["logits"]
        np.testing.assert_allclose(read.fn(read.params, X)["logits"], expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(read.fn)(read.params, X)["logits"], expected, rtol=1e-6)
        assert read.manifest.to_json() == small.manifest.to_json()
    again = jaxprune.slim(network, kind(params()), found.manifest, X)
    np.testing.assert_array_equal(again.params["out"], checkpoints.load(tmp_path / "slim").params["out"])


def test_the_batch_may_stay_open(tmp_path):
    small = slim(params())
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3"), jnp.float32)
    _ = checkpoints.save_slim(tmp_path / "slim", small, shape)
    found = checkpoints.load_slim(tmp_path / "slim")
    for x in (X, X[:2]):
        np.testing.assert_allclose(found.fn(found.params, x)["logits"], small.fn(small.params, x)["logits"], rtol=1e-6)


def test_the_state_of_an_nnx_module(tmp_path):
    rngs = nnx.Rngs(0)
    graph, state = nnx.split(nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.tanh, nnx.Linear(4, 2, rngs=rngs)))
    small = jaxprune.slim(lambda p, x: nnx.merge(graph, p)(x), state, 0.5, X)
    _ = checkpoints.save_slim(tmp_path / "slim", small, X)
    fn, loaded, _ = checkpoints.load_slim(tmp_path / "slim")
    np.testing.assert_allclose(fn(loaded, X), small.fn(small.params, X), rtol=1e-6)
    found = checkpoints.load(tmp_path / "slim", small.params).params
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), found, small.params))


def test_a_size_that_the_function_needs_as_a_number_cannot_stay_open(tmp_path):
    flat = lambda p, x: network(p, x.reshape(len(x), -1))["logits"]
    small = jaxprune.slim(flat, params(), {"in/kernel[1]": [0]}, X)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3"), jnp.float32)
    with pytest.raises(TypeError, match=r"symbolic size .*; write x.shape\[0\] for len\(x\)"):
        _ = checkpoints.save_slim(tmp_path / "slim", small, shape)


def test_other_arguments_than_the_saved_ones_are_named(tmp_path):
    _ = checkpoints.save_slim(tmp_path / "slim", slim(params()), X)
    fn, smaller, _ = checkpoints.load_slim(tmp_path / "slim")
    asked = r"save it again .*'batch, .*:\n  input 0: saved float32\[5, 3\], got float32\[7, 3\]$"
    with pytest.raises(ValueError, match=asked):
        _ = fn(smaller, jnp.ones((7, 3)))
    with pytest.raises(ValueError, match=r"that load_slim returned, .*:\n  params in/kernel: saved .*3, 5\], got"):
        _ = jax.jit(fn)(params(), X)
    with pytest.raises(FileNotFoundError, match=r"a folder; .* Hugging Face folder by checkpoints.Folder"):
        _ = checkpoints.load(tmp_path)


def test_the_gradient_is_saved_where_it_is_asked_for(tmp_path):
    small = slim(params())
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3"), jnp.float32)
    _ = checkpoints.save_slim(tmp_path / "with", small, shape, gradient=True)
    loss = lambda fn: lambda p, x: (fn(p, x)["logits"] ** 2).sum()
    found, expected = checkpoints.load_slim(tmp_path / "with"), jax.grad(loss(small.fn))(small.params, X)
    for run in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        got = run(loss(found.fn))(found.params, X)
        _ = jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)
    _ = checkpoints.save_slim(tmp_path / "without", small, X)
    found = checkpoints.load_slim(tmp_path / "without")
    with pytest.raises(ValueError, match=r"saved without a gradient: save it by save_slim\(\.\.\., gradient=True\)"):
        _ = jax.grad(loss(found.fn))(found.params, X)
    loop = lambda p, x: {"logits": jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: h + 1, small.fn(p, x)["logits"])}
    with pytest.raises(ValueError, match=r"the function cannot be exported: Reverse-mode(.|\n)*leave gradient=False"):
        slow = slimming.Slimmed(loop, small.params, small.manifest)
        _ = checkpoints.save_slim(tmp_path / "loop", slow, X, gradient=True)


@jax.custom_jvp
def scaled(x: jax.Array, times: jax.Array) -> jax.Array:
    return x * times[:, None]


@scaled.defjvp
def scaled_jvp(primals: Any, tangents: Any) -> Any:
    (x, times), (change, _) = primals, tangents
    return scaled(x, times), 2 * change * times[:, None]  # twice the derivative, to be told apart


@jax.custom_vjp
def shifted(x: jax.Array) -> jax.Array:
    return x + 1


_ = shifted.defvjp(lambda x: (shifted(x), x > 0), lambda positive, g: (jnp.where(positive, 3 * g, g),))


def test_derivatives_of_its_own_are_saved_for_any_batch(tmp_path):
    fn = lambda p, x, times: shifted(scaled(jax.nn.relu(x @ p["in"]["kernel"]), times)) @ p["out"]
    times = jnp.arange(1, 6)
    small = jaxprune.slim(fn, params(), {"in/kernel[1]": [0, 2, 5]}, X, times)
    sizes = jax.export.symbolic_shape("batch, 3")
    shapes = jax.ShapeDtypeStruct(sizes, jnp.float32), jax.ShapeDtypeStruct(sizes[:1], jnp.int32)
    _ = checkpoints.save_slim(tmp_path / "slim", small, *shapes, gradient=True)
    found = checkpoints.load_slim(tmp_path / "slim")
    got, expected = (jax.grad(lambda p, s=s: (s.fn(p, X, times) ** 2).sum())(s.params) for s in (found, small))
    _ = jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_another_process_needs_no_code_of_the_network(tmp_path, root):
    small = slim(params())
    _ = checkpoints.save_slim(tmp_path / "slim", small, X)
    source = (
        "import sys, numpy as np, jaxprune; fn, params, _ = jaxprune.checkpoints.load_slim(sys.argv[1]);"
        "print(float(fn(params, np.ones((5, 3), 'float32'))['logits'][0, 0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path / "slim")], cwd=root, capture_output=True, text=True, check=True
    )
    np.testing.assert_allclose(float(done.stdout), small.fn(small.params, jnp.ones((5, 3)))["logits"][0, 0], rtol=1e-5)


def test_what_cannot_be_saved_or_loaded_is_told(tmp_path, monkeypatch):
    small = slim(params())
    path = tmp_path / "slim"
    odd = slimming.Slimmed(lambda p, x: FrozenDict(small.fn(p, x)), small.params, small.manifest)
    with pytest.raises(ValueError, match="the function cannot be exported"):
        _ = checkpoints.save_slim(path, odd, X)

    def moving(p, x):
        p["out"] = p["out"] + 1
        return small.fn(p, x)

    with pytest.raises(ValueError, match=r"would not replace these leaves (.|\n)*for evaluation(.|\n)*\n  out"):
        _ = checkpoints.save_slim(path, slimming.Slimmed(moving, small.params, small.manifest), X)
    _ = checkpoints.save(path, small.params)
    with pytest.raises(ValueError, match=r"without its function; read it with checkpoints\.load"):
        _ = checkpoints.load_slim(path)
    with pytest.raises(FileExistsError):
        _ = checkpoints.save_slim(path, small, X)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    for call in (lambda: checkpoints.save_slim(tmp_path / "new", small, X), lambda: checkpoints.load_slim(path)):
        with pytest.raises(ImportError, match="needs flatbuffers: pip install flatbuffers"):
            _ = call()
    assert [p.name for p in tmp_path.iterdir()] == ["slim"]
