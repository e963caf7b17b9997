"""`slim(compensate=True)`: weights and biases that make up for what is removed."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import slimming
from tests.slimming import checks, nets


def draw(seed: int, **shapes: tuple[int, ...]) -> Any:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, s) for key, (name, s) in zip(keys, shapes.items(), strict=True)}


def mlp(p: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ p["a"] + p["p"])
    return jnp.tanh(hidden @ p["b"] + p["q"]) @ p["c"] + p["r"]


MLP = {"a": (3, 8), "p": (8,), "b": (8, 6), "q": (6,), "c": (6, 2), "r": (2,)}


def test_biases_follow_the_formula() -> None:
    params, x = draw(0, **MLP), jax.random.normal(jax.random.key(1), (50, 3))
    stats = jaxprune.calibrate(mlp, params, [x], collect="total")
    small = jaxprune.slim(mlp, params, {"a[1]": [1, 4], "b[1]": [0]}, x, stats=stats, compensate=True)
    p = jax.tree.map(np.asarray, params)
    first = np.tanh(x @ p["a"] + p["p"])
    second = np.tanh(first @ p["b"] + p["q"])
    q = p["q"] + sum(first[:, i].mean() * p["b"][i] for i in (1, 4))
    np.testing.assert_allclose(small.params["q"], q[1:], rtol=1e-5)
    np.testing.assert_allclose(small.params["r"], p["r"] + second[:, 0].mean() * p["c"][0], rtol=1e-5)
    np.testing.assert_array_equal(small.params["p"], np.delete(p["p"], [1, 4]))


def test_the_mean_output_stays_and_its_error_falls() -> None:
    params, x = draw(2, **MLP), jax.random.normal(jax.random.key(3), (200, 3)) + 1
    stats = jaxprune.calibrate(mlp, params, [x], collect="total")
    whole = mlp(params, x)
    plain, better = (jaxprune.slim(mlp, params, {"b[1]": [0, 3]}, x, stats=stats, compensate=c) for c in (False, True))
    np.testing.assert_allclose(better.fn(better.params, x).mean(0), whole.mean(0), atol=1e-5)
    errors = [float(((s.fn(s.params, x) - whole) ** 2).mean()) for s in (plain, better)]
    assert errors[1] < 0.7 * errors[0]


def test_kept_weights_predict_what_is_removed() -> None:
    params, x = draw(2, **MLP), jax.random.normal(jax.random.key(3), (200, 3)) + 1
    params["r"] = jnp.zeros(2)
    twice = lambda p, x: mlp(p, x) @ p["d"]  # a layer without a bias
    params["d"] = jnp.ones((2, 2))
    removed = {"b[1]": [0, 3], "c[1]": [1]}
    p, results = jax.tree.map(lambda a: np.asarray(a, np.float64), params), {}
    hidden = np.tanh(np.tanh(np.asarray(x) @ p["a"] + p["p"]) @ p["b"] + p["q"])
    for collect in ("total", "gram", ("gram", "total")):
        stats = jaxprune.calibrate(twice, params, [x], collect=collect)
        if collect == "total":
            with pytest.warns(UserWarning, match="not compensated:\n  d: no leaf is added"):
                small = jaxprune.slim(twice, params, removed, x, stats=stats, compensate=True)
        else:
            small = jaxprune.slim(twice, params, removed, x, stats=stats, compensate=True)
            stay, gone = [1, 2, 4, 5], [0, 3]
            away = hidden.mean(0) if "total" in collect else 0
            gram = (hidden - away).T @ (hidden - away)
            kept = gram[np.ix_(stay, stay)]
            system = kept + 1e-2 * np.mean(np.diag(kept)) * np.eye(4)
            c = p["c"][stay] + np.linalg.solve(system, gram[np.ix_(stay, gone)] @ p["c"][gone])
            np.testing.assert_allclose(small.params["c"], c[:, :1], rtol=2e-3)
            r = (hidden.mean(0) @ p["c"] - hidden.mean(0)[stay] @ c)[:1] if "total" in collect else [0]
            np.testing.assert_allclose(small.params["r"], r, atol=2e-4)
            assert not np.allclose(small.params["d"], 1)
        results[collect] = float(((small.fn(small.params, x) - twice(params, x)) ** 2).mean())
    assert max(results["gram"], results["gram", "total"]) < results["total"]


class Cnn(nn.Module):
    """Convolutions without bias before batch normalisation, one with a bias, then layers of several axes."""

    padding: str

    @nn.compact
    def __call__(self, x: Any) -> Any:
        norm = lambda: nn.BatchNorm(use_running_average=True)
        x = nn.relu(norm()(nn.Conv(6, (3, 3), padding=self.padding, use_bias=False)(x)))
        x = nn.relu(norm()(nn.Conv(8, (3, 3), padding=self.padding, feature_group_count=2, use_bias=False)(x)))
        x = nn.relu(nn.Conv(8, (2, 2), padding=self.padding)(x)).mean((1, 2))
        x = nn.relu(nn.DenseGeneral((2, 3, 4))(x))
        return nn.DenseGeneral((3, 2), axis=(-3, -2, -1))(x)


def constant_units(params: Any, x: Any, fn: Any, seed: int = 0) -> tuple[slimming.Choice, Any]:
    """Chooses units, and makes the leaves that produce them zero, apart from biases: their value is a constant."""
    choice = checks.random_choice(slimming.find_groups(fn, params, x), seed, 0.3)
    roles = choice.groups.roles.leaves

    def cut(k: int, leaf: Any) -> Any:
        out = np.asarray(leaf).copy()
        for member in (m for g in choice.groups for m in g.members if m.leaf == k):
            stay = choice.manifest().leaves[k]
            if member.axis in stay.axes and "output" in roles[k].axes[member.axis]:
                out[(slice(None),) * member.axis + (~stay.stay(member.axis),)] = 0
        return out

    leaves, structure = jax.tree.flatten(params)
    return choice, jax.tree.unflatten(structure, [cut(k, leaf) for k, leaf in enumerate(leaves)])


def test_constant_units_of_a_cnn_are_removed_exactly_without_padding() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 9, 9, 2))
    for padding in ("VALID", "SAME"):
        fn = Cnn(padding).apply
        params = checks.random_params(jax.eval_shape(Cnn(padding).init, jax.random.key(0), x), 1)
        choice, params = constant_units(params, x, fn)
        stats = jaxprune.calibrate(fn, params, [x], collect=("gram", "total"))
        means = dataclasses.replace(
            stats, inputs={name: dataclasses.replace(own, gram=None) for name, own in stats.inputs.items()}
        )
        small = [jaxprune.slim(fn, params, choice, x, stats=own, compensate=True) for own in (means, stats)]
        plain = jaxprune.slim(fn, params, choice, x)
        whole = fn(params, x)
        errors = [checks.difference(whole, s.fn(s.params, x)) for s in (plain, *small)]
        assert errors[0] > 1e-2
        assert max(errors[1:]) < (1e-5 if padding == "VALID" else errors[0])


def test_stacked_layers_have_their_own_biases() -> None:
    params = draw(4, a=(3, 4, 8), p=(3, 8), b=(3, 8, 4), q=(3, 4))
    # The sum of the residual stream and the product has no other reader: its next term is the product's bias.
    step = lambda x, w: (x + jnp.tanh(x @ w["a"] + w["p"]) @ w["b"] + w["q"], None)
    fn = lambda p, x: jax.lax.scan(step, x, p)[0]
    x = jax.random.normal(jax.random.key(5), (20, 4))
    params["a"] = params["a"].at[:, :, :3].set(0)
    stats = jaxprune.calibrate(fn, params, [x], collect="total")
    small = jaxprune.slim(fn, params, {"a[2]": [0, 1, 2, 8, 9, 10, 16, 17, 18]}, x, stats=stats, compensate=True)
    np.testing.assert_allclose(small.fn(small.params, x), fn(params, x), rtol=1e-4, atol=1e-4)


def test_what_has_no_bias_of_its_own_is_named() -> None:
    params, x = draw(6, a=(3, 8), b=(8, 4), c=(8, 4), q=(4,)), jnp.ones((5, 3))
    stats = lambda fn: jaxprune.calibrate(fn, params, [x], collect="total")

    def shared(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"])
        return (h @ p["b"] + p["q"]) * (h @ p["c"] + p["q"])

    with pytest.raises(ValueError, match="b: its bias q is used elsewhere too"):
        _ = jaxprune.slim(shared, params, {"a[1]": [0]}, x, stats=stats(shared), compensate=True)

    def one(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["a"])
        return (h @ p["b"] + p["q"]) * (h @ p["c"]) * 2

    with pytest.warns(UserWarning, match="not compensated:\n  c: no leaf is added"):
        small = jaxprune.slim(one, params, {"a[1]": [0]}, x, stats=stats(one), compensate=True)
    assert not np.array_equal(small.params["q"], params["q"])

    def read_before(p: Any, x: Any) -> Any:
        y = jnp.tanh(x @ p["a"]) @ p["b"]
        return jnp.tanh(y) * (y + p["q"])

    scaled = lambda p, x: 2 * (jnp.tanh(x @ p["a"]) @ p["b"]) + p["q"]
    part = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"][:, :2] + p["q"][:2]
    half = lambda p, x: (jnp.tanh(x @ p["a"]) @ p["b"]).reshape(-1, 2, 2) + p["q"][:2]
    for fn in (scaled, read_before, part, half):
        with pytest.raises(ValueError, match="b: no leaf is added to its output as a bias"):
            _ = jaxprune.slim(fn, params, {"a[1]": [0]}, x, stats=stats(fn), compensate=True)

    twice = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + jnp.tanh(x @ p["a"]) @ p["b"] + p["q"]
    with pytest.raises(ValueError, match="b: it is used more than once in one sum"):
        _ = jaxprune.slim(twice, params, {"a[1]": [0]}, x, stats=stats(twice), compensate=True)
    flipped = lambda p, x: one(p, x) + jnp.tanh(x @ p["a"]) @ p["c"][:, ::-1]
    with pytest.warns(UserWarning, match="c: calibration missed some of its uses"):
        _ = jaxprune.slim(flipped, params, {"a[1]": [0]}, x, stats=stats(flipped), compensate=True)
    only_flipped = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["q"] + jnp.tanh(x @ p["a"]) @ p["c"][:, ::-1]
    with pytest.warns(UserWarning, match="c: it was not followed to a product"):
        _ = jaxprune.slim(only_flipped, params, {"a[1]": [0]}, x, stats=stats(only_flipped), compensate=True)

    summed = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + jnp.tanh(x @ p["a"]) @ p["c"] + p["q"]
    small = jaxprune.slim(summed, params, {"a[1]": [0]}, x, stats=stats(summed), compensate=True)
    np.testing.assert_allclose(small.fn(small.params, x), summed(params, x), rtol=1e-5)  # the inputs are constant
    with pytest.raises(ValueError, match="the mean was not collected"):
        squares = jaxprune.calibrate(one, params, [x], collect="square")
        _ = jaxprune.slim(one, params, {"a[1]": [0]}, x, stats=squares, compensate=True)
    with pytest.raises(TypeError, match="stats must be"):
        _ = jaxprune.slim(one, params, {"a[1]": [0]}, x, compensate=True)
    with pytest.raises(TypeError, match="compensate needs numbers: params must be arrays"):
        shapes = jax.eval_shape(lambda: params)
        _ = jaxprune.slim(one, shapes, {"a[1]": [0]}, x, stats=stats(one), compensate=True)


def test_biases_of_the_rounds_of_a_shared_kernel_are_refused() -> None:
    params, x = draw(7, a=(4, 8), b=(8, 4), q=(3, 4)), jnp.ones((5, 4))
    fn = lambda p, x: jax.lax.scan(lambda x, q: (jnp.tanh(x @ p["a"]) @ p["b"] + q, None), x, p["q"])[0]
    stats = jaxprune.calibrate(fn, params, [x], collect="total")
    with pytest.raises(ValueError, match="b: no leaf is added to its output as a bias"):
        _ = jaxprune.slim(fn, params, {"a[1]": [0]}, x, stats=stats, compensate=True)


def test_experts_are_refused() -> None:
    params, x = draw(7, router=(4, 6), w=(6, 4, 3), q=(3,)), jax.random.normal(jax.random.key(8), (40, 4))

    def mixture(p: Any, x: Any) -> Any:
        gate, index = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
        weight = (jax.nn.one_hot(index, 6) * gate[..., None]).sum(1)
        return jnp.einsum("te,td,edf->tf", weight, x, p["w"]) + p["q"]

    stats = jaxprune.calibrate(mixture, params, [x], collect="total")
    with pytest.raises(ValueError, match=r"remove units of router\[1\] in a call of their own"):
        _ = jaxprune.slim(mixture, params, {"router[1]": [0]}, x, stats=stats, compensate=True)


def test_all_biases_of_a_vision_transformer_are_found() -> None:
    x = jnp.ones((2, 8, 8, 3))
    params = checks.random_params(jax.eval_shape(nets.ViT().init, jax.random.key(0), x))
    stats = jaxprune.calibrate(nets.ViT().apply, params, [x], collect="total")
    groups = slimming.find_groups(nets.ViT().apply, params, x)
    removed = {g.name: [0] for g in groups if g.count in (4, 32)}  # heads, their dimensions, channels of the MLPs
    small = jaxprune.slim(nets.ViT().apply, params, removed, x, stats=stats, compensate=True)
    change = jax.tree.map(lambda a, b: not np.array_equal(a, b), small.params, small.shrink(params))
    biases = {"/".join(str(k.key) for k in path[1:]) for path, new in jax.tree.leaves_with_path(change) if new}
    attention = {f"MultiHeadDotProductAttention_{i}/out/bias" for i in range(2)}
    assert biases == attention | {"Dense_0/bias", "Dense_2/bias"}  # the second layers of the MLPs
