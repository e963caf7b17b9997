import jax
import jax.numpy as jnp
import numpy as np
import pytest
from main_job import networks

from jaxprune import _tree

SHAPE = (8, 8, 1)


def parameters(kind: str):
    return networks.make(kind, SHAPE, 10).init(jax.random.key(0))


def test_linen_and_nnx_have_one_tree_of_parameters():
    linen, nnx = (jax.eval_shape(lambda kind=kind: parameters(kind)) for kind in networks.NAMES)
    shapes = lambda params: {name: (leaf.shape, leaf.dtype) for name, leaf in _tree.named_leaves(params)}
    assert shapes(linen) == shapes(nnx)
    assert jax.tree.structure(linen) == jax.tree.structure(nnx)


@pytest.mark.parametrize("shape", [SHAPE, (7, 9, 3)])
def test_linen_and_nnx_compute_the_same_function(shape: tuple[int, int, int]):
    linen, nnx = (networks.make(kind, shape, 5) for kind in networks.NAMES)
    params = jax.jit(linen.init)(jax.random.key(1))
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    logits = jax.jit(linen.apply)(params, images)
    assert logits.shape == (3, 5)
    np.testing.assert_array_equal(logits, jax.jit(nnx.apply)(params, images))


def test_the_key_decides_the_parameters():
    init = jax.jit(networks.make("nnx", SHAPE, 10).init)
    first, same, other = (init(jax.random.key(seed))["hidden"]["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).mean() > 0.99


def test_images_are_scaled():
    double = networks.Model(init=lambda key: key, apply=lambda params, images: images * params)
    images = jnp.array([[1.0, 5.0]])
    np.testing.assert_array_equal(networks.scaled(double, 1.0, 4.0).apply(2.0, images), [[0.0, 2.0]])


def test_batches_go_through_all_images_before_any_comes_again():
    images, labels = np.arange(10), np.arange(10) * 2
    drawn = list(networks.batches(images, labels, steps=5, size=4, seed=[0, 1]))
    assert all((y == 2 * x).all() for x, y in drawn)
    rows = np.concatenate([x for x, _ in drawn])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])


def test_the_seed_and_the_phase_decide_the_batches():
    draw = lambda *seed: np.concatenate(
        [x for x, _ in networks.batches(np.arange(50), np.arange(50), steps=3, size=20, seed=list(seed))]
    )
    np.testing.assert_array_equal(draw(0, 1), draw(0, 1))
    assert (draw(0, 1) != draw(0, 2)).any()
    assert (draw(0, 1) != draw(1, 1)).any()


def test_a_batch_may_be_larger_than_the_data():
    ((images, _),) = networks.batches(np.arange(3), np.arange(3), steps=1, size=7, seed=[0])
    assert np.bincount(images).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
