"""A primitive that nobody knew: described once in the table, every client of the engine follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

import jaxprune
from jaxprune._jaxprs import count_flops, shares, trace
from jaxprune._jaxprs.primitives import PRIMITIVES, Entrywise, Moves, Product, Transpose, Zero


def primitive(name, fn):
    """A primitive that does what a function of arrays does."""
    made = Primitive(name)
    made.def_impl(fn)
    made.def_abstract_eval(lambda *xs: ShapedArray(*_shape(fn, *xs)))
    mlir.register_lowering(made, mlir.lower_fun(fn, multiple_results=False))
    return made


def _shape(fn, *avals):
    out = jax.eval_shape(fn, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    return out.shape, out.dtype


SOFTCAP = primitive("softcap", lambda x: 5 * jnp.tanh(x / 5))
SWAP = primitive("swap_axes", lambda x: x.T)
MATMUL = primitive("own_matmul", lambda x, w: x @ w)
DESCRIPTIONS = {
    "softcap": Entrywise(Zero.FIRST),
    "swap_axes": Moves(lambda eqn: [Transpose((1, 0))]),
    "own_matmul": Product(lambda eqn: (((1,), (0,)), ((), ()))),
}
PARAMS = {
    "a": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32),
    "b": jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32),
}
X = jnp.asarray(np.random.default_rng(2).normal(size=(5, 4)), jnp.float32)


def net(params, x):
    hidden = SOFTCAP.bind(MATMUL.bind(x, SWAP.bind(params["a"])))
    return hidden @ params["b"]


@pytest.fixture
def described(monkeypatch):
    for name, description in DESCRIPTIONS.items():
        monkeypatch.setitem(PRIMITIVES, name, description)


def test_unknown_primitives_are_named_by_every_client():
    counted = count_flops(trace(net, PARAMS, X).closed, (0, 1))
    assert set(counted.uncounted) == set(DESCRIPTIONS)
    stats = jaxprune.calibrate(net, PARAMS, [X])
    assert stats.uncovered == (("a", "`swap_axes`"),)
    groups = jaxprune.find_groups(net, PARAMS, X)
    assert not groups.groups
    assert {f.reason for f in groups.frozen if f.name == "a"} == {"primitive swap_axes, which slimming does not know"}


@pytest.mark.usefixtures("described")
def test_flops_follow_a_described_primitive():
    counted = count_flops(trace(net, PARAMS, X).closed, (0, 1), elementwise=True)
    assert counted.total == 2 * 5 * 4 * 6 + 2 * 5 * 6 * 3 + 5 * 6
    assert not counted.uncounted
    mask = np.arange(24).reshape(6, 4) % 3 == 0
    [share] = shares(counted.operations[0], {0: (6, 4), 1: (6, 3)}, {0: mask})
    assert share.effective == 2 * 5 * mask.sum()


@pytest.mark.usefixtures("described")
def test_calibration_follows_a_described_primitive():
    stats = jaxprune.calibrate(net, PARAMS, [X])
    assert not stats.uncovered
    np.testing.assert_allclose(stats["a"].gram[0], X.T @ X, rtol=1e-5)
    assert stats["a"].layout.input_axes == (1,)


@pytest.mark.usefixtures("described")
def test_slimming_follows_a_described_primitive():
    [group] = jaxprune.find_groups(net, PARAMS, X)
    assert (group.count, group.exact, [m.name for m in group.members]) == (6, True, ["a", "b"])
    small = jaxprune.slim(net, PARAMS, {group.name: [1, 4]}, X)
    kept = [0, 2, 3, 5]
    masked = {name: jnp.zeros_like(w).at[jnp.array(kept)].set(w[jnp.array(kept)]) for name, w in PARAMS.items()}
    np.testing.assert_allclose(small.fn(small.params, X), net(masked, X), rtol=1e-5)
