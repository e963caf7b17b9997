"""LAMP by counting against LAMP by sorting: the same counts to the last entry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation, criteria, masks
from jaxprune.allocation import _levels
from jaxprune.allocation.lamp import keep
from tests.allocation import twins
from tests.allocation.trees import RESNET, removed_fraction, scores
from tests.cases import few

SHAPES = [(3, 40), (17, 9), (8, 8), (50, 2)]
KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape) * rng.uniform(0.01, 3),
    "rounded": lambda rng, shape: np.round(rng.normal(size=shape) * 3),
    "heavy tails": lambda rng, shape: np.exp(5 * rng.normal(size=shape)),
    "three values": lambda rng, shape: rng.integers(0, 3, size=shape) * 1.0,
    "any size": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.uniform(-44, 38),
    "one value": lambda rng, shape: np.ones(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
}


def kept_by(rows, kept, batch_axes=None):
    axes = (0,) * len(rows) if batch_axes is None else batch_axes
    count = masks.Count(*(jnp.int32(limb) for limb in masks.Count.of(kept)))
    found, passes = keep([jnp.asarray(row) for row in rows], count, batch_axes=axes)
    assert passes <= 40
    return [int(masks.Count(h, l)) for c in found for h, l in zip(c.high, c.low, strict=True)]


@pytest.mark.parametrize(
    "kinds", [*((kind,) for kind in KINDS), tuple(KINDS)], ids=lambda kinds: kinds[0] * (len(kinds) < 2)
)
def test_counts_are_those_of_sorting(kinds):
    total = sum(np.prod(shape) for shape in SHAPES)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows = [np.abs(KINDS[rng.choice(kinds)](rng, shape)).astype(np.float32) for shape in SHAPES]
        for kept in [0, 1, total - 1, total, *rng.integers(0, total + 1, size=8)]:
            found = kept_by(rows, int(kept))
            assert sum(found) == kept
            assert np.array_equal(found, twins.lamp_kept(rows, kept)), (seed, kept)


@pytest.mark.parametrize("dtype", few([jnp.bfloat16, jnp.float16], jnp.float16))
def test_heavy_ties_in_16_bits(dtype):
    rng = np.random.default_rng(5)
    rows = [jnp.asarray(np.abs(rng.normal(size=shape)), dtype) for shape in SHAPES[:2]]
    for kept in (1, 17, 100, 250, 270):
        assert np.array_equal(kept_by(rows, kept), twins.lamp_kept(rows, kept))


def test_the_paper_where_nothing_ties():
    tree = scores()
    rows = [tree[name] for name in sorted(tree) if tree[name].ndim > 1]
    total = sum(row.size for row in rows)
    for sparsity in (0.3, 0.7, 0.9, 0.99):
        kept = total - int(sparsity * total + 0.5)
        allocated = allocation.lamp(tree, sparsity)
        gone = [int(allocated.sparsities[name]) for name in sorted(tree) if tree[name].ndim > 1]
        assert np.array_equal([row.size - k for row, k in zip(rows, gone, strict=True)], twins.paper_kept(rows, kept))


def test_odd_numbers_have_a_place():
    rows = [
        np.array([[np.inf, 1.0, 1e30, 2.0]], np.float32),
        np.array([[np.nan, -1.0, -np.inf, 0.0]], np.float32),
        np.array([[1e-40, 2e-40, 1e-38, 3e38]], np.float32),
    ]
    for kept in range(13):
        assert np.array_equal(kept_by(rows, kept), twins.lamp_kept(rows, kept))
    # Against the largest number all else is nothing; what is no size at all goes last, the later rows first.
    assert kept_by(rows, 5) == [4, 0, 1]


def test_masks_hold_exactly_the_total():
    tree = scores()
    entries = sum(np.prod(shape) for shape in RESNET.values() if len(shape) > 1)
    traces = []

    @jax.jit
    def traced(sparsity):
        traces.append(sparsity)
        return allocation.lamp(tree, sparsity)

    for sparsity in (0.0, 0.5, 0.9, 0.995):
        static = allocation.lamp(tree, sparsity)
        assert type(static.achieved) is float
        assert removed_fraction(tree, static) == static.achieved == int(sparsity * entries + 0.5) / entries
        again = traced(sparsity)
        assert jax.tree.all(jax.tree.map(np.array_equal, again.sparsities, static.sparsities))
        assert np.isclose(again.achieved, static.achieved, rtol=1e-6)
    assert len(traces) == 1


def test_more_sparsity_never_keeps_more_of_any_leaf():
    rows = scores()
    gone = [allocation.lamp(rows, s).sparsities for s in np.linspace(0, 0.99, 12)]
    for name in (name for name, shape in RESNET.items() if len(shape) > 1):
        removed = [int(counts[name]) for counts in gone]
        assert removed == sorted(removed)


def test_scale_of_a_leaf_does_not_matter():
    tree = scores()
    scaled = {name: x * 2.0**i for i, (name, x) in enumerate(tree.items())}
    one, other = (allocation.lamp(t, 0.9).sparsities for t in (tree, scaled))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.slow
def test_stacked_layers_are_leaves_of_their_own():
    rng = np.random.default_rng(8)
    stacked = np.abs(rng.normal(size=(3, 6, 7)) * rng.uniform(0.1, 4, size=(3, 1, 1))).astype(np.float32)
    head = np.abs(rng.normal(size=(7, 5))).astype(np.float32)
    rows = [*stacked, head]
    for kept in (1, 20, 100, 150):
        assert np.array_equal(kept_by([stacked, head], kept, (1, 0)), twins.lamp_kept(rows, kept))
    tree = {"layers": jnp.asarray(stacked), "head": jnp.asarray(head)}
    allocated = allocation.lamp(tree, 0.7, batch_axes={"layers": 1})
    assert allocated.sparsities["layers"].low.shape == (3,)
    assert allocated.sparsities["head"].low.shape == ()
    assert removed_fraction(tree, allocated, batch_axes={"layers": 1}) == allocated.achieved


def test_other_leaves_rules_and_no_leaves():
    tree = {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5), "none": None, "empty": jnp.ones((0, 3))}
    allocated = allocation.lamp(criteria.magnitude(tree), 0.5)
    assert allocated.sparsities["bias"] == allocated.sparsities["empty"] == 0.0
    assert int(allocated.sparsities["kernel"]) == 10
    assert allocation.lamp({"bias": jnp.ones(5)}, 0.5) == allocation.Allocation({"bias": 0.0}, 0.0)
    small = scores({"head": (4, 5), "a": (6, 7)})
    shared = allocation.by_path({"head": 0.0}, allocation.lamp)(small, 0.4)
    assert shared.sparsities["head"] == 0.0
    assert int(shared.sparsities["a"]) == int(0.4 * 62 + 0.5)
    assert np.isclose(shared.achieved, 25 / 62, rtol=1e-6)


@pytest.mark.slow
def test_bits_do_not_depend_on_the_layout(devices):
    mesh = jax.sharding.Mesh(np.array(devices), ("x",))
    tree = scores({"a": (16, 24), "b": (8, 40)}, seed=2)
    specs = {"a": jax.P("x"), "b": jax.P(None, "x")}
    sharded = {name: jax.device_put(x, jax.NamedSharding(mesh, specs[name])) for name, x in tree.items()}
    for sparsity in (0.5, 0.9):
        one, other = (allocation.lamp(t, sparsity).sparsities for t in (tree, sharded))
        assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_float64_scores_are_ranked_as_float32():
    row = np.abs(np.random.default_rng(3).normal(size=(9, 7)))
    with jax.enable_x64(True):
        assert kept_by([row, 3 * row], 50) == twins.lamp_kept([row, 3 * row], 50).tolist()


def test_other_patterns_are_named():
    with pytest.raises(ValueError, match=r"(?s)lamp ranks single weights.*stem/kernel: Channel"):
        _ = allocation.lamp(scores(), 0.5, pattern={"stem/*": masks.Channel()})
    with pytest.raises(ValueError, match="at most 32768 slices together"):
        _ = allocation.lamp({"w": jnp.ones((40_000, 1, 1))}, 0.5, batch_axes=1)


SIZES = [1, 7, 2**13, 2**15]


@pytest.mark.parametrize("shape", [*itertools.product(SIZES, repeat=2), (2**27,), (3, 3, 512, 512), (50_000, 768)])
def test_layouts_neither_overflow_nor_lose_bits(shape):
    axes, bits = _levels.plan(shape)
    parts = int(np.prod([shape[a] for a in axes]))
    part = int(np.prod(shape)) // parts
    assert parts <= 2**15
    assert sum(bits) == _levels.SQUARE_BITS
    # A sum of digits, of which the last may round up to its base, fits an int32; so does a count.
    assert part * 2 ** max(bits) < 2**31


def test_leaves_too_large_to_sum_are_refused():
    with pytest.raises(ValueError, match="cannot sum 4294967296 squares"):
        _ = _levels.plan((2**32,))
