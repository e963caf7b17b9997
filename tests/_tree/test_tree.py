from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

import jaxprune
from jaxprune import _tree, masks

PARAMS = {
    "encoder": {"layer_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "layer_1": {"kernel": jnp.ones((3, 3))}},
    "step": jnp.arange(4).reshape(2, 2),
}


def paths_of(params):
    return [path for path, _ in _tree.with_paths(params)]


def test_names_join_keys_and_leave_boxes_out():
    assert [name for name, _ in _tree.named_leaves(PARAMS)] == [
        "encoder/layer_0/bias",
        "encoder/layer_0/kernel",
        "encoder/layer_1/kernel",
        "step",
    ]
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones((2, 2)), names=("a", "b"))}}
    assert _tree.named_leaves(boxed)[0][0] == "dense/kernel"
    assert _tree.named_leaves(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))[1][0] == "kernel"
    # A dict's own key of that name is no box.
    assert _tree.named_leaves({"dense": {"value": 1.0}})[0][0] == "dense/value"


def test_leaves_of_one_name_have_their_own_identity():
    params = {"a/b": {"c": 1}, "a": {"b/c": 2}}
    assert [name for name, _ in _tree.named_leaves(params)] == ["a/b/c", "a/b/c"]
    assert len({_tree.identity(path) for path in paths_of(params)}) == 2


def test_identity_is_that_of_the_array_inside_a_variable():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert [_tree.identity(p) for p in paths_of(state)] == [_tree.identity(p) for p in paths_of(nnx.as_pure(state))]


def test_by_default_floating_leaves_of_two_axes_are_pruned():
    chosen = _tree.prunable(PARAMS)
    assert chosen == {
        "encoder": {"layer_0": {"kernel": True, "bias": False}, "layer_1": {"kernel": True}},
        "step": False,
    }
    assert _tree.prunable({"none": None, "masked": optax.MaskedNode(), "fn": jax.nn.relu}) == {
        "none": None,
        "masked": optax.MaskedNode(),
        "fn": False,
    }
    assert _tree.prunable({"w": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)}) == {"w": True}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("*/layer_0/*", [False, True, False, False]),
        (["*layer_0*", "*layer_1*"], [False, True, True, False]),
        (lambda name, leaf: name.endswith("bias"), [True, False, False, False]),
    ],
)
def test_where_narrows_by_glob_and_replaces_by_predicate(where, expected):
    assert jax.tree.leaves(_tree.prunable(PARAMS, where)) == expected


def test_where_says_what_is_wrong():
    with pytest.raises(
        ValueError, match=r"no prunable leaf matches 'decoder/\*'; the names are:\n  encoder/layer_0/kernel"
    ):
        _ = _tree.prunable(PARAMS, ["encoder/*", "decoder/*"])
    with pytest.raises(TypeError, match="step: int32"):
        _ = _tree.prunable(PARAMS, lambda name, leaf: True)
    with pytest.raises(TypeError, match="got 3"):
        _ = _tree.prunable(PARAMS, 3)  # pyright: ignore[reportArgumentType]


def test_nothing_to_prune_is_named():
    assert _tree.selected(PARAMS, "*/layer_0/*") == [False, True, False, False]
    with pytest.raises(ValueError, match=r"nothing to prune: where=None takes .*\n  w: int32\[2, 2\]\n  x: float"):
        _ = _tree.selected({"w": jnp.ones((2, 2), jnp.int32), "x": 1.0})
    with pytest.raises(ValueError, match="the predicate is False for all"):
        _ = _tree.selected(PARAMS, lambda name, leaf: False)
    with pytest.raises(ValueError, match="the tree is empty"):
        _ = _tree.selected({})


def test_what_is_no_function_is_named():
    with pytest.raises(TypeError, match=r"when must be a function, such as schedules\.every\(9\); got 9"):
        _tree.check_function(9, "when", "schedules.every(9)")


def test_the_first_rule_that_matches_counts():
    rules = {"*/layer_0/kernel": 1, "*kernel": 2}
    assert _tree.resolve(rules, PARAMS, default=0, what="batch_axes") == [0, 1, 2, 0]
    assert _tree.resolve(5, PARAMS, default=0, what="batch_axes") == [5, 5, 5, 5]
    with pytest.raises(ValueError, match="batch_axes: no leaf matches 'layers'"):
        _ = _tree.resolve({"layers": 1}, PARAMS, default=0, what="batch_axes")
    with pytest.raises(ValueError, match=r"x: no unit matches 'z'; the names are:\n  0(.|\n)*  49\n  and 3 more$"):
        _ = _tree.of_names({"z": 1}, [str(i) for i in range(53)], default=0, what="x", kind="unit")


def test_masks_are_checked_all_at_once():
    good = {"a": jnp.ones((2, 3), bool), "b": jnp.ones((), bool)}
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    _tree.check_masks(params, good)
    _tree.check_masks(params, masks.pack(good))
    _tree.check_masks(params, good | {"a": jnp.ones((1, 3), bool)})
    with pytest.raises(ValueError, match=r"a: mask \(3, 2\), parameter \(2, 3\)\n  b: mask \(4,\), parameter \(3,\)"):
        _tree.check_masks(params, {"a": jnp.ones((3, 2), bool), "b": jnp.ones(4, bool)})
    with pytest.raises(TypeError, match=r"True = kept.*\n  a: float32"):
        _tree.check_masks(params, good | {"a": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="b: in params, not in masks"):
        _tree.check_masks(params, {"a": good["a"]})
    with pytest.raises(ValueError, match="same names, different containers"):
        _tree.check_masks(params, FrozenDict(good))


def test_long_lists_of_differences_are_cut():
    params = {f"layer_{i:02}": jnp.ones(2) for i in range(12)}
    with pytest.raises(ValueError, match=r"layer_09: in params.*\n  and 2 more"):
        _tree.check_same(params, {}, what="masks")


def test_align_takes_other_containers_but_no_other_leaves():
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones(3)}}
    aligned = _tree.align(params, FrozenDict(params), what="masks")
    assert jax.tree.structure(aligned) == jax.tree.structure(params)
    assert _tree.align(params, params, what="masks") is params
    with pytest.raises(ValueError, match="b/c: in params, not in masks"):
        _ = _tree.align(params, {"a": 1}, what="masks")


@pytest.mark.parametrize(
    ("batches", "got"),
    [(jnp.ones((4, 3)), r"an array of shape \[4, 3\]"), ({"x": jnp.ones(3)}, "dict"), (7, "int")],
)
def test_one_batch_is_no_list_of_batches(batches, got):
    _tree.check_batches([batches])
    with pytest.raises(TypeError, match=f"list or another iterable of batches.*got {got}; for one"):
        _tree.check_batches(batches)


class Attention(NamedTuple):
    query: Any
    value: Any


@jax.tree_util.register_dataclass
@dataclass
class Head:
    value: jax.Array
    bias: jax.Array


def test_a_field_called_value_is_no_box():
    ones = jnp.ones((4, 4))
    params = {"attn": Attention(ones, ones), "head": Head(ones, jnp.ones(4)), "box": nn.Partitioned(ones, names=())}
    names = ["attn/query", "attn/value", "box", "head/value", "head/bias"]
    assert [name for name, _ in _tree.named_leaves(params)] == names
    assert [_tree.identity(path) for path, _ in _tree.with_paths(params)] == [tuple(n.split("/")) for n in names]
    assert jax.tree.leaves(_tree.prunable(params, ["attn/*", "head/value"])) == [True, True, False, True, False]
    assert _tree.resolve({"*/value": 1}, params, default=0, what="pattern") == [0, 1, 0, 1, 0]
    assert jax.tree.leaves(_tree.map_named(lambda name, x: name, params)) == names
    pruned = jaxprune.prune(params, 0.5, where="attn/*", pattern={"attn/value": masks.Channel(-1)})
    assert pruned.masks["attn"].value.shape == (1, 4)
    # A dict of the same keys means the same leaves.
    plain = {"attn": {"query": True, "value": False}, "head": {"value": True, "bias": True}, "box": True}
    assert _tree.align(params, plain, what="masks")["attn"] == Attention(True, False)


def test_a_variable_called_value_is_a_box_with_a_name():
    class Weighted(nnx.Module):
        def __init__(self) -> None:
            self.value = nnx.Param(jnp.ones((2, 2)))

    state = nnx.state(Weighted())
    assert [name for name, _ in _tree.named_leaves(state)] == ["value"]
    assert [_tree.identity(path) for path, _ in _tree.with_paths(state)] == [("value",)]
    assert [_tree.identity(path) for path, _ in _tree.with_paths(nnx.as_pure(state))] == [("value",)]
