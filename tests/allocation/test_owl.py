"""OWL against the formula in NumPy, its bounds, and its way into masks and reconstruction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation, masks
from jaxprune.calibration import calibrate
from jaxprune.criteria import wanda
from jaxprune.reconstruction import reconstruct
from tests.cases import normal

SCORES = {
    "a": jnp.exp(2.0 * normal(30, 20)),
    "b": jnp.exp(0.5 * normal(40, 20)),
    "c": jnp.exp(normal(10, 10)),
    "bias": jnp.ones(3),
}


def by_hand(scores, sparsity, threshold=5.0, spread=0.08):
    share = np.array([(x > threshold * x.mean()).mean() for x in scores])
    sizes = np.array([x.size for x in scores])
    d = 2 * spread * (share - share.min()) / (share.max() - share.min())
    return sparsity + (d * sizes).sum() / sizes.sum() - d


def test_formula_and_total():
    sparsities, achieved = allocation.owl(SCORES, 0.7)
    names = ("a", "b", "c")
    want = by_hand([np.asarray(SCORES[n], np.float64) for n in names], 0.7)
    got = [int(sparsities[n]) for n in names]
    np.testing.assert_allclose(got, [s * SCORES[n].size for s, n in zip(want, names, strict=True)], atol=0.51)
    assert got[0] / 600 == min(k / SCORES[n].size for k, n in zip(got, names, strict=True))
    assert achieved == sum(got) / 1500
    assert abs(achieved - 0.7) <= 1.5 / 1500
    assert sparsities["bias"] == 0.0
    kept = masks.select(SCORES, sparsities)
    assert [int((~kept[n]).sum()) for n in names] == got


def test_traced_sparsity_and_scores_do_not_recompile():
    traces = []

    @jax.jit
    def run(scores, sparsity):
        traces.append(sparsity)
        found = allocation.owl(scores, sparsity)
        return masks.select(scores, found.sparsities), found.achieved

    for s in (0.3, 0.7, 0.95):
        kept, achieved = run(SCORES, jnp.float32(s))
        removed = sum(int((~kept[n]).sum()) for n in ("a", "b", "c"))
        assert abs(removed / 1500 - s) <= 1.5 / 1500
        np.testing.assert_allclose(achieved, removed / 1500, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.97, 0.999])
def test_deviations_shrink_where_a_layer_would_leave_the_range(sparsity):
    sparsities, achieved = allocation.owl(SCORES, sparsity, spread=0.4)
    fractions = [int(sparsities[n]) / SCORES[n].size for n in ("a", "b", "c")]
    assert all(0 <= f < 1 or f == 1.0 for f in fractions)
    assert abs(achieved - sparsity) <= 1.5 / 1500


def test_without_outliers_it_is_uniform():
    sparsities, _ = allocation.owl({"a": jnp.ones((4, 5)), "b": jnp.ones((2, 5))}, 0.5)
    assert [int(sparsities[n]) for n in ("a", "b")] == [10, 5]


@pytest.mark.slow
def test_stacked_layers_and_blocks_share_as_loose_ones_do():
    a, b = (
        jnp.exp(normal(3, 20, 10) * jnp.array([0.5, 1.0, 2.0])[:, None, None]),
        jnp.ones((3, 10, 10)),
    )
    loose = {f"{i}/{n}": x[i] for i in range(3) for n, x in (("a", a), ("b", b))}
    stacked, total = allocation.owl({"a": a, "b": b}, 0.6, batch_axes=1, layer_of=lambda name: "block")
    apart, total_apart = allocation.owl(loose, 0.6, layer_of=lambda name: name[0])
    for n in "ab":
        each = stacked[n].high * 65536 + stacked[n].low
        assert each.tolist() == [int(apart[f"{i}/{n}"]) for i in range(3)]
    np.testing.assert_allclose(total, total_apart, rtol=1e-6)
    kept = masks.select({"a": a, "b": b}, stacked, batch_axes=1)
    assert (~kept["a"]).sum((1, 2)).tolist() == stacked["a"].low.tolist()


@pytest.mark.slow
def test_it_goes_into_reconstruction():
    params = {"layers": normal(3, 8, 8)}
    fn = lambda p, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w) ** 3, None), x, p["layers"])[0]
    stats = calibrate(fn, params, [normal(50, 8)])
    found = allocation.owl(wanda(params, stats=stats), 0.6, batch_axes=1, threshold=2.0, spread=0.2)
    _, kept = reconstruct(params, stats, found.sparsities)
    assert (~kept["layers"]).sum((1, 2)).tolist() == found.sparsities["layers"].low.tolist()
    assert len(set(found.sparsities["layers"].low.tolist())) > 1


def test_refusals():
    with pytest.raises(ValueError, match=r"must be Unstructured\(\)(.|\n)*a: NM"):
        _ = allocation.owl({"a": jnp.ones((4, 4))}, 0.5, pattern=masks.NM(2, 4, axis=0))
    with pytest.raises(ValueError, match="threshold > 0"):
        _ = allocation.owl(SCORES, 0.5, threshold=0)
    with pytest.raises(ValueError, match="spread"):
        _ = allocation.owl(SCORES, 0.5, spread=0.5)
    assert allocation.owl({"bias": jnp.ones(3)}, 0.5).achieved == 0.0
