"""Iterative SynFlow against a loop in NumPy, its exact counts, and the layers it keeps alive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks

SHAPES = {"a": (6, 8), "b": (8, 3), "c": (3, 40), "d": (40, 5)}


def network(params, x):
    for name in SHAPES:
        x = jax.nn.relu(x @ params[name])
    return x


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def twin(params, sparsity, iterations):
    """Scores by products of the layers' matrices; of all weights together the smallest go."""
    weights = {name: np.abs(np.asarray(w, np.float64)) for name, w in params.items()}
    kept = {name: np.ones(w.shape, bool) for name, w in weights.items()}
    total = sum(w.size for w in weights.values())
    for i in range(1, iterations + 1):
        masked = [weights[name] * kept[name] for name in SHAPES]
        forward = [np.ones(len(masked[0]))]
        for w in masked:
            forward.append(forward[-1] @ w)
        backward = [np.ones(masked[-1].shape[1])]
        for w in reversed(masked):
            backward.insert(0, w @ backward[0])
        scores = np.concatenate(
            [
                np.where(kept[name], f[:, None] * w * b[None, :], -1).ravel()
                for name, w, f, b in zip(SHAPES, masked, forward, backward[1:], strict=False)
            ]
        )
        goal = sparsity if i == iterations else 1 - (1 - sparsity) ** (i / iterations)
        left = total - int(goal * total + 0.5)
        flat = np.zeros(total, bool)
        flat[np.argsort(-scores, kind="stable")[:left]] = True
        ends = np.cumsum([w.size for w in weights.values()])[:-1]
        kept = {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, np.split(flat, ends), strict=True)}
    return kept


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_masks_are_the_loops(sparsity):
    params = parameters()
    found = criteria.synflow_masks(network, params, sparsity, jnp.zeros((1, 6)), iterations=20)
    wanted = twin(params, sparsity, 20)
    assert all(np.array_equal(found[name], wanted[name]) for name in SHAPES)


@pytest.mark.slow
def test_counts_are_exact_and_no_layer_collapses():
    params = parameters(1)
    total = sum(w.size for w in params.values())

    @jax.jit
    def pruned(sparsity):
        return criteria.synflow_masks(network, params, sparsity, jax.ShapeDtypeStruct((1, 6), jnp.float32))

    for sparsity in (0.0, 0.75, 0.9, 0.97):
        kept = [int(m.sum()) for m in jax.tree.leaves(pruned(sparsity))]
        assert sum(kept) == total - int(np.float64(np.float32(sparsity)) * total + 0.5)
        assert min(kept) > 0
    # As few weights as one path needs: every layer keeps one. Magnitudes in one shot lose the narrow layers.
    path = (total - 4) / total
    assert [int(m.sum()) for m in jax.tree.leaves(pruned(path))] == [1, 1, 1, 1]
    widths = {name: w / jnp.sqrt(w.shape[0]) for name, w in params.items()}
    by_size = masks.select(criteria.magnitude(widths), allocation.one_ranking(widths, 0.97).sparsities)
    assert min(int(m.sum()) for m in jax.tree.leaves(by_size)) == 0


def test_only_chosen_leaves_are_pruned_and_integers_pass():
    params = parameters() | {"steps": jnp.int32(4), "bias": jnp.ones(5)}
    found = criteria.synflow_masks(
        lambda p, x: network(p, x) + p["bias"], params, 0.8, jnp.zeros((1, 6)), iterations=5, where=["b", "d"]
    )
    assert [name for name, m in found.items() if m.ndim] == ["b", "d"]
    assert sum(int(found[name].sum()) for name in ("b", "d")) == 224 - int(0.8 * 224 + 0.5)
    assert masks.sparsity(params, found) is not None


def test_roles_say_which_leaves_are_weights():
    params = parameters() | {"table": jnp.ones((6, 5))}  # by its name it may be a weight, but the function adds it
    fn = lambda p, x: network({name: p[name] for name in p if name != "table"}, x + p["table"].sum(1))
    roles = jaxprune.find_roles(fn, params, jnp.zeros((1, 6)))
    by_name, by_use = (
        criteria.synflow_masks(fn, params, 0.5, jnp.zeros((1, 6)), iterations=1, roles=known) for known in (None, roles)
    )
    assert by_name["table"].ndim == 2
    assert [name for name, m in by_use.items() if m.ndim] == list(parameters())
    assert sum(int(by_use[name].sum()) for name in parameters()) == 196


def test_one_iteration_is_one_shot():
    params = parameters(3)
    scores = criteria.synflow(network, jnp.zeros((1, 6)))(params)
    one = criteria.synflow_masks(network, params, 0.6, jnp.zeros((1, 6)), iterations=1)
    other = masks.select_global(scores, 0.6)
    assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_overflow_keeps_the_counts():
    params = {name: w * 1e30 for name, w in parameters().items()}
    found = criteria.synflow_masks(network, params, 0.5, jnp.zeros((1, 6)), iterations=3)
    assert sum(int(m.sum()) for m in jax.tree.leaves(found)) == 392 - 196


def test_options_are_checked():
    with pytest.raises(ValueError, match="iterations must be 1 or more; got 0"):
        _ = criteria.synflow_masks(network, parameters(), 0.5, jnp.zeros((1, 6)), iterations=0)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        _ = criteria.synflow_masks(network, parameters(), 1.0, jnp.zeros((1, 6)))
    with pytest.raises(ValueError, match=r"nothing to prune(.|\n)*bias"):
        _ = criteria.synflow_masks(lambda p, x: x, {"bias": jnp.ones(3)}, 0.5, jnp.zeros(3))
