"""FLOPs of choices, counted from the labels, are those of the smaller function's own program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from jaxprune._jaxprs import count_flops, trace
from tests.cases import few
from tests.slimming import checks
from tests.slimming.test_slim import CASES, build


def recounted(fn: Any, params: Any, choice: slimming.Choice, *inputs: Any) -> float:
    small = slimming.slim(fn, params, choice, *inputs)
    return float(count_flops(trace(small.fn, small.params, *inputs).closed).total)


NAMES = ("resnet", "grouped convolution", "unet", "mobilenet", "vit", "llama scanned", "rnn")


@pytest.mark.parametrize("name", few(NAMES, "grouped convolution", "vit", "llama scanned"))
def test_flops_are_those_of_the_smaller_program(name: str) -> None:
    model, make, _ = CASES[name]
    x = make()
    params = build(model, x)
    groups = slimming.find_groups(model.apply, params, x)
    cost = slimming.costs.flops(model.apply, params, x)
    for seed, share in ((0, 0.0), (1, 0.3), (2, 0.6)):
        choice = checks.random_choice(groups, seed, share)
        assert cost(choice) == recounted(model.apply, params, choice, x)


def test_flops_of_loops_branches_and_layers_that_go() -> None:
    def fn(p: Any, x: Any) -> Any:
        x = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w["up"]) @ w["down"], None), x @ p["in"], p["layers"])[0]
        x = jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ p["a"]) @ p["b"], lambda x: x, x)
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ p["c"]) @ p["d"], x)
        x = jax.checkpoint(lambda x: jax.nn.relu(x @ p["e"]) @ p["f"])(x)
        _ = x @ p["f"].T  # nothing depends on it
        return x @ p["out"]

    shapes = {"in": (3, 6), "a": (6, 8), "b": (8, 6), "c": (6, 5), "d": (5, 6), "e": (6, 7), "f": (7, 6), "out": (6, 2)}
    layers = {"up": (4, 6, 8), "down": (4, 8, 6)}
    struct = lambda shapes: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    params, x = struct(shapes) | {"layers": struct(layers)}, jnp.ones((2, 3))
    groups = slimming.find_groups(fn, params, x)
    cost = slimming.costs.flops(fn, params, x)
    depth = next(g for g in groups if checks.is_depth(g))
    inside = next(g for g in groups if g.layers == 4)
    rng = np.random.default_rng(0)
    for removed in (
        {},
        {depth.name: [1, 2]},
        {inside.name: [8 * k + i for k in range(4) for i in rng.permutation(8)[:3]]},
        {depth.name: [0], "a[1]": [0, 1], "c[1]": [4], "e[1]": [2], "in[1]": [3, 5]},
    ):
        choice = slimming.Choice.remove(groups, removed)
        assert cost(choice) == recounted(fn, params, choice, x)
