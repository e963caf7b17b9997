"""Any criterion gives the masks, any method repairs the weights: the masks of `prune`, the errors of the repairs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks
from jaxprune.calibration import calibrate
from jaxprune.masks._exact.counts import removed
from jaxprune.reconstruction import reconstruct, reconstruct_sequential, relative_errors
from tests.cases import few, normal
from tests.reconstruction import problems
from tests.reconstruction.test_reconstruct import DATA, LAYERS, PARAMS, net

CRITERIA = {"magnitude": criteria.magnitude, "wanda": criteria.wanda, "ria": criteria.ria}
REPAIRS = ("sparsegpt", "alps", "obs", "least_squares")
PATTERNS = {"entries": (0.6, {}), "groups": (0.5, {"pattern": masks.NM(2, 4)})}


@pytest.fixture(scope="module")
def stats():
    return calibrate(net, PARAMS, DATA)


_ALL = [(criterion, pattern) for criterion in CRITERIA for pattern in PATTERNS]


@pytest.mark.parametrize(("criterion", "pattern"), few(_ALL, ("wanda", "groups")))
def test_every_repair_has_the_masks_that_prune_makes(stats, criterion, pattern):
    sparsity, options = PATTERNS[pattern]
    options = {**options, "criterion": CRITERIA[criterion], "where": ["layers", "out"]}
    pruned = jaxprune.prune(PARAMS, sparsity, stats=stats, batch_axes={"layers": 1}, **options)
    plain = relative_errors(PARAMS, pruned.params, stats)
    for method in REPAIRS:
        new = reconstruct(PARAMS, stats, sparsity, method=method, **options)
        errors = relative_errors(PARAMS, new.params, stats)
        for name in ("layers", "out"):
            np.testing.assert_array_equal(new.masks[name], pruned.masks[name])
            assert errors[name] < 0.98 * plain[name]


@pytest.mark.parametrize("pattern", few(PATTERNS, "groups"))
def test_methods_without_repair_are_their_criteria(stats, pattern):
    sparsity, options = PATTERNS[pattern]
    for method in ("magnitude", "wanda"):
        new = reconstruct(PARAMS, stats, sparsity, method=method, **options)
        pruned = jaxprune.prune(
            PARAMS,
            sparsity,
            criterion=CRITERIA[method],
            stats=stats,
            where=list(LAYERS),
            batch_axes={"layers": 1},
            **options,
        )
        for name in LAYERS:
            np.testing.assert_array_equal(new.masks[name], pruned.masks[name])
            np.testing.assert_array_equal(np.float32(new.params[name]), np.float32(pruned.params[name]))
        assert jax.tree.all(jax.tree.map(bool, {n: new.masks[n] for n in ("bias", "step")}))


def test_wanda_compares_within_each_output_along_the_inputs_that_the_statistics_know(stats):
    by_leaf = jaxprune.prune(PARAMS, 0.5, criterion=criteria.wanda, stats=stats, where=list(LAYERS)).masks
    for name in LAYERS:
        inputs = stats[name].layout.input_axes
        each = np.asarray((~by_leaf[name]).sum(inputs))
        total = np.prod([PARAMS[name].shape[axis] for axis in inputs])
        assert (each == int(total * 0.5 + 0.5)).all()
    # Whoever ranks by other axes says so: all of them make one ranking of the leaf.
    whole = jaxprune.prune(
        PARAMS, 0.5, criterion=criteria.wanda, stats=stats, where="head", pattern=masks.Unstructured(axes=(0, 1))
    ).masks["head"]
    np.testing.assert_array_equal(whole, masks.select(criteria.wanda(PARAMS, stats=stats)["head"], 0.5))
    assert not np.array_equal(whole, by_leaf["head"])
    # One ranking over all leaves compares everything with everything.
    everywhere = jaxprune.prune(
        PARAMS, 0.5, criterion=criteria.wanda, stats=stats, where=list(LAYERS), allocation=allocation.one_ranking
    ).masks
    want = masks.select_global(criteria.wanda(PARAMS, stats=stats), 0.5, where=list(LAYERS))
    for name in LAYERS:
        np.testing.assert_array_equal(everywhere[name], want[name])


def test_kernels_of_outputs_by_inputs_are_pruned_along_their_inputs():
    # As Hugging Face stores them: [outputs, inputs].
    params = {"up.weight": normal(16, 8)}
    stats = calibrate(lambda p, x: x @ p["up.weight"].T, params, [normal(50, 8, seed=1)])
    each: tuple[dict[str, Any], ...] = ({"pattern": masks.NM(2, 4)}, {})
    for options in each:
        pruned = jaxprune.prune(params, 0.5, criterion=criteria.wanda, stats=stats, **options).masks["up.weight"]
        new = reconstruct(params, stats, 0.5, method="wanda", **options).masks["up.weight"]
        np.testing.assert_array_equal(pruned, new)
        assert (np.asarray(pruned).sum(1) == 4).all()
        if options:
            assert (np.asarray(pruned).reshape(16, 2, 4).sum(-1) == 2).all()


@pytest.mark.slow
def test_a_criterion_may_take_any_pattern_and_any_allocation(stats):
    options = {"criterion": criteria.magnitude, "pattern": masks.Channel(axis=0), "where": "head"}
    new = reconstruct(PARAMS, stats, 0.5, method="least_squares", **options)
    want = jaxprune.prune(PARAMS, 0.5, **options).masks["head"]
    np.testing.assert_array_equal(new.masks["head"], np.broadcast_to(want, (8, 6)))
    own = lambda params, **signals: criteria.magnitude(params)
    hows: list[dict[str, Any]] = [{"allocation": allocation.erk}, {"allocation": allocation.one_ranking}]
    for how in hows:
        for criterion in (criteria.magnitude, own):
            new = reconstruct(PARAMS, stats, 0.7, criterion=criterion, batch_axes=0, **how)
            want = jaxprune.prune(PARAMS, 0.7, where=list(LAYERS), stats=stats, **how).masks
            for name in LAYERS:
                np.testing.assert_array_equal(new.masks[name], np.broadcast_to(want[name], PARAMS[name].shape))
    by_method = reconstruct(PARAMS, stats, 0.7, allocation=allocation.erk).masks
    shared = allocation.erk(PARAMS, 0.7, where=list(LAYERS), batch_axes={"layers": 1}).sparsities
    for name in LAYERS:
        assert int((~by_method[name]).sum()) == int(removed(shared[name], PARAMS[name].size))


@pytest.mark.slow
def test_stage_by_stage_a_criterion_sees_what_came_before():
    new = reconstruct_sequential(net, PARAMS, DATA, 0.5, method="least_squares", criterion=criteria.ria)
    before = {**new.params, "head": PARAMS["head"]}
    stats = calibrate(net, before, DATA)
    want = jaxprune.prune(before, 0.5, criterion=criteria.ria, stats=stats, where="head").masks["head"]
    np.testing.assert_array_equal(new.masks["head"], want)
    for name in LAYERS:
        assert int((~new.masks[name]).sum()) == PARAMS[name].size // 2
    with pytest.raises(ValueError, match="one_ranking ranks all leaves together"):
        _ = reconstruct_sequential(
            net, PARAMS, DATA, 0.5, criterion=criteria.magnitude, allocation=allocation.one_ranking
        )


def test_what_excludes_each_other_is_named(stats):
    with pytest.raises(ValueError, match="'wanda' is a criterion without repair"):
        _ = reconstruct(PARAMS, stats, 0.5, method="wanda", criterion=criteria.ria)
    with pytest.raises(ValueError, match=r"masks already say what is removed: .*; got criterion"):
        _ = reconstruct(PARAMS, stats, masks=jax.tree.map(lambda p: p != 0, PARAMS), criterion=criteria.ria)
    with pytest.raises(
        ValueError, match=r"sparsegpt chooses its masks leaf by leaf(.|\n)*criterion=criteria\.magnitude"
    ):
        _ = reconstruct(PARAMS, stats, 0.5, allocation=allocation.one_ranking)
    with pytest.raises(ValueError, match=r"the patterns of sparsegpt; pass criterion=criteria\.magnitude"):
        _ = reconstruct(PARAMS, stats, 0.5, pattern=masks.Channel())


@pytest.mark.slow
def test_wanda_does_not_see_in_which_unit_an_input_is_measured_and_magnitude_does():
    # The outlier features of large language models: an input 16 times larger, its weights 16 times smaller.
    w, x = (a.astype(np.float32) for a in problems.layer(5, 32, 8))
    unit = np.where(np.arange(32) % 8 == 0, np.float32(16), np.float32(1))

    def pruned(w, x, **options):
        found = calibrate(lambda w, x: x @ w, jnp.asarray(w), [x], collect="square")
        return reconstruct(jnp.asarray(w), found, **options)

    for options in ({"sparsity": 0.5}, {"pattern": masks.NM(2, 4)}):
        new, mask = pruned(w, x, method="wanda", **options)
        other, same = pruned(w / unit[:, None], x * unit, method="wanda", **options)
        np.testing.assert_array_equal(mask, same)
        np.testing.assert_array_equal(other * unit[:, None], new)
        _, first = pruned(w, x, method="magnitude", **options)
        _, second = pruned(w / unit[:, None], x * unit, method="magnitude", **options)
        assert np.asarray(first)[::8].mean() > 2 * np.asarray(second)[::8].mean()
