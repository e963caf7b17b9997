"""Scores of units: by every criterion, and by the geometric median."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import criteria, slimming
from jaxprune.calibration import accumulate_gradients, calibrate
from tests.slimming import checks
from tests.slimming.test_choose import net, scanned

SHAPES = {"a": (3, 6), "b": (6, 5), "c": (5, 2)}
X = np.random.default_rng(3).normal(size=(7, 3)).astype("f4")


@pytest.fixture(scope="module")
def params() -> Any:
    return checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()})


def distances(units: list[np.ndarray]) -> list[float]:
    return [sum(float(np.linalg.norm(u - v)) for v in units) for u in units]


def test_geometric_median_is_the_sum_of_distances(params: Any) -> None:
    groups = slimming.find_groups(net, params, X)
    scores = slimming.geometric_median_scores(groups, params, normalise=None)
    p = jax.tree.map(np.asarray, params)
    units = [np.concatenate([p["a"][:, i], p["b"][i]]) for i in range(6)]
    np.testing.assert_allclose(scores[groups["a[1]"].span], distances(units), rtol=1e-5)
    only = slimming.geometric_median_scores(groups, params, where="a")
    expected = np.asarray(distances(list(p["a"].T)))
    np.testing.assert_allclose(only[groups["a[1]"].span], expected / expected.mean(), rtol=1e-5)
    assert not only[groups["b[1]"].span].any()
    # Moving all units of a group by the same amount changes nothing: it is not their norms that count.
    moved = slimming.geometric_median_scores(groups, {**p, "a": p["a"] + np.ones((3, 1), "f4")}, where="a")
    np.testing.assert_allclose(moved, only, rtol=1e-4)


def test_geometric_median_of_stacked_layers_and_of_heads() -> None:
    groups, params = scanned()
    scores = slimming.geometric_median_scores(groups, params, normalise=None)
    a, b = params["a"], params["b"]
    layers = [[np.concatenate([a[k, :, i], b[k, i]]) for i in range(8)] for k in range(3)]
    np.testing.assert_allclose(scores[groups["a[2]"].span], np.concatenate([distances(u) for u in layers]), rtol=1e-5)
    width = [np.concatenate([a[:, i].ravel(), b[..., i].ravel(), params["c"][:, i]]) for i in range(4)]
    np.testing.assert_allclose(scores[groups["a[1]"].span], distances(width), rtol=1e-5)
    fused = {"w": np.random.default_rng(0).normal(size=(3, 6)).astype("f4"), "o": np.ones((6, 2), np.float32)}
    heads = lambda p, x: (
        jnp.tanh((x @ p["w"]).reshape(7, 2, 3).sum(-1, keepdims=True) * jnp.ones(3)).reshape(7, 6) @ p["o"]
    )
    groups = slimming.find_groups(heads, fused, X)
    blocks = [fused["w"][:, 3 * h : 3 * h + 3].ravel() for h in range(2)]
    [group] = [g for g in groups if g.block == 3]
    found = slimming.geometric_median_scores(groups, fused, normalise=None, where="w")[group.span]
    np.testing.assert_allclose(found, distances(blocks), rtol=1e-5)


SIGNALS: dict[str, Callable[[Any, Any], Any]] = {
    "magnitude": lambda p, s: criteria.magnitude(p),
    "taylor": lambda p, s: criteria.gradient(p, grads=s["grads"]),
    "taylor, squared": lambda p, s: criteria.gradient(p, grads=s["grads"], power=2),
    "fisher": lambda p, s: criteria.fisher(p, squared_grads=s["squares"]),
    "hessian diagonal": lambda p, s: criteria.obd(p, hessian_diagonal=s["hessian"]),
    "activation mean": lambda p, s: criteria.activation_mean(p, stats=s["stats"]),
    "wanda": lambda p, s: criteria.wanda(p, stats=s["stats"]),
    "random": lambda p, s: criteria.random(p, key=jax.random.key(0)),
    "one's own": lambda p, s: jax.tree.map(jnp.square, p),
}


@pytest.fixture(scope="module")
def signals(params: Any) -> Any:
    loss = lambda p, x: jnp.sum(net(p, x[None]) ** 2)
    return {
        "grads": jax.grad(lambda p: jnp.sum(net(p, X) ** 2))(params),
        "hessian": criteria.hessian_diagonal(lambda p, x: jnp.sum(net(p, x) ** 2), params, [X], key=jax.random.key(1)),
        "squares": accumulate_gradients(loss, params, [X], per_example=True).square,
        "stats": calibrate(net, params, [X], collect=("total", "gram")),
    }


@pytest.mark.parametrize("name", SIGNALS)
def test_units_add_up_what_a_criterion_gives_their_entries(name: str, params: Any, signals: Any) -> None:
    groups = slimming.find_groups(net, params, X)
    leaves = jax.tree.map(np.asarray, SIGNALS[name](params, signals))
    scores = slimming.group_scores(groups, leaves, reduce="sum", normalise=None)
    np.testing.assert_allclose(scores[groups["a[1]"].span], leaves["a"].sum(0) + leaves["b"].sum(1), rtol=1e-5)
    np.testing.assert_allclose(scores[groups["b[1]"].span], leaves["b"].sum(0) + leaves["c"].sum(1), rtol=1e-5)
    assert scores.std() > 0


def test_scales_of_normalisation_are_scores_by_themselves() -> None:
    params = {"w": np.ones((3, 4), np.float32), "scale": np.array([3, 1, 2, 4], np.float32), "o": np.ones((4, 2), "f4")}
    groups = slimming.find_groups(lambda p, x: jax.nn.relu(x @ p["w"] * p["scale"]) @ p["o"], params, X)
    assert slimming.group_scores(groups, params, where="*scale", normalise=None).tolist() == [3, 1, 2, 4]


@pytest.mark.parametrize("normalise", ["mean", "sum", "max"])
def test_normalising_negative_scores_keeps_their_order(normalise: str) -> None:
    """OBD with the diagonal of the Hessian itself is negative where the loss is curved downwards."""
    rng = np.random.default_rng(0)
    groups = slimming.find_groups(net, {k: np.ones(s, np.float32) for k, s in SHAPES.items()}, X)
    for shift in (-3.0, -0.1, 0.0, 3.0):
        scores = {k: rng.normal(size=s) + shift for k, s in SHAPES.items()}
        plain = slimming.group_scores(groups, scores, reduce="sum", normalise=None)
        found = slimming.group_scores(groups, scores, reduce="sum", normalise=normalise)
        for group in groups:
            own, size = plain[group.span], {"mean": np.mean, "sum": np.sum, "max": np.max}[normalise]
            np.testing.assert_allclose(found[group.span], own / size(np.abs(own)), rtol=1e-12)
            np.testing.assert_array_equal(np.argsort(found[group.span]), np.argsort(own))


def test_the_most_harmful_units_go_where_removing_them_helps() -> None:
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    groups = slimming.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, X)
    hessian = {"a": jnp.zeros((3, 4)), "b": jnp.asarray([[-4.0], [-3.0], [-2.0], [-1.0]]) * jnp.ones((4, 2))}
    scores = slimming.group_scores(groups, criteria.obd(params, hessian_diagonal=hessian), reduce="sum")
    assert slimming.choose(groups, scores, 0.5).keep.tolist() == [False, False, True, True]


def test_a_predicate_sees_the_path_and_the_leaf(params: Any) -> None:
    groups = slimming.find_groups(net, params, X)
    flat = slimming.group_scores(groups, params, where=lambda name, leaf: name == "a" and leaf.shape == (3, 6))
    np.testing.assert_array_equal(flat, slimming.group_scores(groups, params, where="a"))


def test_bad_input(params: Any) -> None:
    groups = slimming.find_groups(net, params, X)
    wrong: list[tuple[Any, Any, str]] = [
        ({"a": params["a"]}, {}, "got 1 leaves for 3:\\n  b: only in the parameters"),
        ({**params, "b": params["b"].T}, {}, r"parameters of b have shape \(5, 6\), the parameter \(6, 5\)"),
        (params, {"normalise": "median"}, "normalise must be one of .* got 'median'"),
        (params, {"where": "z"}, "where selects none of: a, b, c"),
        (params, {"where": ["a", "z"]}, "where: no leaf matches 'z'; there are: a, b, c"),
    ]
    for given, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            _ = slimming.geometric_median_scores(groups, given, **options)


def test_scores_of_another_group_or_width_are_refused():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    groups = slimming.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"group a\[1\] has 4 units; got scores \(3,\)"):
        _ = slimming.choose(groups, {"a[1]": np.ones(3)}, 0.5)
    with pytest.raises(KeyError, match="no group 'z'"):
        _ = slimming.choose(groups, {"a[1]": np.ones(4), "z": np.ones(4)}, 0.5)


def test_groups_without_scores_stay_whole():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 6)), "c": jnp.ones((6, 2))}
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
    groups = slimming.find_groups(fn, params, jnp.ones((5, 3)))
    choice = slimming.choose(groups, {"b[1]": [3, 1, 2, 6, 5, 4]}, 0.5)
    assert choice.kept("b[1]").tolist() == [False, False, False, True, True, True]
    assert choice.kept("a[1]").all()
    assert choice.untouched == {"a[1]": "it is protected"}
