"""Magnitude and Wanda on one matrix, and the counting behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import counting, masked, targets
from tests.reconstruction import problems


@pytest.mark.parametrize("kept", [0, 1, 17, 34, 35])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keep_largest_is_exact_with_ties_by_the_lowest_index(kept, dtype):
    x = np.random.default_rng(0).integers(-3, 4, size=(7, 5)).astype(np.float32)
    x[2, 2], x[0, 0] = np.inf, np.nan
    got = jax.jit(counting.keep_largest)(jnp.asarray(x, dtype), kept)
    order = np.lexsort((np.arange(x.size), -np.nan_to_num(x.ravel(), nan=-np.inf, posinf=np.inf)))
    want = np.zeros(x.size, bool)
    want[order[:kept]] = True
    np.testing.assert_array_equal(got, want.reshape(x.shape))


@pytest.mark.parametrize(
    ("removed", "inputs", "outputs", "block"), [(0, 10, 3, 4), (30, 10, 3, 4), (13, 7, 2, 7), (5, 9, 8, 2)]
)
def test_blocks_lose_the_total_exactly(removed, inputs, outputs, block):
    kept = np.asarray(counting.kept_by_block(removed, inputs, outputs, block))
    ends = np.minimum(np.arange(block, inputs + block, block), inputs)
    upto = (2 * removed * ends + inputs) // (2 * inputs)
    np.testing.assert_array_equal(block * outputs - kept, np.diff(upto, prepend=0))
    assert (block * outputs - kept).sum() == removed


def test_block_counts_do_not_overflow():
    removed = counting.kept_by_block(2**31 - 60_000, 46_340, 46_340, 128)
    lost = 128 * 46_340 - np.asarray(removed, np.int64)
    assert lost.sum() == 2**31 - 60_000


def test_magnitude_ranks_the_matrix_and_wanda_each_output():
    w = jnp.array([[0.1, 1.0], [0.2, 2.0], [0.3, 3.0], [0.4, 4.0]])
    _, mask = masked.magnitude(w, targets.Entries(4))
    np.testing.assert_array_equal(mask, [[False, True]] * 4)
    new, mask = masked.wanda(w, jnp.array([100.0, 1.0, 1.0, 1.0]), targets.Entries(4))
    np.testing.assert_array_equal(mask, [[True, True], [False, False], [False, False], [True, True]])
    np.testing.assert_array_equal(new, np.where(mask, w, 0))


def test_groups_and_given_masks():
    w = jax.random.normal(jax.random.key(0), (8, 3))
    for new, mask in (
        masked.magnitude(w, targets.Grouped(1, 4)),
        masked.wanda(w, jnp.arange(1.0, 9.0), targets.Grouped(1, 4)),
    ):
        assert (np.asarray(mask).reshape(2, 4, 3).sum(1) == 1).all()
        np.testing.assert_array_equal(new, np.where(mask, w, 0))
    given = jnp.arange(24).reshape(8, 3) % 2 == 0
    np.testing.assert_array_equal(masked.magnitude(w, targets.Given(given))[1], given)
    with pytest.raises(ValueError, match="do not divide 8 inputs"):
        _ = masked.magnitude(w, targets.Grouped(1, 3))


def test_wanda_does_not_see_in_which_unit_an_input_is_measured_and_magnitude_does():
    # The outlier features of large language models: an input 16 times larger, its weights 16 times smaller.
    w, x = (a.astype(np.float32) for a in problems.layer(5, 32, 8))
    unit = np.where(np.arange(32) % 8 == 0, np.float32(16), np.float32(1))
    for target in (targets.Entries(128), targets.Grouped(2, 4)):
        square, scaled = (jnp.asarray((y**2).sum(0)) for y in (x, x * unit))
        new, mask = masked.wanda(jnp.asarray(w), square, target)
        other, same = masked.wanda(jnp.asarray(w / unit[:, None]), scaled, target)
        np.testing.assert_array_equal(mask, same)
        np.testing.assert_array_equal(other * unit[:, None], new)
        _, first = masked.magnitude(jnp.asarray(w), target)
        _, second = masked.magnitude(jnp.asarray(w / unit[:, None]), target)
        assert np.asarray(first)[::8].mean() > 2 * np.asarray(second)[::8].mean()
