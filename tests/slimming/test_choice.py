"""Choices, their masks, and bad input; the report."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import slimming
from jaxprune.slimming.groups import Frozen
from tests.slimming import checks

SHAPES = {"a": (3, 4), "b": (4, 6), "c": (6, 2)}
X = np.ones((5, 3), np.float32)


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


@pytest.fixture(scope="module")
def params() -> Any:
    return checks.random_params({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in SHAPES.items()})


@pytest.fixture(scope="module")
def groups(params: Any) -> slimming.Groups:
    return slimming.find_groups(net, params, X)


def test_masks_go_there_and_back(groups: slimming.Groups, params: Any) -> None:
    choice = slimming.Choice.remove(groups, {"a[1]": [1], "b[1]": [0, 5]})
    masks = choice.masks()
    assert jax.tree.map(jnp.shape, masks) == {"a": (1, 4), "b": (4, 6), "c": (6, 1)}
    again = slimming.Choice.from_masks(groups, masks)
    np.testing.assert_array_equal(again.keep, choice.keep)
    small = slimming.slim(net, params, masks, X)
    assert jax.tree.map(np.shape, small.params) == {"a": (3, 3), "b": (3, 4), "c": (4, 2)}


def test_masks_that_cut_a_unit_in_part(groups: slimming.Groups) -> None:
    part = {"a": jnp.asarray([[True, False, True, True]]), "b": jnp.ones((), bool), "c": jnp.ones((), bool)}
    with pytest.raises(
        ValueError, match=r"parts of units.*\n  a: a mask removes .* entries, the first at \(.*of a\[1\] stay"
    ):
        _ = slimming.Choice.from_masks(groups, part)
    assert slimming.Choice.from_masks(groups, part, partial="keep").keep.all()
    assert slimming.Choice.from_masks(groups, part, partial="remove").kept("a[1]").tolist() == [True, False, True, True]
    frozen = {"a": jnp.ones((), bool), "b": jnp.ones((), bool), "c": jnp.asarray([[True, False]])}
    with pytest.raises(
        ValueError, match=r"  c: a mask removes 6 of 12 entries, the first at \(0, 1\), whose units of b\[1\] stay"
    ):
        _ = slimming.Choice.from_masks(groups, frozen)


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ({"a[1]": [4]}, ValueError, r"group a\[1\] has units 0 to 3; got \[4\]"),
        ({"a[1]": [0, 1, 2, 3]}, ValueError, r"a\[1\]: no unit would be left, of a, b"),
        ({"z": [0]}, KeyError, "no group 'z'"),
    ],
)
def test_bad_choices(groups: slimming.Groups, removed: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        _ = slimming.Choice.remove(groups, removed)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.array([False, True, True, False]), r"group a\[1\]: .* integers from 0 to 3; got bool: give np.flatnonzero"),
        ([1.9, 2.2], "got float64: round them"),
        ([True], "got bool"),
    ],
)
def test_units_are_integers(params: Any, numbers: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _ = slimming.slim(net, params, {"a[1]": numbers}, X)


def test_no_units_and_units_named_twice(groups: slimming.Groups) -> None:
    assert slimming.Choice.remove(groups, {"a[1]": []}).keep.all()
    assert (~slimming.Choice.remove(groups, {"a[1]": [2, 2], "b[0]": np.array([2], np.uint8)}).keep).sum() == 1


def test_a_group_is_found_by_any_member(groups: slimming.Groups, params: Any) -> None:
    assert groups["b[0]"] is groups["a[1]"] and groups["c[0]"] is groups["b[1]"]
    small = slimming.slim(net, params, {"c[0]": [0, 1], "a[1]": [3]}, X)
    assert jax.tree.map(np.shape, small.params) == {"a": (3, 3), "b": (3, 4), "c": (4, 2)}
    # A reshape cuts one axis into units of two kinds: the axis alone does not tell which.
    fused = lambda p, x: jnp.tanh((x @ p["a"]).reshape(5, 2, 3)).swapaxes(1, 2).reshape(5, 6) @ p["b"]
    pair = slimming.find_groups(fused, {"a": np.ones((3, 6), "f4"), "b": np.ones((6, 2), "f4")}, X)
    with pytest.raises(KeyError, match=r"several groups contain 'b\[0\]'; name one of: a\[1\] .*, a\[1\] "):
        _ = pair["b[0]"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a", r"no group 'a'.*there are: a\[1\], b\[1\]"),
        ("aa[1]", r"no group 'aa\[1\]'; did you mean 'a\[1\]'\?"),
        ("a[0]", r"no group 'a\[0\]' \(it is frozen: dot_general with an axis that cannot shrink\)"),
    ],
)
def test_a_mistyped_group_is_named(params: Any, name: str, message: str) -> None:
    with pytest.raises(KeyError, match=message):
        _ = slimming.slim(net, params, {name: [0, 1]}, X)


def test_what_is_no_function_and_what_are_no_parameters(params: Any) -> None:
    swapped: Any = (params, net)
    with pytest.raises(TypeError, match=r"fn must be a function .*; got dict: fn and params are swapped"):
        _ = slimming.find_groups(*swapped, X)
    with pytest.raises(TypeError, match=r"params must be a tree with arrays, .*; got function"):
        _ = slimming.slim(net, net, 0.5, X)


def test_masks_of_another_structure_are_called_masks(params: Any) -> None:
    with pytest.raises(ValueError, match="masks must have the structure of params"):
        _ = slimming.slim(net, params, {"a": np.ones((3, 4), bool)}, X)


def test_values_print_in_one_line_and_groups_as_a_table(groups: slimming.Groups, params: Any) -> None:
    choice = slimming.Choice.remove(groups, {"a[1]": [1]})
    assert repr(choice) == "Choice(2 groups, 9 of 10 units kept)"
    assert str(choice).splitlines() == [
        "a[1]  3 of 4 units kept",
        "b[1]  6 of 6 units kept",
        "kept: 39 of 48 parameters (81.2%), 390 of 480 FLOPs of a call (81.2%)",
    ]
    assert repr(groups) == str(groups)
    small = slimming.slim(net, params, choice, X)
    assert repr(small) == "Slimmed(Manifest(2 of 3 leaves smaller, 39 of 48 entries kept))"
    assert len(repr(groups[0])) < 300


def residual(p: Any, x: Any) -> Any:
    h = x @ p["in"]
    for name in ("b0", "b1", "b2"):
        h = h + jax.nn.relu(h @ p[name]["a"]) @ p[name]["b"]
    return h @ p["out"]


def test_masks_of_channels_are_completed_to_units_by_a_vote() -> None:
    """`prune(pattern=Channel())` chooses the channels of each leaf alone; leaves of a residual stream then disagree."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"in": draw(3, 8), "out": draw(8, 2)} | {f"b{i}": {"a": draw(8, 5), "b": draw(5, 8)} for i in range(3)}
    pruned = jaxprune.prune(params, 0.4, pattern=jaxprune.masks.Channel(-1), where=["in", "b*"])
    groups = slimming.find_groups(residual, params, X)
    with pytest.raises(ValueError, match="parts of units"):
        _ = slimming.Choice.from_masks(groups, pruned.masks)
    with pytest.warns(UserWarning, match=r"were completed: \d+ of 23 units are removed(.|\n)*removed positions stay"):
        small = slimming.slim(residual, params, pruned.masks, X)
    gone = lambda mask: ~np.asarray(mask).reshape(-1)
    voters = [gone(pruned.masks["in"]), *(gone(pruned.masks[f"b{i}"]["b"]) for i in range(3))]
    stream = np.sum(voters, 0) > 2  # of four
    assert 0 < stream.sum() < 8
    with pytest.warns(UserWarning, match="were completed"):
        choice = slimming.Choice.from_masks(groups, pruned.masks, partial="complete")
    np.testing.assert_array_equal(choice.kept("in[1]"), ~stream)
    for i in range(3):
        np.testing.assert_array_equal(choice.kept(f"b{i}/a[1]"), ~gone(pruned.masks[f"b{i}"]["a"]))
    assert checks.difference(residual(checks.masked(params, choice), X), small.fn(small.params, X)) < 1e-5


def test_masks_that_are_whole_units_need_no_completion(groups: slimming.Groups, params: Any) -> None:
    choice = slimming.Choice.remove(groups, {"a[1]": [1], "b[1]": [0, 5]})
    again = slimming.Choice.from_masks(groups, choice.masks(), partial="complete")  # and no warning
    np.testing.assert_array_equal(again.keep, choice.keep)
    scattered = {"a": jnp.arange(12).reshape(3, 4) != 5, "b": jnp.ones((), bool), "c": jnp.ones((), bool)}
    with pytest.raises(ValueError, match=r"no unit by a majority .* choose units with(.|\n)*  a: a mask removes"):
        _ = slimming.slim(net, params, scattered, X)


def test_choices_that_are_not_choices(groups: slimming.Groups) -> None:
    with pytest.raises(ValueError, match=r"keep must be 10 bools, one for each unit; got bool \(3,\)"):
        _ = slimming.Choice(groups, np.ones(3, bool))
    with pytest.raises(ValueError, match=r"keep must be 10 bools, one for each unit; got float64 \(10,\)"):
        _ = slimming.Choice(groups, np.ones(10))
    masks = {name: jnp.ones((), bool) for name in "abc"}
    with pytest.raises(ValueError, match=r'partial must be "raise", "complete", "keep" or "remove"; got \'drop\''):
        _ = slimming.Choice.from_masks(groups, masks, partial="drop")
    with pytest.raises(ValueError, match=r"a\[1\]: no unit would be left, of a, b"):
        _ = slimming.Choice.from_masks(groups, masks | {"a": jnp.zeros((1, 4), bool), "b": jnp.zeros((4, 1), bool)})
    stack = {"a": np.ones((2, 3, 4), np.float32), "b": np.ones((2, 4, 3), np.float32)}
    fn = lambda p, x: jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w["a"]) @ w["b"], None), x, p)[0]
    stacked = slimming.find_groups(fn, stack, X)
    with pytest.raises(ValueError, match=r"a\[2\]: layers would keep from 3 to 4 units, of a, b"):
        _ = slimming.Choice.remove(stacked, {"a[2]": [0]})


def test_masks_and_parameters_of_another_tree(groups: slimming.Groups, params: Any) -> None:
    with pytest.raises(ValueError, match="masks must have the structure of params"):
        _ = slimming.Choice.from_masks(groups, {"a": jnp.ones((), bool)})
    choice = slimming.Choice.remove(groups, {"a[1]": [0]})
    with pytest.raises(ValueError, match="not the parameters that the choice was made for"):
        _ = slimming.slim(net, params | {"a": np.ones((3, 5), np.float32)}, choice, X)


def test_a_function_that_does_not_couple_what_was_removed(params: Any, groups: slimming.Groups) -> None:
    manifest = slimming.Choice.remove(groups, {"a[1]": [0]}).manifest()
    other = lambda p, x: net(p, x) + jnp.sum(p["a"] @ np.ones((4, 1), np.float32))
    small = slimming.slim(net, params, manifest, X)
    loose = small.rebind(lambda p, x: jnp.sort(x @ p["a"], -1))
    with pytest.raises(
        ValueError, match="cannot be removed: they are frozen, or coupled with positions that stay:\n  a, axis 1"
    ):
        _ = loose(small.params, X)
    assert other(params, X).shape == (5, 2)


@pytest.mark.parametrize(
    ("fn", "leaf"),
    [
        (lambda p, x: p["a"] if x["t"].sum() > 0 else p["b"], "input 0, leaf t. Write branches"),
        (lambda p, x: x["t"] @ p["a"][:, : int(p["b"].sum())], "that depends on b. Write"),
        (lambda p, x: x["t"] @ np.asarray(p["a"]), "that depends on a. Write"),
        (lambda p, x: x["t"][x["t"] > 0] * p["a"].sum(), "that depends on params or inputs. Write"),
    ],
)
def test_a_function_that_cannot_be_traced(params: Any, fn: Any, leaf: str) -> None:
    with pytest.raises(TypeError, match=f"<lambda> cannot be traced from shapes: .*{leaf}.*JAX says: "):
        _ = slimming.find_groups(fn, params, {"t": X})


def test_an_unknown_primitive_freezes_and_is_named(params: Any) -> None:
    fn = lambda p, x: jnp.linalg.cholesky(jnp.tanh(x @ p["a"]).T @ (x @ p["a"])) @ p["b"] @ p["c"]
    groups = slimming.find_groups(fn, params, X)
    assert [g.name for g in groups] == ["b[1]"]
    assert any(f.name == "a" and f.axis == 1 and "cholesky" in f.reason for f in groups.frozen)
    assert "primitive cholesky, which slimming does not know" in str(groups)


def test_what_the_function_does_not_use_is_frozen() -> None:
    params = {"a": np.ones((3, 4), np.float32), "b": np.ones((4, 2), np.float32), "unused": np.ones((4,), np.float32)}
    groups = slimming.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, X)
    assert [m.name for m in groups["a[1]"].members] == ["a", "b"]
    assert Frozen("unused", 0, 4, 4, "not used by the function") in groups.frozen


def test_a_frozen_position_freezes_the_chain_of_positions_coupled_with_it() -> None:
    def fn(p: Any, x: Any) -> Any:
        y = jnp.tanh(x @ p["a"])
        order = jnp.sort(y[:, 4:], axis=1)  # freezes the last two columns
        return (y[:, :-2] + y[:, 2:]) @ p["b"] + order  # couples every column with the next but one, all at once

    groups = slimming.find_groups(fn, {"a": jnp.ones((3, 6)), "b": jnp.ones((4, 2))}, jnp.ones((2, 3)))
    assert not len(groups)
    assert ("a", 1, 6, 6, "sort along it") in groups.frozen


def test_inexact_groups_are_told() -> None:
    def norm(p: Any, x: Any) -> Any:
        x = x @ p["a"] + 1.0
        x = x - x.mean(-1, keepdims=True)
        return (x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)) @ p["b"]

    groups = slimming.find_groups(norm, {"a": np.ones((3, 4), np.float32), "b": np.ones((4, 2), np.float32)}, X)
    assert not groups[0].exact and "a sum over values that masking does not make zero" in str(groups)
    scores = np.arange(4.0)
    assert slimming.choose(groups, scores, 0.5).keep.all()
    loose = slimming.choose(groups, scores, 0.5, limits=slimming.Limits(inexact=True))
    assert loose.keep.tolist() == [False, False, True, True]


def test_the_report(groups: slimming.Groups) -> None:
    text = str(groups)
    assert text.splitlines()[0].split() == ["group", "units", "exact", "members:", "positions", "of", "a", "unit"]
    assert "a[1]   4      yes    a[1]:1, b[0]:1" in text and "output 0 of the function" in text
    dot = groups.to_dot()
    assert dot.startswith("graph groups {") and 'g0 -- p1 [label="0"]' in dot
    with pytest.raises(KeyError, match="no group 'x'"):
        _ = groups["x"]


def test_a_whole_residual_block_goes() -> None:
    rng = np.random.default_rng(0)
    shapes = {"in": (3, 8), "a": (8, 6), "b": (6, 8), "bias": (8,), "qkv": (8, 24), "o": (8, 8), "out": (8, 2)}
    params = {k: rng.normal(size=s).astype("f4") for k, s in shapes.items()}
    x = rng.normal(size=(2, 4, 3)).astype("f4")

    def fn(p: Any, x: Any) -> Any:
        x = x @ p["in"]
        q, k, v = (t.reshape(2, 4, 2, 4) for t in jnp.split(x @ p["qkv"], 3, -1))
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        x = x + jnp.einsum("bhts,bshd->bthd", weights, v).reshape(2, 4, 8) @ p["o"]
        return (x + jax.nn.relu(x @ p["a"]) @ p["b"] + p["bias"]) @ p["out"]

    groups = slimming.find_groups(fn, params, x)
    heads = next(g for g in groups if g.block == 4)
    removed = {"a[1]": range(6), heads.name: range(2)}
    with pytest.raises(ValueError, match="no unit would be left"):
        _ = slimming.Choice.remove(groups, removed)
    choice = slimming.Choice.remove(groups, removed, empty=True)
    small = slimming.slim(fn, params, choice, x)
    expected = (x @ params["in"] + params["bias"]) @ params["out"]
    np.testing.assert_allclose(small.fn(small.params, x), expected, rtol=1e-4, atol=1e-5)
    assert small.params["qkv"].size == 0
    assert checks.difference(checks.masked(params, choice), small.expand(small.params)) == 0  # zeros in place of all
    gone = jax.jit(lambda p: small.manifest.expand(p, fill=7))(small.params)["a"]
    assert gone.shape == (8, 6) and (gone == 7).all()
    chosen = slimming.choose(groups, np.ones(groups.size), {"a[1]": 1.0}, limits=slimming.Limits(min_units={"a[1]": 0}))
    assert not chosen.kept("a[1]").any()


def test_a_convolution_without_channels() -> None:
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 3, 4)).astype("f4"), "b": rng.normal(size=(3, 4, 3)).astype("f4")}
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))
    fn = lambda p, x: x + conv(jax.nn.relu(conv(x, p["a"])), p["b"])
    x = rng.normal(size=(2, 5, 3)).astype("f4")
    groups = slimming.find_groups(fn, params, x)
    small = slimming.slim(fn, params, slimming.Choice.remove(groups, {"a[2]": range(4)}, empty=True), x)
    np.testing.assert_array_equal(small.fn(small.params, x), x)


def test_cuts_that_leave_nothing_to_choose_are_one_unit() -> None:
    def shuffle(x: Any) -> Any:
        return jnp.tanh(x.reshape(5, 2, 3)).swapaxes(1, 2).reshape(5, 6)  # with tanh it is more than a permutation

    params = {"a": np.ones((3, 6), "f4"), "b": np.ones((6, 2), "f4")}
    once = slimming.find_groups(lambda p, x: shuffle(x @ p["a"]) @ p["b"], params, X)
    assert [(g.count, g.members[0].positions) for g in once] == [(2, 3), (3, 2)]  # blocks of three, and every third
    # Shuffled twice the blocks and the thirds of both cuts overlap until each would take everything.
    fn = lambda p, x: shuffle(shuffle(x @ p["a"])) @ p["b"]
    [group] = slimming.find_groups(fn, params, X)
    assert group.count == 1 and [(m.name, m.axis, m.positions) for m in group.members] == [("a", 1, 6), ("b", 0, 6)]
    groups = slimming.find_groups(fn, params, X)
    assert slimming.group_scores(groups, params, reduce="sum", normalise=None).tolist() == [3 * 6 + 6 * 2]
    assert slimming.choose(groups, np.ones(1), 1.0).keep.all()
    with pytest.raises(ValueError, match="no unit would be left, of a, b"):
        _ = slimming.Choice.remove(groups, {group.name: [0]})
