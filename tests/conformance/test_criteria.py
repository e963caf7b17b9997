"""What every criterion must do; a new one is one more line in CRITERIA."""

from functools import partial
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import criteria
from tests.cases import few
from tests.training.loops import batch, forward, init_params, loss

CRITERIA: dict[str, Any] = {
    "magnitude": criteria.magnitude,
    "magnitude squared": partial(criteria.magnitude, power=2),
    "magnitude normalised": partial(criteria.magnitude, normalise="l2"),
    "random": criteria.random,
    "gradient": criteria.gradient,
    "gradient squared": partial(criteria.gradient, power=2),
    "snip": criteria.snip,
    "fisher": criteria.fisher,
    # Any signal of both signs will do for a diagonal.
    "obd": lambda params, grads=None, **signals: criteria.obd(params, hessian_diagonal=grads, **signals),
    "wanda": criteria.wanda,
    "ria": criteria.ria,
    "own": lambda params, **signals: jax.tree.map(jnp.exp, params),
}


@pytest.fixture(params=CRITERIA)
def criterion(request: pytest.FixtureRequest) -> Any:
    """One criterion after another."""
    return CRITERIA[request.param]


@pytest.fixture(scope="module")
def stats() -> Any:
    """What the weights meet on a batch."""
    return jaxprune.calibrate(forward, init_params(), [batch(0)], collect="square")


@pytest.mark.parametrize("criterion", few(CRITERIA, "random", "obd", "ria", "own"), indirect=True)
def test_scores_are_those_of_jit_in_shapes_of_the_params(criterion, stats):
    params = init_params()
    signals = {"grads": jax.grad(loss)(params, batch(0)), "stats": stats, "key": jax.random.key(0)}
    scores = criterion(params, **signals)
    # Of what it does not score (a bias has no inputs) a criterion may make a scalar.
    kernels = [[tree[name]["kernel"] for name in ("first", "second")] for tree in (params, scores)]
    chex.assert_trees_all_equal_shapes(*kernels)
    assert jax.tree.structure(params) == jax.tree.structure(scores)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(scores))
    jitted = jax.jit(lambda p, g, k: criterion(p, grads=g, stats=stats, key=k))
    again = jitted(params, signals["grads"], signals["key"])
    chex.assert_trees_all_close(again, scores, rtol=1e-5)
    chex.assert_trees_all_equal(jitted(params, signals["grads"], signals["key"]), again)


@pytest.mark.parametrize("dtype", few([jnp.bfloat16, jnp.float16], jnp.bfloat16), ids=lambda d: d.__name__)
def test_narrow_dtypes_rank_as_wide_ones(criterion, stats, dtype):
    narrow = init_params(dtype)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    grads = jax.grad(loss)(wide, batch(0))
    key = jax.random.key(0)
    pruned = [
        jaxprune.prune(p, 0.5, criterion=criterion, grads=grads, stats=stats, key=key).masks for p in (narrow, wide)
    ]
    same = [np.mean(np.asarray(a) == np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, pruned), strict=True)]
    # exp is taken in the narrow type and rounds; everything of ours is compared without loss.
    assert min(same) >= (0.9 if criterion is CRITERIA["own"] else 1.0)


@pytest.mark.parametrize("criterion", few(CRITERIA, "magnitude normalised", "random", "ria"), indirect=True)
def test_sharded_arrays_give_the_same_masks(criterion, stats, devices):
    params = init_params()
    grads = jax.grad(loss)(params, batch(0))
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shard(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.device_put(x, rows if x.ndim == 2 else whole), tree)

    # Both jitted: what differs is only where the arrays lie.
    run = jax.jit(
        lambda p, g: jaxprune.prune(p, 0.5, criterion=criterion, grads=g, stats=stats, key=jax.random.key(0)).masks
    )
    chex.assert_trees_all_equal(run(shard(params), shard(grads)), run(params, grads))


def test_empty_nodes_and_static_leaves_pass_through(criterion):
    if criterion in (CRITERIA["wanda"], CRITERIA["ria"], CRITERIA["own"]):
        pytest.skip("needs statistics of this very tree, or is the user's to write")
    params = {
        "w": jnp.ones((2, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
        "count": jnp.arange(3),
        "fn": jax.nn.relu,
    }
    grads = eqx.filter(params, eqx.is_inexact_array) | {"count": jnp.zeros(3), "fn": 0.0}
    pruned = jaxprune.prune(params, 0.5, criterion=criterion, grads=grads, key=jax.random.key(0))
    assert int((~pruned.masks["w"]).sum()) == 3
    assert pruned.params["fn"] is jax.nn.relu
    assert pruned.params["none"] is None
