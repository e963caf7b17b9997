"""Calibration, tickets and reports of parameters that lie on eight devices: what one device gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune
from jaxprune import assess, checkpoints, criteria, lottery, masks
from jaxprune.lottery.search import Rounds
from tests.distributed import layouts


def network(params: Any, x: jax.Array) -> jax.Array:
    """Two matrices of one shape, so that little is compiled."""
    return jnp.tanh(x @ params["in"]) @ params["out"].T


def init_params() -> Any:
    keys = jax.random.split(jax.random.key(0), 2)
    return {name: jax.random.normal(key, (16, 32)) / 4 for name, key in zip(("in", "out"), keys, strict=True)}


def inputs() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (24, 16))


def spread(kind: str, devices: list[Any]) -> tuple[Any, Any, Any]:
    mesh = layouts.make_mesh(kind, devices)
    specs = {"in": P("y", "x"), "out": P(None, "x")}
    params = jax.tree.map(lambda w, s: jax.device_put(w, NamedSharding(mesh, s)), init_params(), specs)
    return mesh, params, jax.device_put(inputs(), NamedSharding(mesh, P(("x", "y"))))


def search(params: Any) -> Rounds:
    # Training in numbers that are exact, so that the bits do not depend on where they are added up.
    train = lambda p, held, key: masks.apply(jax.tree.map(lambda w: w + jnp.round(64 * w) / 64, p), held)
    return lottery.iterative_pruning(train, params, rounds=[0.5, 0.75], key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_tickets_are_those_of_one_device_and_are_saved(kind, devices, tmp_path):
    mesh, params, _ = spread(kind, devices)
    with jax.set_mesh(mesh):
        found = search(params)
        ticket = lottery.ticket(found, -1, method="magnitude")
    expected = lottery.ticket(search(init_params()), -1, method="magnitude")
    layouts.expect_same((ticket.masks, ticket.params), (expected.masks, expected.params))
    assert ticket.provenance == expected.provenance
    _ = checkpoints.save(tmp_path / "ticket", *ticket)
    back = checkpoints.load(tmp_path / "ticket", params)
    layouts.expect_same((back.masks, back.params), (expected.masks, expected.params))


def test_calibration_and_what_is_ranked_by_it(devices):
    mesh, params, x = spread("auto", devices)
    with jax.set_mesh(mesh):
        stats = jaxprune.calibrate(network, params, [x], collect="square")
        scores = criteria.wanda(params, stats=stats)
    alone = jaxprune.calibrate(network, init_params(), [inputs()], collect="square")
    expected = criteria.wanda(init_params(), stats=alone)
    for a, b in zip(jax.tree.leaves(scores), jax.tree.leaves(expected), strict=True):
        # Sums of floats over the batch: their order is the devices'.
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5)


@pytest.mark.slow
def test_reports_count_the_same(devices):
    held = {"in": jnp.arange(512).reshape(16, 32) % 4 == 0, "out": jnp.ones((1, 32), bool).at[:, 5:].set(False)}
    mesh, params, x = spread("auto", devices)
    with jax.set_mesh(mesh):
        there = jax.tree.map(lambda m, w: jax.device_put(m, w.sharding) if m.shape == w.shape else m, held, params)
        found = assess.complexity(network, params, masks.pack(there), x)
        metrics = assess.evaluate(network(params, x)[:, :4], jnp.arange(24) % 4)
    expected = assess.complexity(network, init_params(), held, inputs())
    assert found == expected
    alone = assess.evaluate(network(init_params(), inputs())[:, :4], jnp.arange(24) % 4)
    assert float(metrics.accuracy) == float(alone.accuracy)
    np.testing.assert_allclose(float(metrics.nll), float(alone.nll), rtol=1e-5)
