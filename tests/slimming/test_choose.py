"""Scores of units, sparsities, limits, costs."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from jaxprune.slimming import costs
from jaxprune.slimming.choose import Removal, removal_order
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


def test_sparsity_of_each_group_removes_the_lowest(params: Any, groups: slimming.Groups) -> None:
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
    most = slimming.choose(groups, scores, 0.5, scope="global", limits=slimming.Limits(max_sparsity=0.5))
    assert (~most.kept("a[1]")).sum() == 8 and (~most.kept("b[1]")).sum() == 6


def test_limits(groups: slimming.Groups) -> None:
    scores = np.arange(28.0)
    with pytest.warns(
        UserWarning, match=r"because of round_to:\n  a\[1\]: the sparsity removes 6 of its 16 units.* is 8"
    ):
        rounded = slimming.choose(groups, scores, 0.4, limits=slimming.Limits(round_to=8))
    assert rounded.kept("a[1]").sum() == 16 and rounded.kept("b[1]").sum() == 8
    floor = slimming.choose(groups, scores, 1.0, limits=slimming.Limits(min_units={"a[1]": 5}))
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
            choice = slimming.choose(groups, scores, cost=cost, target=0.5 * whole, scope=scope)
            assert cost(choice) <= 0.5 * whole
            gone = np.flatnonzero(~choice.keep)
            one_back = [cost(slimming.Choice(groups, choice.keep | (np.arange(28) == u))) for u in gone]
            assert max(one_back) > 0.5 * whole
    assert costs.flops(net, params, x)(slimming.Choice(groups, np.ones(28, bool))) == 2 * 5 * (
        3 * 16 + 16 * 12 + 12 * 2
    )
    with pytest.raises(ValueError, match="still costs 6"):
        _ = slimming.choose(groups, scores, cost=costs.parameters, target=5)


def test_measured_latency_is_a_cost(params: Any, groups: slimming.Groups) -> None:
    cost = costs.latency(net, params, jnp.ones((5, 3)), repeats=3)
    assert 0 < cost(slimming.Choice(groups, np.ones(28, bool))) < 10
    with pytest.raises(ValueError, match="repeats must be 1 or more; got 0"):
        _ = costs.latency(net, params, jnp.ones((5, 3)), repeats=0)


def seconds(p: Any, slow: float = 1.0) -> float:
    """A clock without noise: microseconds by the two widths, `slow` times as many where one is no multiple of 4."""
    first, second = p["a"].shape[1], p["b"].shape[1]
    return 1e-6 * (5 + first * (slow if first % 4 else 1) + 2 * second * (slow if second % 4 else 1))


def stepwise(groups: slimming.Groups, steps: list[Removal], count: int) -> slimming.Choice:
    keep = np.ones(groups.size, bool)
    for step in steps[:count]:
        keep[step.units] = False
    return slimming.Choice(groups, keep, empty=True)


def timed(params: Any, slow: float, asked: list[float] | None = None) -> costs.Cost:
    def measure(fn: Any, p: Any, x: Any) -> float:
        assert jax.eval_shape(fn, p, x).shape == (5, 2)
        found = seconds(p, slow)
        if asked is not None:
            asked.append(found)
        return found

    return costs.latency(net, params, jnp.ones((5, 3)), measure=measure)


@pytest.mark.parametrize("scope", ["global", "group"])
def test_steady_latency_is_met_at_the_first_step_that_meets_it(
    params: Any, groups: slimming.Groups, scope: str
) -> None:
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    steps = removal_order(groups, scores, scope=scope)
    every = [timed(params, 1.0)(stepwise(groups, steps, n)) for n in range(len(steps) + 1)]
    assert every == sorted(every, reverse=True)
    for target in (every[0], 30e-6, 21.5e-6, every[-1]):
        asked: list[float] = []
        choice = slimming.choose(groups, scores, cost=timed(params, 1.0, asked), target=target, scope=scope)
        first = next(n for n, cost in enumerate(every) if cost <= target)
        np.testing.assert_array_equal(choice.keep, stepwise(groups, steps, first).keep)
        assert len(asked) <= 2 + np.ceil(np.log2(len(steps)))


def test_latency_that_rises_at_odd_widths_is_still_met_where_it_crosses(params: Any, groups: slimming.Groups) -> None:
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    cost = timed(params, 1.6)
    steps = removal_order(groups, scores, scope="global")
    every = np.array([cost(stepwise(groups, steps, n)) for n in range(len(steps) + 1)])
    assert (np.diff(every) > 0).any()  # fewer channels, more time
    for target in every[np.argsort(every)][::3]:
        choice = slimming.choose(groups, scores, cost=cost, target=target, scope="global")
        gone = int((~choice.keep).sum())
        assert every[gone] <= target and (gone == 0 or every[gone - 1] > target)
    # In widths that the machine likes it does not rise, and the first that meets the target is found.
    even = slimming.Limits(round_to=4)
    steps = removal_order(groups, scores, scope="global", limits=even)
    every = np.array([cost(stepwise(groups, steps, n)) for n in range(len(steps) + 1)])
    assert (np.diff(every) < 0).all() and len(steps) == 5
    for target in (*every, 26e-6):
        choice = slimming.choose(groups, scores, cost=cost, target=target, scope="global", limits=even)
        np.testing.assert_array_equal(
            choice.keep, stepwise(groups, steps, int(np.flatnonzero(every <= target)[0])).keep
        )


def test_noisy_latency_is_met_to_its_noise(params: Any, groups: slimming.Groups) -> None:
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    steps = removal_order(groups, scores, scope="global")
    true = np.array([timed(params, 1.0)(stepwise(groups, steps, n)) for n in range(len(steps) + 1)])
    for seed in range(20):
        rng, asked = np.random.default_rng(seed), {}

        def noisy(choice: slimming.Choice, rng: Any = rng, asked: dict[int, float] = asked) -> float:
            gone = int((~choice.keep).sum())
            assert gone not in asked  # each choice is measured once
            asked[gone] = true[gone] * rng.uniform(0.9, 1.1)
            return asked[gone]

        gone = int((~slimming.choose(groups, scores, cost=noisy, target=25e-6, scope="global").keep).sum())
        assert asked[gone] <= 25e-6 < asked[gone - 1]
        assert true[gone] <= 25e-6 / 0.9 and true[gone - 1] > 25e-6 / 1.1


def test_limits_of_each_group(groups: slimming.Groups) -> None:
    scores = np.arange(28.0)
    widths = lambda choice: (int(choice.kept("a[1]").sum()), int(choice.kept("b[1]").sum()))
    choose = lambda what, **limits: widths(slimming.choose(groups, scores, what, limits=slimming.Limits(**limits)))
    # By the name itself, whose brackets would be a set to a glob; by a glob; the others keep the default.
    assert choose({"a[1]": 0.5, "b*": 0.25}) == (8, 9)
    assert choose(0.6, round_to={"a[1]": 8}) == (8, 5)
    assert choose(0.6, max_sparsity={"b*": 0.25}) == (6, 9)
    assert choose(1.0, min_units={"a[1]": 5}, round_to=4) == (8, 4)  # the least multiple of 4 that is 5 or more
    assert choose(1.0, min_units=3, max_sparsity=0.5) == (8, 6)
    assert choose(1.0, min_units={"a*": 99, "b*": 0}) == (16, 0)
    assert choose(0.5, protect=["a[1]"]) == (16, 6)
    assert choose(0.5, protect="c") == (8, 12)  # by a leaf that is in the group
    assert choose(0.5, max_sparsity=0) == (16, 12)
    for limits in (
        slimming.Limits(max_sparsity={"a[1]": 0.25}),
        slimming.Limits(min_units={"a[1]": 12}),
        slimming.Limits(round_to={"a[1]": 12}),
    ):
        assert widths(slimming.choose(groups, scores, 1.0, scope="global", limits=limits)) == (12, 1)
        budget = slimming.choose(groups, scores, cost=costs.parameters, target=52, scope="global", limits=limits)
        assert widths(budget) == (12, 1)  # 3 x 12 + 12 + 2 = 50; with one more column 64


def test_heads_are_rounded_by_their_positions() -> None:
    def attention(p: Any, x: Any) -> Any:
        q, k, v = (t.reshape(5, 6, 4) for t in jnp.split(x @ p["qkv"], 3, -1))
        weights = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
        return jnp.einsum("hts,shd->thd", weights, v).reshape(5, 24) @ p["o"]

    params = {"qkv": np.ones((3, 72), np.float32), "o": np.ones((24, 2), np.float32)}
    groups = slimming.find_groups(attention, params, jnp.ones((5, 3)))
    heads = next(g for g in groups if g.count == 6)
    assert heads.block == 4
    chosen = lambda **limits: int(
        slimming.choose(groups, np.arange(float(groups.size)), {heads.name: 0.5}, limits=slimming.Limits(**limits))
        .kept(heads.name)
        .sum()
    )
    assert chosen() == 3
    assert chosen(round_to=8) == 4  # two heads of four dimensions each
    assert chosen(round_to=16) == 4
    assert chosen(min_units=5) == 5


def test_rounds_come_to_where_one_cut_does_and_keep_limits(params: Any) -> None:
    fn, p, x = net, params, jnp.ones((5, 3))
    widths = []
    for _ in range(3):
        groups = slimming.find_groups(fn, p, x)
        scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, p))
        limits = slimming.Limits(min_units={groups[1].name: 5}, round_to={groups[0].name: 2})
        small = slimming.slim(fn, p, slimming.choose(groups, scores, 0.4, limits=limits), x)
        fn, p = small.fn, small.params
        widths.append((p["a"].shape[1], p["b"].shape[1]))
        assert fn(p, x).shape == (5, 2)
    # floor(0.4 x 16 + 1/2) = 6, then 4 of 10, then 2 of 6; floor(0.4 x 12 + 1/2) = 5, then 3 of 7 but down to 5 only.
    assert widths == [(10, 7), (6, 5), (4, 5)]


def attention(p: Any, x: Any) -> Any:
    """Heads on an axis of their own, as in Flax, and a normalisation by hand that needs the width whole."""
    q, k, v = (jnp.einsum("te,ehd->thd", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
    out = jnp.einsum("thd,hde->te", jnp.einsum("hts,shd->thd", weights, v), p["o"])
    out = out - out.mean(-1, keepdims=True)
    return jnp.square(out / jnp.sqrt((out**2).mean(-1, keepdims=True) + 1e-5)) @ p["out"]


@pytest.fixture(scope="module")
def attentive() -> slimming.Groups:
    params = {name: np.ones((16, 8, 4), np.float32) for name in "qkv"}
    params |= {"o": np.ones((8, 4, 16), np.float32), "out": np.ones((16, 2), np.float32)}
    return slimming.find_groups(attention, params, jnp.ones((5, 16)))


def test_heads_on_an_axis_of_their_own_are_rounded_by_their_positions_too(attentive: slimming.Groups) -> None:
    heads = attentive["q[1]"]
    assert (heads.count, heads.block) == (8, 4)
    for sparsity, multiple, left in ((0.5, 8, 4), (0.4, 8, 6), (0.4, 16, 8), (0.5, 16, 4), (0.4, 1, 5)):
        limits = slimming.Limits(round_to={heads.name: multiple})
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            choice = slimming.choose(attentive, np.arange(float(attentive.size)), sparsity, limits=limits)
        assert choice.kept(heads.name).sum() == left


def test_groups_that_could_not_shrink_are_named_with_the_reason(attentive: slimming.Groups) -> None:
    inner, width = attentive["v[2]"].name, attentive["o[2]"].name
    scores = np.arange(float(attentive.size))
    with pytest.warns(UserWarning, match=r"because of round_to:(.|\n)*: the limits allow no width below its 4 units"):
        choice = slimming.choose(attentive, scores, 0.5, limits=slimming.Limits(round_to=8))
    assert choice.kept(inner).all() and "no width below its 4 units" in choice.untouched[inner]
    assert "a sum over values that masking does not make zero" in choice.untouched[width]
    assert f"{len(choice.untouched)} groups could not shrink" in repr(choice)
    assert any(line.startswith(inner) and "4 of 4 units kept: the limits" in line for line in str(choice).splitlines())
    halved = slimming.choose(attentive, scores, 0.5)
    assert halved.kept(inner).sum() == 2 and list(halved.untouched) == [width]
    free = slimming.choose(attentive, scores, 0.5, limits=slimming.Limits(inexact=True, protect=width))
    assert free.untouched == {width: "it is protected"}
    some = slimming.choose(attentive, scores, {inner: 0.5})
    assert not some.untouched  # nothing was asked of the others
    cost = slimming.costs.parameters
    small = slimming.choose(attentive, scores, cost=cost, target=0.7 * cost(slimming.Choice.remove(attentive, {})))
    assert list(small.untouched) == [width]


def test_a_cost_or_a_sparsity(groups: slimming.Groups) -> None:
    scores = np.arange(28.0)
    wrong: list[Any] = [{}, {"sparsity": 0.5, "cost": costs.parameters, "target": 9}, {"cost": costs.parameters}]
    for arguments in wrong:
        with pytest.raises(ValueError, match="either sparsity, or cost and target"):
            _ = slimming.choose(groups, scores, **arguments)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"round_to": 0}, "round_to must be a whole number from 1 on; got 0"),
        ({"round_to": {"a*": 2.5}}, "round_to must be a whole number from 1 on; got 2.5"),
        ({"min_units": -1}, "min_units must be a whole number from 0 on; got -1"),
        ({"max_sparsity": 1.5}, r"max_sparsity must be in \[0, 1\]; got 1.5"),
        ({"min_units": {"z": 1}}, "min_units: no group matches 'z'"),
        ({"max_sparsity": {"z": 1}}, "max_sparsity: no group matches 'z'"),
    ],
)
def test_bad_limits(groups: slimming.Groups, limits: Any, message: str) -> None:
    scores = np.arange(28.0)
    with pytest.raises(ValueError, match=message):
        _ = slimming.choose(groups, scores, 0.5, limits=slimming.Limits(**limits))
    with pytest.raises(ValueError, match=message):
        _ = slimming.choose(groups, scores, cost=costs.parameters, target=9, limits=slimming.Limits(**limits))
    with pytest.raises(ValueError, match=message):
        _ = removal_order(groups, scores, scope="group", limits=slimming.Limits(**limits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.5}, r"sparsity must be in \[0, 1\]; got 1.5"),
        ({"sparsity": {"z": 0.5}}, "sparsity: no group matches 'z'"),
        ({"scores": np.ones(3)}, "scores must be 28 numbers"),
        ({"scores": np.full(28, np.nan)}, "none of them NaN"),
        ({"scope": "all"}, "scope must be"),
    ],
)
def test_bad_choices(groups: slimming.Groups, change: Any, message: str) -> None:
    arguments: Any = {"scores": np.arange(28.0), "sparsity": 0.5} | change
    with pytest.raises(ValueError, match=message):
        _ = slimming.choose(groups, **arguments)


def test_bad_scores(groups: slimming.Groups, params: Any) -> None:
    with pytest.raises(ValueError, match="reduce must be one of"):
        _ = slimming.group_scores(groups, params, reduce="median")
    with pytest.raises(ValueError, match="where selects none"):
        _ = slimming.group_scores(groups, params, where="z")
    with pytest.raises(ValueError, match=r"got 1 leaves for (.|\n)*only in the parameters"):
        _ = slimming.group_scores(groups, {"a": params["a"]})
    with pytest.raises(ValueError, match=r"c: only in the parameters\n  z: only in the scores"):
        _ = slimming.group_scores(groups, {"a": params["a"], "b": params["b"], "z": params["c"]})
    with pytest.raises(ValueError, match=r"scores of b have shape \(16, 3\)"):
        _ = slimming.group_scores(groups, params | {"b": jnp.ones((16, 3))})


def residual_net() -> tuple[slimming.Groups, Any]:
    """Two blocks of attention and an MLP of different widths, then two convolutions (3x3 and 1x1)."""
    shapes = {"c": (3, 3, 1, 8), "d": (1, 1, 8, 12), "e": (3, 3, 12, 4)}
    for i, hidden in enumerate((8, 24)):
        shapes |= {f"qkv{i}": (4, 3, 4, 6), f"out{i}": (4, 6, 4), f"up{i}": (4, hidden), f"down{i}": (hidden, 4)}
    params = checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})

    def fn(p: Any, x: Any) -> Any:
        for name in "cde":
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, p[name], (1, 1), "SAME", dimension_numbers=DIMS))
        x = x.reshape(x.shape[0], -1, 4)
        for i in range(2):
            q, k, v = jnp.moveaxis(jnp.einsum("btd,dnhc->nbthc", x, p[f"qkv{i}"]), 0, 0)
            a = jax.nn.softmax(jnp.einsum("bthc,bshc->bhts", q, k))
            x = x + jnp.einsum("bhts,bshc,hcd->btd", a, v, p[f"out{i}"])
            x = x + jnp.tanh(x @ p[f"up{i}"]) @ p[f"down{i}"]
        return x

    return slimming.find_groups(fn, params, jnp.ones((2, 4, 4, 1))), params


DIMS = ("NHWC", "HWIO", "NHWC")


def test_isomorphic_groups_are_ranked_together_and_no_others() -> None:
    groups, params = residual_net()
    heads, sizes, hidden = ["qkv0[2]", "qkv1[2]"], ["out0[1]", "out1[1]"], ["up0[1]", "up1[1]"]
    channels = ["c[3]", "d[3]"]  # a kernel of 3x3 and one of 1x1 are of one kind
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params), normalise=None)
    for name in hidden:
        scores[groups[name].span] += 100  # another scale: a ranking over all groups would keep every hidden unit
    choice = slimming.choose(groups, scores, 0.5, scope="isomorphic", limits=slimming.Limits(min_units=0))
    for names in (heads, sizes, hidden, channels):
        own = np.concatenate([scores[groups[name].span] for name in names])
        order = np.argsort(own, kind="stable")
        keep = np.concatenate([choice.kept(name) for name in names])
        assert set(np.flatnonzero(~keep)) == set(order[: len(own) // 2])
    every = slimming.choose(groups, scores, 0.25, scope="global")
    assert all(every.kept(name).all() for name in hidden)


def test_isomorphic_classes_shrink_alike_on_the_way_to_a_target() -> None:
    groups, params = residual_net()
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    whole = costs.parameters(slimming.Choice.remove(groups, {}))
    choice = slimming.choose(groups, scores, cost=costs.parameters, target=0.6 * whole, scope="isomorphic")
    kept = lambda *names: np.concatenate([choice.kept(name) for name in names]).mean()
    shares = [kept("qkv0[2]", "qkv1[2]"), kept("up0[1]", "up1[1]"), kept("c[3]", "d[3]")]
    assert max(shares) - min(shares) <= 1 / 8  # one head of eight
    with pytest.raises(ValueError, match='only scope "group" takes a mapping'):
        _ = slimming.choose(groups, scores, {"up*": 0.5}, scope="isomorphic")
