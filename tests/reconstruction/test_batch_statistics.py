"""Batch statistics against those computed by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.reconstruction import recalibrate_statistics
from tests.cases import normal


def test_batch_norm_settles_at_the_mean_of_the_batches():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, momentum=0.97)(3 * x + 1)

    batches = [normal(50, 4, seed=i) for i in range(3)]
    old = Net().init(jax.random.key(0), batches[0])
    update = lambda s, x: Net().apply({**old, "batch_stats": s}, x, mutable=["batch_stats"])[1]["batch_stats"]
    new = recalibrate_statistics(update, old["batch_stats"], iter(batches))["BatchNorm_0"]
    seen = [3 * np.asarray(x) + 1 for x in batches]
    np.testing.assert_allclose(new["mean"], np.mean([x.mean(0) for x in seen], 0), rtol=1e-4)
    np.testing.assert_allclose(new["var"], np.mean([x.var(0) for x in seen], 0), rtol=1e-4)


def test_what_is_not_updated_stays_and_what_is_no_average_is_named():
    state = {"mean": jnp.float32(5.0), "frozen": jnp.float32(7.0), "steps": jnp.int32(2)}
    update = lambda s, x: {**s, "mean": 0.5 * s["mean"] + 0.5 * x, "steps": s["steps"] + 1}
    new = recalibrate_statistics(update, state, [jnp.float32(1.0), jnp.float32(2.0)])
    assert (float(new["mean"]), float(new["frozen"]), int(new["steps"])) == (1.5, 7.0, 2)
    with pytest.raises(ValueError, match="running averages of:\n  mean"):
        _ = recalibrate_statistics(lambda s, x: {**s, "mean": 3 * s["mean"] + x}, state, [jnp.float32(1.0)])
    with pytest.raises(ValueError, match="at least one batch"):
        _ = recalibrate_statistics(update, state, [])
