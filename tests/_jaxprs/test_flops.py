"""FLOPs of whole functions: by hand, and as XLA counts them where it counts right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune._jaxprs import Lost, count_flops, shares, trace

X = jax.ShapeDtypeStruct((2, 4), jnp.float32)
W = jax.ShapeDtypeStruct((4, 4), jnp.float32)
DOT = 2 * 2 * 4 * 4  # x @ w


def flops(fn, *args, **options):
    return count_flops(trace(fn, *args).closed, (0,), **options)


BY_HAND = {
    "dense": (lambda w, x: x @ w, DOT),
    "scan": (lambda w, x: lax.scan(lambda c, _: (c @ w, None), x, None, length=7), 7 * DOT),
    "nested scan": (
        lambda w, x: lax.scan(lambda c, _: (lax.fori_loop(0, 3, lambda _, a: a @ w, c), None), x, None, length=5),
        15 * DOT,
    ),
    "empty scan": (lambda w, x: lax.scan(lambda c, v: (c @ w + v, None), x, jnp.zeros((0, 4))), 0),
    "remat": (lambda w, x: jax.checkpoint(lambda x: jnp.tanh(x @ w))(x), DOT),
    "vmap": (lambda w, x: jax.vmap(lambda a: jax.jit(jnp.dot)(a, w))(x), DOT),
    "cond": (lambda w, x: lax.cond(x[0, 0] > 0, lambda a: a @ w, lambda a: a @ w @ w, x), 2 * DOT),
    "switch": (lambda w, x: lax.switch(1, [lambda a: a @ w @ w @ w, lambda a: a], x), 3 * DOT),
    "dead": (lambda w, x: (x @ w, x + 1)[1], 0),
    # scores and mixing: each 2 * (2 heads) * 5 queries * 5 keys * 4
    "attention": (lambda w, x: jax.nn.dot_product_attention(*[jnp.ones((1, 5, 2, 4)) + w[0]] * 3), 2 * 400),
    # forward, and one product with each operand backward
    "gradient": (jax.grad(lambda w, x: jnp.tanh(x @ w).sum()), 2 * DOT),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    fn, expected = BY_HAND[name]
    assert flops(fn, W, X).total == expected


def test_matmul_as_xla_counts_it():
    fn = lambda w, x: x @ w @ w
    cost = jax.jit(fn).lower(W, X).cost_analysis()
    assert cost is not None
    assert flops(fn, W, X).total == cost["flops"]


def test_while_is_counted_once_and_named():
    counted = flops(lambda w, x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x), W, X)
    assert counted.total == DOT
    assert counted.unbounded == ("while",)


def test_elementwise():
    fn = lambda w, x: jnp.exp(x).sum() + lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID").sum()
    # exp 8, sum 8, windows 3 of 4 entries, their sum 3, the addition 1
    assert flops(fn, W, X, elementwise=True).total == 8 + 8 + 12 + 3 + 1
    assert flops(fn, W, X).elementwise is None


def test_integers_are_no_flops():
    counted = flops(lambda w, x: jnp.arange(5).sum() + jnp.arange(5)[0], W, X, elementwise=True)
    assert counted.total == 0


def test_what_has_no_count_is_named():
    fn = lambda w, x: lax.scan(lambda c, _: (jnp.fft.fft(c).real, None), jnp.linalg.cholesky(w), None, length=3)
    assert flops(fn, W, X).uncounted == {"cholesky": 1, "fft": 3}


def test_operations_without_a_weight():
    between, lost = flops(lambda w, x: (x @ x.T) @ (x @ (w + 1)), W, X).operations[:2]
    assert (between.weight, between.lost) == (None, None)
    assert lost.lost == Lost(frozenset({0}), "add")
    assert shares(lost, {0: (4, 4)}, {}) == ()


def numpy_twin(fn, w, mask, *inputs):
    """Effective FLOPs by differentiation: the result of ones is the number of multiply-adds with kept entries."""
    return 2 * float(jnp.sum(fn(jnp.where(mask, jnp.ones_like(w), 0), *(jnp.ones(x.shape) for x in inputs))))


MASKED = {
    "dense": ((4, 6), lambda w, x: x @ w, (2, 4)),
    "transposed": ((6, 4), lambda w, x: x @ w.T, (2, 4)),
    "heads": ((4, 2, 3), lambda w, x: jnp.einsum("bi,ihd->bhd", x, w), (2, 4)),
    "slice": ((4, 6), lambda w, x: x @ w[:, 1:4], (2, 4)),
    "conv SAME": ((3, 3, 2, 4), lambda w, x: conv(w, x, (1, 1), "SAME"), (1, 4, 5, 2)),
    "conv strided": ((3, 3, 2, 4), lambda w, x: conv(w, x, (2, 2), "SAME"), (1, 5, 4, 2)),
    "conv VALID": ((3, 3, 2, 4), lambda w, x: conv(w, x, (2, 1), "VALID"), (2, 5, 4, 2)),
    "conv grouped": ((3, 3, 1, 4), lambda w, x: conv(w, x, (1, 1), "SAME", 2), (1, 4, 4, 2)),
    "vmapped": ((3, 4, 2), jax.vmap(lambda w, x: x @ w, (0, None)), (2, 4)),
    "mapped": ((3, 4, 2), lambda w, x: lax.map(lambda w: x @ w, w), (2, 4)),
    "mapped conv": ((2, 4, 1, 3), lambda w, x: lax.map(lambda w: lax.conv(x, w, (1,), "SAME"), w), (1, 1, 6)),
}


def conv(w, x, strides, padding, groups=1):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=dims, feature_group_count=groups)


@pytest.mark.parametrize("name", MASKED)
def test_effective_flops_count_each_kept_entry(name):
    shape, fn, inputs = MASKED[name]
    mask = np.random.default_rng(0).random(shape) < 0.4
    x = jax.ShapeDtypeStruct(inputs, jnp.float32)
    counted = flops(fn, jax.ShapeDtypeStruct(shape, jnp.float32), x)
    [share] = shares(counted.operations[0], {0: shape}, {0: mask})
    assert share.dense == counted.total == numpy_twin(fn, jnp.ones(shape), np.True_, x)
    assert share.effective == numpy_twin(fn, jnp.ones(shape), mask, x)


def test_masks_broadcast():
    counted = flops(lambda w, x: x @ w, W, X)
    channels = np.array([[True, False, True, True]])
    assert shares(counted.operations[0], {0: (4, 4)}, {0: channels})[0].effective == DOT * 3 // 4
    assert shares(counted.operations[0], {0: (4, 4)}, {})[0].effective == DOT


def test_concatenated_leaves_share_an_operation():
    fn = lambda p, x: x @ jnp.concatenate([p["k"], p["q"][:, :2]], 1)
    counted = count_flops(trace(fn, {"k": W, "q": W}, X).closed, (0, 1))
    mask = np.array([[True, False, True, True]])
    split = shares(counted.operations[0], {0: (4, 4), 1: (4, 4)}, {1: mask})
    assert [(s.leaf, s.dense, s.effective) for s in split] == [(0, DOT, DOT), (1, DOT // 2, DOT // 4)]
