"""Other functions of the same parameters: parts of a network, a step with a cache, training with state."""

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from tests.slimming import checks

Array = jax.Array


def draw(**shapes: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32) for name, shape in shapes.items()}


def encode(p: Any, x: Any) -> Array:
    return jax.nn.relu(x @ p["a"]) @ p["code"]


def decode(p: Any, h: Any) -> Array:
    return jnp.tanh(h @ p["b"]) @ p["out"]


def test_a_function_may_use_part_of_the_parameters() -> None:
    params, x = draw(a=(6, 8), code=(8, 7), b=(7, 8), out=(8, 5)), jnp.ones((2, 6))
    both = lambda p, x: decode(p, encode(p, x))
    groups = slimming.find_groups(both, params, x)
    choice = slimming.Choice.remove(groups, {"a[1]": [0, 1], "b[1]": [2], "code[1]": [3]})
    small = slimming.slim(both, params, choice, x)
    masked = checks.masked(params, choice)
    h = small.rebind(encode)(small.params, x)
    np.testing.assert_allclose(h, np.delete(encode(masked, x), 3, 1), rtol=1e-5, atol=1e-6)
    # The code is an input of the decoder: told its whole shape, the decoder takes what is left of it, in any batch.
    back = small.rebind(decode, jax.ShapeDtypeStruct((2, 7), jnp.float32))
    np.testing.assert_allclose(back(small.params, h), both(masked, x), rtol=1e-5, atol=1e-6)
    many = jnp.concatenate([h, h, h])
    np.testing.assert_allclose(jax.jit(back)(small.params, many)[4:], both(masked, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"must be smaller:\n  input 0: expected 6 of 7 positions on axis 1, got shape"
    ):
        _ = back(small.params, jnp.ones((2, 7)))
    with pytest.raises(TypeError) as caught:
        _ = small.rebind(decode)(small.params, h)
    assert any("rebind(fn, *inputs)" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match="must have the structure of the inputs given to rebind"):
        _ = back(small.params, {"h": h})


HEADS, WIDTH = 4, 3


def attend(p: Any, q: Any, k: Any, v: Any) -> Array:
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), -1)
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*q.shape[:2], -1) @ p["o"]


def heads(x: Any) -> Array:
    return x.reshape(*x.shape[:2], HEADS, WIDTH)


def whole_sequence(p: Any, x: Any) -> Array:
    return attend(p, *(heads(x @ p[name]) for name in "qkv"))


def one_token(p: Any, cache: Any, x: Any) -> tuple[Array, Any]:
    new = {name: jnp.concatenate([cache[name], heads(x @ p[name])], 1) for name in "kv"}
    return attend(p, heads(x @ p["q"]), new["k"], new["v"]), new


@pytest.mark.slow
def test_a_key_value_cache_loses_the_heads_of_the_parameters() -> None:
    params, x = draw(q=(5, 12), k=(5, 12), v=(5, 12), o=(12, 5)), jnp.asarray(np.ones((2, 3, 5)), jnp.float32)
    groups = slimming.find_groups(whole_sequence, params, x)
    [name] = [g.name for g in groups if g.block == WIDTH]
    choice = slimming.Choice.remove(groups, {name: [0, 3]})
    small = slimming.slim(whole_sequence, params, choice, x)
    cache = {n: jax.ShapeDtypeStruct((2, 2, HEADS, WIDTH), jnp.float32) for n in "kv"}
    step = small.rebind(one_token, cache, x[:, :1])
    full = {n: heads(x[:, :2] @ checks.masked(params, choice)[n]) for n in "kv"}
    expected, after = one_token(checks.masked(params, choice), full, x[:, 2:])
    out, new = step(small.params, {n: c[:, :, 1:3] for n, c in full.items()}, x[:, 2:])
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    for n in "kv":
        np.testing.assert_allclose(new[n], after[n][:, :, 1:3], rtol=1e-5, atol=1e-6)
    again, _ = step(small.params, new, x[:, :1])  # a longer cache than the one it was told of
    assert again.shape == (2, 1, 5)


class Noisy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.norm = nnx.Linear(6, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.drop, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: Any) -> Array:
        return self.b(self.drop(nnx.relu(self.norm(self.a(x)))))


@pytest.mark.slow
def test_the_state_of_a_module_moves_on() -> None:
    x = 5 + jnp.asarray(np.random.default_rng(0).normal(size=(64, 6)), jnp.float32)
    call = lambda model, x: model(x)
    model = Noisy(nnx.Rngs(0))
    model.eval()
    small = slimming.slim(call, model, {"a/kernel[1]": [0, 1]}, x)
    small.params.train()
    model.train()
    train = small.rebind(call)
    _ = model(x)
    first = train(small.params, x)
    np.testing.assert_allclose(small.params.norm.mean[...], model.norm.mean[...][2:], rtol=1e-4)
    np.testing.assert_allclose(small.params.norm.var[...], model.norm.var[...][2:], rtol=1e-4)
    assert (first != train(small.params, x)).any()  # another mask of dropout
    assert int(small.params.drop.rngs.count[...]) == 2
    moved = jnp.asarray(small.params.norm.mean[...])
    _ = nnx.jit(train)(small.params, x)
    assert (small.params.norm.mean[...] != moved).any()
    small.params.eval()
    before = jax.tree.leaves(small.params)
    _ = small.fn(small.params, x)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(small.params), strict=True))


def test_dictionaries_are_changed_as_the_function_changes_them() -> None:
    def counting(p: Any, x: Any) -> Array:
        p["total"] = p["total"] + jnp.abs(x @ p["a"]).sum(0)
        return jnp.tanh(x @ p["a"]) @ p["b"]

    params, x = draw(a=(3, 4), b=(4, 2)) | {"total": jnp.zeros(4)}, jnp.ones((5, 3))
    small = slimming.slim(counting, dict(params), {"a[1]": [0]}, x)
    assert small.params["total"].shape == (3,)
    _ = small.fn(small.params, x)
    np.testing.assert_allclose(small.params["total"], 5 * np.abs(np.asarray(params["a"]).sum(0))[1:], rtol=1e-5)


def test_leaves_that_only_training_reads_follow() -> None:
    """Averages that inference does not read, as Haiku keeps beside those that it reads."""

    def normalise(p: Any, h: Any, mean: Any) -> Array:
        return jnp.tanh(h - mean) * p["scale"]

    def infer(p: Any, x: Any) -> Array:
        return normalise(p, x @ p["a"], p["average"]) @ p["b"]

    def train(p: Any, x: Any) -> Any:
        h = x @ p["a"]
        hidden = 0.9 * p["hidden"] + 0.1 * h.mean(0)
        return normalise(p, h, h.mean(0)) @ p["b"], {"hidden": hidden, "average": hidden / 0.1}

    params, x = draw(a=(3, 8), scale=(8,), average=(8,), hidden=(8,), b=(8, 2)), jnp.ones((5, 3))
    alone = slimming.find_groups(infer, params, x)
    assert "hidden" not in {m.name for m in alone["a[1]"].members}
    groups = slimming.find_groups(infer, params, x, also=[(train, x)])
    assert "hidden" in {m.name for m in groups["a[1]"].members} and groups["a[1]"].exact
    choice = slimming.Choice.remove(groups, {"a[1]": [0, 5]})
    small = slimming.slim(infer, params, choice, x)
    masked = checks.masked(params, choice)
    assert checks.difference(infer(masked, x), small.fn(small.params, x)) < 1e-5
    out, state = small.rebind(train)(small.params, x)
    expected, whole = train(masked, x)
    assert checks.difference(expected, out) < 1e-5
    assert checks.difference(jax.tree.map(lambda s: np.delete(s, [0, 5]), whole), state) < 1e-5
