"""Which hyperparameters a model is rebuilt with: the model that has them has the shapes of the slim parameters."""

from typing import Any

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from jaxprune.slimming.hyperparameters import Rebuilt
from tests.slimming import checks


class Convolutional(nn.Module):
    widths: tuple[int, ...] = (8, 12, 16)

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        for k, width in enumerate(self.widths[:2]):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(width, (3, 3), name=f"conv{k}")(x)))
        x = nn.relu(nn.Conv(self.widths[1], (3, 3), feature_group_count=self.widths[1], name="depthwise")(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(3)(nn.relu(nn.Dense(self.widths[2], name="hidden")(x.mean((1, 2)))))


class Attentive(nn.Module):
    heads: int = 4
    features: int = 16
    hidden: int = 12

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = x + nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.features, name="attention")(x)
        return x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(self.hidden, name="up")(nn.LayerNorm()(x))))


def shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)


def changes(found: list[Rebuilt]) -> dict[str, dict[str, tuple[Any, Any]]]:
    return {entry.path: entry.changes for entry in found}


def holds(group: slimming.Group, projection: str, axis: int) -> bool:
    return any(m.name.endswith(f"attention/{projection}/kernel") and m.axis == axis for m in group.members)


def slimmed(model: Any, x: Any, keep: Any = None) -> slimming.Slimmed:
    params = checks.random_params(jax.eval_shape(model.init, jax.random.key(0), x))
    groups = slimming.find_groups(model.apply, params, x)
    removed = {g.name: range(0, g.count, 2) for g in groups if keep is None or keep(g)}
    return slimming.slim(model.apply, params, slimming.Choice.remove(groups, removed), x)


def test_a_linen_model_rebuilt_so_has_these_parameters() -> None:
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    small = slimmed(Convolutional(), x)
    found = slimming.hyperparameters(small.manifest, Convolutional(), x, train=False)
    assert all(entry.problem is None for entry in found)
    assert changes(found) == {
        "conv0: Conv": {"features": (8, 4)},
        "conv1: Conv": {"features": (12, 6)},
        "depthwise: Conv": {"features": (12, 6), "feature_group_count": (12, 6)},
        "hidden: Dense": {"features": (16, 8)},
    }
    rebuilt = Convolutional((4, 6, 8))
    assert shapes(jax.eval_shape(rebuilt.init, jax.random.key(0), x)) == shapes(small.params)
    values = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), jnp.float32)
    assert checks.difference(small.fn(small.params, values), rebuilt.apply(small.params, values)) < 1e-5


def test_heads_and_hidden_width_of_a_transformer() -> None:
    x = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
    small = slimmed(Attentive(), x, lambda g: holds(g, "query", 1) or g.count == 12)
    found = slimming.hyperparameters(small.manifest, Attentive(), x)
    assert all(entry.problem is None for entry in found)
    expected = {"attention: MultiHeadDotProductAttention": {"num_heads": (4, 2), "qkv_features": (16, 8)}}
    assert changes(found) == expected | {"up: Dense": {"features": (12, 6)}}
    rebuilt = Attentive(2, 8, 6)
    values = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), jnp.float32)
    assert checks.difference(small.fn(small.params, values), rebuilt.apply(small.params, values)) < 1e-5


def test_what_a_constructor_cannot_say_is_a_problem() -> None:
    x = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
    groups = slimming.find_groups(Attentive().apply, jax.eval_shape(Attentive().init, jax.random.key(0), x), x)
    query, value = (next(g.name for g in groups if holds(g, part, 2)) for part in ("query", "value"))
    cases = [
        ({query}, "queries and values would have other dimensions"),
        ({query, value}, "the scale 1/sqrt(dimensions) would be another"),
    ]
    for names, problem in cases:
        small = slimmed(Attentive(), x, lambda g, names=names: g.name in names)
        [entry] = slimming.hyperparameters(small.manifest, Attentive(), x)
        assert entry.problem is not None and problem in entry.problem

    # As built the scale follows; removed dimensions of queries alone still have no constructor.
    choice = slimming.Choice.remove(groups, {query: [1], value: [0]})
    params = checks.random_params(jax.eval_shape(Attentive().init, jax.random.key(0), x))
    small = slimming.slim(Attentive().apply, params, choice, x, as_built=True)
    [entry] = slimming.hyperparameters(small.manifest, Attentive(), x)
    assert entry.changes == {"qkv_features": (16, 12)}
    assert entry.problem is None

    class Uneven(nn.Module):
        features: int = 6

        @nn.compact
        def __call__(self, x: Any) -> Any:
            kernel = self.param("kernel", nn.initializers.ones, (8, self.features))
            return nn.Dense(3)((x @ kernel) @ self.param("more", nn.initializers.ones, (6, 6)))

    [entry] = slimming.hyperparameters(slimmed(Uneven(), x).manifest, Uneven(), x)
    assert entry.changes == {"features": (6, 3)}
    assert entry.problem is not None and "it could not be built with these values: " in entry.problem

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            w = self.param("w", nn.initializers.ones, (8, 6))
            return nn.Dense(3)(nn.relu(nn.LayerNorm()(x) @ w))

    [entry] = slimming.hyperparameters(slimmed(Own(), x).manifest, Own(), x)
    assert entry == ("the model itself: Own", {}, "no hyperparameter is known that says the shape of w")
    with pytest.raises(TypeError, match="must be a linen or NNX module; got function"):
        _ = slimming.hyperparameters(slimmed(Own(), x).manifest, shapes)


def test_an_nnx_model() -> None:
    class Net(nnx.Module):
        def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
            self.up = nnx.Linear(width, hidden, rngs=rngs)
            self.down = nnx.Linear(hidden, 4, rngs=rngs)

        def __call__(self, x: Any) -> jax.Array:
            return self.down(nnx.relu(self.up(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))))

    shaped = lambda width, hidden: nnx.eval_shape(lambda: Net(width, hidden, nnx.Rngs(0)))
    model, x = shaped(8, 12), np.ones((2, 8, 8, 3), np.float32)
    graph, shapes_only = nnx.split(model)
    state = checks.random_params(shapes_only)
    fn = lambda state, x: nnx.merge(graph, state)(x)
    groups = slimming.find_groups(fn, state, x)
    removed = {g.name: range(0, g.count, 4) for g in groups}
    small = slimming.slim(fn, state, slimming.Choice.remove(groups, removed), x)
    found = slimming.hyperparameters(small.manifest, model)
    assert changes(found) == {
        "conv: Conv": {"out_features": (8, 6)},
        "down: Linear": {"in_features": (12, 9)},
        "norm: BatchNorm": {"num_features": (8, 6)},
        "up: Linear": {"out_features": (12, 9), "in_features": (8, 6)},
    }
    again, own = nnx.split(shaped(6, 9))
    assert shapes(nnx.to_pure_dict(own)) == shapes(nnx.to_pure_dict(small.params))
    assert checks.difference(small.fn(small.params, x), nnx.merge(again, small.params)(x)) < 1e-5
