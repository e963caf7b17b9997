"""Sparse integers: the published code's weights, a NumPy twin, errors below pruning and then rounding, and storage."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxprune import criteria, masks
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import Entries, Given, Grouped, dequantise, quantise, reconstruct, relative_errors
from jaxprune.reconstruction.quantise import Quantised
from jaxprune.reconstruction.sparsegpt import Grid, sparse_gptq
from tests.cases import few
from tests.reconstruction import problems, twins
from tests.reconstruction.test_reconstruct import DATA, LAYERS, PARAMS, net

_FILE = np.load(Path(__file__).parents[1] / "reference" / "torch_sparsegpt.npz")
_CASES = [name for name in _FILE if name.count("/") > 1]
# Compiling is most of the time: a case of each kind, or all of them.
_QUICK = ("16/0.5/4", "16/2:4/4", "16/dense/4/16")


@pytest.fixture(scope="module")
def stats():
    return calibrate(net, PARAMS, DATA)


def of_layer(weight, x):
    weight = jnp.asarray(weight, jnp.float32)
    return weight, calibrate(lambda w, x: x @ w, weight, [jnp.asarray(x, jnp.float32)])


def swept(weight, x, target, bits, group, block=16):
    """The new weights, scales and mask, without the comparison with pruning first and rounding afterwards."""
    weight, x = jnp.asarray(weight, jnp.float32), jnp.asarray(x, jnp.float32)
    run = lambda w, x: sparse_gptq(w, x.T @ x, target, Grid(bits, group), block=block, guard=False)
    (new, scales), mask = jax.jit(run)(weight, x)
    return new, scales, mask


@pytest.mark.parametrize("case", few(_CASES, *_QUICK))
def test_pruned_and_rounded_as_published(case):
    block, kind, bits, *group = case.split("/")
    targets = {"dense": Given(jnp.ones((48, 20), bool)), "2:4": Grouped(2, 4), "0.5": Entries(483)}
    group = int(group[0]) if group else 48
    new, *_ = swept(_FILE["weight"], _FILE["x"], targets[kind], int(bits), group, int(block))
    np.testing.assert_allclose(new, _FILE[case], atol=1e-4)
    assert len(_CASES) == 6


@pytest.mark.parametrize(("bits", "group"), few([(8, 40), (4, 8), (3, 20)], (8, 40), (4, 8)))
def test_a_given_mask_equals_the_twin(bits, group):
    weight, x = problems.layer(4, 40, 12)
    kept = np.random.default_rng(0).random(weight.shape) < 0.6
    new, scales, mask = swept(weight, x, Given(jnp.asarray(kept)), bits, group)
    want, steps = twins.sparse_gptq(weight, x.T @ x, kept, bits=bits, group=group)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(new, want, atol=1e-4)
    np.testing.assert_allclose(scales, steps, rtol=1e-4)


@pytest.mark.parametrize(
    ("bits", "pattern"), few([(4, masks.NM(2, 4)), (8, masks.Unstructured())], (4, masks.NM(2, 4)))
)
def test_every_layer_moves_less_than_pruned_and_then_rounded(stats, bits, pattern):
    # The head has bfloat16 weights: they are compared as float32, in which the integers' products are exact.
    params, layers = {**PARAMS, "head": PARAMS["head"].astype(jnp.float32)}, LAYERS[-3:]
    sparsity = None if isinstance(pattern, masks.NM) else 0.5
    new, kept = quantise(params, stats, sparsity, bits=bits, pattern=pattern, where=layers)
    pruned = reconstruct(params, stats, sparsity, pattern=pattern, where=layers).params
    ours, theirs = (
        relative_errors(params, x, stats) for x in (dequantise(new), quantise_by_rounding(pruned, stats, bits, layers))
    )
    for name in layers:
        leaf = new[name]
        assert leaf.values.dtype == jnp.int8
        assert leaf.values.shape == params[name].shape
        assert -(2 ** (bits - 1)) <= int(leaf.values.min()) <= int(leaf.values.max()) < 2 ** (bits - 1)
        assert not np.asarray(leaf.values)[~np.asarray(kept[name])].any()
        assert int((~kept[name]).sum()) == params[name].size // 2
        assert ours[name] < theirs[name]
    assert new["bias"] is params["bias"]


def quantise_by_rounding(params, stats, bits, layers):
    out = dict(params)
    for name in layers:
        matrices = np.asarray(stats[name].layout.matrices(params[name]), np.float64)
        whole = [twins.rounded(w, twins.scales(w, bits, len(w)), bits) for w in matrices]
        out[name] = stats[name].layout.leaf(jnp.asarray(np.stack(whole), jnp.float32))
    return out


def test_kernels_of_outputs_by_inputs_have_their_scales_along_their_inputs_and_survive_a_file(tmp_path):
    # As Hugging Face stores them: [outputs, inputs].
    weight, x = problems.layer(6, 16, 12)
    params = {"up.weight": jnp.asarray(weight.T, jnp.float32), "bias": jnp.zeros(12)}
    stats = calibrate(lambda p, x: x @ p["up.weight"].T + p["bias"], params, [jnp.asarray(x, jnp.float32)])
    new, kept = quantise(params, stats, 0.5, criterion=criteria.wanda, bits=4, group=4)
    assert new["up.weight"].scale.shape == (12, 4)
    assert (np.asarray(kept["up.weight"]).sum(1) == 8).all()
    path = tmp_path / "int4.safetensors"
    flat = jax.tree_util.tree_flatten_with_path(new)[0]
    names = ["/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in keys) for keys, _ in flat]
    safetensors.numpy.save_file({n: np.asarray(a) for n, (_, a) in zip(names, flat, strict=True)}, path)
    read = safetensors.numpy.load_file(path)
    assert sorted(read) == ["bias", "up.weight/scale", "up.weight/values"]
    # Plain NumPy, without this library.
    again = read["up.weight/values"] * np.repeat(read["up.weight/scale"], 4, 1)
    np.testing.assert_array_equal(again, dequantise(new)["up.weight"])
    assert not again[~np.asarray(kept["up.weight"])].any()
    np.testing.assert_array_equal(new["up.weight"].values.astype(jnp.int4).astype(jnp.int8), read["up.weight/values"])


def test_what_cannot_be_quantised_is_named(stats):
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"bits must be 2 to 8, got {bits}"):
            _ = quantise(PARAMS, stats, 0.5, bits=bits)
    with pytest.raises(ValueError, match=r"conv: its inputs have the axes(.|\n)*head: 8 inputs are not a multiple"):
        _ = quantise(PARAMS, stats, 0.5, group=3)
    with pytest.raises(ValueError, match=r"groups of 2 inputs with a scale must hold whole groups of m = 4"):
        _ = quantise(PARAMS, stats, pattern=masks.NM(2, 4), group=2, where="head")
    with pytest.raises(ValueError, match="head has no sparsity"):
        _ = quantise(PARAMS, stats, where="head")
    weight, x = problems.layer(1, 6, 3)
    with pytest.raises(ValueError, match="the Gram matrix is not positive definite"):
        _ = quantise(*of_layer(weight, np.ones_like(x)), 0.5, damping=0.0)
    assert isinstance(quantise(*of_layer(weight, np.ones_like(x)), 0.5).params, Quantised)
