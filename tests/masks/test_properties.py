"""What must hold of any selection, on inputs that Hypothesis finds."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from jaxprune import criteria, masks

# One shape, so that nothing is compiled again; what varies is the numbers.
SHAPE = (8, 12)
scores = hnp.arrays(np.float32, SHAPE, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
distinct = st.permutations(range(96)).map(lambda order: np.array(order, np.float32).reshape(SHAPE))
sparsities = st.floats(0, 0.99)
quick = settings(max_examples=40, deadline=None)


def select(values, sparsity, pattern=None):
    return np.asarray(masks.select([jnp.asarray(values)], sparsity, pattern or masks.Unstructured())[0])


@quick
@given(scores, sparsities)
def test_the_count_is_exact(values, sparsity):
    assert (~select(values, sparsity)).sum() == math.floor(sparsity * values.size + 0.5)


@quick
@given(scores, sparsities, sparsities)
def test_more_sparsity_never_keeps_more(values, one, other):
    low, high = sorted((one, other))
    assert not (select(values, high) & ~select(values, low)).any()


@quick
@given(scores, sparsities)
def test_what_is_kept_is_kept_again(values, sparsity):
    mask = select(values, sparsity)
    again = select(np.where(mask, values, np.nan), sparsity)
    # NaN ranks lowest, and a kept NaN has the lowest index among them only if it came first: compare what is finite.
    np.testing.assert_array_equal(again | np.isnan(values), mask | np.isnan(values))


@quick
@given(distinct, sparsities, st.permutations(range(8)))
def test_without_ties_a_permutation_only_moves_the_mask(values, sparsity, order):
    np.testing.assert_array_equal(select(values[order], sparsity), select(values, sparsity)[order])


@quick
@given(scores)
def test_every_group_keeps_n(values):
    mask = select(values, 0.5, masks.NM(2, 4, axis=0))
    assert (mask.reshape(2, 4, 12).sum(1) == 2).all()


@quick
@given(scores, sparsities)
def test_channels_and_blocks_are_whole(values, sparsity):
    channels = select(values, sparsity, masks.Channel(-1))
    assert channels.shape == (1, 12)
    assert (~channels).sum() == math.floor(12 * sparsity + 0.5)
    blocks = select(values, sparsity, masks.Block((2, 3), (0, 1))).reshape(4, 2, 4, 3)
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all()
    assert (~blocks.all((1, 3))).sum() == math.floor(16 * sparsity + 0.5)


@quick
@given(hnp.arrays(bool, st.sampled_from([(3, 1), (5, 7), (4, 8), (2, 3, 9)])))
def test_unpacking_undoes_packing(mask):
    packed = masks.pack([jnp.asarray(mask)])
    assert packed[0].bits.size == math.prod(mask.shape[:-1]) * -(-mask.shape[-1] // 8)
    np.testing.assert_array_equal(np.asarray(masks.unpack(packed)[0]), mask)


bits = st.integers(0, 2**32 - 1) | st.sampled_from(
    [0, 1, 0x3F800000, 0x7F800000, 0x7FC00000, 0x80000000, 0x80000001, 0xBF800000, 0xFF800000, 0xFFC00001]
)
PATTERNS = (masks.Unstructured(), masks.Unstructured(axes=0), masks.Channel(-1))
EVERY = lambda name, leaf: True


def everything(leaves, sparsity, gone):
    size = criteria.magnitude(leaves)
    together = masks.select_global(size, sparsity)
    return {
        "each": [masks.select(leaves, sparsity, pattern) for pattern in PATTERNS],
        "slices": masks.select(leaves, masks.Count(jnp.zeros_like(gone), gone), batch_axes=1, where=EVERY),
        "members": masks.select_global(leaves, sparsity, batch_axes=1, where=EVERY),
        "size": size,
        "together": together,
        "applied": masks.apply(leaves, together),
        "left": masks.count_kept(leaves, together),
    }


compiled = jax.jit(everything)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint32, SHAPE, elements=bits), sparsities, st.lists(st.integers(0, 12), min_size=8, max_size=8))
def test_numpy_outside_of_jit_returns_the_bits_of_the_compiled_program(values, sparsity, gone):
    halves = values.view(np.uint16).reshape(8, 12, 2)
    leaves = {
        "float32": values.view(np.float32),
        "bfloat16": halves[..., 1].copy().view(jnp.bfloat16),
        "float16": halves[..., 0].copy().view(np.float16),
    }
    arguments = jax.tree.map(jnp.asarray, (leaves, np.float32(sparsity), np.array(gone, np.int32)))
    for found, expected in zip(*map(jax.tree.leaves, (everything(*arguments), compiled(*arguments))), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert _bits(found) == _bits(expected)


def _bits(array):
    array, nan = np.asarray(array), np.asarray(array) != np.asarray(array)
    return nan.tobytes(), np.where(nan, np.zeros_like(array), array).tobytes()  # XLA may change the bits of NaN


def test_arrays_that_a_compiled_function_does_not_take_as_arguments_are_constants():
    leaves = {"w": jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)}
    held = masks.select(leaves, 0.7)
    found = jax.jit(lambda: (masks.select(leaves, 0.7), masks.apply(leaves, held), masks.count_kept(leaves, held)))()
    expected = held, masks.apply(leaves, held), {"w": masks.Count(0, 29)}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
