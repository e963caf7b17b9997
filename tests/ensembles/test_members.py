"""Stacked members do what each does alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import ensembles, lottery, masks
from tests.cases import normal

KEY = jax.random.key(0)


def init(key):
    a, b = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(a, (6, 8)), "bias": jnp.ones(8)},
        "out": jax.random.normal(b, (8, 3)),
    }


def apply(params, x):
    return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"]) @ params["out"]


X = normal(5, 6, seed=9)
NETWORKS = [jaxprune.prune(init(jax.random.key(i)), s) for i, s in enumerate((0.5, 0.75, 0.9))]


def test_one_program_of_all_members():
    members = ensembles.stack(NETWORKS)
    assert str(members) == "3 members of 3 leaves and 80 parameters each"
    run = ensembles.member_logits(apply)
    logits = run(members, X)
    for i, network in enumerate(NETWORKS):
        np.testing.assert_allclose(logits[i], apply(network.params, X), rtol=1e-5, atol=1e-6)
    traces = []

    def counted(params, x):
        traces.append(1)
        return apply(params, x)

    predict = ensembles.predictor(counted)
    np.testing.assert_allclose(predict(members, X), ensembles.mean_probability(logits), rtol=1e-5)
    _ = predict(ensembles.take(members, [2, 1, 0]), X)
    assert traces == [1]
    # A matrix product of all members at once, not one for each.
    assert str(jax.make_jaxpr(run)(members, X)).count("dot_general") == 2


def test_masks_hold_whatever_the_parameters_say():
    members = ensembles.stack(NETWORKS)
    spoiled = members._replace(params=jax.tree.map(lambda w, m: jnp.where(_wide(m, w), w, jnp.nan), *members))
    run = ensembles.member_logits(apply)
    np.testing.assert_array_equal(run(spoiled, X), run(members, X))


def _wide(mask, leaf):
    return jnp.reshape(mask, mask.shape + (1,) * (leaf.ndim - mask.ndim))


def test_kept_counts_all_members():
    members = ensembles.stack([*NETWORKS, (NETWORKS[0].params, None)])
    dense = 6 * 8 + 8 + 8 * 3
    expected = sum(8 + int(n.masks["hidden"]["kernel"].sum()) + int(n.masks["out"].sum()) for n in NETWORKS)
    assert ensembles.kept_weights(members) == expected + dense


def test_packed_masks_and_channels_stack():
    params = {"w": jnp.ones((4, 16))}
    channel = {"w": jnp.arange(16)[None] < 5}
    members = ensembles.stack([(params, jax.tree.map(masks.pack, channel)), (params, None)])
    assert members.masks["w"].shape == (2, 1, 16)
    assert ensembles.kept_weights(members) == 4 * 5 + 4 * 16


@pytest.mark.slow
def test_rounds_of_a_ticket_search_are_members():
    train = lambda params, held, key: jax.tree.map(lambda w: w + 0.1, params)
    found = lottery.iterative_pruning(train, init(KEY), rounds=[0.5, 0.75, 0.875], key=KEY).ticket
    members = ensembles.take(ensembles.from_stacked(found.params, found.masks), [1, -1])
    assert members.size == 2
    alone = jax.tree.map(lambda leaf: leaf[3], found.params)
    np.testing.assert_allclose(ensembles.member_logits(apply)(members, X)[1], apply(alone, X), rtol=1e-5)
    kept = [ensembles.kept_weights(ensembles.take(members, [i])) for i in (0, 1)]
    assert kept == [8 + 36, 8 + 9]


def test_seeds_at_once_are_those_one_after_another():
    train = lambda key, x: jaxprune.prune(jax.tree.map(lambda w: w * x, init(key)), 0.5)
    keys = jax.random.split(KEY, 3)
    members = ensembles.from_stacked(*jax.jit(jax.vmap(train, in_axes=(0, None)))(keys, 2.0))
    for i in range(3):
        alone = train(keys[i], 2.0)
        chosen = jax.tree.map(lambda leaf, i=i: leaf[i], members)
        for a, b in zip(jax.tree.leaves(tuple(chosen)), jax.tree.leaves(tuple(alone)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_errors():
    params = init(KEY)
    with pytest.raises(ValueError, match="needs at least one network"):
        _ = ensembles.stack([])
    with pytest.raises(ValueError, match="out: in member 0, not in member 1"):
        _ = ensembles.stack([(params, None), ({"hidden": params["hidden"]}, None)])
    other = {**params, "out": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match=r"out: \(8, 4\) in member 1, \(8, 3\) in member 0"):
        _ = ensembles.stack([(params, None), (other, None)])
    with pytest.raises(ValueError, match="same leading axis"):
        _ = ensembles.from_stacked({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match=r"leading axis of 2 members:\n  a: mask \(\)"):
        _ = ensembles.from_stacked({"a": jnp.ones((2, 3))}, {"a": jnp.array(True)})
    with pytest.raises(ValueError, match=r"numbers of the 1 members; got \[1\]"):
        _ = ensembles.take(ensembles.from_stacked({"a": jnp.ones((1, 3))}), [1])
    with pytest.raises(ValueError, match="numbers of at least one member"):
        _ = ensembles.take(ensembles.from_stacked({"a": jnp.ones((1, 3))}), [])
