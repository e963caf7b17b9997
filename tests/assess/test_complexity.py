"""Parameters, FLOPs and memory of whole networks, by hand."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jaxprune.assess.complexity import complexity, leaf_sizes
from jaxprune.masks import pack, sparsity


class Net(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(image))
        return nn.Dense(5, name="head")(x.reshape(x.shape[0], -1))


IMAGE = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return jax.eval_shape(Net().init, jax.random.key(0), IMAGE)["params"]


def masks_of(params, **named):
    flags = {"conv": True, "head": True, **named}
    return {name: {"bias": jnp.array(True), "kernel": jnp.asarray(flags[name])} for name in params}


def apply(params, image):
    return Net().apply({"params": params}, image)


# SAME 3 x 3 on 4 x 4: 100 pairs a channel; 4 channels, 2 images. Head: 2 x 64 x 5.
CONV, HEAD = 2 * 100 * 4 * 2, 2 * 2 * 64 * 5


def test_dense(params):
    cost = complexity(apply, params, None, IMAGE)
    assert {leaf.size.name: leaf.flops for leaf in cost.leaves} == {
        "conv/bias": 0,
        "conv/kernel": CONV,
        "head/bias": 0,
        "head/kernel": HEAD,
    }
    assert (cost.flops, cost.effective_flops, cost.activation_flops) == (CONV + HEAD, CONV + HEAD, 0)
    assert (cost.total, cost.kept, cost.total_sparsity) == (36 + 4 + 320 + 5, 365, 0.0)
    assert (cost.dense_bytes, cost.kept_bytes, cost.mask_bytes) == (4 * 365, 4 * 365, 0)
    assert (cost.sparsity, cost.unattributed, dict(cost.uncounted), cost.unbounded) == (0.0, (), {}, ())


def test_masked(params):
    corner = np.ones((3, 3, 1, 4), bool)
    corner[0, 0] = False  # a corner tap meets 9 of 16 positions
    head = np.zeros((64, 5), bool)
    head[:16] = True
    cost = complexity(apply, params, masks_of(params, conv=corner, head=head), IMAGE)
    by_leaf = {leaf.size.name: leaf for leaf in cost.leaves}
    assert by_leaf["conv/kernel"].effective_flops == CONV - 2 * 9 * 4 * 2
    assert by_leaf["head/kernel"].effective_flops == HEAD // 4
    assert cost.effective_flops == CONV - 144 + HEAD // 4
    assert cost.kept == 32 + 4 + 80 + 5
    assert cost.sparsity == 1 - (32 + 80) / 356
    assert cost.mask_bytes == 5 + 40  # 36 and 320 bits
    assert by_leaf["conv/bias"].size.pruned is False


def test_packed_masks_and_other_containers(params):
    masks = masks_of(params, head=np.random.default_rng(0).random((64, 5)) < 0.5)
    expected = complexity(apply, params, masks, IMAGE)
    assert complexity(apply, params, pack(masks), IMAGE) == expected
    assert complexity(apply, params, FrozenDict(masks), IMAGE) == expected
    np.testing.assert_allclose(expected.sparsity, sparsity(params, masks), rtol=1e-6)


def test_channel_masks(params):
    channels = np.array([True, False, False, True]).reshape(1, 1, 1, 4)
    cost = complexity(apply, params, masks_of(params, conv=channels), IMAGE)
    conv = next(leaf for leaf in cost.leaves if leaf.size.name == "conv/kernel")
    assert (conv.size.kept, conv.size.mask_bytes, conv.effective_flops) == (18, 1, CONV // 2)


def test_only_floating_leaves_are_parameters():
    tree = {"act": jnp.tanh, "empty": jnp.zeros((0, 3)), "n": jnp.arange(3), "none": None, "w": jnp.ones((2, 2))}
    masks = jax.tree.map(lambda _: True, tree)
    cost = complexity(lambda p, x: p["act"](x @ p["w"]), tree, masks, jnp.ones((1, 2)))
    assert [leaf.size.name for leaf in cost.leaves] == ["empty", "w"]
    assert (cost.total, cost.flops, cost.leaves[0].size.density) == (4, 8, 1.0)


def test_stacked_layers_count_slice_by_slice():
    def fn(w, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    mask = np.zeros((3, 4, 4), bool)
    mask[0], mask[1, 0] = True, True
    cost = complexity(fn, jnp.ones((3, 4, 4)), mask, jnp.ones((2, 4)))
    assert (cost.flops, cost.effective_flops) == (3 * 64, 64 + 16)


def test_what_cannot_be_attributed_is_said():
    fn = lambda p, x: jnp.fft.fft(x @ (p["w"] + 1)).real @ p["v"]
    tree = {"v": jnp.ones((4, 4)), "w": jnp.ones((4, 4))}
    none = jax.tree.map(jnp.zeros_like, tree)
    cost = complexity(fn, tree, jax.tree.map(lambda x: x != 0, none), jnp.ones((2, 4)))
    assert [(u.leaves, u.primitive, u.flops) for u in cost.unattributed] == [(("w",), "add", 64)]
    assert (cost.flops, cost.effective_flops, cost.uncounted) == (128, 64, {"fft": 1})
    text = str(cost)
    assert "lost at add, counted as dense: 64 FLOPs of w" in text
    assert "not counted: fft, 1 times" in text
    looped = complexity(lambda w, x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w, x), *LOOP)
    assert "counted as one round: while" in str(looped)


LOOP = (jnp.ones((4, 4)), None, jnp.ones((2, 4)))


def test_text_and_json(params):
    cost = complexity(apply, params, masks_of(params, head=np.eye(64, 5, dtype=bool)), IMAGE)
    assert str(cost).splitlines() == [
        "parameter      shape  total  kept  sparsity   FLOPs  effective",
        "-----------  -------  -----  ----  --------  ------  ---------",
        "conv/bias          4      4     4    0.00 %       0          0",
        "conv/kernel  3x3x1x4     36    36    0.00 %  1.60 k     1.60 k",
        "head/bias          5      5     5    0.00 %       0          0",
        "head/kernel     64x5    320     5   98.44 %  1.28 k         20",
        "total                   365    50   86.30 %  2.88 k     1.62 k",
        "memory: 1.46 kB dense; 200 B kept values and 40 B masks",
    ]
    content = json.loads(json.dumps(cost.as_dict()))
    assert content["effective_flops"] == CONV + 20
    assert content["leaves"][3]["shape"] == [64, 5]


def test_attention_has_flops_of_no_parameter():
    fn = lambda w, x: jax.nn.dot_product_attention(x @ w, x, x)
    cost = complexity(fn, jnp.ones((4, 4)), None, jnp.ones((1, 3, 2, 4)))
    assert cost.activation_flops == 2 * 2 * (2 * 3 * 3 * 4)
    assert "(no parameter)" in str(cost)


def test_elementwise():
    fn = lambda w, x: jnp.tanh(x @ w)
    assert complexity(fn, jnp.ones((4, 4)), None, jnp.ones((2, 4)), elementwise=True).flops == 64 + 8


def test_errors():
    w, x = jnp.ones((4, 4)), jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"mask \(3, 4\), parameter \(4, 4\)"):
        _ = complexity(jnp.matmul, w, jnp.ones((3, 4), bool), x)
    with pytest.raises(TypeError, match="must be bool"):
        _ = complexity(jnp.matmul, w, jnp.ones((4, 4)), x)
    with pytest.raises(TypeError, match="masks are traced"):
        _ = jax.jit(lambda m: leaf_sizes(w, m)[0].kept)(jnp.ones((4, 4), bool))
