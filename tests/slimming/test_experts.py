"""Removing an expert means that its logit is minus infinity, in every form of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune import slimming
from jaxprune.calibration import calibrate
from tests import mixtures
from tests.cases import few

P, X = mixtures.params(8), mixtures.tokens(12)
GONE, LEFT = np.array([1, 4, 6]), np.array([0, 2, 3, 5, 7])


def closed(p, gone=GONE):
    """The whole parameters, with logits of minus infinity for some experts."""
    return p | {"bias": p["bias"].at[gone].set(-jnp.inf)}


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


SHORT = ("dense in one einsum", "slots by index", "ragged")


@pytest.mark.parametrize("name", few(mixtures.FORMS, *SHORT))
def test_slim_equals_the_whole_with_logits_at_minus_infinity(name):
    fn = mixtures.FORMS[name]
    groups = slimming.find_groups(fn, P, X)
    experts = groups["w1[0]"]
    assert {m.name for m in experts.members} == set(P)
    assert (experts.count, experts.exact, experts.routed) == (8, True, True)
    assert experts.least == (1 if name == "switch" else 2)
    # Matrices that are gathered for each token keep the same hidden units in all experts.
    hidden = groups["w1[2]"]
    assert (hidden.count, hidden.layers) == ((8, 1) if name in ("matrices of tokens", "switch") else (64, 8))
    small = slimming.slim(fn, P, {"w1[0]": GONE}, X)
    loss = lambda fn: jax.jit(jax.value_and_grad(lambda p, x: (fn(p, x) ** 2).mean(), (0, 1)))
    (value, grads), (wanted, whole) = loss(small.fn)(small.params, X), loss(fn)(closed(P), X)
    close((value, grads[1]), (wanted, whole[1]))
    close(grads[0], small.shrink(whole[0]))


@pytest.mark.slow
def test_vmap_and_other_numbers_of_tokens():
    small = slimming.slim(mixtures.slots_by_index, P, {"router[1]": GONE}, X)
    batches = jnp.stack([mixtures.tokens(5, seed=k) for k in range(3)])
    close(
        jax.vmap(small.fn, (None, 0))(small.params, batches),
        jax.vmap(mixtures.slots_by_index, (None, 0))(closed(P), batches),
    )


def stacked(layers=3):
    return jax.tree.map(lambda *a: jnp.stack(a), *[mixtures.params(8, seed=k) for k in range(layers)])


@pytest.mark.parametrize("name", few(SHORT, "ragged"))
def test_layers_of_a_scan_lose_experts_of_their_own(name):
    mixture, params = mixtures.FORMS[name], stacked()
    fn = lambda p, x: lax.scan(jax.checkpoint(lambda x, own: (x + mixture(own, x), None)), x, p)[0]
    groups = slimming.find_groups(fn, params, X)
    experts = groups["w1[1]"]
    assert (experts.count, experts.layers, experts.least) == (24, 3, 2)
    gone = [np.array([0, 5]), np.array([1, 2]), np.array([3, 7])]
    keep = np.ones(groups.size, bool)
    whole = params
    for k, own in enumerate(gone):
        keep[experts.first + np.flatnonzero(experts.layer == k)[own]] = False
        whole = whole | {"bias": whole["bias"].at[k, own].set(-jnp.inf)}
    small = slimming.slim(fn, params, slimming.Choice(groups, keep), X)
    assert small.params["w1"].shape == (3, 6, 6, 8)
    close(small.fn(small.params, X), fn(whole, X))


def test_layers_lose_experts_and_hidden_units_of_each_expert():
    params = stacked(2)
    fn = lambda p, x: lax.scan(lambda x, own: (x + mixtures.dense(own, x), None), x, p)[0]
    groups = slimming.find_groups(fn, params, X)
    experts, hidden = groups["w1[1]"], groups["w1[3]"]
    assert (experts.layers, hidden.layers) == (2, 16)
    keep, whole = np.ones(groups.size, bool), params
    for group, count in ((experts, 2), (hidden, 3)):
        for layer in range(group.layers):
            keep[group.first + np.flatnonzero(group.layer == layer)[layer % 3 :][:count]] = False
    choice = slimming.Choice(groups, keep)
    small = slimming.slim(fn, params, choice, X)
    assert small.params["w1"].shape == (2, 6, 6, 5)
    whole = masked(params, choice)
    for layer in range(2):
        gone = np.flatnonzero(~choice.kept("w1[1]")[experts.layer == layer])
        whole = whole | {"bias": whole["bias"].at[layer, gone].set(-jnp.inf)}
    close(small.fn(small.params, X), fn(whole, X))
    close(small.expand(small.params), masked(params, choice))


@pytest.mark.slow
def test_experts_on_several_devices():
    mesh = jax.make_mesh((len(jax.devices()),), ("experts",))
    small = slimming.slim(mixtures.slots_by_masks, P, {"w1[0]": GONE[:2]}, X)
    spread = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    params = jax.tree.map(spread, small.params)
    wanted = mixtures.slots_by_masks(closed(P, GONE[:2]), X)
    by_expert = NamedSharding(mesh, PartitionSpec("experts" if 6 % mesh.size == 0 else None))
    params |= {name: jax.device_put(params[name], by_expert) for name in ("w1", "w2")}
    close(jax.jit(small.fn)(params, spread(X)), wanted)


def router_groups(p, x):
    """DeepSeek-V3: sigmoid scores, a bias of the choice alone, two of four groups of experts, a shared expert."""
    scores = jax.nn.sigmoid(x @ p["router"])
    choice = scores + p["bias"]
    grouped = choice.reshape(len(x), 4, -1)
    best = lax.top_k(grouped, 2)[0].sum(-1)
    index = lax.top_k(best, 2)[1]
    allowed = jnp.zeros(best.shape, bool).at[jnp.arange(len(x))[:, None], index].set(True)
    open_to = jnp.where(jnp.repeat(allowed[..., None], grouped.shape[-1], -1).reshape(choice.shape), choice, -jnp.inf)
    index = lax.top_k(open_to, 3)[1]
    gate = jnp.take_along_axis(scores, index, 1)
    gate = gate / gate.sum(-1, keepdims=True)
    hidden = jax.nn.silu(jnp.einsum("td,tkdf->tkf", x, p["w1"][index]))
    return jnp.einsum("tkf,tkfd,tk->td", hidden, p["w2"][index], gate) + jax.nn.silu(x @ p["shared"]) @ p["shared"].T


@pytest.mark.slow
def test_router_groups_lose_equally_many_experts():
    p = mixtures.params(16) | {"shared": mixtures.params(1)["w1"][0]}
    groups = slimming.find_groups(router_groups, p, X)
    routed = {g.name: (g.count, g.least) for g in groups if g.routed}
    assert sorted(routed.values()) == [(4, 2), (4, 2)]  # router groups, and experts of each
    [within] = [g for g in groups if g.routed and g.block == 1]
    assert {m.name for m in within.members} == {"router", "bias", "w1", "w2"}
    small = slimming.slim(router_groups, p, {within.name: [1]}, X)
    whole = p | {"bias": p["bias"].at[jnp.array([1, 5, 9, 13])].set(-jnp.inf)}
    close(small.fn(small.params, X), router_groups(whole, X))
    with pytest.raises(ValueError, match="top_k chooses 2 of 4 units, and 1 would stay"):
        _ = slimming.slim(router_groups, p, {within.name: [0, 1, 2]}, X)


def test_as_many_experts_stay_as_are_chosen():
    groups = slimming.find_groups(mixtures.ragged, P, X)
    with pytest.raises(ValueError, match=r"router\[1\]: top_k chooses 2 of 8 units, and 1 would stay"):
        _ = slimming.slim(mixtures.ragged, P, {"w1[0]": range(7)}, X)
    choice = slimming.choose(groups, np.arange(groups.size, dtype=float), {"router[[]1]": 1.0})
    assert choice.kept("w1[0]").sum() == 2


LOST = {
    "an index that is computed with": (lambda i: (i * 3) % 8, "its positions are numbers in mul"),
    "an index out of a branch": (lambda i: lax.cond(X.sum() > 3, lambda i: i, lambda i: i, i), "numbers in cond"),
    "an index in words of bits": (lambda i: i ^ 1, "its positions are numbers in xor"),
}


@pytest.mark.parametrize("name", LOST)
def test_experts_of_indices_that_cannot_be_followed_stay(name):
    change, reason = LOST[name]

    def fn(p, x):
        gate, index = mixtures.choice(p, x)
        weight = (jax.nn.one_hot(change(index), 8) * gate[..., None]).sum(1)
        return jnp.einsum("be,bd,edf->bf", weight, x, p["w1"])

    groups = slimming.find_groups(fn, P, X)
    frozen = {(f.name, f.axis): f.reason for f in groups.frozen}
    assert reason in frozen["router", 1]
    assert any(why in frozen["w1", 0] for why in (reason, "indices that slimming cannot follow"))


def test_a_router_in_a_function_of_its_own_is_followed():
    route = jax.jit(lambda p, x: lax.top_k(mixtures.logits(p, x), 2))

    def fn(p, x):
        gate, index = route(p, x)
        weight = (jax.nn.one_hot(index, 8) * jax.nn.softmax(gate)[..., None]).sum(1)
        return jnp.einsum("be,bd,edf->bf", weight, x, p["w1"])

    assert {m.name for m in slimming.find_groups(fn, P, X)["w1[0]"].members} == {"router", "bias", "w1"}


def with_offsets(p, x):
    """Each expert's rows start where the cumulative sum of the rows of the experts before it ends."""
    gate, index = mixtures.choice(p, x)
    index = index.reshape(-1)
    order, sizes = jnp.argsort(index), jnp.bincount(index, length=8)
    expert = index[order]
    place = jnp.arange(index.size) - (jnp.cumsum(sizes) - sizes)[expert]
    rows = jnp.repeat(x, 2, 0)[order]
    given = jnp.zeros((8, mixtures.CAPACITY, x.shape[1])).at[expert, place].set(rows, mode="drop")
    hidden = jax.nn.gelu(jnp.einsum("ecd,edf->ecf", given, p["w1"]) + 0.3)
    out = jnp.einsum("ecf,efd->ecd", hidden, p["w2"]).at[expert, place].get(mode="fill", fill_value=0.0)
    return (jnp.zeros_like(out).at[order].set(out).reshape(-1, 2, x.shape[1]) * gate[..., None]).sum(1)


def test_a_cumulative_sum_over_experts_is_followed():
    experts = slimming.find_groups(with_offsets, P, X)["w1[0]"]
    assert ({m.name for m in experts.members}, experts.exact) == (set(P), True)
    small = slimming.slim(with_offsets, P, {"w1[0]": GONE}, X)
    for x in (X, mixtures.tokens(7, seed=5)):
        close(jax.jit(small.fn)(small.params, x), jax.jit(with_offsets)(closed(P), x))


def on_shards(weights_of, outside=False):
    """Experts that a mesh axis cuts; each device computes the weights of its own experts, or gets them."""
    mesh = jax.make_mesh((2,), ("e",), axis_types=(AxisType.Auto,))
    cut, whole = PartitionSpec("e"), PartitionSpec()

    def fn(p, x):
        gate, index = mixtures.choice(p, x)

        def mixed(w1, w2, given):
            weights = given if outside else weights_of(given - lax.axis_index("e") * len(w1), gate, len(w1))
            return lax.psum(
                jnp.einsum("te,etf,efd->td", weights, jax.nn.relu(jnp.einsum("td,edf->etf", x, w1)), w2), "e"
            )

        specs = (cut, cut, PartitionSpec(None, "e") if outside else whole)
        given = weights_of(index, gate, 8) if outside else index
        return jax.shard_map(mixed, mesh=mesh, in_specs=specs, out_specs=whole)(p["w1"], p["w2"], given)

    return fn


def one_hot(index, gate, count):
    return (jax.nn.one_hot(index, count) * gate[..., None]).sum(1)


def one_hot_in_floats(index, gate, count):
    return ((index[..., None] * 2.0 == jnp.arange(count) * 2.0) * gate[..., None]).sum(1)


def one_hot_by_scatter(index, gate, count):
    mine = jnp.where((index >= 0) & (index < count), index, count)
    return jnp.zeros((len(index), count)).at[jnp.arange(len(index))[:, None], mine].add(gate, mode="drop")


@pytest.mark.parametrize(
    "weights_of", few([one_hot, one_hot_in_floats, one_hot_by_scatter], one_hot, one_hot_in_floats)
)
def test_indices_that_enter_shards_keep_the_router_and_all_experts(weights_of, devices):
    groups = slimming.find_groups(on_shards(weights_of), P, X)
    frozen = {(f.name, f.axis): (f.positions, f.reason) for f in groups.frozen}
    assert frozen["router", 1][0] == frozen["bias", 0][0] == frozen["w1", 0][0] == frozen["w2", 0][0] == 8
    assert "one-hot masks that are made outside of it are followed" in frozen["router", 1][1]


def test_masks_of_experts_enter_shards(devices):
    fn = on_shards(one_hot, outside=True)
    experts = slimming.find_groups(fn, P, X)["w1[0]"]
    assert ({m.name for m in experts.members}, experts.layers, experts.exact) == (set(P), 2, True)
    gone = np.array([1, 6])
    small = slimming.slim(fn, P, {"w1[0]": gone}, X)
    close(jax.jit(small.fn)(small.params, X), jax.jit(fn)(closed(P, gone), X))


def test_indices_in_the_output_keep_all_experts():
    fn = lambda p, x: (mixtures.ragged(p, x), mixtures.choice(p, x)[1])
    frozen = {(f.name, f.axis): f.reason for f in slimming.find_groups(fn, P, X).frozen}
    assert frozen["w1", 0] == "output 1 of the function contains its positions as numbers"


def test_scores_of_experts_are_the_published_formulas():
    x = mixtures.tokens(60)
    p = mixtures.params(4)
    stats = calibrate(mixtures.ragged, p, [x], collect="square")
    groups = slimming.find_groups(mixtures.ragged, p, x)
    wanted = {name: [] for name in ("reap", "frequency", "gate", "man", "msan")}
    for expert, (given, gate, hidden) in enumerate(mixtures.rows_of_experts("ragged", p, x)):
        norm = np.linalg.norm(hidden @ np.asarray(p["w2"][expert], np.float64), axis=1)
        values = ((gate * norm).mean(), len(given), gate.mean(), norm.mean(), (norm**2).mean())
        for own, value in zip(wanted.values(), values, strict=True):
            own.append(value)
    criteria = {
        "reap": None,
        "frequency": lambda e: e.tokens,
        "gate": lambda e: e.gate / e.tokens,
        "man": lambda e: e.norm / e.tokens,
        "msan": lambda e: e.square / e.tokens,
    }
    for name, criterion in criteria.items():
        scores = slimming.expert_scores(groups, stats, criterion)
        assert list(scores) == ["router[1]"]
        np.testing.assert_allclose(scores["router[1]"], wanted[name], rtol=1e-4)
    choice = slimming.choose(groups, slimming.expert_scores(groups, stats), 0.5)
    assert choice.kept("w1[2]").all()
    assert set(np.flatnonzero(~choice.kept("router[1]"))) == set(np.argsort(wanted["reap"])[:2])
    dense = slimming.find_groups(lambda p, x: jnp.tanh(x @ p["w1"][0]) @ p["w2"][0], p, x)
    with pytest.raises(ValueError, match="stats contain no experts of these groups"):
        _ = slimming.expert_scores(dense, stats)
    with pytest.raises(ValueError, match=r"must return finite scores of shape \(4,\)"):
        _ = slimming.expert_scores(groups, stats, lambda e: e.tokens.sum())


def test_a_softmax_over_slots_closes_them():
    """A softmax over learned slots: removing a slot is the same as giving it no attention."""
    p = {"keys": mixtures.params(8)["router"], "values": mixtures.params(1, 8, 6)["w1"][0]}
    fn = lambda p, x, bias: jax.nn.softmax(x @ p["keys"] + bias) @ p["values"]
    groups = slimming.find_groups(fn, p, X, 0.0)
    slots = groups["keys[1]"]
    assert (slots.count, slots.routed, slots.least, slots.exact) == (8, True, 1, True)
    small = slimming.slim(fn, p, {"keys[1]": GONE}, X, 0.0)
    close(small.fn(small.params, X, 0.0), fn(p, X, jnp.zeros(8).at[GONE].set(-jnp.inf)))


def test_softmax_over_units_that_are_also_used_otherwise_is_inexact():
    fn = lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"] + (x @ p["a"]) @ p["b"]
    p = {"a": P["router"], "b": P["w2"][0]}
    groups = slimming.find_groups(fn, p, X)
    assert not groups["a[1]"].exact


def some_of_each(groups, name, count, seed=0):
    """Removes as many units of each member, at random."""
    group, rng = groups[name], np.random.default_rng(seed)
    keep = np.ones(groups.size, bool)
    for member in range(group.layers):
        own = group.first + np.flatnonzero(group.layer == member)
        keep[rng.permutation(own)[:count]] = False
    return keep


def masked(params, choice):
    return jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, choice.masks())


@pytest.mark.parametrize("name", few(SHORT, "ragged"))
def test_each_expert_loses_hidden_units_of_its_own(name):
    fn = mixtures.FORMS[name]
    groups = slimming.find_groups(fn, P, X)
    choice = slimming.Choice(groups, some_of_each(groups, "w1[2]", 3))
    small = slimming.slim(fn, P, choice, X)
    assert small.params["w1"].shape == (8, 6, 5)
    assert len({tuple(row) for row in small.manifest.leaves[2].axes[2]}) > 1
    close(small.fn(small.params, X), fn(masked(P, choice), X))
    close(small.expand(small.params), masked(P, choice))
    # Experts and hidden units at once.
    keep = choice.keep.copy()
    keep[groups["w1[0]"].first + GONE] = False
    both = slimming.slim(fn, P, slimming.Choice(groups, keep), X)
    assert both.params["w1"].shape == (5, 6, 5)
    close(both.fn(both.params, X), fn(closed(masked(P, choice)), X))


def test_members_of_an_ensemble_or_layers_of_a_scan_lose_units_of_their_own():
    p = {"a": jnp.stack([mixtures.params(3, seed=k)["w1"] for k in range(2)]), "b": jnp.ones((2, 3, 8))}
    p |= {"c": jnp.stack([mixtures.params(3, seed=k)["w2"] for k in range(2)])}
    member = lambda x, a, b, c: x + jax.nn.tanh(x @ a + b) @ c
    ensemble = lambda x, own: jax.vmap(member)(x, own["a"], own["b"], own["c"])
    start = lambda x: jnp.broadcast_to(x, (3, *x.shape))
    alone = lambda p, x: ensemble(start(x), p)
    scanned = lambda p, x: lax.scan(lambda x, own: (ensemble(x, own), None), start(x), p)[0]
    first = jax.tree.map(lambda leaf: leaf[0], p)
    # In the scan the members of one layer lose the same units.
    for fn, params, name, sizes in ((alone, first, "a[2]", (24, 3)), (scanned, p, "a[3]", (16, 2))):
        groups = slimming.find_groups(fn, params, X)
        assert (groups[name].count, groups[name].layers) == sizes
        choice = slimming.Choice(groups, some_of_each(groups, name, 5))
        small = slimming.slim(fn, params, choice, X)
        close(small.fn(small.params, X), fn(masked(params, choice), X))


def test_units_that_a_function_ties_go_together():
    fn = mixtures.dense
    tied = lambda p, x: fn(p, x) + jax.nn.relu(x @ p["w1"].mean(0)) @ p["w2"].mean(0)
    assert slimming.find_groups(tied, P, X)["w1[2]"].layers == 1
    groups = slimming.find_groups(fn, P, X)
    small = slimming.slim(fn, P, slimming.Choice(groups, some_of_each(groups, "w1[2]", 3)), X)
    with pytest.raises(ValueError, match=r"w1, axis 2: every member of the stack loses other units(.|\n)*reduce_sum"):
        _ = small.rebind(tied)(small.params, X)


def test_entries_of_a_codebook_that_an_argmin_chooses():
    """To remove an entry means that its distance is infinite; the others are renumbered."""

    def quantised(p, x):
        h = x @ p["in"]
        index = ((h[:, None] - p["code"]) ** 2).sum(-1).argmin(-1)
        chosen = h + lax.stop_gradient(p["code"][index] - h)
        return chosen @ p["out"] + jax.nn.one_hot(index, 8) @ p["bias"]

    rng = np.random.default_rng(0)
    shapes = {"in": (16, 3), "code": (8, 3), "out": (3, 2), "bias": (8, 2)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(40, 16)), jnp.float32)
    groups = slimming.find_groups(quantised, params, x)
    [group] = [group for group in groups if group.routed]
    assert group.count == 8 and group.exact and {m.name for m in group.members} == {"code", "bias"}
    small = slimming.slim(quantised, params, {group.name: GONE}, x)
    assert small.params["code"].shape == (5, 3)
    far = params | {"code": params["code"].at[GONE].set(1e6)}
    close(quantised(far, x), small.fn(small.params, x))
