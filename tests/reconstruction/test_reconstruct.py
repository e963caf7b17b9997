"""Reconstruction of trees: every kind of layer, exact counts, the guarantees, and what is refused."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprune import criteria, prune
from jaxprune.calibration import calibrate
from jaxprune.masks import NM, Channel, Count, Unstructured
from jaxprune.reconstruction import Entries, reconstruct, reconstruct_sequential, relative_errors, sparsegpt
from jaxprune.reconstruction.plan import plan
from jaxprune.reconstruction.reconstruct import METHODS, check_finite
from jaxprune.reconstruction.removal import keep
from jaxprune.reconstruction.sequential import rounds
from tests.cases import few, normal


def conv(x, w, groups=1):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def net(params, x):
    x = jax.nn.relu(conv(x, params["conv"]))
    x = jax.nn.relu(conv(x, params["grouped"], groups=2)).reshape(x.shape[0], 16, 8)
    heads = jnp.tanh(jnp.einsum("bsd,dhk->bshk", x, params["query"]))
    x = jnp.einsum("bshk,hkd->bsd", heads, params["out"])
    x, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w) + c, None), x, params["layers"])
    return x @ params["head"].astype(x.dtype) + params["bias"]


PARAMS = {
    "conv": normal(3, 3, 4, 8, seed=1),
    "grouped": normal(3, 3, 4, 8, seed=2),
    "query": normal(8, 2, 4, seed=3),
    "out": normal(2, 4, 8, seed=4),
    "layers": normal(3, 8, 8, seed=5),
    "head": normal(8, 6, seed=6).astype(jnp.bfloat16),
    "bias": normal(6, seed=7),
    "step": jnp.arange(3),
}
LAYERS = ("conv", "grouped", "query", "out", "layers", "head")
DATA = [normal(8, 4, 4, 4, seed=8), normal(8, 4, 4, 4, seed=9)]


@pytest.fixture(scope="module")
def stats():
    return calibrate(net, PARAMS, DATA)


@pytest.mark.parametrize("method", few(METHODS, "wanda", "alps"))
def test_every_layer_loses_exactly_its_share_and_errs_no_more_than_its_mask(stats, method):
    new, masks = reconstruct(PARAMS, stats, 0.6, method=method)
    for name in LAYERS:
        assert new[name].dtype == PARAMS[name].dtype
        assert not np.asarray(new[name])[~np.asarray(masks[name])].any()
        # A criterion's masks have the same count in each scanned layer, the other methods' the exact total.
        layers = 3 if name == "layers" and method in ("magnitude", "ria") else 1
        wanted = layers * int(0.6 * PARAMS[name].size / layers + 0.5)
        if method in ("wanda", "least_squares"):
            per_output = (~masks[name]).sum(stats[name].layout.input_axes)
            assert int(per_output.max()) - int(per_output.min()) <= 1
        else:
            assert int((~masks[name]).sum()) == wanted
    assert new["bias"] is PARAMS["bias"]
    assert new["step"] is PARAMS["step"]
    assert masks["bias"].shape == ()
    plain = jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, PARAMS)
    errors, alone = relative_errors(PARAMS, new, stats), relative_errors(PARAMS, plain, stats)
    assert all(errors[name] <= alone[name] * (1 + 1e-5) for name in LAYERS)
    if method in ("sparsegpt", "alps", "obs", "least_squares"):
        assert all(errors[name] < 0.98 * alone[name] for name in LAYERS)


@pytest.mark.slow
def test_methods_order_as_they_should_on_small_layers(stats):
    errors = {m: relative_errors(PARAMS, reconstruct(PARAMS, stats, 0.5, method=m).params, stats) for m in METHODS}
    for name in LAYERS:
        assert errors["obs"][name] <= errors["sparsegpt"][name] * (1 + 1e-5)
        assert errors["obs"][name] < errors["magnitude"][name]


@pytest.mark.parametrize("method", few(METHODS, "sparsegpt", "ria"))
def test_groups_lie_along_the_inputs(stats, method):
    _, masks = reconstruct(PARAMS, stats, pattern=NM(2, 4), method=method)
    for name in LAYERS:
        kept = np.asarray(stats[name].layout.matrices(masks[name]))
        assert (kept.reshape(len(kept), -1, 4, kept.shape[2]).sum(2) == 2).all()


def test_each_leaf_has_its_own_pattern(stats):
    pattern = {"layers": NM(1, 4, axis=1), "head": NM(4, 4), "out": Unstructured()}
    _, masks = reconstruct(PARAMS, stats, {"layers": 0.75, "head": 0.0, "o*": 0.25}, pattern=pattern)
    assert {n: int((~masks[n]).sum()) for n in ("layers", "head", "out", "conv")} == {
        "layers": 144,
        "head": 0,
        "out": 16,
        "conv": 0,
    }


def test_given_masks_are_used_as_they_are(stats):
    masks = {name: normal(*leaf.shape, seed=20) > 0 for name, leaf in PARAMS.items() if name in LAYERS}
    masks |= {"bias": jnp.ones((), bool), "step": jnp.ones((), bool), "query": jnp.ones((), bool)}
    masks["head"] = jnp.arange(8)[:, None] % 2 == 0  # broadcasts
    for method in ("sparsegpt", "least_squares", "magnitude"):
        new, got = reconstruct(PARAMS, stats, masks=masks, method=method)
        for name in LAYERS:
            np.testing.assert_array_equal(
                np.broadcast_to(got[name], PARAMS[name].shape), np.broadcast_to(masks[name], PARAMS[name].shape)
            )
            assert not np.asarray(new[name])[~np.broadcast_to(got[name], PARAMS[name].shape)].any()
        assert new["query"] is PARAMS["query"]


def test_one_leaf_is_the_kernel_on_its_matrices(stats):
    new, _ = reconstruct(PARAMS, stats, {"out": 0.5})
    gram = stats["out"].gram[0]
    want, _ = jax.jit(sparsegpt)(PARAMS["out"].reshape(8, 8), gram, Entries(32))
    np.testing.assert_allclose(new["out"], want.reshape(2, 4, 8), atol=1e-5)
    assert new["conv"] is PARAMS["conv"]


def test_stacked_layers_are_the_kernel_on_each_and_compile_once(stats):
    new, masks = reconstruct(PARAMS, stats, {"layers": 0.5})
    for i in range(3):
        want, mask = jax.jit(sparsegpt)(PARAMS["layers"][i], stats["layers"].gram[i], Entries(32))
        np.testing.assert_allclose(new["layers"][i], want, atol=1e-5)
        np.testing.assert_array_equal(masks["layers"][i], mask)


def test_sparsities_by_number_by_glob_by_tree_and_by_count(stats):
    by_tree = dict.fromkeys(PARAMS, 0.0) | {"out": 0.25, "head": Count.of(7)}
    new, masks = reconstruct(PARAMS, stats, by_tree)
    assert int((~masks["out"]).sum()) == 16
    assert int((~masks["head"]).sum()) == 7
    assert new["conv"] is PARAMS["conv"]
    _, masks = reconstruct(PARAMS, stats, {"o*": 0.25, "head": np.float32(0.5)})
    assert int((~masks["out"]).sum()) == 16
    assert int((~masks["head"]).sum()) == 24
    new, masks = reconstruct(PARAMS, stats, 0.0)
    assert all(a is b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(PARAMS), strict=True))
    assert jax.tree.all(jax.tree.map(lambda m: m.shape == () and bool(m), masks))


def test_a_function_of_ones_own(stats):
    def keep_half(weight, gram, target):
        mask = jnp.arange(weight.shape[0])[:, None] < weight.shape[0] // 2
        return jnp.where(mask, weight, 0), jnp.broadcast_to(mask, weight.shape)

    new, _ = reconstruct(PARAMS, stats, 0.5, method=keep_half, where="out")
    np.testing.assert_array_equal(new["out"][0], PARAMS["out"][0])
    assert not new["out"][1].any()


def test_refusals(stats):
    with pytest.raises(ValueError, match="needs stats"):
        _ = reconstruct(PARAMS, None, 0.5)
    with pytest.raises(ValueError, match="one of sparsegpt, obs"):
        _ = reconstruct(PARAMS, stats, 0.5, method="sparse")
    with pytest.raises(ValueError, match="damping must not be negative"):
        _ = reconstruct(PARAMS, stats, 0.5, method=partial(sparsegpt, damping=-1))
    with pytest.raises(ValueError, match="pass a sparsity"):
        _ = reconstruct(PARAMS, stats)
    with pytest.raises(ValueError, match="leave out sparsity, pattern"):
        _ = reconstruct(PARAMS, stats, 0.5, masks=jax.tree.map(lambda p: p != 0, PARAMS))
    with pytest.raises(ValueError, match=r"conv: 2 of 4 has the sparsity 0.5, but sparsity is 0.7"):
        _ = reconstruct(PARAMS, stats, 0.7, pattern=NM(2, 4))
    with pytest.raises(
        ValueError,
        match=r"conv: its length 36 .* is not divided by m=16(.|\n)*head: its length 8 .* by m=16",
    ):
        _ = reconstruct(PARAMS, stats, pattern=NM(8, 16))
    with pytest.raises(ValueError, match=r"masks=masks\.select"):
        _ = reconstruct(PARAMS, stats, 0.5, pattern=Channel())
    with pytest.raises(
        ValueError, match=r"query: NM\(n=2, m=4, axis=-1\) needs the axes of the inputs; .* pass axis=\(0,\)"
    ):
        _ = reconstruct(PARAMS, stats, pattern=NM(2, 4, axis=-1), where="query")
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        _ = reconstruct(PARAMS, stats, 1.5)
    with pytest.raises(ValueError, match="tree in the structure of params"):
        _ = reconstruct(PARAMS, stats, [0.5, 0.5])
    with pytest.raises(ValueError, match="no leaf matches 'convolution'"):
        _ = reconstruct(PARAMS, stats, {"convolution": 0.5})
    with pytest.raises(ValueError, match=r"parameters are not finite:\n  out"):
        _ = reconstruct({**PARAMS, "out": PARAMS["out"].at[0].set(jnp.nan)}, stats, 0.5)
    with pytest.raises(ValueError, match=r"out was calibrated with shape"):
        _ = reconstruct({**PARAMS, "out": jnp.ones((3, 4, 8))}, stats, 0.5)


def test_leaves_without_statistics_are_named():
    params = {"a": normal(4, 3), "b": normal(4, 3)}
    stats = calibrate(lambda p, x: x @ p["a"], params, [normal(9, 4)], collect="square")
    assert int((~reconstruct(params, stats, 0.5, method="wanda").masks["a"]).sum()) == 6
    with pytest.raises(ValueError, match=r"without statistics(.|\n)*b: enters no matrix product"):
        _ = reconstruct(params, stats, 0.5, method="wanda", where=lambda name, leaf: True)
    with pytest.raises(ValueError, match=r"collect='gram'(.|\n)*  a"):
        _ = reconstruct(params, stats, 0.5)
    masks = {"a": jnp.ones((), bool), "b": jnp.zeros((4, 3), bool)}
    with pytest.raises(ValueError, match=r"not reconstructed(.|\n)*  b"):
        _ = reconstruct(params, stats, masks=masks, method="wanda")


def test_without_where_the_leaves_of_prune_are_pruned_and_the_others_are_the_same_arrays():
    # The embedding is multiplied as the head, so calibration has its Gram matrix; prune leaves tied embeddings alone.
    params = {"embed": normal(9, 8), "dense": normal(8, 8), "routed": normal(8, 8), "bias": normal(8)}

    def fn(p, t):
        x = jnp.tanh(p["embed"][t] @ p["dense"] + p["bias"])
        return jax.lax.while_loop(lambda x: (x > 9).any(), lambda x: x @ p["routed"], x) @ p["embed"].T

    stats = calibrate(fn, params, [jnp.arange(9)], collect="square")
    new = reconstruct(params, stats, 0.5, method="magnitude")
    np.testing.assert_array_equal(new.masks["dense"], prune(params, {"dense": 0.5}, stats=stats).masks["dense"])
    assert new.params["embed"] is params["embed"]
    assert "left alone: used in several ways (multiplied, embedding)" in str(new)
    assert "left alone: no statistics (`while`)" in str(new)
    with pytest.raises(ValueError, match=r"no prunable leaf matches 'embed'(.|\n)*embed: used in several ways"):
        _ = reconstruct(params, stats, 0.5, method="magnitude", where="embed")
    with pytest.raises(ValueError, match=r"nothing to prune(.|\n)*embed: used in several ways"):
        _ = reconstruct(
            params, calibrate(fn, params, [jnp.arange(9)], collect="square", where="embed"), 0.5, method="magnitude"
        )


def test_groups_of_a_kernel_of_outputs_first_lie_along_its_channels():
    def like_wanda(weight, gram, target):
        mask = keep(jnp.abs(weight) * jnp.sqrt(jnp.diag(gram))[:, None], target)
        return jnp.where(mask, weight, 0), mask

    weight, x = normal(8, 4, 3, 3), normal(6, 5, 5, 4, seed=1)
    stats = calibrate(lambda w, x: conv(x, w.transpose(2, 3, 1, 0)), weight, [x])
    new = reconstruct(weight, stats, pattern=NM(2, 4), method=like_wanda)
    want = prune(weight, 0.5, criterion=criteria.wanda, stats=stats, pattern=NM(2, 4))
    np.testing.assert_array_equal(new.masks, want.masks)
    np.testing.assert_array_equal(new.params, want.params)
    assert (new.masks.sum(1) == 2).all()


def test_a_singular_gram_matrix_asks_for_damping():
    params = {"a": normal(6, 3)}
    stats = calibrate(lambda p, x: x @ p["a"], params, [jnp.ones((9, 6))])
    with pytest.raises(ValueError, match=r"raise the damping(.|\n)*  a"):
        _ = reconstruct(params, stats, 0.5, method=partial(sparsegpt, damping=0.0))
    assert relative_errors(params, reconstruct(params, stats, 0.5).params, stats)["a"] < 0.01


def test_many_matrices_are_worked_on_in_chunks(monkeypatch, stats):
    want = reconstruct(PARAMS, stats, {"layers": 0.5}, method=partial(sparsegpt, block=4))
    monkeypatch.setattr(sys.modules["jaxprune.reconstruction.reconstruct"], "_TOGETHER", 70)
    got = reconstruct(PARAMS, stats, {"layers": 0.5}, method=partial(sparsegpt, block=5))
    np.testing.assert_array_equal(want.masks["layers"].sum(), got.masks["layers"].sum())


def test_sequential_calibrates_each_stage_on_what_came_before():
    first = calibrate(net, PARAMS, DATA[:1], collect="square")
    stages = [("conv", None), ("grouped", None), ("query", None), ("out", None)]
    stages += [*[("layers", i) for i in range(3)], ("head", None)]
    leaves = plan(PARAMS, first, 0.5, None, {}, "sparsegpt").leaves
    assert [(*stage.names, stage.layer) for stage in rounds(first, leaves)] == stages
    new, masks = reconstruct_sequential(net, PARAMS, DATA, 0.5)
    for name in LAYERS:
        assert int((~masks[name]).sum()) == PARAMS[name].size // 2
    before = {**new, "head": PARAMS["head"]}
    want = reconstruct(before, calibrate(net, before, DATA), {"head": 0.5}).params["head"]
    np.testing.assert_allclose(np.float32(new["head"]), np.float32(want), atol=1e-2)
    before = {**new, "layers": new["layers"].at[1:].set(PARAMS["layers"][1:])}
    stats = calibrate(net, before, DATA)
    want, _ = jax.jit(sparsegpt)(PARAMS["layers"][1], stats["layers"].gram[1], Entries(32))
    np.testing.assert_allclose(new["layers"][1], want, atol=1e-3)


def test_sequential_refuses_what_can_be_read_once():
    with pytest.raises(ValueError, match="pass a list"):
        _ = reconstruct_sequential(net, PARAMS, iter(DATA), 0.5)
    with pytest.raises(ValueError, match="at least one batch"):
        _ = reconstruct_sequential(net, PARAMS, [], 0.5)


def test_finite_leaves_pass():
    assert check_finite([], []) is None


def test_a_stack_of_layers_compiles_once_whatever_the_sparsity():
    traces = []

    def counted(weight, gram, target):
        traces.append(weight.shape)
        return sparsegpt(weight, gram, target)

    params = {"layers": normal(24, 4, 4)}
    fn = lambda p, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["layers"])[0]
    stats = calibrate(fn, params, [normal(30, 4)])
    for sparsity, removed in ((0.5, 192), (0.75, 288)):
        _, masks = reconstruct(params, stats, sparsity, method=counted)
        assert int((~masks["layers"]).sum()) == removed
    assert traces == [(4, 4)]


def test_prune_of_a_stack_is_one_program_that_does_not_grow_with_the_layers():
    # The log of compilations would count whatever the process compiles meanwhile, and caches that other tests filled.
    def calls(layers):
        shape = jax.ShapeDtypeStruct((layers, 14, 10), jnp.float32)
        traced = jax.make_jaxpr(lambda x: prune({"layers": x}, 0.5, batch_axes={"layers": 1}))(shape)
        return [str(eqn.params.get("name", eqn.primitive.name)) for eqn in traced.eqns]

    assert calls(24) == calls(3)
    assert calls(24).count("_keep_largest") == 1
    pruned = prune({"layers": normal(24, 14, 10)}, 0.5, batch_axes={"layers": 1})
    assert (np.asarray(pruned.masks["layers"]).sum((1, 2)) == 70).all()
