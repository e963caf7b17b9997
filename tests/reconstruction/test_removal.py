"""What is kept of one matrix: exact counts, groups, and given masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import Entries, Given, Grouped, removal
from tests.cases import normal

keep_largest = jax.jit(removal.keep_largest)


@pytest.mark.parametrize("shape", [(7, 5), (512, 256)])  # a small matrix and a large one are searched differently
@pytest.mark.parametrize("share", [0, 0.03, 0.5, 0.97, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keep_largest_is_exact_with_ties_by_the_lowest_index(share, dtype, shape):
    x = np.random.default_rng(0).integers(-3, 4, size=shape).astype(np.float32)
    x[2, 2], x[0, 0] = np.inf, np.nan
    kept = round(share * x.size)
    got = keep_largest(jnp.asarray(x, dtype), kept)
    order = np.lexsort((np.arange(x.size), -np.nan_to_num(x.ravel(), nan=-np.inf, posinf=np.inf)))
    want = np.zeros(x.size, bool)
    want[order[:kept]] = True
    np.testing.assert_array_equal(got, want.reshape(x.shape))


@pytest.mark.parametrize(
    ("removed", "inputs", "outputs", "block"), [(0, 10, 3, 4), (30, 10, 3, 4), (13, 7, 2, 7), (5, 9, 8, 2)]
)
def test_blocks_lose_the_total_exactly(removed, inputs, outputs, block):
    kept = np.asarray(removal.kept_by_block(removed, inputs, outputs, block))
    ends = np.minimum(np.arange(block, inputs + block, block), inputs)
    upto = (2 * removed * ends + inputs) // (2 * inputs)
    np.testing.assert_array_equal(block * outputs - kept, np.diff(upto, prepend=0))
    assert (block * outputs - kept).sum() == removed


def test_block_counts_do_not_overflow():
    removed = removal.kept_by_block(2**31 - 60_000, 46_340, 46_340, 128)
    lost = 128 * 46_340 - np.asarray(removed, np.int64)
    assert lost.sum() == 2**31 - 60_000


def test_groups_and_given_masks():
    scores = jnp.abs(normal(8, 3))
    kept = np.asarray(removal.keep(scores, Grouped(1, 4)))
    assert (kept.reshape(2, 4, 3).sum(1) == 1).all()
    best = np.asarray(scores).reshape(2, 4, 3).max(1, keepdims=True)
    np.testing.assert_array_equal(kept, (np.asarray(scores).reshape(2, 4, 3) == best).reshape(8, 3))
    given = jnp.arange(24).reshape(8, 3) % 2 == 0
    np.testing.assert_array_equal(removal.keep(scores, Given(given)), given)
    with pytest.raises(ValueError, match="do not divide 8 inputs"):
        removal.check(scores, jnp.eye(8), Grouped(1, 3))
    assert int(removal.keep(scores, Entries(5)).sum()) == 19
