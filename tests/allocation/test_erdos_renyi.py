"""ER and ERK against a loop that makes one leaf dense at a time, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation
from tests.allocation.trees import RESNET, removed_fraction, scores
from tests.cases import few

SPARSITIES = [0.0, 0.05, 0.3, 0.5, 0.8, 0.9, 0.97, 0.999]


def twin(shapes, sparsity, kernel, stacked=0):
    """Makes the leaf that is most over-dense dense, and solves again, until none is."""
    sizes = {name: np.prod(shape) for name, shape in shapes.items()}
    raw = {}
    for name, shape in shapes.items():
        axes = shape[stacked:]
        raw[name] = sum(axes) / np.prod(axes) if kernel else sum(axes[-2:]) / np.prod(axes[-2:])
    dense = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        if not sparse:
            return dict.fromkeys(shapes, 0.0)
        budget = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / sum(raw[name] * sizes[name] for name in sparse)
        most = max(sparse, key=lambda name: raw[name])
        if scale * raw[most] <= 1 + 1e-12:
            return {name: 0.0 if name in dense else 1 - scale * raw[name] for name in shapes}
        dense.add(most)


def kernels():
    return {name: shape for name, shape in RESNET.items() if len(shape) > 1}


@pytest.mark.parametrize(("allocate", "kernel"), [(allocation.er, False), (allocation.erk, True)])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_sparsities_are_the_loops(allocate, kernel, sparsity):
    tree = scores()
    allocated = allocate(tree, sparsity)
    wanted = twin(kernels(), sparsity, kernel)
    assert allocated.sparsities["block/bias"] == 0.0
    for name, value in wanted.items():
        assert type(allocated.sparsities[name]) is float
        assert np.isclose(allocated.sparsities[name], value, rtol=0, atol=1e-12)
    assert removed_fraction(tree, allocated) == allocated.achieved
    total = sum(np.prod(shape) for shape in kernels().values())
    assert abs(allocated.achieved - sparsity) * total <= len(kernels()) / 2


@pytest.mark.parametrize("allocate", few([allocation.er, allocation.erk, allocation.uniform], allocation.erk))
def test_traced_is_static_with_one_compilation(allocate):
    tree, traces = scores(), []

    @jax.jit
    def traced(sparsity):
        traces.append(sparsity)
        return allocate(tree, sparsity)

    for sparsity in SPARSITIES:
        allocated = traced(sparsity)
        static = allocate(tree, float(np.float32(sparsity)))
        for name, value in static.sparsities.items():
            assert np.isclose(allocated.sparsities[name], value, rtol=0, atol=2e-6)
        assert np.isclose(allocated.achieved, removed_fraction(tree, allocated), rtol=0, atol=1e-6)
        eager = allocate(tree, jnp.float32(sparsity))
        assert jax.tree.all(jax.tree.map(np.array_equal, eager.sparsities, allocated.sparsities))
    assert len(traces) == 1


@pytest.mark.parametrize("allocate", [allocation.er, allocation.erk])
def test_more_sparsity_never_keeps_more_of_any_leaf(allocate):
    tree = scores()
    steps = [allocate(tree, s).sparsities for s in np.linspace(0, 0.99, 40)]
    for name in kernels():
        assert (np.diff([s[name] for s in steps]) >= 0).all()


def test_er_and_erk_agree_on_matrices():
    shapes = {"a": (10, 20), "b": (200, 30), "c": (30, 7)}
    er, erk = (f(scores(shapes), 0.8) for f in (allocation.er, allocation.erk))
    assert er == erk


def test_stacked_layers_count_as_so_many_leaves():
    apart = {f"layer_{i}": (6, 40) for i in range(5)} | {"head": (6, 6)}
    stacked = {"layers": (5, 6, 40), "head": (6, 6)}
    one = allocation.erk(scores(apart), 0.7)
    other = allocation.erk(scores(stacked), 0.7, batch_axes={"layers": 1})
    assert np.isclose(other.sparsities["layers"], one.sparsities["layer_0"], rtol=0, atol=1e-12)
    assert np.isclose(other.sparsities["head"], one.sparsities["head"], rtol=0, atol=1e-12)
    assert removed_fraction(scores(stacked), other, batch_axes={"layers": 1}) == other.achieved
    wanted = twin({"layers": (5, 6, 40)}, 0.7, True, stacked=1)
    alone = allocation.erk(scores({"layers": (5, 6, 40)}), 0.7, batch_axes=1)
    assert np.isclose(alone.sparsities["layers"], wanted["layers"])


def test_leaves_of_one_axis_and_no_leaves():
    def every(name, leaf):
        return True

    shapes = {"scale": (50,), "kernel": (20, 30)}
    tree = scores(shapes)
    # (1 + n) / n for er, n / n for erk: nearly dense before anything else.
    assert allocation.er(tree, 0.5, where=every).sparsities["scale"] == 0.0
    allocated = allocation.erk(tree, 0.5, where=every)
    assert removed_fraction(tree, allocated, where=every) == allocated.achieved
    empty = allocation.erk({"scale": tree["scale"]}, 0.5)
    assert empty == allocation.Allocation({"scale": 0.0}, 0.0)


def test_shapes_are_enough():
    structs = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in RESNET.items()}
    assert allocation.erk(structs, 0.9) == allocation.erk(scores(), 0.9)


def test_float64_where_jax_has_it():
    with jax.enable_x64(True):
        tree = scores(dtype=jnp.float64)
        traced = jax.jit(lambda s: allocation.erk(tree, s).sparsities)(0.9)
        for name, value in twin(kernels(), 0.9, True).items():
            assert np.isclose(traced[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("allocate", [allocation.er, allocation.erk, allocation.uniform, allocation.one_ranking])
def test_sparsities_are_checked(allocate):
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
            _ = allocate(scores(), wrong)
    with pytest.raises(TypeError, match="must be a floating scalar"):
        _ = allocate(scores(), jnp.ones(3))
