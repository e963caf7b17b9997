"""ALPS against the published algorithm in NumPy float64, and its errors against SparseGPT's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import Entries, Given, Grouped, alps, sparsegpt
from tests.reconstruction import problems, twins

TARGETS = {
    "50 %": (lambda size: Entries(jnp.int32(size // 2)), {"sparsity": 0.5}),
    "80 %": (lambda size: Entries(jnp.int32(size * 4 // 5)), {"sparsity": 0.8}),
    "2:4": (lambda size: Grouped(2, 4), {"nm": (2, 4)}),
}


def layer(seed, inputs=40, outputs=15, **options):
    w, x = problems.layer(seed, inputs, outputs, **options)
    return np.float32(w), np.float32(x.T @ x)


def pruned(method, w, gram, target):
    if isinstance(target, Grouped):
        return jax.jit(lambda w, g: method(w, g, target))(w, gram)
    return jax.jit(method)(w, gram, target)


def error(new, w, gram):
    return twins.error(np.asarray(new, np.float64) - w, np.asarray(gram, np.float64)).sum()


@pytest.mark.parametrize("name", TARGETS)
def test_equals_the_published_algorithm(name):
    make, options = TARGETS[name]
    w, gram = layer(0)
    new, mask = pruned(alps, w, gram, make(w.size))
    kept = twins.alps(np.float64(w), np.float64(gram), **options)
    # In float32 two entries of nearly the same magnitude may change places, and the later steps with them.
    assert np.mean(np.asarray(mask) == kept) > 0.97
    want = error(twins.least_squares(np.float64(w), np.float64(gram), kept, damping=0.01), w, gram)
    assert error(new, w, gram) == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("seed", range(3))
def test_smaller_errors_than_sparsegpt_and_exact_counts(seed, name):
    w, gram = layer(seed + 10, inputs=48, outputs=20)
    target = TARGETS[name][0](w.size)
    new, mask = pruned(alps, w, gram, target)
    assert error(new, w, gram) < 0.9 * error(pruned(sparsegpt, w, gram, target)[0], w, gram)
    assert not np.asarray(new)[~np.asarray(mask)].any()
    if isinstance(target, Grouped):
        assert (np.asarray(mask).reshape(-1, 4, 20).sum(1) == 2).all()
    else:
        assert int((~mask).sum()) == int(target.removed)


def test_a_given_mask_is_repaired_by_least_squares():
    w, gram = layer(3)
    mask = np.random.default_rng(0).random(w.shape) < 0.5
    new, same = jax.jit(alps)(w, gram, Given(jnp.asarray(mask)))
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_allclose(new, twins.least_squares(w, gram, mask, damping=0.01), atol=1e-4)


def test_stacks_dead_inputs_and_extremes():
    pairs = [layer(seed, inputs=16, outputs=6) for seed in range(3)]
    w, gram = (np.stack(parts) for parts in zip(*pairs, strict=True))
    gram[:, 4] = gram[:, :, 4] = 0
    together = jax.jit(jax.vmap(partial(alps, target=Entries(40))))(w, gram)
    assert (np.asarray(~together[1]).sum((1, 2)) == 40).all()
    assert not np.asarray(together[1])[:, 4].any()
    for i in range(3):
        _, mask = jax.jit(partial(alps, target=Entries(40)))(w[i], gram[i])
        np.testing.assert_array_equal(together[1][i], mask)
    for removed in (0, 96):
        _, mask = jax.jit(alps)(w[0], gram[0], Entries(removed))
        assert int((~mask).sum()) == removed
    np.testing.assert_array_equal(jax.jit(alps)(w[0], gram[0], Entries(0))[0], w[0])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        _ = alps(w[0], gram[0], Entries(4), steps=0)
