"""Sensitivity against a plain loop, and budgets against every choice there is."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import criteria, masks, sensitivity, slimming
from jaxprune.calibration import calibrate
from jaxprune.sensitivity.levels import group_costs
from jaxprune.sensitivity.losses import Sensitivity


def network(params, x):
    hidden = jax.nn.relu(x @ params["a"])
    return jax.nn.relu(hidden @ params["b"]) @ params["c"] + params["bias"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"a": draw(6, 8), "b": draw(8, 5), "c": draw(5, 3), "bias": draw(3)}
    x = draw(16, 6)
    evaluate = lambda p: jnp.mean((network(p, x) - network(params, x)) ** 2)
    return params, x, evaluate


def test_each_leaf_is_pruned_alone_and_one_function_is_compiled(problem):
    params, x, _ = problem
    traced = []

    def evaluate(p):
        traced.append(None)
        return jnp.mean((network(p, x) - network(params, x)) ** 2)

    levels = [0.5, 0.25, 0.8]
    found = sensitivity.leaf_sensitivity(evaluate, params, levels, batch=2)
    assert found.names == ("a", "b", "c")
    assert found.levels.tolist() == [0, 0.25, 0.5, 0.8]
    header, _, *rows = str(found).splitlines()
    assert header.split()[-4:] == ["0.0%", "25.0%", "50.0%", "80.0%"]
    assert [row.split()[-1] for row in rows] == [f"{value:.4g}" for value in found.values[:, -1]]
    for name, values in zip(found.names, found.values, strict=True):
        for level, value in zip(found.levels, values, strict=True):
            w = np.array(params[name])
            w.flat[np.argsort(np.abs(w), axis=None)[: int(level * w.size + 0.5)]] = 0
            assert value == pytest.approx(float(evaluate({**params, name: jnp.asarray(w)})), rel=1e-5)
    # 12 here; the shape, the dense value, and the table a few times for all leaves and levels.
    assert len(traced) <= 18
    some = sensitivity.leaf_sensitivity(evaluate, params, [0.5], where="b")
    assert some.names == ("b",)
    assert some.changes[0, 1] == pytest.approx(found.changes[1, 2], rel=1e-5)


def test_patterns_follow_the_statistics_as_those_of_prune_do(problem):
    params, x, evaluate = problem
    how = {"criterion": criteria.wanda, "where": "b", "stats": calibrate(network, params, [x])}
    found = sensitivity.leaf_sensitivity(evaluate, params, [0.5], **how)
    pruned = jaxprune.prune(params, 0.5, **how)
    assert (np.asarray(pruned.masks["b"]).sum(0) == 4).all()  # of each output
    assert found.values[0, 1] == pytest.approx(float(evaluate(pruned.params)), rel=1e-5)


def test_groups_lose_their_lowest_units_as_choose_does(problem):
    params, x, evaluate = problem
    groups = jaxprune.find_groups(network, params, x)
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    found = sensitivity.group_sensitivity(evaluate, params, groups, scores, [0.3, 0.6])
    assert found.names == ("a[1]", "b[1]")
    for name, values in zip(found.names, found.values, strict=True):
        for level, value in zip(found.levels, values, strict=True):
            kept = slimming.choose(groups, scores, {name: float(level)}).masks()
            assert value == pytest.approx(float(evaluate(masks.apply(params, kept))), rel=1e-5, abs=1e-9)


def _every_choice(losses, costs, budget):
    best = np.inf
    for index in itertools.product(range(losses.shape[1]), repeat=len(losses)):
        rows = np.arange(len(losses))
        if costs[rows, index].sum() <= budget + 1e-9:
            best = min(best, losses[rows, index].sum())
    return best


@pytest.mark.parametrize("seed", range(6))
def test_dynamic_programming_finds_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    losses, costs = rng.normal(size=(5, 4)), rng.uniform(0.5, 3, size=(5, 4))
    if seed % 2:
        costs = np.round(costs)  # equal sums
    low, high = costs.min(1).sum(), costs.max(1).sum()
    for budget in (low, low + 0.3 * (high - low), high):
        found = sensitivity.cheapest_loss(losses, costs, budget)
        assert found.exact
        assert found.cost <= budget + 1e-9
        assert found.loss == pytest.approx(_every_choice(losses, costs, budget))
        coarse = sensitivity.cheapest_loss(losses, costs, budget, states=8)
        assert coarse.cost <= budget + 1e-9
        assert coarse.loss >= found.loss - 1e-9


def test_greedy_meets_the_budget_and_is_best_where_losses_are_convex():
    rng = np.random.default_rng(7)
    steps = np.sort(rng.uniform(0.1, 1, size=(5, 4)), axis=1)
    losses = np.concatenate([np.zeros((5, 1)), np.cumsum(steps, 1)], 1)
    costs = np.tile(np.arange(4, -1, -1.0), (5, 1))
    for budget in range(20):
        found = sensitivity.greedy_levels(losses, costs, budget)
        assert found.cost == budget
        assert found.loss == pytest.approx(sensitivity.cheapest_loss(losses, costs, budget).loss)


def test_the_levels_of_leaves_meet_counted_budgets(problem):
    params, x, _ = problem
    losses = np.array([[0, 2, 5], [0, 1, 4], [0, 1, 9.0]])
    found = Sensitivity(("a", "b", "c"), np.array([0, 0.5, 0.75]), losses)
    for of, whole in (("parameters", 48 + 40 + 15), ("flops", 2 * 16 * (48 + 40 + 15))):
        costs = sensitivity.leaf_costs(network, params, found, x, of=of)
        assert costs[:, 0].sum() == whole
        budget = 0.5 * costs[:, 0].sum()
        levels = sensitivity.cheapest_loss(found.changes, costs, budget)
        sparsities = levels.sparsities(found)
        kept = masks.select(jax.tree.map(jnp.abs, params), {**{k: sparsities.get(k, 0.0) for k in params}})
        cost = jaxprune.assess.complexity(network, params, kept, x)
        spent = {"parameters": cost.kept - 3, "flops": cost.effective_flops}[of]
        assert spent == levels.cost <= budget
        pruned = jaxprune.prune(params, sparsities)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, pruned.masks, kept))


def test_the_levels_of_groups_meet_the_networks_own_cost(problem):
    params, x, evaluate = problem
    groups = jaxprune.find_groups(network, params, x)
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    found = sensitivity.group_sensitivity(evaluate, params, groups, scores, [0.2, 0.4, 0.6, 0.8])
    cost = slimming.costs.flops(network, params, x)
    whole = cost(slimming.Choice.remove(groups, {}))
    choice, levels = sensitivity.choose_levels(groups, scores, found, found.changes, cost, 0.4 * whole)
    assert cost(choice) <= 0.4 * whole
    assert group_costs(groups, scores, found, cost)[:, 0].sum() == pytest.approx(whole)
    # Of levels that meet the true cost none that is the same for both groups loses less, and one of all pairs may.
    fits = {
        (i, j): found.changes[0, i] + found.changes[1, j]
        for i, j in itertools.product(range(5), repeat=2)
        if cost(_pair(groups, scores, found, i, j)) <= 0.4 * whole
    }
    assert fits[tuple(levels.chosen.tolist())] == pytest.approx(levels.loss)
    assert min(fits.values()) - 1e-9 <= levels.loss <= min(v for (i, j), v in fits.items() if i == j) + 1e-9
    whole_again, _ = sensitivity.choose_levels(groups, scores, found, np.abs(found.changes), cost, whole)
    assert whole_again.keep.all()


def test_memory_counts_kept_values_and_the_bits_of_a_mask(problem):
    params, x, _ = problem
    losses = np.array([[0, 2, 5], [0, 1, 4], [0, 1, 9.0]])
    found = Sensitivity(("a", "b", "c"), np.array([0, 0.5, 0.75]), losses)
    costs = sensitivity.leaf_costs(network, params, found, x, of="memory")
    # 48, 40 and 15 float32 entries; floor(s n + 1/2) of them go; 6, 5 and 2 bytes of mask where any may.
    np.testing.assert_array_equal(costs, [[192, 96 + 6, 48 + 6], [160, 80 + 5, 40 + 5], [60, 28 + 2, 16 + 2]])
    for choose in (sensitivity.cheapest_loss, sensitivity.greedy_levels):
        levels = choose(found.changes, costs, 300)
        spent = costs[np.arange(3), levels.chosen].sum()
        assert spent == levels.cost <= 300
    assert sensitivity.cheapest_loss(found.changes, costs, 300).loss == _every_choice(losses, costs, 300)


@pytest.fixture(scope="module")
def groups_of(problem):
    params, x, evaluate = problem
    groups = jaxprune.find_groups(network, params, x)
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    return groups, scores, sensitivity.group_sensitivity(evaluate, params, groups, scores, [0.2, 0.4, 0.6, 0.8])


def _widths(choice):
    shapes = {leaf.name: leaf.small for leaf in choice.manifest().leaves}
    return shapes["a"][1], shapes["b"][1]


def _bytes(choice):
    a, b = _widths(choice)
    return 4 * (6 * a + a * b + b * 3 + 3)


def _tiled(choice):
    """A machine on which two units take as long as one, and odd widths a little longer than even ones."""
    a, b = _widths(choice)
    return (1 + -(-a // 2) * -(-b // 2) + 0.2 * (a % 2 + b % 2)) * 1e-6


@pytest.mark.parametrize(("cost", "by_hand"), [(slimming.costs.memory, _bytes), (_tiled, _tiled)])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_the_levels_of_groups_meet_memory_and_a_latency_of_steps(groups_of, cost, by_hand, share):
    groups, scores, found = groups_of
    target = share * by_hand(slimming.Choice.remove(groups, {}))
    choice, levels = sensitivity.choose_levels(groups, scores, found, found.changes, cost, target)
    assert by_hand(choice) <= target
    pairs = list(itertools.product(range(5), repeat=2))
    fits = {
        (i, j): found.changes[0, i] + found.changes[1, j]
        for i, j in pairs
        if by_hand(_pair(groups, scores, found, i, j)) <= target
    }
    assert fits[tuple(levels.chosen.tolist())] == pytest.approx(levels.loss)
    assert min(fits.values()) - 1e-9 <= levels.loss <= min(v for (i, j), v in fits.items() if i == j) + 1e-9


def test_a_latency_that_trembles_is_measured_once_and_held_to_the_target(groups_of):
    groups, scores, found = groups_of
    rng, measured = np.random.default_rng(0), []

    def latency(choice):
        measured.append((choice.keep.tobytes(), _tiled(choice) * rng.uniform(0.7, 1.3)))
        return measured[-1][1]

    target = 0.5 * _tiled(slimming.Choice.remove(groups, {}))
    choice, _ = sensitivity.choose_levels(groups, scores, found, found.changes, latency, target)
    assert len({keep for keep, _ in measured}) == len(measured) <= 25
    assert dict(measured)[choice.keep.tobytes()] <= target


def test_measured_latency_is_the_median_by_the_clock(problem, monkeypatch):
    params, x, _ = problem
    groups = jaxprune.find_groups(network, params, x)
    ticks = np.cumsum([0, 5, 1, 1, 1, 3, 1, 9, 1, 2])  # calls of 5, 1, 3, 9 and 2, and 1 between them
    monkeypatch.setattr(slimming.costs, "time", SimpleNamespace(perf_counter=iter(ticks.tolist()).__next__))
    cost = slimming.costs.latency(network, params, x, repeats=5)
    assert cost(slimming.Choice.remove(groups, {})) == 3


def _pair(groups, scores, found, i, j):
    rules = {n: float(found.levels[k]) for n, k in zip(found.names, (i, j), strict=True) if k}
    return slimming.choose(groups, scores, rules) if rules else slimming.Choice.remove(groups, {})


def test_the_plot_has_a_line_for_each_leaf():
    found = Sensitivity(("a", "b"), np.array([0.0, 0.5]), np.array([[1.0, 2.0], [1.0, 1.5]]))
    lines = sensitivity.sensitivity_curves(found).axes[0].get_lines()
    assert [line.get_label() for line in lines][:2] == ["a", "b"]
    np.testing.assert_array_equal(lines[1].get_ydata(), [1.0, 1.5])


_LOSS = np.zeros((2, 3))
_FOUND = Sensitivity(("z",), np.array([0.0, 0.5]), np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, e: sensitivity.leaf_sensitivity(e, p, [0.5, 1.0]), r"levels must be sparsities in \[0, 1\)"),
        (lambda p, e: sensitivity.leaf_sensitivity(e, p, []), "at least one of them above 0"),
        (lambda p, e: sensitivity.leaf_sensitivity(lambda p: p["bias"], p, [0.5]), r"must be a scalar.*\(3,\)"),
        (lambda p, e: sensitivity.leaf_sensitivity(e, p, [0.5], batch=0), "batch must be 1 or more"),
        (lambda p, e: sensitivity.cheapest_loss(_LOSS, _LOSS[:1], 1), "must both be"),
        (lambda p, e: sensitivity.cheapest_loss(_LOSS, _LOSS + 1, 1), "cheapest levels cost 2, more than the budget 1"),
        (lambda p, e: sensitivity.cheapest_loss(_LOSS * np.nan, _LOSS, 1), "must not contain NaN"),
        (
            lambda p, e: sensitivity.greedy_levels(_LOSS, np.array([[5, 6, 1], [5.0, 5, 5]]), 5),
            "cheapest levels cost 6, more than the budget 5",
        ),
        (
            lambda p, e: sensitivity.leaf_costs(network, p, _FOUND, jnp.ones((1, 6)), of="x"),
            'of must be "parameters", "memory" or "flops"',
        ),
        (
            lambda p, e: sensitivity.leaf_costs(network, p, _FOUND, jnp.ones((1, 6))),
            "no leaf z",
        ),
    ],
)
def test_errors_say_what_is_wrong(problem, call, message):
    params, _, evaluate = problem
    with pytest.raises(ValueError, match=message):
        call(params, evaluate)


def test_a_pattern_with_one_sparsity_is_refused(problem):
    params, _, evaluate = problem
    with pytest.raises(ValueError, match=r"allows every level(.|\n)*b: NM\(") as error:
        _ = sensitivity.leaf_sensitivity(evaluate, params, [0.5], where="b", pattern=masks.NM(2, 4, axis=0))
    assert "pass another pattern" in str(error.value)


def test_an_allocation_is_refused(problem):
    params, _, evaluate = problem
    with pytest.raises(TypeError, match="takes no allocation, because it prunes each leaf alone"):
        _ = sensitivity.leaf_sensitivity(evaluate, params, [0.5], allocation=jaxprune.allocation.erk)


def test_a_target_that_no_level_reaches_is_refused(problem):
    params, x, evaluate = problem
    groups = jaxprune.find_groups(network, params, x)
    scores = slimming.group_scores(groups, jax.tree.map(jnp.abs, params))
    found = sensitivity.group_sensitivity(evaluate, params, groups, scores, [0.2])
    with pytest.raises(ValueError, match="with each group at its cheapest level the network costs"):
        _ = sensitivity.choose_levels(groups, scores, found, found.changes, slimming.costs.parameters, 10)
