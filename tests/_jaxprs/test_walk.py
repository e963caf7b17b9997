"""Which parameter meets which equation, by whatever way it gets there."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxprune._jaxprs import Constant, Data, Lost, Weight, follow, trace

X = jax.ShapeDtypeStruct((2, 4), jnp.float32)
W = jax.ShapeDtypeStruct((4, 6), jnp.float32)


def products(fn, *args, params=(0,)):
    """The states of the operands of every matrix product and convolution; the first argument's leaves are params."""
    closed = trace(fn, *args).closed
    return [m for m in follow(closed, params) if m.eqn.primitive.name in ("dot_general", "conv_general_dilated")]


def leaves_of(state):
    """The leaves of a value that is followed."""
    assert isinstance(state, (Weight, Lost))
    return state.leaves


def slices_of(state):
    """How often a leaf is met."""
    assert isinstance(state, Weight)
    return state.slices


def view(weight, **leaves):
    """What the entries of the leaves become, by number."""
    return weight.view({int(k[1:]): v for k, v in leaves.items()})


W_ENTRIES = np.arange(24).reshape(4, 6)
BY = {
    "itself": (lambda w: w, W_ENTRIES),
    "cast": (lambda w: w.astype(jnp.bfloat16), W_ENTRIES),
    "transpose": (lambda w: w.T.reshape(4, 6), W_ENTRIES.T.reshape(4, 6)),
    "reshape": (lambda w: w.reshape(2, 2, 6).reshape(4, -1), W_ENTRIES),
    "slice": (lambda w: w[:, 1:5:2], W_ENTRIES[:, 1:5:2]),
    "rev": (lambda w: w[::-1], W_ENTRIES[::-1]),
    "squeeze": (lambda w: w[None][0], W_ENTRIES),
    "broadcast": (lambda w: jnp.broadcast_to(w[:, :1], (4, 3)), W_ENTRIES[:, [0, 0, 0]]),
    "scale": (lambda w: -w * 0.5 / 3.0, W_ENTRIES),
    "constant mask": (lambda w: w * np.eye(4, 6, dtype=np.float32), W_ENTRIES),
    "where": (lambda w: jnp.where(np.eye(4, 6, dtype=bool), w, 0), W_ENTRIES),
    "concatenate": (lambda w: jnp.concatenate([w[:, 3:], w[:, :3]], 1), np.roll(W_ENTRIES, 3, 1)),
    "jit": (jax.jit(lambda w: w[:, :2]), W_ENTRIES[:, :2]),
    "remat": (jax.checkpoint(lambda w: w[:, :2]), W_ENTRIES[:, :2]),
    "stop_gradient": (lax.stop_gradient, W_ENTRIES),
    "barrier": (lax.optimization_barrier, W_ENTRIES),
    "norm": (lambda w: w / jnp.linalg.norm(w, axis=0), W_ENTRIES),
}


@pytest.mark.parametrize("name", BY)
def test_entries_are_followed(name):
    fn, expected = BY[name]
    [dot] = products(lambda w, x: x @ fn(w), W, X)
    data, weight = dot.states
    assert (type(data), leaves_of(weight), slices_of(weight)) == (Data, (0,), 1)
    np.testing.assert_array_equal(view(weight, _0=W_ENTRIES)[0], expected)


LOSING = {
    "add": lambda w: w + 1,
    "sub": lambda w: 1 - w,
    "reduce_sum": lambda w: w - w.mean(),
    "exp": jnp.exp,
    "dot_general": lambda w: w @ w.T,
    "sort": lambda w: jnp.sort(w, 1),
    "pad": lambda w: jnp.pad(w, ((0, 0), (0, 1))),
    "dynamic_slice": lambda w: lax.dynamic_slice(w, (0, jnp.abs(jnp.int32(1))), (4, 2)),
    "gather": lambda w: w[:, jnp.array([2, 0])],
    "cond": lambda w: lax.cond(w[0, 0] > 0, lambda a: a, lambda a: a[::-1], w),
}


@pytest.mark.parametrize("name", LOSING)
def test_what_cannot_be_followed_is_named(name):
    dot = products(lambda w, x: x @ LOSING[name](w), W, X)[-1]
    assert dot.states[1] == Lost(frozenset({0}), name)


def test_the_first_loss_is_named():
    [dot] = products(lambda w, x: x @ jnp.exp(w + 1).reshape(3, 8)[:, :4].T.reshape(4, 3), W, X)
    assert dot.states[1] == Lost(frozenset({0}), "add")


def test_mask_given_as_data():
    mask = jax.ShapeDtypeStruct((4, 6), bool)
    for apply in (lambda w, m: w * m, lambda w, m: jnp.where(m, w, 0), lambda w, m: w * m.astype(jnp.float32)):
        [dot] = products(lambda w, x, m, apply=apply: x @ apply(w, m), W, X, mask)
        assert leaves_of(dot.states[1]) == (0,)


def test_a_gain_times_an_activation_is_an_activation():
    [dot] = products(lambda w, x: jnp.einsum("bi,bj->ij", x * w[:, 0], x), W, X)
    assert dot.states == (Data(), Data())


def test_kernel_times_gain_follows_the_kernel():
    # weight normalisation: the gain is a parameter too, spread over the kernel
    gain = jax.ShapeDtypeStruct((6,), jnp.float32)
    fn = lambda p, x: x @ (p["v"] * (p["g"] / jnp.linalg.norm(p["v"], axis=0)))
    [dot] = products(fn, {"g": gain, "v": W}, X, params=(0, 1))
    assert leaves_of(dot.states[1]) == (1,)


def test_concatenated_leaves_keep_their_places():
    fn = lambda p, x: x @ jnp.concatenate([p["q"], p["k"]], 1)
    [dot] = products(fn, {"k": W, "q": W}, X, params=(0, 1))
    assert leaves_of(dot.states[1]) == (0, 1)
    [whole] = view(dot.states[1], _0=W_ENTRIES, _1=-W_ENTRIES)
    np.testing.assert_array_equal(whole, np.concatenate([-W_ENTRIES, W_ENTRIES], 1))


def test_scan_gives_one_view_for_each_slice_and_carries_what_stays():
    def fn(w, x):
        def step(carry, layer):
            y, same = carry
            return (jnp.tanh(y @ layer.T) @ same, same), None

        return lax.scan(step, (x, w[0]), w)[0]

    stacked = jax.ShapeDtypeStruct((3, 4, 4), jnp.float32)
    first, second = products(fn, stacked, X)
    entries = np.arange(48).reshape(3, 4, 4)
    assert (first.repeats, first.path, slices_of(first.states[1])) == (3, ("scan",), 3)
    # jax writes y @ layer.T as a transpose and a product
    np.testing.assert_array_equal(view(first.states[1], _0=entries), entries.transpose(0, 2, 1))
    np.testing.assert_array_equal(view(second.states[1], _0=entries), entries[:1])


def test_a_carry_that_changes_is_lost_and_one_fed_by_data_is_data():
    step = lambda c, _: ((c[0] * 2 + 1, c[1] + x_of(c)), x_of(c) @ c[0])
    x_of = lambda c: c[1]
    fn = lambda w, x: lax.scan(step, (w, jnp.zeros((4, 4))), None, length=3)[1] + x.sum()
    [dot] = products(fn, jax.ShapeDtypeStruct((4, 4), jnp.float32), X)
    assert dot.states == (Constant(), Lost(frozenset({0}), "add"))
    fed = lambda w, x: lax.fori_loop(0, 3, lambda _, c: (c @ w) + x[0, 0], jnp.zeros((4, 4)))
    [dot] = products(fed, jax.ShapeDtypeStruct((4, 4), jnp.float32), X)
    assert dot.states[0] == Data()


def test_while_and_both_branches_are_met():
    def fn(w, x):
        y = lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ w[:, :4], x)
        return lax.cond(y.sum() > 0, lambda a: a @ w, lambda a: (a @ w) * 2, y)

    met = products(fn, W, X)
    assert [m.path for m in met] == [("while",), ("cond",), ("cond",)]
    assert all(leaves_of(m.states[1]) == (0,) for m in met)


def test_embedding_is_lost_but_does_not_hide_the_layer_behind():
    table, tokens = jax.ShapeDtypeStruct((10, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    fn = lambda p, t: jnp.take(p["e"], t, axis=0) @ p["w"] @ p["w"].T @ p["e"].T
    met = products(fn, {"e": table, "w": W}, tokens, params=(0, 1))
    assert [leaves_of(m.states[1]) for m in met] == [(1,), (1,), (0,)]
    assert met[0].states[0] == Lost(frozenset({0}), "gather", picked=True)
    assert [m.states[0] for m in met[1:]] == [Data(), Data()]


def test_an_embedding_that_is_normalised_is_data():
    fn = lambda e, t: (lambda x: x @ x.T)(jax.nn.standardize(e[t]))
    [dot] = products(fn, jax.ShapeDtypeStruct((10, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))
    assert dot.states == (Data(), Data())


def test_an_expert_chosen_by_data_is_named():
    fn = lambda w, x, i: x @ w[i].astype(jnp.float32).T
    expert = jax.ShapeDtypeStruct((), jnp.int32)
    [dot] = products(fn, jax.ShapeDtypeStruct((3, 6, 4), jnp.float32), X, expert)
    assert dot.states[1] == Lost(frozenset({0}), "dynamic_slice", picked=True)


def test_vmap_over_members():
    fn = jax.vmap(lambda w, x: jax.nn.relu(x @ w), (0, None))
    [dot] = products(fn, jax.ShapeDtypeStruct((3, 4, 6), jnp.float32), X)
    assert sum(isinstance(s, Weight) for s in dot.states) == 1


def test_dead_code_is_not_met():
    assert products(lambda w, x: (x @ w, x)[1], W, X) == []


def test_shard_map_splits_the_leaf(devices):
    mesh = Mesh(np.array(devices).reshape(4, 2), ("a", "b"))
    spec = PartitionSpec(None, "a")
    fn = jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    [dot] = products(fn, jax.ShapeDtypeStruct((4, 8), jnp.float32), X)
    assert (dot.repeats, slices_of(dot.states[1])) == (8, 4)
    entries = np.arange(32).reshape(4, 8)
    np.testing.assert_array_equal(view(dot.states[1], _0=entries), np.split(entries, 4, 1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(y))), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(image)).reshape(image.shape[0], -1, 8)
        layers = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = layers()(x, None)
        return nn.Dense(5)(nn.BatchNorm(use_running_average=True)(x.mean(1)))


def test_flax_network_is_followed_whole():
    image = jnp.ones((2, 4, 4, 1))
    variables = jax.eval_shape(Net().init, jax.random.key(0), image)
    named = jax.tree_util.tree_flatten_with_path(variables)[0]
    met = products(Net().apply, variables, image, params=range(len(named)))
    kernels = {i for i, (path, leaf) in enumerate(named) if "kernel" in str(path)}
    seen = {leaf for m in met for s in m.states if isinstance(s, Weight) for leaf in s.leaves}
    assert seen == kernels
    assert sum(all(isinstance(s, Data) for s in m.states) for m in met) == 2  # queries keys, and weights values


def test_equinox_network_is_followed_whole():
    net = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    arrays = [leaf for leaf in jax.tree.leaves(net) if eqx.is_array(leaf)]
    met = products(lambda n, x: jax.vmap(n)(x), net, X, params=range(len(arrays)))
    assert [s.leaves for m in met for s in m.states if isinstance(s, Weight)] == [(0,), (2,), (4,)]
