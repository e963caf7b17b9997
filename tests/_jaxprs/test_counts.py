"""Multiply-adds against a count that goes through every pair of entries, and against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune._jaxprs import multiply_adds


def equation(fn, *shapes, primitive):
    jaxpr = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr
    return next(e for e in jaxpr.eqns if e.primitive.name == primitive)


def measured(fn, *shapes):
    """Multiply-adds of each entry of the operands, found by running: f is bilinear, so with ones everywhere the
    gradient of the sum of the results with respect to an entry is the number of entries that it meets."""
    ones = [jnp.ones(s) for s in shapes]
    grads = jax.grad(lambda a, b: fn(a, b).sum(), argnums=(0, 1))(*ones)
    return float(fn(*ones).sum()), [np.asarray(g) for g in grads]


def check(fn, *shapes, primitive):
    counted = multiply_adds(equation(fn, *shapes, primitive=primitive))
    total, per_entry = measured(fn, *shapes)
    assert counted.total == total
    for got, expected, shape in zip(counted.per_entry, per_entry, shapes, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(got, shape), expected)


DOTS = {
    "matmul": ("mk,kn->mn", (4, 3), (3, 5)),
    "vectors": ("k,k->", (7,), (7,)),
    "outer": ("m,n->mn", (4,), (3,)),
    "batched": ("bmk,bkn->bmn", (2, 4, 3), (2, 3, 5)),
    "two contractions": ("mjk,kjn->mn", (4, 2, 3), (3, 2, 5)),
    "attention": ("bqhd,bkhd->bhqk", (2, 5, 3, 4), (2, 6, 3, 4)),
    "free axes on both sides": ("abk,ckd->abcd", (2, 3, 4), (5, 4, 6)),
}


@pytest.mark.parametrize("name", DOTS)
def test_dot_general(name):
    spec, *shapes = DOTS[name]
    check(lambda a, b: jnp.einsum(spec, a, b), *shapes, primitive="dot_general")


CONVS = [
    {"lhs": (2, 7, 8, 4), "rhs": (3, 3, 4, 6), "strides": (1, 1), "padding": "VALID"},
    {"lhs": (2, 7, 8, 4), "rhs": (3, 2, 4, 6), "strides": (1, 1), "padding": "SAME"},
    {"lhs": (2, 7, 8, 4), "rhs": (3, 3, 4, 6), "strides": (2, 3), "padding": "SAME"},
    {"lhs": (1, 7, 8, 4), "rhs": (3, 3, 2, 6), "strides": (2, 1), "padding": "SAME", "groups": 2},
    {"lhs": (1, 7, 8, 4), "rhs": (3, 3, 1, 8), "strides": (1, 1), "padding": "SAME", "groups": 4},
    {"lhs": (1, 9, 8, 4), "rhs": (3, 3, 4, 6), "strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 3)},
    {"lhs": (1, 5, 4, 4), "rhs": (3, 3, 4, 6), "strides": (1, 1), "padding": ((2, 1), (1, 2)), "lhs_dilation": (2, 3)},
    {"lhs": (1, 5, 4, 4), "rhs": (3, 3, 4, 6), "strides": (1, 1), "padding": ((-1, 5), (0, -1))},
    {"lhs": (4, 7, 8, 3), "rhs": (3, 3, 3, 6), "strides": (1, 1), "padding": "SAME", "batch_groups": 2},
    {"lhs": (2, 3, 3, 2), "rhs": (5, 5, 2, 3), "strides": (1, 1), "padding": "SAME"},  # a kernel larger than its input
    {"lhs": (2, 9, 3), "rhs": (4, 3, 5), "strides": (3,), "padding": "SAME"},
    {"lhs": (1, 4, 5, 3, 2), "rhs": (3, 2, 2, 2, 3), "strides": (1, 2, 1), "padding": "SAME"},
]


def convolution(c):
    dims = {3: ("NHC", "HIO", "NHC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NHWDC", "HWDIO", "NHWDC")}[len(c["lhs"])]
    groups = {"feature_group_count": c.get("groups", 1), "batch_group_count": c.get("batch_groups", 1)}
    dilation = {k: c.get(k) for k in ("lhs_dilation", "rhs_dilation")}
    return lambda x, w: lax.conv_general_dilated(
        x, w, c["strides"], c["padding"], dimension_numbers=dims, **groups, **dilation
    )


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolution(case):
    check(convolution(case), case["lhs"], case["rhs"], primitive="conv_general_dilated")


@pytest.mark.parametrize("case", CONVS[:8], ids=str)
def test_convolution_as_xla_counts_it(case):
    shapes = [jax.ShapeDtypeStruct(case[k], jnp.float32) for k in ("lhs", "rhs")]
    counted = multiply_adds(equation(convolution(case), case["lhs"], case["rhs"], primitive="conv_general_dilated"))
    cost = jax.jit(convolution(case)).lower(*shapes).cost_analysis()
    assert cost is not None
    assert 2 * counted.total == cost["flops"]


def test_transposed_convolution_by_hand():
    # 4 entries, 2 apart, kernel of 3, SAME: output of 8, padding (2, 1) of an input dilated to 7.
    # Tap k meets output o where o + k - 2 is one of 0, 2, 4, 6: taps 0 and 2 at o = 2, 4, 6 and 0, 2, 4, 6.
    fn = lambda x, w: lax.conv_transpose(x, w, (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    eqn = equation(fn, (1, 4, 1), (3, 1, 1), primitive="conv_general_dilated")
    placed = [sum((o + k - 2) in (0, 2, 4, 6) for o in range(8)) for k in range(3)]
    assert multiply_adds(eqn).per_entry[1].ravel().tolist() == placed


def test_same_padding_by_hand():
    # 3 x 3 on 4 x 4: a corner tap falls outside in one row and one column: 3 * 3 positions; the middle on all 16.
    case = {"lhs": (1, 4, 4, 1), "rhs": (3, 3, 1, 1), "strides": (1, 1), "padding": "SAME"}
    eqn = equation(convolution(case), case["lhs"], case["rhs"], primitive="conv_general_dilated")
    assert multiply_adds(eqn).per_entry[1][..., 0, 0].tolist() == [[9, 12, 9], [12, 16, 12], [9, 12, 9]]
    assert multiply_adds(eqn).total == 100


def test_sizes_beyond_32_bits():
    n = 1 << 20
    eqn = equation(jnp.matmul, (n, n), (n, n), primitive="dot_general")
    assert multiply_adds(eqn).total == n**3
