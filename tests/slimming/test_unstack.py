"""Layers of a scan that run one after the other."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import sensitivity, slimming
from tests.slimming import checks, nets

X = np.random.default_rng(1).normal(size=(5, 4)).astype("f4")


def stack(p: Any, x: Any) -> Any:
    """Residual blocks in a reversed scan, inside jit and remat, with numbers of layers and stacked results."""

    @jax.jit
    @jax.checkpoint
    def blocks(x: Any, up: Any, down: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            up, down, k = w
            return x + jnp.tanh(x @ up) @ down * (k + 1), x.sum(-1)

        return jax.lax.scan(layer, x, (up.astype(jnp.float32), down, jnp.arange(4)), reverse=True)

    x, sums = blocks(x, p["up"], p["down"])
    return x @ p["out"] + sums[1][:, None] + p["down"].sum()


def draw(hidden: int = 6) -> Any:
    shapes = {"up": (4, 4, hidden), "down": (4, hidden, 4), "out": (4, 2)}
    return checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


def test_the_function_and_its_gradient_stay() -> None:
    params = draw()
    fn, layers = slimming.unstack(stack, params, X)
    assert {name: type(leaf) for name, leaf in layers.items()} == {"up": tuple, "down": tuple, "out": np.ndarray}
    np.testing.assert_allclose(jax.jit(fn)(layers, X), stack(params, X), rtol=1e-5)
    loss = lambda fn: lambda p: (fn(p, X) ** 2).sum()
    got, expected = jax.grad(loss(fn))(layers), jax.grad(loss(stack))(params)
    got = {name: np.stack(own) if isinstance(own, tuple) else own for name, own in got.items()}
    for name, own in expected.items():
        np.testing.assert_allclose(got[name], own, rtol=1e-4, atol=1e-4)
    _, shapes = slimming.unstack(stack, jax.eval_shape(lambda: params), X)
    assert [leaf.shape for leaf in shapes["up"]] == [(4, 6)] * 4
    with pytest.raises(ValueError, match="down: expected 4 layers of one shape"):
        _ = fn(layers | {"down": layers["down"][:3]}, X)
    with pytest.raises(ValueError, match="no scan runs over the first axis of a leaf of params"):
        _ = slimming.unstack(lambda p, x: x @ p["out"], params, X)


def test_the_layers_of_a_flax_scan_have_groups_of_their_own() -> None:
    net = nets.Llama(mode="scan")
    tokens = jnp.zeros((1, 3), jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), tokens)
    fn, layers = slimming.unstack(net.apply, params, tokens)
    groups = slimming.find_groups(fn, layers, tokens)
    assert [g.count for g in groups if "gate" in g.name] == [24] * 3
    small = slimming.slim(fn, layers, {"params/ScanLlamaBlock_0/gate/kernel/1[1]": range(20)}, tokens)
    assert [leaf.shape[1] for leaf in small.params["params"]["ScanLlamaBlock_0"]["gate"]["kernel"]] == [24, 4, 24]
    assert jax.eval_shape(small.fn, small.params, tokens).shape == jax.eval_shape(net.apply, params, tokens).shape


def test_four_layers_of_four_options_are_the_best_of_all() -> None:
    params = draw(8)
    params = params | {"up": params["up"] * np.array([0.2, 1.0, 0.4, 2.0], "f4")[:, None, None]}
    residual = lambda p, x: jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w[0]) @ w[1], None), x, (p["up"], p["down"]))[0]
    fn, layers = slimming.unstack(lambda p, x: residual(p, x) @ p["out"], params, X)
    groups = slimming.find_groups(fn, layers, X)
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, layers))
    [*names] = (g.name for g in groups if g.count == 8)
    target = fn(layers, X)
    loss = lambda p: ((fn(p, X) - target) ** 2).mean()
    found = sensitivity.group_sensitivity(loss, layers, groups, scores, [0.25, 0.5, 1.0])
    assert list(found.names) == names
    assert len(names) == 4

    def widths(choice: slimming.Choice) -> list[int]:
        return [int(choice.kept(name).sum()) for name in names]

    cost = lambda choice: sum(1.0 + 2.0 * w * (w % 4 == 0) + 2.2 * w * (w % 4 != 0) for w in widths(choice))  # seconds
    own = {8: 17.0, 6: 1 + 2.2 * 6, 4: 9.0, 0: 1.0}
    options = np.asarray([own[w] for w in (8, 6, 4, 0)])
    for target_cost in (20.0, 33.3, 50.0):
        choice, levels = sensitivity.choose_levels(groups, scores, found, found.changes, cost, target_cost)
        every = [
            (sum(found.changes[i, o] for i, o in enumerate(chosen)), chosen)
            for chosen in itertools.product(range(4), repeat=4)
            if options[list(chosen)].sum() <= target_cost
        ]
        assert levels.loss == pytest.approx(min(every)[0])
        assert widths(choice) == [(8, 6, 4, 0)[o] for o in levels.chosen]
        small = slimming.slim(fn, layers, choice, X)
        expected = fn(checks.masked(layers, choice), X)
        np.testing.assert_allclose(small.fn(small.params, X), expected, rtol=1e-4, atol=1e-5)
    assert 0 in widths(choice) or min(widths(choice)) < max(widths(choice))
