"""Batches sharded over devices sum to what one device makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune.calibration import calibrate
from tests.cases import normal


def fn(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


PARAMS = {"a": normal(4, 6), "b": normal(6, 2, seed=1)}
X = normal(8, 3, 4, seed=2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_sharded_batches_sum_to_the_same(kind, devices):
    alone = calibrate(fn, PARAMS, [X, 2 * X], collect=("gram", "zeros"))
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(kind,), devices=devices)
    with jax.set_mesh(mesh):
        put = jax.device_put(X, NamedSharding(mesh, P("data")))
        weights = jax.device_put(PARAMS, NamedSharding(mesh, P()))
        found = calibrate(fn, weights, [put, 2 * put], collect=("gram", "zeros"))
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name].gram, alone[name].gram, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[name].zeros, alone[name].zeros)
        assert found[name].gram.sharding.is_fully_replicated
