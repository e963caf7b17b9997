"""The description of every higher-order primitive suffices to run it: an interpreter built on it gives the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxprune._jaxprs import Sub, sub_jaxprs, trace


def run(jaxpr, consts, args):
    """Evaluates a jaxpr in Python, going into sub-jaxprs by their description alone."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    for eqn in jaxpr.eqns:
        operands = [v.val if hasattr(v, "val") else env[v] for v in eqn.invars]
        subs = sub_jaxprs(eqn)
        if subs:
            results = run_subs(eqn, subs, operands)
        else:
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        env.update(zip(eqn.outvars, results, strict=True))
    return [v.val if hasattr(v, "val") else env[v] for v in jaxpr.outvars]


def run_subs(eqn, subs, operands):
    if subs[0].role == "branch":
        subs = [subs[int(operands[0])]]
    if subs[0].role == "while_cond":
        cond, body = subs
        while run(cond.jaxpr, cond.consts, [operands[i] for i in cond.inputs])[0]:
            outs = run(body.jaxpr, body.consts, [operands[i] for i in body.inputs])
            for out, inp in body.carried:
                operands[body.inputs[inp]] = outs[out]
        return [operands[body.inputs[inp]] for _, inp in body.carried]
    [sub] = subs
    inputs = [operands[i] for i in sub.inputs]
    stacks = {k: [] for k in sub.stacked_outputs}
    outs = []
    for step in reversed(range(sub.length)) if sub.reverse else range(sub.length):
        sliced = [x[step] if k in sub.stacked_inputs else x for k, x in enumerate(inputs)]
        outs = run(sub.jaxpr, sub.consts, sliced)
        for out, inp in sub.carried:
            inputs[inp] = outs[out]
        for k, stack in stacks.items():
            stack.append(outs[k])
    order = -1 if sub.reverse else 1
    outs = [jnp.stack(stacks[k][::order]) if k in stacks else out for k, out in enumerate(outs)]
    return [outs[sub.outputs.index(k)] for k in range(len(eqn.outvars))]


@jax.custom_vjp
def doubled(x):
    return 2 * x


_ = doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)) / 3 + 2 * np.eye(3), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), jnp.float32)


def scan(x, w, *, reverse):
    return lax.scan(lambda c, y: (c @ w + y.sum(), (c, 2 * y)), x, jnp.stack([w, x]), reverse=reverse)


FUNCTIONS = {
    "jit": jax.jit(jnp.dot),
    "custom_jvp_call": lambda x, w: jax.nn.relu(x) @ w,
    "custom_vjp_call": lambda x, w: doubled(x) @ w,
    "remat": jax.checkpoint(jnp.dot),
    "scan": lambda x, w: scan(x, w, reverse=False),
    "scan_reverse": lambda x, w: scan(x, w, reverse=True),
    "scan_no_xs": lambda x, w: lax.scan(lambda c, _: (c @ w, None), x, None, length=3),
    "map": lambda x, w: lax.map(lambda y: y @ w, x),
    "while": lambda x, w: lax.while_loop(lambda c: c[0] < w[0, 0] + 3, lambda c: (c[0] + 1, c[1] @ w), (0.0, x)),
    "cond": lambda x, w: lax.cond(x.sum() > 0, lambda a: a @ w, lambda a: a + w, x),
    "switch": lambda x, w: lax.switch(1, [lambda a: a, lambda a: a @ w, lambda a: a + 1], x),
    "custom_linear_solve": lambda x, w: lax.custom_linear_solve(
        lambda v: w @ v, x[0], lambda _, b: jnp.linalg.inv(w) @ b, symmetric=True
    ),
    "grad": jax.grad(lambda x, w: jax.nn.silu(scan(x, w, reverse=False)[0]).sum()),
    "vmap": jax.vmap(lambda x, w: lax.cond(x[0] > 0, lambda a: a @ w, lambda a: a, x), (0, None)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_description_suffices_to_run_the_equation(name):
    closed = jax.make_jaxpr(FUNCTIONS[name])(X, W)
    expected = jax.tree.leaves(FUNCTIONS[name](X, W))
    got = run(closed.jaxpr, closed.consts, [X, W])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def subs_of(fn, *args, primitive):
    return next(sub_jaxprs(e) for e in trace(fn, *args).closed.jaxpr.eqns if e.primitive.name == primitive)


def test_scan_tells_constants_carry_and_slices_apart():
    [sub] = subs_of(lambda x, w: scan(x, w, reverse=True), X, W, primitive="scan")
    assert (sub.length, sub.reverse, sub.role) == (2, True, "scan")
    assert sub.carried == ((0, 1),)  # input 0 is the constant w, 2 the slice
    assert sub.stacked_inputs == frozenset({2})
    assert sub.stacked_outputs == frozenset({1, 2})


def test_scan_of_equal_shapes_is_told_apart_by_rank_alone():
    # Length 3 over (3, 3) slices: operands and results all have sizes of 3.
    fn = lambda c, k, xs: lax.scan(lambda c, x: (c + k, x), c, xs)
    [sub] = subs_of(fn, X, W, jnp.stack([X, X, X]), primitive="scan")
    assert sub.carried == ((0, 1),)
    assert sub.stacked_inputs == frozenset({2})


def test_shard_map_runs_once_for_each_device():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    fn = jax.shard_map(lambda x: 2 * x, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d"))
    [sub] = subs_of(fn, X, primitive="shard_map")
    assert (sub.role, sub.length, sub.inputs) == ("shard_map", 1, (0,))


def test_combiners_are_not_entered():
    fn = lambda x: lax.reduce(x, 0.0, lambda a, b: a * b + b, (0,))
    assert subs_of(fn, X, primitive="reduce") == ()


def test_a_jaxpr_with_other_operands_is_unknown_not_guessed():
    class Equation:
        primitive = type("Primitive", (), {"name": "made_up"})
        params = {"jaxpr": jax.make_jaxpr(jnp.add)(1.0, 2.0)}  # noqa: RUF012
        invars = outvars = ()

    [sub] = sub_jaxprs(Equation())
    assert isinstance(sub, Sub)
    assert (sub.role, sub.inputs, sub.outputs, sub.length) == ("unknown", (None, None), (None,), None)
