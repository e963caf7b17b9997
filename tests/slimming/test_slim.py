"""Slimming of whole nets: masked and smaller agree, groups are those one expects."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import criteria, slimming
from jaxprune.calibration import calibrate
from tests.cases import few, normal
from tests.slimming import checks, nets


def image(side: int = 16) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, side, side, 3)), jnp.float32)


def sequence() -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, 8)), jnp.float32)


def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 6)))


def build(model: Any, x: Any) -> Any:
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return checks.random_params(jax.eval_shape(model.init, keys, x))


# The number of units of each group.
CASES = {
    "lenet": (nets.LeNet(), image, [6, 16, 32]),
    "resnet": (nets.ResNet(), image, [8, 8, 16, 16, 16]),
    "option a": (nets.OptionA(), image, [8, 8, 8, 16, 16]),
    "mobilenet": (nets.MobileNet(), image, [6, 6, 8, 16, 24, 24]),
    "densenet": (nets.DenseNet(), image, [4, 4, 4, 8]),
    "unet": (nets.UNet(), image, None),
    "grouped convolution": (nets.Grouped(), image, [3, 4, 6, 8]),
    "rnn": (nets.RNNs(), sequence, [6, 10, 12]),
    "vit": (nets.ViT(), image, None),
    "mixture of experts": (nets.MoE(), sequence, [3, 8, 36]),
    # heads, queries of a head, rotated pairs, value dimensions of each layer, MLP of each layer, embedding
    "llama": (nets.Llama("half"), tokens, [2, 2, 2, 2, 4, 4, 8, 8, 16, 24, 24]),
    "llama scanned": (nets.Llama("half", "scan"), tokens, [3, 4, 6, 6, 16, 24, 72]),
}
QUICK = ("lenet", "option a", "densenet", "grouped convolution", "rnn", "mixture of experts", "llama scanned")
SLOW = {
    "rope rotated": (nets.Llama("rot"), tokens, [2, 2, 2, 2, 4, 4, 8, 8, 16, 24, 24]),
    "rope interleaved": (nets.Llama("inter"), tokens, [2, 2, 2, 2, 4, 4, 8, 8, 16, 24, 24]),
    "rope complex": (nets.Llama("complex"), tokens, [2, 2, 2, 2, 4, 4, 8, 8, 16, 24, 24]),
    "llama rematted": (nets.Llama("half", "remat"), tokens, [3, 4, 6, 6, 16, 24, 72]),
}
ALL = few((CASES | SLOW).items(), *((name, CASES[name]) for name in QUICK))


@pytest.mark.parametrize(("name", "case"), ALL)
def test_smaller_equals_masked(name: str, case: Any) -> None:
    model, make, units = case
    x = make()
    groups, _, small = checks.check_agrees(model.apply, build(model, x), (x,))
    if units is not None:
        assert sorted(g.count for g in groups) == units, name
    sizes = [sum(p.size for p in jax.tree.leaves(t)) for t in (build(model, x), small.params)]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.slow
def test_a_sparsity_scores_chooses_and_slims() -> None:
    model, x = nets.ResNet(), image(8)
    params = build(model, x)
    groups = slimming.find_groups(model.apply, params, x)
    loss: Any = lambda p: jnp.sum(jnp.square(jnp.asarray(model.apply(p, x))))
    grads = jax.jit(jax.grad(loss))(params)
    ways: list[tuple[dict[str, Any], Any]] = [
        ({}, criteria.magnitude(params)),
        ({"criterion": criteria.gradient, "grads": grads}, criteria.gradient(params, grads=grads)),
        ({"criterion": criteria.random, "key": jax.random.key(3)}, criteria.random(params, key=jax.random.key(3))),
        ({"criterion": lambda params, **_: jax.tree.map(jnp.square, params)}, jax.tree.map(jnp.square, params)),
    ]
    for options, scores in ways:
        small = slimming.slim(model.apply, params, 0.5, x, **options)
        choice = slimming.choose(groups, slimming.group_scores(groups, scores), 0.5)
        expected = slimming.slim(model.apply, params, choice, x)
        assert small.manifest.to_json() == expected.manifest.to_json()
        assert checks.difference(expected.params, small.params) == 0
        assert sorted(g.count for g in slimming.find_groups(small.fn, small.params, x)) == [4, 4, 8, 8, 8]
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\]; got 1.5"):
        _ = slimming.slim(model.apply, params, 1.5, x)


def test_a_sparsity_may_be_a_scalar_array() -> None:
    params = {"a": jnp.array([[3.0, 1.0, 2.0, 4.0]]), "b": jnp.ones((4, 2))}
    for half in (np.float32(0.5), jnp.float32(0.5), np.array(0.5)):
        small = slimming.slim(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, half, jnp.ones((5, 1)))
        assert small.params["a"].tolist() == [[3, 4]]


def test_a_sparsity_that_removes_nothing_warns() -> None:
    centred = lambda p, x: ((h := x @ p["a"] + 1.0) - h.mean(-1, keepdims=True)) @ p["b"]
    params = {"a": np.ones((3, 4), np.float32), "b": np.ones((4, 2), np.float32)}
    with pytest.warns(UserWarning, match=r"slim removes nothing(.|\n)*a\[1\]: .*Limits\(inexact=True\)"):
        small = slimming.slim(centred, params, 0.5, jnp.ones((5, 3)))
    assert small.params["a"].shape == (3, 4)


def test_gradients_agree_and_so_does_a_second_round() -> None:
    model, x = nets.ResNet(), image(8)
    params = build(model, x)
    _, choice, small = checks.check_agrees(model.apply, params, (x,))
    loss = lambda fn: jax.jit(jax.grad(lambda p: jnp.sum(fn(p, x) ** 2)))
    expected = small.shrink(loss(model.apply)(checks.masked(params, choice)))
    assert checks.difference(expected, loss(small.fn)(small.params)) < 1e-4
    again = slimming.find_groups(small.fn, small.params, x)
    assert sorted(g.count for g in again) == [4, 4, 8, 8, 8]


def test_other_batch_and_image_sizes() -> None:
    model, shape = nets.ResNet(), jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    params = build(model, shape)
    groups = slimming.find_groups(model.apply, params, shape)
    choice = checks.random_choice(groups)
    small = slimming.slim(model.apply, params, choice, shape)
    other = image(12)[:1]
    expected = jax.jit(model.apply)(checks.masked(params, choice), other)
    assert checks.difference(expected, jax.jit(small.fn)(small.params, other)) < 1e-5


def test_vmap_over_models() -> None:
    params = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4))), "b": jnp.ones((2, 4, 2))}
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
    one = jax.tree.map(lambda p: p[0], params)
    small = slimming.slim(fn, one, {"a[1]": [1]}, jnp.ones((5, 3)))
    stacked = {"a": params["a"][:, :, [0, 2, 3]], "b": params["b"][:, [0, 2, 3]]}
    got = jax.vmap(small.fn, (0, None))(stacked, jnp.ones((5, 3)))
    assert got.shape == (2, 5, 2)
    assert checks.difference(small.fn(jax.tree.map(lambda p: p[1], stacked), jnp.ones((5, 3))), got[1]) < 1e-6


def test_each_scanned_layer_loses_its_own_units() -> None:
    model, x = nets.Llama("half", "scan"), tokens()
    groups, choice, small = checks.check_agrees(model.apply, build(model, x), (x,))
    group = next(g for g in groups if g.layer is not None and g.count == 72)
    kept = choice.kept(group.name)
    assert len({tuple(kept[group.layer == k].tolist()) for k in range(3)}) > 1
    name = group.members[0].name
    kept_axes = next(k for k in small.manifest.leaves if k.name == name).axes
    assert kept_axes[group.members[0].axis].shape == (3, 12)


def test_training_mode_returns_smaller_statistics() -> None:
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
            x = nn.Dropout(0.5, deterministic=not train)(x)
            return nn.Dense(3)(x.mean((1, 2)))

    model, x, key = Net(), image(8), jax.random.key(5)
    variables = build(model, x)
    _, choice, small = checks.check_agrees(model.apply, variables, (x,))
    train = lambda v, x, key: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    expected, state = train(checks.masked(variables, choice), x, key)
    got, new = jax.jit(small.rebind(train))(small.params, x, key)
    assert checks.difference(expected, got) < 1e-5
    assert checks.difference(small.shrink(state), new) < 1e-5


def test_custom_derivatives_are_kept() -> None:
    @jax.custom_vjp
    def clip(x: Any) -> Any:
        return jnp.clip(x, -1, 1)

    _ = clip.defvjp(lambda x: (clip(x), (x,)), lambda res, g: (jnp.where(jnp.abs(res[0]) < 1, g, 0.25 * g),))
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 6))), "b": jnp.asarray(rng.normal(size=(6, 2)))}
    x = jnp.asarray(rng.normal(size=(5, 3)))
    fn = lambda p, x: jax.nn.relu(clip(x @ p["a"])) @ p["b"]
    _, choice, small = checks.check_agrees(fn, params, (x,))
    grad = lambda f, p: jax.grad(lambda p: jnp.sum(f(p, x) ** 2))(p)
    expected = small.shrink(grad(fn, checks.masked(params, choice)))
    assert checks.difference(expected, grad(small.fn, small.params)) < 1e-5
    # relu's own derivative at zero is 0, that of max(x, 0) would be a half.
    zero = jax.tree.map(jnp.zeros_like, small.params) | {"b": jnp.ones_like(small.params["b"])}
    assert not jnp.any(grad(lambda p, x: small.fn(p, x) + 1, zero)["a"])


def test_parameters_of_another_shape_are_refused() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    small = slimming.slim(fn, params, {"a[1]": [0]}, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"not the smaller parameters:\n  a: expected \(3, 3\), got \(3, 4\)"):
        _ = small.fn(params, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="other parameters: 1 leaves, expected 2"):
        _ = small.fn({"a": params["a"]}, jnp.ones((5, 3)))


def test_the_program_is_that_of_a_net_built_at_the_width() -> None:
    import re
    from collections import Counter

    import flax.linen as nn

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(self.width, (3, 3))(x)))
            return nn.Dense(3)(nn.relu(nn.Conv(self.width, (3, 3))(x)).mean((1, 2)))

    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(Net(8).init, jax.random.key(0), x)
    groups = slimming.find_groups(Net(8).apply, shapes, x)
    small = slimming.slim(Net(8).apply, shapes, {g.name: range(0, 8, 2) for g in groups}, x)
    own = jax.eval_shape(Net(4).init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, small.params) == jax.tree.map(jnp.shape, own)
    operations = lambda fn: Counter(
        re.findall(r" ([a-z][a-z0-9_-]*)\(", jax.jit(fn).lower(own, x).compile().as_text() or "")
    )
    assert operations(small.fn) == operations(Net(4).apply)


def test_an_array_that_is_unpacked_is_followed() -> None:  # newer versions of JAX trace one equation, `unstack`
    def fn(p: Any, x: Any) -> Any:
        for w in p["layers"]:
            x = x + jnp.tanh(x @ w)
        q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(len(x), 3, 4), 1, 0)
        return (q * k + v) @ p["out"]

    params, x = {"layers": normal(2, 6, 6), "qkv": normal(6, 12), "out": normal(4, 3)}, normal(5, 6)
    assert [group.count for group in slimming.find_groups(fn, params, x)] == [4]
    small = slimming.slim(fn, params, {"qkv[1]": [1]}, x)
    masked = {**params, "qkv": params["qkv"].reshape(6, 3, 4).at[:, :, 1].set(0).reshape(6, 12)}
    np.testing.assert_allclose(small.fn(small.params, x), fn(masked, x), rtol=1e-5, atol=1e-5)
    stats = calibrate(fn, params, [x])
    np.testing.assert_allclose(stats["layers"].gram[0], x.T @ x, rtol=1e-5)
