"""The manifest: mirrors of the parameters, the way back, JSON."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import slimming
from tests.slimming import checks

FN = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]


@pytest.fixture
def params() -> Any:
    return checks.random_params(
        {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in {"a": (3, 4), "b": (4, 2)}.items()}
    )


@pytest.fixture
def small(params: Any) -> slimming.Slimmed:
    return slimming.slim(FN, params, {"a[1]": [0, 2]}, jnp.ones((5, 3)))


def test_optimizer_state_shrinks_and_trains_on(params: Any, small: slimming.Slimmed) -> None:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    grads = jax.grad(lambda p: jnp.sum(FN(p, jnp.ones((5, 3))) ** 2))(params)
    state: Any
    _, state = optimizer.update(grads, optimizer.init(params), params)
    shrunk: Any = small.shrink(state)
    expected = optimizer.init(small.params)
    assert jax.tree.map(jnp.shape, shrunk) == jax.tree.map(jnp.shape, expected)
    np.testing.assert_array_equal(shrunk[1][0].mu["a"], np.asarray(state[1][0].mu["a"])[:, [1, 3]])
    assert int(shrunk[1][0].count) == 1
    _ = optimizer.update(small.shrink(grads), shrunk, small.params)


def test_masks_shapes_and_what_is_no_array(params: Any, small: slimming.Slimmed) -> None:
    masks = {"a": jnp.ones((1, 4), bool), "b": jnp.ones((), bool)}
    assert jax.tree.map(jnp.shape, small.shrink(masks)) == {"a": (1, 2), "b": ()}
    shapes = jax.eval_shape(lambda: params)
    assert small.shrink(shapes)["b"].shape == (2, 2)
    spec = jax.sharding.PartitionSpec(None, "x")
    assert small.shrink({"a": spec, "other": jnp.ones(7)})["a"] == spec


def test_a_leaf_of_another_shape_is_named(small: slimming.Slimmed) -> None:
    with pytest.raises(ValueError, match=r"v_row/a: \(3,\), the parameter \(3, 4\)"):
        _ = small.shrink({"v_row": {"a": jnp.ones(3)}})


def test_the_state_of_one_collection_shrinks_or_is_named() -> None:
    fn = lambda v, x: jnp.tanh(x @ v["params"]["d"]["a"] - v["seen"]["d"]["mean"]) @ v["params"]["d"]["b"]
    shapes = {"a": (3, 4), "b": (4, 2)}
    own: Any = checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
    variables = {"params": {"d": own}, "seen": {"d": {"mean": jnp.arange(4.0)}}}
    small = slimming.slim(fn, variables, {"params/d/a[1]": [0, 2]}, jnp.ones((5, 3)))
    adam: Any = optax.adam(0.1).init(variables["params"])
    state = adam[0]._replace(mu=variables["params"])
    shrunk: Any = small.shrink({"opt": state, "variables": variables})
    np.testing.assert_array_equal(shrunk["opt"].mu["d"]["a"], np.asarray(own["a"])[:, [1, 3]])
    assert shrunk["opt"].nu["d"]["b"].shape == (2, 2)
    assert shrunk["variables"]["seen"]["d"]["mean"].tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match=r"mu/d/a: \(3, 4\), the tree around it lacks parameters"):
        _ = small.shrink({"mu": {"d": {"a": own["a"]}}})
    with pytest.raises(ValueError, match=r"0/trace: no path of its tree ends like a parameter's"):
        _ = small.shrink(optax.flatten(optax.sgd(0.1, 0.9)).init(own))


def test_a_parameter_named_like_a_field_of_the_state_disturbs_no_other() -> None:
    # Adam's moment of `b` has the path `mu/b` at its end, which is that of another parameter of the same shape.
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["mu"]["b"]
    shapes = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    params: Any = checks.random_params({**shapes, "mu": {"b": shapes["b"]}})
    small = slimming.slim(fn, params, {"a[1]": [0, 2]}, jnp.ones((5, 3)))
    assert (small.params["b"].shape, small.params["mu"]["b"].shape) == ((2, 4), (4, 4))
    state: Any = optax.adam(0.1).update(params, optax.adam(0.1).init(params), params)[1]
    shrunk = small.shrink(state)
    np.testing.assert_array_equal(shrunk[0].mu["b"], np.asarray(state[0].mu["b"])[[1, 3]])
    np.testing.assert_array_equal(shrunk[0].mu["mu"]["b"], state[0].mu["mu"]["b"])
    assert jax.tree.map(jnp.shape, small.expand(shrunk)) == jax.tree.map(jnp.shape, state)
    # Masked parameters count as present; a tree with a part of the parameters may be a mirror of anything.
    masked: Any = optax.masked(optax.adam(0.1), {"a": True, "b": False, "mu": {"b": False}}).init(params)
    assert small.shrink(masked).inner_state[0].mu["a"].shape == (3, 2)
    with pytest.raises(
        ValueError, match=r"ema/b: \(4, 4\), the parameter \(4, 4\); the tree around it lacks parameters"
    ):
        _ = small.shrink({"ema": {"b": params["b"]}})


def test_expand_puts_back_exactly(params: Any, small: slimming.Slimmed) -> None:
    for tree in (small.params, jax.tree.map(jnp.asarray, small.params)):
        back = small.expand(tree)
        np.testing.assert_array_equal(back["a"], np.where([False, True, False, True], params["a"], 0))
        np.testing.assert_array_equal(np.asarray(back["b"])[[1, 3]], params["b"][[1, 3]])
        assert not np.asarray(back["b"])[[0, 2]].any()
    assert np.asarray(small.manifest.expand(small.params, fill=7)["a"])[:, 0].tolist() == [7, 7, 7]


def test_json_is_enough_to_rebuild(params: Any, small: slimming.Slimmed) -> None:
    manifest = slimming.Manifest.from_json(small.manifest.to_json())
    again = slimming.slim(FN, params, manifest, jnp.ones((5, 3)))
    assert jax.tree.map(jnp.shape, again.params) == {"a": (3, 2), "b": (2, 2)}
    assert checks.difference(small.fn(small.params, jnp.ones((5, 3))), again.fn(again.params, jnp.ones((5, 3)))) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "the text is not a manifest"),
        ('{"format": "jaxprune.slimming.manifest", "version": 9, "leaves": []}', "version 9"),
        (
            '{"format": "jaxprune.slimming.manifest", "version": 1, "leaves": [{"path": ["a"], "name": "a", '
            '"shape": [3], "new_shape": [1], "axes": {"0": [4]}}]}',
            "a: positions of axis 0 are out of range",
        ),
    ],
)
def test_bad_manifests(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = slimming.Manifest.from_json(text)
