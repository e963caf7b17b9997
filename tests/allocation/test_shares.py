"""Uniform, global and by path; what is achieved, for every pattern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation, masks
from tests.allocation.trees import RESNET, removed_fraction, scores

SHAPES = {"a": (8, 12), "b": (4, 16), "c": (3, 8, 8), "bias": (8,)}
PATTERNS = [
    ({}, {"c": 1}),
    (masks.Unstructured(axes=-2), 0),
    (masks.Block((2, 4), (-2, -1)), {"c": 1}),
    ({"a": masks.Channel(-2), "b": masks.Block((2, 2), (-2, -1)), "c": masks.Channel(-1)}, {"c": 1}),
]


@pytest.mark.parametrize(("pattern", "batch_axes"), PATTERNS)
def test_achieved_is_what_masks_remove(pattern, batch_axes):
    tree = scores(SHAPES)
    for sparsity in (0.0, 0.33, 0.9):
        allocated = allocation.uniform(tree, sparsity, pattern=pattern, batch_axes=batch_axes)
        assert removed_fraction(tree, allocated, pattern=pattern, batch_axes=batch_axes) == allocated.achieved


def test_achieved_of_nm():
    tree = scores(SHAPES)
    pattern = {"a": masks.NM(2, 4, axis=0), "c": masks.NM(1, 4, axis=(0, 1))}
    allocated = allocation.by_path({"a": 0.5, "c": 0.75})(tree, 0.6, pattern=pattern)
    assert removed_fraction(tree, allocated, pattern=pattern) == allocated.achieved
    assert abs(allocated.achieved - 0.6) * 352 <= 0.5
    traced = jax.jit(lambda s: allocation.uniform(tree, s, pattern=masks.NM(2, 4, axis=-2)))
    for sparsity in (0.1, 0.3, 0.5, 0.9):
        result = traced(sparsity)
        assert removed_fraction(tree, result, pattern=masks.NM(2, 4, axis=-2)) == result.achieved


def test_uniform_gives_every_pruned_leaf_the_total():
    allocated = allocation.uniform(scores(), 0.9, where="block/*")
    assert {name for name, s in allocated.sparsities.items() if s} == {"block/conv_0/kernel", "block/conv_1/kernel"}
    assert set(allocated.sparsities.values()) == {0.0, 0.9}


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 0.999])
def test_global_achieves_the_total_to_one_entry(sparsity):
    tree = scores()
    allocated = allocation.one_ranking(tree, sparsity)
    assert allocated.sparsities == masks.Global(sparsity)
    assert removed_fraction(tree, allocated) == allocated.achieved
    entries = sum(np.prod(shape) for shape in RESNET.values() if len(shape) > 1)
    assert allocated.achieved == int(sparsity * entries + 0.5) / entries
    traced = jax.jit(lambda s: allocation.one_ranking(tree, s))(sparsity)
    assert np.isclose(traced.achieved, allocated.achieved, atol=1e-4)


@pytest.mark.parametrize("default", [allocation.uniform, allocation.er, allocation.erk])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_fixed_leaves_keep_their_sparsity_and_the_total_comes_out(default, sparsity):
    tree = scores()
    rules = {"head/*": 0.0, "stem/*": 0.25}
    allocated = allocation.by_path(rules, default)(tree, sparsity)
    assert allocated.sparsities["head/kernel"] == 0.0
    assert allocated.sparsities["stem/kernel"] == 0.25
    assert removed_fraction(tree, allocated) == allocated.achieved
    entries = sum(np.prod(shape) for shape in RESNET.values() if len(shape) > 1)
    assert abs(allocated.achieved - sparsity) * entries <= 5 / 2 + 1
    traced = jax.jit(lambda s: allocation.by_path(rules, default)(tree, s))(sparsity)
    for name, value in allocated.sparsities.items():
        # The static total is rounded to a whole entry, which the free leaves share.
        assert np.isclose(traced.sparsities[name], value, rtol=0, atol=1 / entries)
    assert np.isclose(traced.achieved, sparsity, atol=2e-4)


def test_by_path_hands_the_others_to_the_default():
    tree = scores()
    one = allocation.by_path({"wide/*": 0.0}, allocation.erk)(tree, 0.5)
    entries = {name: np.prod(shape) for name, shape in RESNET.items() if len(shape) > 1}
    rest = sum(entries.values()) - entries["wide/kernel"]
    wanted = int(0.5 * sum(entries.values()) + 0.5) / rest
    other = allocation.erk(tree, wanted, where=["stem/*", "block/*", "head/*"])
    assert one.sparsities == other.sparsities
    assert allocation.by_path({}, allocation.erk)(tree, 0.5) == allocation.erk(tree, 0.5)


def test_a_users_own_default_may_return_a_scalar_or_counts():
    tree = scores({"a": (4, 5), "b": (10, 10)})

    def half(scores, sparsity, **options):
        return allocation.Allocation(masks.Count.of(50), 0.5)

    allocated = allocation.by_path({"a": 0.0}, half)(tree, 0.3)
    assert allocated.sparsities == {"a": 0.0, "b": masks.Count.of(50)}
    assert removed_fraction(tree, allocated) == allocated.achieved == 50 / 120


def test_impossible_totals_say_what_is_possible():
    tree = scores({"a": (4, 25), "b": (10, 10)})
    allocate = allocation.by_path({"a": 0.5})
    assert allocate(tree, 0.25).sparsities["b"] == 0.0
    for wrong in (0.2, 0.75, 0.9):
        with pytest.raises(ValueError, match=r"the total can be from 0\.25 to just under 0\.75"):
            _ = allocate(tree, wrong)
    clipped = jax.jit(lambda s: allocate(tree, s).sparsities["b"])
    assert clipped(0.1) == 0.0
    assert clipped(0.95) == np.nextafter(np.float32(1), np.float32(0))
    with pytest.raises(ValueError, match=r"and together they remove 0\.5 of all entries, not 0\.6"):
        _ = allocation.by_path({"*": 0.5})(tree, 0.6)
    assert allocation.by_path({"*": 0.5})(tree, 0.5).achieved == 0.5


def test_rules_are_checked():
    tree = scores()
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        _ = allocation.by_path({"head/*": 1.0})
    with pytest.raises(ValueError, match="rules: no leaf matches 'tail/"):
        _ = allocation.by_path({"tail/*": 0.5})(tree, 0.5)
    with pytest.raises(ValueError, match="one ranking over all leaves gives no leaf a sparsity"):
        _ = allocation.by_path({"head/*": 0.5}, allocation.one_ranking)(tree, 0.5)
    rules: object = 0.5
    with pytest.raises(TypeError, match="rules must be a mapping"):
        _ = allocation.by_path(rules)  # pyright: ignore[reportArgumentType]


def test_misfits_name_the_leaves():
    with pytest.raises(ValueError, match=r"(?s)the pattern does not fit.*a: .*b: "):
        _ = allocation.uniform(scores({"a": (3, 4), "b": (5, 4)}), 0.5, pattern=masks.Block((2, 2), (-2, -1)))
    with pytest.raises(ValueError, match=r"a: batch axes \(0, 1\) do not leave an axis of \(3, 4\) to prune"):
        _ = allocation.uniform({"a": jnp.ones((3, 4))}, 0.5, batch_axes=2, where=lambda *_: True)
