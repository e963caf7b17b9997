"""Models of packages that are not among the test's dependencies; each is skipped where its package is missing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from tests.cases import few
from tests.slimming import checks
from tests.slimming.zoo import flax_models

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours

FEW = ("Bert", "GPT2", "Llama", "ResNet", "T5", "ViT")


def check(fn: Any, params: Any, inputs: Any) -> slimming.Groups:
    """Removes about half of what may go exactly, at random, and compares with masking."""
    groups = slimming.find_groups(fn, params, inputs)
    scores = np.random.default_rng(0).uniform(size=groups.size)
    choice = slimming.choose(groups, scores, 0.5)
    assert not choice.keep.all(), str(groups)
    small = slimming.slim(fn, params, choice, inputs)
    expected = jax.jit(fn)(checks.masked(params, choice), inputs)
    assert checks.difference(expected, jax.jit(small.fn)(small.params, inputs)) < 1e-4
    return groups


@pytest.mark.parametrize("name", few(flax_models.MODELS, *FEW))
def test_flax_models_of_transformers(name: str) -> None:
    _ = pytest.importorskip("transformers", reason="transformers is not installed; `make zoo` installs it")
    fn, shapes, inputs = flax_models.build(name)
    groups = check(fn, checks.random_params(shapes), inputs)
    assert len(groups) > 1


def test_haiku() -> None:
    hk = pytest.importorskip("haiku", reason="haiku is not installed")

    def net(x: Any, train: bool = False) -> Any:
        x = jax.nn.relu(hk.Conv2D(8, 3)(x))
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(12, 3, stride=2)(x), is_training=train))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.VarianceScaling(), model_size=12)(x, x, x)
        outputs, _ = hk.dynamic_unroll(hk.LSTM(10), x, hk.LSTM(10).initial_state(x.shape[0]), time_major=False)
        return hk.nets.MLP([16, 3])(outputs.mean(1))

    model = hk.without_apply_rng(hk.transform_with_state(net))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, x, train=True), jax.random.key(0))
    groups = check(lambda v, x: model.apply(*v, x)[0], checks.random_params(shapes), x)
    # Channels before and after the second convolution, heads, queries, values, states of the LSTM, the MLP.
    assert {4, 8, 10, 12, 16} <= {g.count for g in groups}
