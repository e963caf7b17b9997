import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprune import masks

PARAMS = {"w": jnp.array([[1.0, -jnp.inf, jnp.nan, 4.0]]), "b": jnp.ones(2)}
MASKS = {"w": jnp.array([[True, False, False, True]]), "b": jnp.ones((), bool)}


@pytest.mark.parametrize("packed", [False, True])
def test_apply_puts_zeros_whatever_was_there(packed):
    held = masks.pack(MASKS) if packed else MASKS
    for run in (masks.apply, jax.jit(masks.apply)):
        found = run(PARAMS, held)
        np.testing.assert_array_equal(found["w"], [[1.0, 0.0, 0.0, 4.0]])
        np.testing.assert_array_equal(found["b"], PARAMS["b"])
    half = masks.apply({"w": PARAMS["w"].astype(jnp.bfloat16), "b": PARAMS["b"]}, held)
    assert half["w"].dtype == jnp.bfloat16


def test_empty_nodes_and_static_leaves_pass_through():
    params = {"w": jnp.ones((2, 2)), "none": None, "masked": optax.MaskedNode(), "fn": jax.nn.relu}
    found = masks.select(params, 0.5)
    applied = masks.apply(params, found)
    assert applied["fn"] is jax.nn.relu
    assert applied["none"] is None
    assert int((applied["w"] == 0).sum()) == 2
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    assert masks.apply(model, masks.ones(model)).activation is model.activation


@pytest.mark.parametrize("packed", [False, True])
def test_counts_of_masks_that_broadcast(packed):
    params = {"conv": jnp.ones((3, 3, 4, 6)), "dense": jnp.ones((5, 7)), "bias": jnp.ones(6)}
    held = {
        "conv": jnp.array([1, 0, 1, 1, 0, 1], bool).reshape(1, 1, 1, 6),
        "dense": jnp.arange(35).reshape(5, 7) < 10,
        "bias": jnp.ones((), bool),
    }
    held = masks.pack(held) if packed else held
    kept = {name: int(count) for name, count in masks.count_kept(params, held).items()}
    assert kept == {"conv": 3 * 3 * 4 * 4, "dense": 10, "bias": 6}
    expected = (3 * 3 * 4 * 2 + 25) / (216 + 35)
    np.testing.assert_allclose(masks.sparsity(params, held), expected, rtol=1e-6)
    np.testing.assert_allclose(masks.sparsity(params, held, where="dense"), 25 / 35, rtol=1e-6)
    assert float(masks.sparsity(params, masks.ones(params, where=lambda name, leaf: False))) == 0


def test_sets():
    a, b = {"w": jnp.array([[1, 1, 0, 0]], bool)}, {"w": jnp.array([[1, 0, 1, 0]], bool)}
    params = {"w": jnp.ones((1, 4))}
    for x, y in ((a, b), (masks.pack(a), b), (a, masks.pack(b))):
        assert masks.intersect(x, y)["w"].tolist() == [[True, False, False, False]]
        assert masks.unite(x, y)["w"].tolist() == [[True, True, True, False]]
        assert masks.difference(x, y)["w"].tolist() == [[False, True, False, False]]
        np.testing.assert_allclose(masks.overlap(params, x, y), 1 / 3, rtol=1e-6)
    assert masks.invert(a, params)["w"].tolist() == [[False, False, True, True]]
    none = {"w": jnp.zeros((1, 4), bool)}
    assert float(masks.overlap(params, none, none)) == 1
    with pytest.raises(ValueError, match="the other masks must have the structure of masks"):
        _ = masks.intersect(a, {"v": a["w"]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: masks.select(s, 1.0), r"must be in \[0, 1\), got 1.0"),
        (lambda s: masks.select(s, -0.1), r"must be in \[0, 1\), got -0.1"),
        (lambda s: masks.select(s, float("nan")), r"must be in \[0, 1\), got nan"),
        (lambda s: masks.select(s, {"w": 0.5}), "sparsities must have the structure of scores"),
        (lambda s: masks.select(s, 0.5, masks.NM(2, 4, axis=0)), r"v: .*length 6 .* not divided by m=4"),
        (lambda s: masks.select(s, 0.7, masks.NM(2, 4), where="w"), r"w: NM.* removes exactly 0.5"),
        (lambda s: masks.select(s, 0.5, masks.Block((3, 3), (0, 1))), r"w: shape \(8, 4\) is not divided"),
        (lambda s: masks.select(s, 0.5, masks.Channel(4)), r"w: axes \(4,\) are not distinct axes"),
        (lambda s: masks.select(s, 0.5, batch_axes=3), r"w: batch_axes 3 and shape \(8, 4\)"),
        (lambda s: masks.select(s, 0.5, batch_axes=2, where=lambda *_: True), r"w: batch axes \(0, 1\) do not leave"),
        (lambda s: masks.select_global(s, 0.5, pattern=masks.NM(2, 4), where="w"), "use select:\n  w"),
        (lambda s: masks.select_global(s, 0.5, batch_axes=1, where=lambda *_: True), "same number of slices"),
        (lambda s: masks.NM(5, 4), "needs 1 <= n <= m"),
        (lambda s: masks.Block((2,)), "one positive size for each axis"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        _ = call({"w": jnp.ones((8, 4)), "v": jnp.ones((6, 4))})


def test_a_wrong_kind_of_sparsity_is_named():
    with pytest.raises(TypeError, match="must be a number"):
        _ = masks.select({"w": jnp.ones((2, 2))}, "half")
    with pytest.raises(ValueError, match=r"got 90; for 90 % pass 0\.9$"):
        _ = masks.select({"w": jnp.ones((2, 2))}, 90)


@pytest.mark.parametrize("pattern", ["2:4", masks.NM, masks.Channel, {"w": "2:4"}])
def test_what_is_no_pattern_is_named(pattern):
    with pytest.raises(TypeError, match=r"pattern must be .*masks\.NM\(2, 4\)"):
        _ = masks.select({"w": jnp.ones((8, 4))}, 0.5, pattern)
    with pytest.raises(TypeError, match="pattern must be"):
        _ = masks.ones({"w": jnp.ones((8, 4))}, pattern=pattern)


def test_scores_of_which_none_is_pruned_are_named():
    with pytest.raises(ValueError, match=r"nothing to prune.*\n  w: int32\[2, 2\]"):
        _ = masks.select({"w": jnp.ones((2, 2), jnp.int32)}, 0.5)
    with pytest.raises(ValueError, match="nothing to prune"):
        _ = masks.select_global({"w": jnp.ones(3)}, 0.5)


@pytest.mark.parametrize("combine", [masks.unite, masks.intersect, masks.difference])
def test_masks_of_two_networks_do_not_combine(combine):
    found = {"w": jnp.ones((2, 3), bool), "b": jnp.ones((), bool)}
    _ = combine(found, masks.pack(found | {"w": jnp.ones((1, 3), bool)}))  # channels with single weights
    with pytest.raises(ValueError, match=r"same parameters.*\n  w: \(2, 3\) and \(2, 4\)"):
        _ = combine(found, found | {"w": jnp.ones((2, 4), bool)})
    with pytest.raises(TypeError, match=r"the other masks must be bool.*\n  w: float32"):
        _ = combine(found, found | {"w": jnp.ones((2, 3))})


def test_parameters_are_not_packed_for_masks():
    with pytest.raises(TypeError, match=r"must be bool.*\n  w: float32"):
        _ = masks.pack({"w": jnp.ones((2, 8))})


def test_many_leaves_in_one_program_are_those_of_single_leaves() -> None:
    params = {str(k): jnp.arange(-k, k + 1.0) for k in range(1, 11)}
    kept = {name: w > 0 for name, w in params.items()} | {"1": True}
    together, apart = masks.apply(params, kept), {k: masks.apply({k: w}, {k: kept[k]})[k] for k, w in params.items()}
    assert jax.tree.map(lambda x: x.tolist(), together) == jax.tree.map(lambda x: x.tolist(), apart)
