import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks
from tests.cases import few
from tests.masks import twins

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, 1e-40, -1e-45, 3e38, 1.0, -1.0])
SPARSITIES = (0.0, 0.1, 0.5, 0.93, 0.999)
select = jax.jit(masks.select, static_argnames=("pattern", "where", "batch_axes"))


def draw(kind: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "normal":
        values = rng.normal(size=shape)
    elif kind == "ties":
        values = np.round(rng.normal(size=shape))
    elif kind == "constant":
        values = np.full(shape, 0.5)
    else:
        values = rng.choice(SPECIAL, shape)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


DTYPES = {"f32": np.float32, "bf16": jnp.bfloat16, "f16": np.float16}
SINGLE = [(kind, dtype) for kind in ("normal", "ties", "constant", "special") for dtype in DTYPES]


@pytest.mark.parametrize(("kind", "dtype"), few(SINGLE, ("special", "f32"), ("ties", "f16")))
def test_single_entries(kind, dtype):
    for shape in [(1, 1), (50, 30), (3, 3, 4, 8)]:
        scores = draw(kind, shape, DTYPES[dtype])
        for sparsity in SPARSITIES:
            expected = twins.keep(scores, sparsity)
            found = np.asarray(masks.select({"w": jnp.asarray(scores)}, sparsity)["w"])
            np.testing.assert_array_equal(found, expected)
            # From inside jit, with a sparsity that is an array; its count is that of the float32 number.
            traced = np.asarray(select({"w": jnp.asarray(scores)}, jnp.float32(sparsity))["w"])
            np.testing.assert_array_equal(traced, twins.keep(scores, float(np.float32(sparsity))))


@pytest.mark.parametrize("kind", ["normal", "special"])
def test_single_entries_of_float64(kind):
    with jax.enable_x64(True):
        scores = draw(kind, (40, 30), np.float64)
        scores[0, :3] = [1.0, 1.0 + 2**-50, 1.0 - 2**-50]  # equal as float32
        for sparsity in SPARSITIES:
            found = masks.select({"w": jnp.asarray(scores)}, sparsity)["w"]
            np.testing.assert_array_equal(np.asarray(found), twins.keep(scores, sparsity))


def test_leaves_ranked_together_where_64_bits_are_enabled():
    with jax.enable_x64(True):
        leaves = [draw("normal", (40, 30), np.float64), draw("normal", (50, 60), np.float64)]
        found = masks.select_global([jnp.asarray(x) for x in leaves], 0.7)
        for mask, expected in zip(found, twins.keep_globally(leaves, 0.7), strict=True):
            np.testing.assert_array_equal(np.asarray(mask), expected)


def test_large_leaves_and_many_passes():
    # Long tails, few values, and one value nearly everywhere: what a sample says little about.
    rng = np.random.default_rng(1)
    for values in (
        rng.standard_cauchy((700, 500)),
        rng.integers(0, 3, (700, 500)) * 1.0,
        np.where(rng.random((700, 500)) < 1e-4, rng.random((700, 500)), 1e-3),
        np.exp(8 * rng.normal(size=(700, 500))),
    ):
        scores = values.astype(np.float32)
        for sparsity in (0.5, 0.9, 0.9999):
            found = np.asarray(select({"w": jnp.asarray(scores)}, jnp.float32(sparsity))["w"])
            np.testing.assert_array_equal(found, twins.keep(scores, float(np.float32(sparsity))))


@pytest.mark.parametrize("kind", ["normal", "ties", "special"])
def test_all_leaves_together(kind):
    leaves = [draw(kind, shape, np.float32) for shape in [(20, 30), (7, 5), (3, 3, 2, 4)]]
    leaves[1] = leaves[1][::-1].copy()
    scores = dict(enumerate(jnp.asarray(x) for x in leaves))
    for sparsity in SPARSITIES:
        found = masks.select_global(scores, sparsity)
        for i, expected in enumerate(twins.keep_globally(leaves, sparsity)):
            np.testing.assert_array_equal(np.asarray(found[i]), expected)


def test_leaves_of_different_dtypes_are_ranked_together():
    leaves = [draw("normal", (20, 30), np.float32), draw("normal", (20, 30), jnp.bfloat16)]
    found = masks.select_global([jnp.asarray(x) for x in leaves], 0.7)
    for mask, expected in zip(found, twins.keep_globally(leaves, 0.7), strict=True):
        np.testing.assert_array_equal(np.asarray(mask), expected)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 16), (4, 4)])
@pytest.mark.parametrize("kind", ["normal", "ties", "special"])
def test_n_of_m(n, m, kind):
    for shape in [(32, 6), (2, 2, 8, 3)]:
        scores = draw(kind, shape, np.float32)
        found = np.asarray(
            masks.select([jnp.asarray(scores)], 1 - n / m, masks.NM(n, m, tuple(range(len(shape) - 1))))[0]
        )
        np.testing.assert_array_equal(found, twins.keep_n_of_m(scores, n, m))


def test_n_of_m_along_another_axis_is_that_of_the_transpose():
    scores = jnp.asarray(draw("normal", (6, 8, 5), np.float32))
    along = masks.select([scores], 0.5, masks.NM(2, 4, axis=1))[0]
    moved = masks.select([scores.transpose(1, 0, 2)], 0.5, masks.NM(2, 4, axis=0))[0]
    np.testing.assert_array_equal(along, moved.transpose(1, 0, 2))
    # Axes that do not lie side by side are flattened in the order given.
    apart = masks.select([scores], 0.5, masks.NM(1, 2, axis=(2, 0)))[0]
    flat = masks.select([scores.transpose(2, 0, 1).reshape(30, 8)], 0.5, masks.NM(1, 2, axis=0))[0]
    np.testing.assert_array_equal(apart, flat.reshape(5, 6, 8).transpose(1, 2, 0))


def test_blocks_and_channels():
    scores = np.abs(draw("normal", (12, 20), np.float32))
    for sparsity in (0.0, 0.3, 0.5, 0.9):
        blocks = masks.select([jnp.asarray(scores)], sparsity, masks.Block((3, 4), (0, 1)))[0]
        np.testing.assert_array_equal(np.asarray(blocks), twins.keep_blocks(scores, (3, 4), sparsity))
        for axis in (-1, 0):
            channels = masks.select([jnp.asarray(scores)], sparsity, masks.Channel(axis))[0]
            np.testing.assert_array_equal(np.asarray(channels), twins.keep_channels(scores, axis, sparsity))


def test_some_axes_together():
    scores = draw("ties", (30, 4), np.float32)
    found = np.asarray(masks.select([jnp.asarray(scores)], 0.7, masks.Unstructured(axes=0))[0])
    for column in range(4):
        np.testing.assert_array_equal(found[:, column], twins.keep(scores[:, column], 0.7))


@pytest.mark.parametrize(
    "pattern",
    [masks.Unstructured(), masks.NM(2, 4, axis=-2), masks.Block((2, 2), (-2, -1)), masks.Channel(-1)],
    ids=lambda p: type(p).__name__,
)
def test_slices_along_batch_axes_are_on_their_own(pattern):
    scores = jnp.asarray(draw("ties", (2, 3, 8, 6), np.float32))
    found = masks.select([scores], 0.5, pattern, batch_axes=2)[0]
    found = np.broadcast_to(np.asarray(found), scores.shape)
    for i in range(2):
        for j in range(3):
            alone = masks.select([scores[i, j]], 0.5, pattern)[0]
            np.testing.assert_array_equal(found[i, j], np.broadcast_to(np.asarray(alone), (8, 6)))


def test_members_are_ranked_each_over_all_its_leaves():
    leaves = [draw("normal", (2, 6, 5), np.float32), draw("normal", (2, 4, 3), np.float32)]
    found = masks.select_global([jnp.asarray(x) for x in leaves], 0.6, batch_axes=1)
    mapped = jax.vmap(lambda a, b: masks.select_global([a, b], 0.6))(*map(jnp.asarray, leaves))
    for member in range(2):
        for i, expected in enumerate(twins.keep_globally([x[member] for x in leaves], 0.6)):
            np.testing.assert_array_equal(np.asarray(found[i][member]), expected)
            np.testing.assert_array_equal(np.asarray(mapped[i][member]), expected)


def test_another_sparsity_does_not_compile_again():
    traces = []

    @jax.jit
    def run(scores, sparsity):
        traces.append(1)
        return masks.select(scores, sparsity), masks.select_global(scores, sparsity)

    scores = {"a": jnp.asarray(draw("normal", (20, 30), np.float32)), "b": jnp.ones((4, 4))}
    for sparsity in (0.1, 0.5, 0.9):
        per_leaf, together = run(scores, jnp.float32(sparsity))
        assert int((~per_leaf["a"]).sum()) == round(600 * sparsity)
        assert sum(int((~m).sum()) for m in together.values()) == np.floor(616 * np.float32(sparsity) + 0.5)
    assert len(traces) == 1


def test_each_leaf_its_own_sparsity_count_and_pattern():
    scores = {"a": jnp.asarray(draw("normal", (8, 6), np.float32)), "b": jnp.ones((4, 4)), "bias": jnp.ones(3)}
    sparsities = {"a": 0.5, "b": masks.Count.of(5), "bias": 0.0}
    found = masks.select(scores, sparsities, {"a": masks.NM(2, 4, axis=0)})
    np.testing.assert_array_equal(np.asarray(found["a"]), twins.keep_n_of_m(scores["a"], 2, 4))
    np.testing.assert_array_equal(np.asarray(found["b"]).ravel(), np.arange(16) < 11)
    assert found["bias"].shape == ()


@pytest.mark.slow
def test_sharded_arrays_give_the_masks_of_one_device(devices):
    scores = {
        "a": jnp.asarray(draw("ties", (64, 32), np.float32)),
        "b": jnp.asarray(draw("normal", (16, 64), np.float32)),
    }
    expected = masks.select(scores, 0.7), masks.select_global(scores, 0.7)
    channels = masks.select(jax.tree.map(jnp.abs, scores), 0.5, masks.Channel(-1))
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind), devices=devices)
        specs = {"a": jax.sharding.PartitionSpec("x", "y"), "b": jax.sharding.PartitionSpec("y", None)}
        with jax.set_mesh(mesh):
            placed = {k: jax.device_put(v, jax.sharding.NamedSharding(mesh, specs[k])) for k, v in scores.items()}
            found = jax.jit(lambda s: (masks.select(s, 0.7), masks.select_global(s, 0.7)))(placed)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            found = jax.jit(lambda s: masks.select(jax.tree.map(jnp.abs, s), 0.5, masks.Channel(-1)))(placed)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(channels), strict=True):
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
