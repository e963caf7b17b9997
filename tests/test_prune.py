"""The mistakes that `prune` names before it computes anything, and sparsities by leaf."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks
from tests.cases import normal

PARAMS = {"dense": {"kernel": jnp.arange(32.0).reshape(8, 4), "bias": jnp.ones(4)}}
INTEGERS = jax.tree.map(lambda x: x.astype(jnp.int32), PARAMS)


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (INTEGERS, {}, r"nothing to prune.*\n  dense/bias: int32\[4\]\n  dense/kernel: int32\[8, 4\]"),
        ({}, {}, "the tree is empty"),
        (PARAMS, {"where": lambda name, leaf: False}, "the predicate is False for all"),
        (PARAMS, {"where": "*bias"}, r"no prunable leaf matches '\*bias'; .*\n  dense/bias: named 'bias'"),
        (PARAMS, {"sparsity": 90}, "for 90 % pass 0.9"),
        (PARAMS, {"pattern": masks.NM(2, 4), "sparsity": 0.9}, "removes exactly 0.5"),
        (PARAMS, {"sparsity": None}, "has no sparsity: pass a sparsity, or a pattern that fixes it"),
    ],
)
def test_mistakes_are_named(params: Any, options: dict[str, Any], message: str):
    arguments: Any = {"sparsity": 0.5, **options}
    with pytest.raises(ValueError, match=message):
        _ = jaxprune.prune(params, **arguments)


def test_a_pattern_that_fixes_the_sparsity_needs_none():
    given, own = (jaxprune.prune(PARAMS, *s, pattern=masks.NM(2, 4)).masks["dense"]["kernel"] for s in ((0.5,), ()))
    assert (given == own).all() and own.sum() == 16
    with pytest.raises(TypeError, match="no sparsity leaves nothing to allocate"):
        _ = jaxprune.prune(PARAMS, pattern=masks.NM(2, 4), allocation=allocation.erk)


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (lambda p, **_: jax.tree.leaves(p), ValueError, r"(?s)scores that criterion <lambda> returned .*dense/kernel"),
        (lambda p, **_: 1.0, ValueError, r"scores that criterion <lambda> returned .*structure of params"),
        (lambda p, **_: None, ValueError, r"scores that criterion <lambda> returned .*structure of params"),
        (lambda p, **_: jax.tree.map(jnp.sum, p), ValueError, r"dense/kernel: scores \(\), parameter \(8, 4\)"),
        (lambda p, **_: jax.tree.map(jnp.transpose, p), ValueError, r"dense/kernel: scores \(4, 8\), parameter"),
        (lambda p, **_: INTEGERS, TypeError, r"criterion <lambda> must return floating.*\n  dense/kernel: int32"),
        (lambda params: params, TypeError, r"criterion <lambda> cannot be called .*end its arguments with \*\*signals"),
        (criteria.synflow, TypeError, r"criterion synflow cannot be called .*a factory such as criteria\.synflow"),
    ],
)
def test_a_criterion_that_returns_something_else_is_named(criterion: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        _ = jaxprune.prune(PARAMS, 0.5, criterion=criterion)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": PARAMS}, r"mu is not one of the options criterion, .*name it there: def magnitude\(params, \*, mu, "),
        ({"grads_": PARAMS, "criterion": criteria.obd}, r"grads_ is not .* nor an argument of criterion obd"),
        ({"patern": masks.Block((2, 2))}, r"patern is not one of the options .*did you mean pattern\?"),
        ({"pattern": lambda: None}, r"pattern must be masks\.Unstructured\(\)"),
    ],
)
def test_options_that_there_are_not_are_named(options: Any, message: str):
    with pytest.raises(TypeError, match=message):
        _ = jaxprune.prune(PARAMS, 0.5, **options)


def test_a_signal_that_was_not_passed_is_named_beside_the_criterions_own_error():
    by_moment = lambda params, *, mu=None, **signals: jax.tree.map(lambda p, m: abs(p * m), params, mu)
    with pytest.raises(ValueError, match="tree") as caught:
        _ = jaxprune.prune(PARAMS, 0.5, criterion=by_moment)
    assert any("was called without mu; pass a signal by name" in note for note in caught.value.__notes__)


def test_signals_that_the_criterion_names_are_passed_by_name():
    def mine(params: Any, *, momentum: Any, **signals: Any) -> Any:
        del signals
        return jax.tree.map(lambda w, m: abs(w * m), params, momentum)

    prune: Any = jaxprune.prune
    mu = jax.tree.map(lambda w: 1.0 / (1.0 + jnp.abs(w)) ** 2, PARAMS)
    expected = prune(PARAMS, 0.5, criterion=lambda params, **signals: mine(params, momentum=mu)).masks
    chex.assert_trees_all_equal(prune(PARAMS, 0.5, criterion=mine, momentum=mu).masks, expected)
    traced = jax.jit(lambda p, m: prune(p, 0.5, criterion=mine, momentum=m).masks)
    chex.assert_trees_all_equal(traced(PARAMS, mu), expected)
    with pytest.raises(TypeError, match=r"momentun is not one of the options .*did you mean momentum\?"):
        _ = prune(PARAMS, 0.5, criterion=mine, momentun=mu)


def test_a_model_and_an_empty_list_of_globs_are_named():
    with pytest.raises(ValueError, match=r"params must be a tree of arrays, .*got object"):
        _ = jaxprune.prune(object(), 0.5)
    with pytest.raises(ValueError, match=r"where=\[\] selects no leaf"):
        _ = jaxprune.prune(PARAMS, 0.5, where=[])
    with pytest.raises(ValueError, match=r"dense/kernel: NM.* sparsity of this leaf is 0\.4; .*allocation\.uniform"):
        _ = jaxprune.prune(PARAMS, 0.4, pattern=masks.NM(2, 4))


def test_a_selector_is_its_two_halves():
    select = jaxprune.Selector(allocation=allocation.erk, where="dense/*")
    together, halves = select(PARAMS, 0.5), select.masks(select.scores(PARAMS), 0.5)
    assert jnp.array_equal(together["dense"]["kernel"], halves["dense"]["kernel"])
    assert select.units == {"pattern": masks.Unstructured(), "where": "dense/*", "batch_axes": 0}


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
    params = {k: normal(4, 4, seed=i) for i, k in enumerate(("a/x", "a/y", "b", "c"))}
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


@pytest.mark.parametrize("shape", [(8, 0), (0, 8)])
@pytest.mark.parametrize(
    "pattern", [masks.Unstructured(), masks.NM(2, 4), masks.Block((2, 2)), masks.Channel(axis=0), masks.Channel(axis=1)]
)
def test_a_leaf_without_entries_changes_nothing(pattern: masks.Pattern, shape: tuple[int, int]):
    full = {"w": normal(8, 8)}
    pruned = jaxprune.prune({"empty": {"w": jnp.zeros(shape)}, "full": full}, 0.5, pattern=pattern)
    np.testing.assert_array_equal(pruned.params["full"]["w"], jaxprune.prune(full, 0.5, pattern=pattern).params["w"])
    assert np.broadcast_shapes(pruned.masks["empty"]["w"].shape, shape) == shape
    assert pruned.params["empty"]["w"].shape == shape
    assert float(masks.sparsity(pruned.params, pruned.masks)) == 0.5
