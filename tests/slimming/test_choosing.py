"""Scores of units, ratios, limits, budgets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from jaxprune.slimming import costs
from tests.slimming import checks

SHAPES = {"a": (3, 16), "b": (16, 12), "c": (12, 2)}


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


@pytest.fixture(scope="module")
def params() -> Any:
    return checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()})


@pytest.fixture(scope="module")
def groups(params: Any) -> slimming.Groups:
    return slimming.find_groups(net, params, jnp.ones((5, 3)))


def scanned() -> tuple[slimming.Groups, Any]:
    shapes = {"a": (3, 4, 8), "b": (3, 8, 4), "c": (4, 4)}
    params = checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
    step = lambda x, w: (x + jnp.tanh(x @ w["a"]) @ w["b"], None)
    fn = lambda p, x: jax.lax.scan(step, x @ p["c"], {k: p[k] for k in "ab"})[0].sum(-1)
    return slimming.find_groups(fn, params, jnp.ones((2, 4))), params


def test_scores_are_norms_over_all_members(params: Any, groups: slimming.Groups) -> None:
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params), normalise=None)
    p = jax.tree.map(np.asarray, params)
    first = np.sqrt((p["a"] ** 2).sum(0) + (p["b"] ** 2).sum(1))
    np.testing.assert_allclose(scores[groups["a[1]"].span], first, rtol=1e-6)
    total = slimming.group_scores(groups, p, reduce="sum", normalise=None, where="c")
    np.testing.assert_allclose(total[groups["b[1]"].span], p["c"].sum(1), rtol=1e-6)
    assert not total[groups["a[1]"].span].any()
    highest = slimming.group_scores(groups, p, reduce="max", normalise=None, where=["b"])
    np.testing.assert_allclose(highest[groups["a[1]"].span], np.maximum(p["b"].max(1), 0), rtol=1e-6)
    mean = slimming.group_scores(groups, jax.tree.map(jnp.abs, params), normalise="mean")
    np.testing.assert_allclose(mean[groups["a[1]"].span], first / first.mean(), rtol=1e-6)


def test_ratio_of_each_group_removes_the_lowest(params: Any, groups: slimming.Groups) -> None:
    scores = np.arange(28.0)[::-1]
    choice = slimming.choose(groups, scores, 0.5)
    assert choice.kept("a[1]").tolist() == [True] * 8 + [False] * 8
    assert choice.kept("b[1]").tolist() == [True] * 6 + [False] * 6
    own = slimming.choose(groups, scores, {"b[1]": 0.25})
    assert own.kept("a[1]").all() and own.kept("b[1]").sum() == 9
    ties = slimming.choose(groups, np.ones(28), 0.5)
    assert ties.kept("a[1]").tolist() == [True] * 8 + [False] * 8


def test_one_ranking_over_all_groups(groups: slimming.Groups) -> None:
    scores = np.concatenate([np.arange(16.0), np.arange(12.0) + 100])
    choice = slimming.choose(groups, scores, 0.5, scope="global")
    assert (~choice.keep).sum() == 14 and choice.kept("b[1]").all()
    most = slimming.choose(groups, scores, 0.5, scope="global", limits=slimming.Limits(most=0.5))
    assert (~most.kept("a[1]")).sum() == 8 and (~most.kept("b[1]")).sum() == 6


def test_limits(groups: slimming.Groups) -> None:
    scores = np.arange(28.0)
    rounded = slimming.choose(groups, scores, 0.4, limits=slimming.Limits(round_to=8))
    assert rounded.kept("a[1]").sum() == 16 and rounded.kept("b[1]").sum() == 8
    floor = slimming.choose(groups, scores, 1.0, limits=slimming.Limits(floor={"a[1]": 5}))
    assert floor.kept("a[1]").sum() == 5 and floor.kept("b[1]").sum() == 1
    protected = slimming.choose(groups, scores, 0.5, limits=slimming.Limits(protect="a"))
    assert protected.kept("a[1]").all() and not protected.kept("b[1]").all()
    with pytest.raises(ValueError, match="protect: no group or leaf of a group matches 'z'"):
        _ = slimming.choose(groups, scores, 0.5, limits=slimming.Limits(protect="z"))


def test_stacked_layers_lose_as_many_units() -> None:
    groups, params = scanned()
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    choice = slimming.choose(groups, scores, 0.5)
    group = groups["a[2]"]
    assert group.layers == 3 and group.count == 24
    kept = choice.kept("a[2]").reshape(3, 8)
    assert (kept.sum(1) == 4).all() and len({tuple(k) for k in kept}) > 1
    for k in range(3):
        own = scores[group.span][8 * k : 8 * k + 8]
        assert own[kept[k]].min() > own[~kept[k]].max()


def test_budget_is_met_within_one_unit(params: Any, groups: slimming.Groups) -> None:
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    for cost in (costs.parameters, costs.memory, costs.flops(net, params, x)):
        whole = cost(slimming.Choice(groups, np.ones(28, bool)))
        for scope in ("global", "group"):
            choice = slimming.choose_budget(groups, scores, cost, 0.5 * whole, scope=scope)
            assert cost(choice) <= 0.5 * whole
            gone = np.flatnonzero(~choice.keep)
            one_back = [cost(slimming.Choice(groups, choice.keep | (np.arange(28) == u))) for u in gone]
            assert max(one_back) > 0.5 * whole
    assert costs.flops(net, params, x)(slimming.Choice(groups, np.ones(28, bool))) == 2 * 5 * (
        3 * 16 + 16 * 12 + 12 * 2
    )
    with pytest.raises(ValueError, match="still costs 6"):
        _ = slimming.choose_budget(groups, scores, costs.parameters, 5)


def test_measured_latency_is_a_cost(params: Any, groups: slimming.Groups) -> None:
    cost = costs.latency(net, params, jnp.ones((5, 3)), repeats=3)
    assert 0 < cost(slimming.Choice(groups, np.ones(28, bool))) < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.5}, r"a ratio is a share in \[0, 1\]; got 1.5"),
        ({"ratio": {"z": 0.5}}, "ratio: no group matches 'z'"),
        ({"scores": np.ones(3)}, "scores must be 28 numbers"),
        ({"scores": np.full(28, np.nan)}, "none of them NaN"),
        ({"scope": "all"}, "scope is"),
    ],
)
def test_bad_choices(groups: slimming.Groups, change: Any, message: str) -> None:
    arguments: Any = {"scores": np.arange(28.0), "ratio": 0.5} | change
    with pytest.raises(ValueError, match=message):
        _ = slimming.choose(groups, **arguments)


def test_bad_scores(groups: slimming.Groups, params: Any) -> None:
    with pytest.raises(ValueError, match="reduce is one of"):
        _ = slimming.group_scores(groups, params, reduce="median")
    with pytest.raises(ValueError, match="where selects none"):
        _ = slimming.group_scores(groups, params, where="z")
    with pytest.raises(ValueError, match="scores have 1 leaves"):
        _ = slimming.group_scores(groups, {"a": params["a"]})
    with pytest.raises(ValueError, match=r"scores of b have shape \(16, 3\)"):
        _ = slimming.group_scores(groups, params | {"b": jnp.ones((16, 3))})
