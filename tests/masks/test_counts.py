import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks
from jaxprune.masks._exact import counts, rows

SIZES = [1, 2, 10, 1000, 2**24 + 1, 2**31 - 1, 2**31, 2**33 + 7, 2**46 + 12345]


def test_removed_is_exact_from_numbers_and_from_arrays():
    traced = jax.jit(counts.removed, static_argnums=1)
    rng = np.random.default_rng(0)
    for sparsity in [*rng.random(6, np.float32), 0.0, 0.5, 0.1, 0.999999, 1e-6]:
        number = np.float32(sparsity)
        for n in SIZES:
            exact = math.floor(Fraction(float(number)) * n + Fraction(1, 2))
            assert int(traced(jnp.float32(number), n)) == exact
            assert int(counts.removed(Fraction(float(number)), n)) == exact
    # The Python number 0.35 is counted as a person would: 3.5 rounds up.
    assert int(counts.removed(0.35, 10)) == 4


def test_sums_and_differences_beyond_31_bits():
    parts = np.array([2**31 - 1, 2**31 - 1, 5, 2**30], np.int64)
    total = counts.total(jnp.asarray(parts.astype(np.int32)))
    assert int(total) == parts.sum()
    huge = [2**40 + 3, 2**45, 17]
    limbs = [masks.Count.of(x) for x in huge]
    stacked = masks.Count(jnp.array([x.high for x in limbs]), jnp.array([x.low for x in limbs]))
    assert int(counts.sum_counts(stacked)) == sum(huge)
    assert int(counts.subtract(limbs[1], limbs[0])) == huge[1] - huge[0]
    assert bool(counts.less(limbs[0], limbs[1]))
    assert not bool(counts.less(limbs[1], limbs[0]))
    with pytest.raises(ValueError, match="2\\^47"):
        _ = masks.Count.of(2**47)


def test_a_count_of_more_than_there_is_names_the_leaf():
    scores = {"a": jnp.arange(4.0).reshape(2, 2), "b": jnp.arange(9.0).reshape(3, 3)}
    assert int(masks.select(scores, masks.Count.of(4))["a"].sum()) == 0
    with pytest.raises(ValueError, match=r"a: the count to remove must be at most its 4 units, got 9"):
        _ = masks.select(scores, masks.Count.of(9))


def test_parts_of_huge_arrays_fit_their_integers():
    # Nothing is allocated: which axes are summed first decides whether a count can overflow.
    for shape in [(8192, 2**20), (2**20, 8192), (64, 4096, 2**14), (2**18, 2**14)]:
        (axis,) = rows.partial_axes(shape)
        assert math.prod(shape) // shape[axis] < 2**31
        assert shape[axis] <= 2**15
    with pytest.raises(ValueError, match="no axis"):
        _ = rows.partial_axes((2**33,))
