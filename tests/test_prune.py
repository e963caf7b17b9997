"""The mistakes that `prune` names before it computes anything, and sparsities by leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks

PARAMS = {"dense": {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.ones(4)}}
INTEGERS = jax.tree.map(lambda x: x.astype(jnp.int32), PARAMS)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (INTEGERS, {}, r"nothing to prune.*\n  dense/bias: int32\[4\]\n  dense/kernel: int32\[8, 4\]"),
        ({}, {}, "the tree is empty"),
        (PARAMS, {"where": lambda name, leaf: False}, "the predicate is False of all"),
        (PARAMS, {"where": "*bias"}, r"no prunable leaf matches '\*bias'; there are:\n  dense/kernel"),
        (PARAMS, {"sparsity": 90}, "for 90 % pass 0.9"),
        (PARAMS, {"pattern": masks.NM(2, 4), "sparsity": 0.9}, "removes exactly 0.5"),
    ],
)
def test_mistakes_are_named(params: Any, options: dict[str, Any], message: str):
    arguments: Any = {"sparsity": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        _ = jaxprune.prune(params, **arguments)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (INTEGERS, {"where": lambda name, leaf: "kernel" in name}, "not floating .*\n  dense/kernel: int32"),
        ({"w": jnp.ones((4, 4), complex)}, {"where": lambda name, leaf: True}, "\n  w: complex64"),
        (PARAMS, {"criterion": "magnitude"}, r"criterion must be a function, such as criteria\.magnitude"),
        (PARAMS, {"criterion": criteria.magnitude(PARAMS)}, "criterion must be a function"),
        (PARAMS, {"allocation": "erk"}, r"allocation must be a function, such as allocation\.erk"),
        (PARAMS, {"pattern": "2:4"}, "pattern must be .*got '2:4'"),
        (PARAMS, {"sparsity": {"dense/*": 0.5}, "allocation": allocation.erk}, r"allocation=allocation\.by_path"),
        (PARAMS, {"criterion": criteria.random, "key": 0}, r"pass jax\.random\.key\(seed\); got 0"),
    ],
)
def test_wrong_kinds_are_named(params: Any, options: dict[str, Any], message: str):
    arguments: Any = {"sparsity": 0.5, **options}
    with pytest.raises(TypeError, match=message):
        _ = jaxprune.prune(params, **arguments)


def test_a_mapping_gives_each_leaf_its_own_sparsity():
    params = {k: jax.random.normal(jax.random.key(i), (4, 4)) for i, k in enumerate(("a/x", "a/y", "b", "c"))}
    own = jaxprune.prune(params, {"a/*": 0.5, "b": 0.25})
    assert {name: int(mask.sum()) for name, mask in own.masks.items()} == {"a/x": 8, "a/y": 8, "b": 12, "c": 16}
    tree = masks.select(jax.tree.map(jnp.abs, params), {"a/x": 0.5, "a/y": 0.5, "b": 0.25, "c": 0.0})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, own.masks, tree))
    with pytest.raises(ValueError, match="sparsity: no leaf matches 'z'"):
        _ = jaxprune.prune(params, {"z": 0.5})


@pytest.mark.parametrize("wrong", [90.0, 1.0, -0.3, float("nan")])
def test_an_array_whose_value_is_known_is_checked_like_a_number(wrong):
    params = {"w": jnp.arange(1.0, 17).reshape(4, 4)}
    for allocate in (allocation.uniform, allocation.erk, allocation.one_ranking, allocation.lamp):
        for value in (jnp.float32(wrong), np.float32(wrong)):
            with pytest.raises(ValueError, match=r"sparsity is the fraction removed and must be in \[0, 1\)"):
                _ = jaxprune.prune(params, value, allocation=allocate)
    # A traced value is not known: it is clipped.
    traced = jax.jit(lambda s: jaxprune.prune(params, s).masks)(jnp.float32(wrong))
    assert int(traced["w"].sum()) == (0 if wrong >= 1 else 16)
