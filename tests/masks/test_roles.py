"""Which leaves are pruned and along which axes: by roles of a function, by conventions, and for stacked layers."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jaxprune
from jaxprune import _tree, allocation, criteria, masks, training
from jaxprune.training.growth import drop_and_grow
from tests.cases import few

KEY = jax.random.key(0)
TWO_OF_FOUR = masks.NM(2, 4)


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def two_of_four(mask: Any, axis: int) -> bool:
    """Whether just two of every four neighbours along an axis are kept."""
    moved = np.moveaxis(np.asarray(mask), axis, -1)
    return bool((moved.reshape(*moved.shape[:-1], -1, 4).sum(-1) == 2).all())


def pruned_leaves(found: masks.Pruned) -> set[str]:
    return {name for name, mask in _tree.named_leaves(found.masks) if np.ndim(mask)}


NAMES = {
    "dense/kernel": ((4, 6), "multiplied", "input output"),
    "conv/kernel": ((3, 3, 4, 6), "multiplied", "window window input output"),
    "query/kernel": ((4, 2, 3), "multiplied", "unknown unknown unknown"),
    "layers/query/kernel": ((5, 4, 2, 3), "multiplied", "unknown unknown unknown unknown"),
    "ConvTranspose_0/kernel": ((3, 3, 4, 6), "multiplied", "unknown unknown unknown unknown"),
    "linear/w": ((4, 6), "multiplied", "input output"),
    "linear/b": ((4, 6), "elementwise", "entry entry"),
    "model.layers.0.mlp.up_proj.weight": ((6, 4), "multiplied", "output input"),
    "features.0.weight": ((6, 4, 3, 3), "multiplied", "output input window window"),
    "decoder.up.0.deconv.weight": ((6, 4, 3, 3), "multiplied", "unknown unknown unknown unknown"),
    "transformer.h.0.attn.c_attn.weight": ((4, 12), "multiplied", "unknown unknown"),
    "transformer.wte.weight": ((9, 4), "embedding", "indexed output"),
    "model.embed_tokens.weight": ((9, 4), "embedding", "indexed output"),
    "time_embed.0.weight": ((6, 4), "multiplied", "output input"),
    "vision.patch_embedding.weight": ((6, 3, 4, 4), "multiplied", "output input window window"),
    "model.norms.0.weight": ((3, 4), "elementwise", "entry entry"),
    "policy.mean.weight": ((2, 4), "multiplied", "output input"),
    "rnn.weight_hh_l0": ((8, 2), "multiplied", "output input"),
    "LayerNorm_0/scale": ((3, 4), "elementwise", "entry entry"),
    "attention/bias": ((2, 3), "elementwise", "entry entry"),
    "pos_embedding": ((1, 5, 4), "elementwise", "entry entry entry"),
    "cls": ((1, 1, 4), "elementwise", "entry entry entry"),
    "dense/kernel_scale": ((4, 6), "elementwise", "entry entry"),
    "a": ((4, 6), "unknown", "unknown unknown"),
    "vector": ((4,), "elementwise", "unknown"),
}


def test_names_tell_roles_and_axes() -> None:
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _, _) in NAMES.items()}
    found = {leaf.name: (leaf.shape, leaf.role, " ".join(leaf.axes)) for leaf in _tree.leaf_roles(tree)}
    assert found == NAMES
    nested: dict[str, Any] = {"dense": {"kernel": tree["dense/kernel"]}, "list": [tree["a"]]}
    assert [leaf.role for leaf in _tree.leaf_roles(nested)] == ["multiplied", "unknown"]
    assert _tree.leaf_roles({("dense", "kernel"): tree["dense/kernel"]})[0].inputs == (0,)
    stacked = _tree.leaf_roles(tree, batch_axes={"query/*": (1,), "layers/*": 1, "LayerNorm_0/*": 1})
    axes = {leaf.name: " ".join(leaf.axes) for leaf in stacked}
    assert axes["query/kernel"] == "input stacked output"
    assert axes["layers/query/kernel"] == "stacked unknown unknown unknown"
    assert axes["LayerNorm_0/scale"] == "stacked entry"


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(8, kernel_init=kernel)(x), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(
            Attention,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return layers(name="layers")(x, None)[0]


def test_scanned_attention_keeps_its_norms_and_biases_and_names_its_axes() -> None:
    x = draw(1, 5, 8)
    boxed = Net().init(KEY, x)["params"]
    dense = _tree.leaf_roles(boxed)[[n for n, _ in _tree.named_leaves(boxed)].index("layers/Dense_0/kernel")]
    assert (dense.axes, dense.shape) == (("input", "stacked", "output"), (8, 3, 8))  # by the name of its axis
    params = nn.unbox(boxed)
    kernels = {f"layers/MultiHeadDotProductAttention_0/{n}/kernel" for n in ("query", "key", "value", "out")}
    assert pruned_leaves(jaxprune.prune(params, 0.5, batch_axes=(1,))) == {*kernels, "layers/Dense_0/kernel"}
    with pytest.raises(ValueError, match=r"axis=0\)\}\), or pass roles=jaxprune.find_roles(.|\n)*query/kernel: NM"):
        _ = jaxprune.prune(params, 0.5, pattern=TWO_OF_FOUR)
    roles = jaxprune.find_roles(lambda p, x: Net().apply({"params": p}, x), params, x)
    found = jaxprune.prune(params, 0.5, pattern=TWO_OF_FOUR, roles=roles)
    assert pruned_leaves(found) == {*kernels, "layers/Dense_0/kernel"}
    attention = found.masks["layers"]["MultiHeadDotProductAttention_0"]
    assert two_of_four(attention["query"]["kernel"], 0)  # [inputs, layers, heads, head size]
    out = np.asarray(attention["out"]["kernel"])  # [heads, layers, head size, outputs]
    assert two_of_four(out.transpose(0, 2, 1, 3).reshape(8, 3, 8), 0)
    assert two_of_four(found.masks["layers"]["Dense_0"]["kernel"], 0)


def test_modules_of_equinox_and_nnx_are_known_by_type() -> None:
    net = eqx.nn.Sequential([
        eqx.nn.Conv2d(4, 8, 3, key=KEY), eqx.nn.LayerNorm((4, 4)), eqx.nn.Linear(16, 8, key=KEY)
    ])  # fmt: skip
    net = eqx.filter(net, eqx.is_array)
    found = jaxprune.prune(net, 0.5, pattern=TWO_OF_FOUR)
    assert pruned_leaves(found) == {"layers/0/weight", "layers/2/weight"}
    assert two_of_four(found.masks.layers[0].weight, 1)  # [outputs, inputs, height, width]
    assert two_of_four(found.masks.layers[2].weight, 1)
    channels = jaxprune.prune(net, 0.5, pattern=masks.Channel()).masks
    assert (channels.layers[0].weight.shape, channels.layers[2].weight.shape) == ((8, 1, 1, 1), (8, 1))
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 6, key=key))(jax.random.split(KEY, 3))
    weight, bias = _tree.leaf_roles(eqx.filter(stack, eqx.is_array))
    assert (weight.axes, bias.role) == (("stacked", "output", "input"), "elementwise")
    attention = nnx.MultiHeadAttention(num_heads=4, in_features=8, decode=False, rngs=nnx.Rngs(0))
    known = {leaf.name: leaf.axes for leaf in _tree.leaf_roles(attention) if leaf.role == "multiplied"}
    assert known == dict.fromkeys(("key/kernel", "query/kernel", "value/kernel"), ("input", "output", "output")) | {
        "out/kernel": ("input", "input", "output")
    }


def test_a_checkpoint_of_dotted_names() -> None:
    params = {
        "model.embed_tokens.weight": draw(12, 8),
        "model.layers.0.mlp.up_proj.weight": draw(12, 8),
        "model.layers.0.input_layernorm.weight": draw(8),
    }
    found = jaxprune.prune(params, 0.5, pattern=TWO_OF_FOUR)
    assert pruned_leaves(found) == {"model.layers.0.mlp.up_proj.weight"}
    assert two_of_four(found.masks["model.layers.0.mlp.up_proj.weight"], 1)
    blocks = masks.select(jax.tree.map(jnp.abs, params), 0.5, masks.Block((4, 2)))
    own = np.asarray(blocks["model.layers.0.mlp.up_proj.weight"]).reshape(6, 2, 2, 4)  # 4 inputs by 2 outputs
    assert (own.all((1, 3)) == own.any((1, 3))).all()


def test_roles_of_a_function_decide() -> None:
    params = {"a": draw(4, 8), "table": draw(9, 4), "b": draw(1, 8), "unused": draw(3, 3), "gain": draw(8, 8, seed=1)}

    def fn(p: Any, tokens: jax.Array) -> jax.Array:
        return (p["table"][tokens] @ p["a"] + p["b"]) @ (p["gain"].T / 2)

    roles = jaxprune.find_roles(fn, params, jnp.zeros(5, int))
    found = jaxprune.prune(params, 0.5, pattern={"gain": TWO_OF_FOUR}, roles=roles)
    assert pruned_leaves(found) == {"a", "gain"}
    assert two_of_four(found.masks["gain"], 1)
    jitted = jax.jit(lambda p, roles: jaxprune.prune(p, 0.5, pattern={"gain": TWO_OF_FOUR}, roles=roles))(params, roles)
    assert jax.tree.all(jax.tree.map(np.array_equal, jitted.masks, found.masks))
    state = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5, pattern=TWO_OF_FOUR, roles=roles, where="gain"))
    _, after = state.update(params, state.init(params), params)
    assert two_of_four(jaxprune.get_masks(after)["gain"], 1)
    with pytest.raises(ValueError, match=r"these roles belong to other parameters(.|\n)*  c: was not among"):
        _ = jaxprune.prune({"c": draw(4, 4)}, 0.5, roles=roles)
    with pytest.raises(TypeError, match=r"roles must be what jaxprune.find_roles\(fn, params, \*inputs\) returns"):
        _ = jaxprune.prune(params, 0.5, roles="torch")  # pyright: ignore[reportArgumentType]


def test_a_leaf_whose_role_could_not_be_told_is_an_error() -> None:
    params = {"kernel": draw(4, 4), "sorted": draw(4, 4)}
    roles = jaxprune.find_roles(lambda p, x: x @ p["kernel"] @ jnp.sort(p["sorted"]), params, draw(2, 4))
    with pytest.raises(ValueError, match=r"by a predicate, where=lambda(.|\n)*  sorted: passes a nonlinear function"):
        _ = jaxprune.prune(params, 0.5, roles=roles)
    assert pruned_leaves(jaxprune.prune(params, 0.5, roles=roles, where="kernel")) == {"kernel"}
    chosen = jaxprune.prune(params, 0.5, roles=roles, where=lambda name, leaf: name == "sorted")
    assert pruned_leaves(chosen) == {"sorted"}


LAYERS = {"kernel": draw(8, 3, 12), "out": draw(12, 3, 8, seed=1)}  # [inputs, layers, outputs]


def scanned(p: Any, x: jax.Array) -> jax.Array:
    layer = lambda x, p: (jnp.tanh(x @ p["kernel"]) @ p["out"], None)
    return lax.scan(layer, x, jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), p))[0]


ROLES = jaxprune.find_roles(scanned, LAYERS, draw(2, 8))
CHOICES: dict[str, Any] = {
    "entries": {},
    "fan-in": {"pattern": masks.Unstructured("inputs")},
    "2:4": {"pattern": TWO_OF_FOUR},
    "blocks": {"pattern": masks.Block((4, 2))},
    "channels": {"pattern": masks.Channel()},
    "erk": {"allocation": allocation.erk},
    "er": {"allocation": allocation.er},
    "lamp": {"allocation": allocation.lamp},
    "owl": {"allocation": allocation.owl},
    "norm": {"criterion": partial(criteria.magnitude, normalise="l2", batch_axes=(1,))},
}


@pytest.mark.parametrize("choice", few(CHOICES, "entries", "2:4", "channels", "erk"))
def test_layers_stacked_along_an_inner_axis_are_pruned_as_layers_apart(choice: str) -> None:
    how: dict[str, Any] = CHOICES[choice]
    found = jaxprune.prune(LAYERS, 0.5, roles=ROLES, **how)
    assert [leaf.stacked for leaf in ROLES] == [(1,), (1,)]
    apart = {f"{i}": {name: leaf[:, i] for name, leaf in LAYERS.items()} for i in range(3)}
    layer = lambda p, x: jnp.tanh(x @ p["kernel"]) @ p["out"]
    fn = lambda p, x: layer(p["2"], layer(p["1"], layer(p["0"], x)))
    if choice == "norm":
        how = {"criterion": partial(criteria.magnitude, normalise="l2")}
    other = jaxprune.prune(apart, 0.5, roles=jaxprune.find_roles(fn, apart, draw(2, 8)), **how)
    for name, leaf in LAYERS.items():
        mask = np.broadcast_to(np.asarray(found.masks[name]), leaf.shape)
        for i in range(3):
            one = np.broadcast_to(np.asarray(other.masks[f"{i}"][name]), leaf[:, i].shape)
            np.testing.assert_array_equal(mask[:, i], one, err_msg=f"{name} {i}")


@pytest.mark.parametrize(
    "pattern",
    few([masks.Unstructured(), masks.Channel()], masks.Unstructured()),
    ids=["entries", "channels"],
)
def test_one_ranking_ranks_stacked_layers_with_the_rest(pattern: Any) -> None:
    scores = jax.tree.map(jnp.abs, LAYERS)
    apart = {f"{name}/{i}": leaf[:, i] for name, leaf in scores.items() for i in range(3)}
    rule = {"kernel/*": 1, "out/*": 1}
    fixed = replace(pattern, axis=-1) if isinstance(pattern, masks.Channel) else pattern
    together = masks.select_global(scores, 0.4, pattern=pattern, roles=ROLES)
    other = masks.select_global(apart, 0.4, pattern=dict.fromkeys(rule, fixed))
    for name in LAYERS:
        for i in range(3):
            np.testing.assert_array_equal(together[name][:, i], other[f"{name}/{i}"])
    sliced = masks.select_global(scores, 0.4, pattern=pattern, batch_axes=(1,), roles=ROLES)
    for i in range(3):
        one = masks.select_global({n: x[:, i] for n, x in scores.items()}, 0.4, pattern=fixed)
        np.testing.assert_array_equal(sliced["kernel"][:, i], one["kernel"])


def test_drop_and_grow_conserves_each_layer_of_an_inner_axis() -> None:
    start = masks.select(jax.tree.map(jnp.abs, LAYERS), 0.5, roles=ROLES)
    scores = jax.tree.map(lambda w: jnp.abs(w) + 1, LAYERS)
    grow = jax.tree.map(lambda w: -w, LAYERS)
    moved = drop_and_grow(start, scores, grow, 0.3, roles=ROLES)
    for i in range(3):
        layer = lambda tree, i=i: {name: leaf[:, i] for name, leaf in tree.items()}
        one = drop_and_grow(layer(start), layer(scores), layer(grow), 0.3)
        for name in LAYERS:
            np.testing.assert_array_equal(moved[name][:, i], one[name])


@dataclass(frozen=True)
class Row(masks.Pattern):
    """One unit per position along the first axis."""

    def units(self, scores: jax.Array, leaf: masks.Leaf) -> jax.Array:
        """[inputs, 1, 1]."""
        return leaf.sum(scores, (1, 2))

    def expand(self, kept: jax.Array, leaf: masks.Leaf) -> jax.Array:
        """[inputs, 1, 1]."""
        return kept


@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, masks.Channel(), masks.Block((2, 2))])
def test_a_pattern_without_axes_names_the_leaf(pattern: masks.Pattern) -> None:
    leaf = masks.Leaf("encoder/kernel", 0, draw(4, 4), pattern)
    with pytest.raises(ValueError, match=r"encoder/kernel: .* has no axes; name the axes, or .* masks\.leaves"):
        _ = pattern.units(leaf.array, leaf)
    [found] = masks.leaves({"kernel": draw(4, 4)}, pattern=pattern)
    assert found.pattern.units(found.array, found).size in (4, 16)


def test_a_pattern_that_expects_leading_stacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel: Row\(\) expects stacked axes to be the first ones, but axes \(1,\)"):
        _ = masks.select(LAYERS, 0.5, Row(), roles=ROLES)


def test_calibrated_criteria_follow_the_statistics_and_name_leaves_without_them() -> None:
    params = {"up": draw(16, 8), "down": draw(8, 16, seed=1), "table": draw(5, 8)}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh((x + p["table"][jnp.zeros(len(x), int)]) @ p["up"].T) @ p["down"].T

    stats = jaxprune.calibrate(fn, params, [draw(30, 8, seed=2)], collect="square")
    found = jaxprune.prune(params, 0.5, criterion=criteria.wanda, stats=stats, pattern=TWO_OF_FOUR)
    assert pruned_leaves(found) == {"up", "down"}
    assert two_of_four(found.masks["up"], 1)
    rows = jaxprune.prune(params, 0.25, criterion=criteria.wanda, stats=stats).masks
    assert (np.asarray(rows["up"]).sum(1) == 6).all()  # as many inputs of every output
    partly = jaxprune.calibrate(fn, params, [draw(30, 8, seed=2)], collect="square", where="up")
    with pytest.raises(
        ValueError, match=r"shapes of the parameters:\n  down: scores \(\)(.|\n)*without statistics, by where"
    ):
        _ = jaxprune.prune(params, 0.5, criterion=criteria.wanda, stats=partly)


@pytest.mark.slow
def test_a_leaf_without_entries_gets_an_empty_mask() -> None:
    params = {"lora": jnp.zeros((8, 0)), "w": draw(8, 8)}
    for allocate in (allocation.uniform, allocation.one_ranking, allocation.erk, allocation.lamp, allocation.owl):
        found = jaxprune.prune(params, 0.5, allocation=allocate)
        assert (int(found.masks["w"].sum()), found.masks["lora"].shape) == (32, (8, 0))
    assert jaxprune.prune(params, 0.5, pattern=masks.Channel(-1)).masks["w"].sum() == 4
    optimizer = jaxprune.sparsify(optax.sgd(0.1), training.rigl(0.5, 10, every=5, key=KEY))
    assert jaxprune.get_masks(optimizer.init(params))["w"].sum() == 32
    empty = {"e": jnp.zeros((0, 5))}
    assert float(masks.sparsity(empty, {"e": jnp.ones((0, 5), bool)})) == 0
    assert jaxprune.prune(empty, 0.5).masks["e"].shape == (0, 5)


TABLE = """\
leaf          shape  role         axes              pattern                  sparsity
dense/bias    4      elementwise  entry                                      left alone: named 'bias'
dense/kernel  8x4    multiplied   input, output     NM(n=2, m=4, axis=(0,))  0.5
embed         9x8    embedding    unknown, unknown                           left alone: an embedding by its name
head/kernel   4x2    multiplied   input, output                              left alone: not selected
sparsity of the pruned leaves: 0.5"""


def test_the_table_says_what_was_done_to_each_leaf() -> None:
    params = {"embed": draw(9, 8), "dense": {"kernel": draw(8, 4), "bias": jnp.ones(4)}, "head": {"kernel": draw(4, 2)}}
    found = jaxprune.prune(params, 0.5, pattern={"dense/*": TWO_OF_FOUR}, where="dense/*")
    assert str(found) == TABLE
    page = found._repr_html_()
    assert page.startswith("<table><tr><th>leaf</th>")
    assert page.count("<tr>") == 5
    new, held = found
    assert new is found.params
    assert held is found.masks
    assert masks.summary(params, held) == {"sparsity": 0.5, "sparsity/dense/kernel": 0.5}
    state = jaxprune.sparsify(optax.sgd(0.1), training.fixed(masks.pack(held))).init(params)
    assert masks.summary(params, jaxprune.get_masks(state)) == masks.summary(params, held)
    seen = []
    again = jax.jit(lambda p: seen.append(str(p)) or p)(found)
    assert "traced" in seen[0]
    assert str(again) == str(found)
