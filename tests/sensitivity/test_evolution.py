"""The evolutionary search against exhaustive search, against dynamic programming where losses add up, and resumed."""

import itertools

import jax
import numpy as np
import pytest

from jaxprune.sensitivity import cheapest_loss, evolve_levels

KEY = jax.random.key(0)


@pytest.mark.parametrize("seed", range(2))
def test_the_best_four_of_eight_blocks_are_those_of_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    alone, together = rng.uniform(0, 1, 8), rng.normal(0, 1, (8, 8))
    loss = lambda dropped, samples: float(alone @ dropped + dropped @ together @ dropped)
    every = [np.isin(np.arange(8), chosen).astype(int) for chosen in itertools.combinations(range(8), 4)]
    found = evolve_levels(loss, [[1, 0]] * 8, 4, key=KEY, generations=25, offspring=8)
    assert found.cost == 4
    assert found.loss == pytest.approx(min(loss(dropped, 1) for dropped in every))
    assert found.loss == pytest.approx(loss(found.chosen, 1))


def test_additive_losses_have_the_optimum_of_dynamic_programming():
    rng = np.random.default_rng(5)
    losses = np.cumsum(rng.uniform(0, 1, (6, 5)), 1)
    costs = np.linspace(1, 0.2, 5) * np.ones((6, 1))
    best = cheapest_loss(losses, costs, 3.6)
    loss = lambda levels, samples: losses[np.arange(6), levels].sum()
    start = np.full(6, 2)
    found = evolve_levels(loss, costs, 3.6, key=KEY, start=start, generations=60)
    assert best.exact
    assert found.loss == pytest.approx(best.loss)
    assert found.loss < loss(start, 1)
    assert found.cost <= 3.6 + 1e-9


def test_every_candidate_is_within_the_budget_and_early_stages_see_few_samples():
    seen = []

    def loss(levels, samples):
        seen.append((levels.copy(), samples))
        return float(levels.sum() + 1 / samples)

    costs = np.array([[5.0, 3.0, 1.0], [2.0, 1.0, 0.5], [7.0, 4.0, 4.0]])
    found = evolve_levels(loss, costs, 8.0, key=KEY, generations=10, offspring=4, stages=[(2, 1), (1, 16)])
    assert {samples for _, samples in seen} == {1, 16}
    assert all(costs[np.arange(3), levels].sum() <= 8 for levels, _ in seen)
    assert found.loss == found.chosen.sum() + 1 / 16
    first = evolve_levels(loss, costs, 8.0, key=KEY, generations=0)
    assert first.cost <= 8
    # A loss that is not a number is the worst.
    assert evolve_levels(lambda *_: np.nan, costs, 8.0, key=KEY, generations=2).loss == np.inf


def test_a_killed_search_resumes_to_the_same_levels(tmp_path):
    calls, limit = [], [-1]  # lists, which do not tell one search from another

    def loss(levels, samples):
        calls.append(levels)
        if len(calls) == limit[0]:
            raise KeyboardInterrupt
        return float((levels * np.arange(6)).sum() + 3 * (levels[1:] * levels[:-1]).sum())

    options = {"key": KEY, "generations": 6, "offspring": 4}
    want = evolve_levels(loss, [[1, 0]] * 6, 3, **options)
    limit[0] = len(calls) // 2
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        _ = evolve_levels(loss, [[1, 0]] * 6, 3, folder=tmp_path / "run", **options)
    limit[0] = -1
    again = evolve_levels(loss, [[1, 0]] * 6, 3, folder=tmp_path / "run", **options)
    np.testing.assert_array_equal(again.chosen, want.chosen)
    assert again.loss == want.loss
    calls.clear()
    _ = evolve_levels(loss, [[1, 0]] * 6, 3, folder=tmp_path / "run", **options)
    assert len(calls) == 1  # the loss of the result
    with pytest.raises(ValueError, match=r"contains another run(.|\n)*budget: saved 3, expected 4"):
        _ = evolve_levels(loss, [[1, 0]] * 6, 4, folder=tmp_path / "run", **options)


def test_refusals():
    loss = lambda levels, samples: 0.0
    with pytest.raises(ValueError, match=r"costs must not rise with the level, but leaf . costs .* at level .; order"):
        _ = evolve_levels(loss, [[0, 1]], 1, key=KEY)
    with pytest.raises(ValueError, match="the cheapest levels cost 2, more than the budget 1"):
        _ = evolve_levels(loss, [[3, 2]], 1, key=KEY)
    with pytest.raises(ValueError, match="start costs 3, more than the budget 2"):
        _ = evolve_levels(loss, [[3, 2]], 2, key=KEY, start=[0])
    with pytest.raises(ValueError, match="a level from 0 to 1 for each of 1 leaves"):
        _ = evolve_levels(loss, [[3, 2]], 2, key=KEY, start=[2])
    with pytest.raises(ValueError, match="the last with 1 survivor"):
        _ = evolve_levels(loss, [[3, 2]], 2, key=KEY, stages=[(2, 1)])
