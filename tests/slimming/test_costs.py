"""FLOPs of choices, counted from the labels, are those of the smaller function's own program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from jaxprune._jaxprs import count_flops, trace
from jaxprune.slimming.choose import removal_order
from tests import mixtures
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


def test_flops_of_ragged_products_count_each_row_once() -> None:
    params, x = mixtures.params(), mixtures.tokens(12)
    groups = slimming.find_groups(mixtures.ragged, params, x)
    cost = slimming.costs.flops(groups)
    hidden = next(g for g in groups if g.layers > 1)
    each = hidden.count // hidden.layers
    for removed in ({}, {"w1[0]": [1, 2]}, {hidden.name: [each * k for k in range(hidden.layers)]}):
        choice = slimming.Choice.remove(groups, removed)
        assert cost(choice) == recounted(mixtures.ragged, params, choice, x)
        assert "FLOPs of a call" in str(choice)


def attention(p: Any, x: Any) -> Any:
    """A residual block of two heads and an MLP; a position of `q` belongs to a head and to a dimension of all heads."""
    h = x @ p["in"]
    q, k, v = ((h @ p[name]).reshape(*x.shape[:2], 3, 4) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    h = h + jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*x.shape[:2], 12) @ p["o"]
    return (h + jax.nn.relu(h @ p["up"]) @ p["down"]) @ p["out"]


@pytest.mark.parametrize("scope", few(("group", "global"), "global"))
def test_choice_to_a_target_is_the_first_that_meets_it_by_recounting(scope: str) -> None:
    shapes = dict.fromkeys("qkv", (6, 12)) | {
        "in": (3, 6),
        "o": (12, 6),
        "up": (6, 5),
        "down": (5, 6),
        "out": (6, 2),
    }
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)
    groups = slimming.find_groups(attention, params, x)
    scores = np.random.default_rng(0).random(groups.size)
    removals = removal_order(groups, scores, scope=scope)
    choices = [slimming.Choice(groups, np.ones(groups.size, bool))]
    for removal in removals:
        keep = choices[-1].keep.copy()
        keep[removal.units] = False
        choices.append(slimming.Choice(groups, keep))
    brute = [recounted(attention, params, choice, x) for choice in choices]
    for cost in (slimming.costs.flops(groups), slimming.costs.flops(attention, params, x)):
        assert [cost(choice) for choice in choices] == brute
        for target in np.linspace(brute[-1], brute[0], 9):
            first = next(i for i, flops in enumerate(brute) if flops <= target)
            found = slimming.choose(groups, scores, cost=cost, target=target, scope=scope)
            assert (found.keep == choices[first].keep).all()


def test_flops_of_groups_take_no_parameters() -> None:
    params, x = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, jnp.ones((5, 3))
    groups = slimming.find_groups(lambda p, x: x @ p["a"] @ p["b"], params, x)
    with pytest.raises(TypeError, match="either groups alone, or a function"):
        _ = slimming.costs.flops(groups, params, x)
