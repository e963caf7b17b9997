"""Batches sharded over devices, in a process with several of them."""

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jaxprune.calibration import calibrate

    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    params = {"a": jax.random.normal(jax.random.key(0), (4, 6)), "b": jax.random.normal(jax.random.key(1), (6, 2))}
    x = jax.random.normal(jax.random.key(2), (8, 3, 4))
    alone = calibrate(fn, params, [x], collect=("gram", "zeros"))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            put = jax.device_put(x, NamedSharding(mesh, P("data")))
            weights = jax.device_put(params, NamedSharding(mesh, P()))
            got = calibrate(fn, weights, [put], collect=("gram", "zeros"))
            for name in ("a", "b"):
                np.testing.assert_allclose(got[name].gram, alone[name].gram, rtol=1e-5, atol=1e-5)
                assert got[name].gram.sharding.is_fully_replicated
    print("equal")
"""


@pytest.mark.slow
def test_sharded_batches_sum_to_the_same():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, env=env, check=False
    )
    assert done.stdout == "equal\n", done.stderr[-3000:]
