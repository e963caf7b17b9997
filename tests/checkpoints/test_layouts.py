"""Trees of other programs: msgpack, Orbax, the layout of MaxText, and what its names say about axes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from jax import lax

import jaxprune
from jaxprune import checkpoints, find_roles
from jaxprune.masks import NM

LAYERS, EMBED, HEADS, SIZE, MLP, EXPERTS, WORDS = 3, 8, 2, 4, 12, 5, 11


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def maxtext() -> dict[str, Any]:
    """A tree in MaxText's layout: layers on axis 1, experts before layers, a dense MLP beside the experts."""
    attention = {name: {"kernel": normal(i, EMBED, LAYERS, HEADS, SIZE)} for i, name in enumerate(("query", "key"))}
    attention |= {"value": {"kernel": normal(3, EMBED, LAYERS, HEADS, SIZE)}}
    attention |= {"out": {"kernel": normal(4, HEADS, LAYERS, SIZE, EMBED)}}
    wi = {f"wi_{i}": {"kernel": normal(5 + i, EMBED, LAYERS, MLP)} for i in range(2)}
    experts = {f"wi_{i}": normal(8 + i, EXPERTS, LAYERS, EMBED, MLP) for i in range(2)}
    layers = {
        "pre_self_attention_layer_norm": {"scale": np.ones((EMBED, LAYERS), np.float32)},
        "self_attention": attention,
        "mlp": {**wi, "wo": {"kernel": normal(7, MLP, LAYERS, EMBED)}},
        "MoeBlock_0": {
            "gate": {"kernel": normal(12, EMBED, LAYERS, EXPERTS)},
            "wo": normal(10, EXPERTS, LAYERS, MLP, EMBED, dtype=jnp.bfloat16),
            **experts,
        },
    }
    decoder = {
        "layers": layers,
        "decoder_norm": {"scale": np.ones(EMBED, np.float32)},
        "logits_dense": {"kernel": normal(11, EMBED, WORDS)},
    }
    return {"params": {"decoder": decoder, "token_embedder": {"embedding": normal(13, WORDS, EMBED)}}}


def function(tree: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """A small decoder over the tree: single-head arithmetic is enough to use each leaf as MaxText does."""
    decoder = tree["params"]["decoder"]

    def layer(x, p):
        h = x * p["pre_self_attention_layer_norm"]["scale"]
        q, k, v = (jnp.einsum("te,ehd->thd", h, p["self_attention"][n]["kernel"]) for n in ("query", "key", "value"))
        x = x + jnp.einsum("thd,hde->te", q * k * v, p["self_attention"]["out"]["kernel"])
        x = x + (jnp.tanh(x @ p["mlp"]["wi_0"]["kernel"]) * (x @ p["mlp"]["wi_1"]["kernel"])) @ p["mlp"]["wo"]["kernel"]
        moe = p["MoeBlock_0"]
        gates = jax.nn.softmax(x @ moe["gate"]["kernel"])
        sent = gates.T[..., None] * x  # [experts, tokens, width], as tokens are dispatched
        up = jnp.tanh(jnp.einsum("xte,xem->xtm", sent, moe["wi_0"])) * jnp.einsum("xte,xem->xtm", sent, moe["wi_1"])
        return x + jnp.einsum("xtm,xme->xte", up, moe["wo"].astype(x.dtype)).sum(0), None

    # As flax.linen.scan does with in_axes=1.
    moved = jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), decoder["layers"])
    x = lax.scan(layer, tree["params"]["token_embedder"]["embedding"][tokens], moved)[0]
    return (x * decoder["decoder_norm"]["scale"]) @ decoder["logits_dense"]["kernel"]


def test_names_of_maxtext_say_what_its_function_does():
    tree = maxtext()
    found = find_roles(function, tree, jnp.arange(6))
    named = checkpoints.named_roles(tree)
    assert [leaf.name for leaf in named] == [leaf.name for leaf in found]
    alone = {leaf.name.split("/", 1)[1]: leaf.note for leaf in named if not leaf.uses}
    assert alone == {"decoder/layers/MoeBlock_0/gate/kernel": "a router", "decoder/logits_dense/kernel": "the head"}
    for mine, theirs in zip(named, found, strict=True):
        assert (mine.shape, mine.identity) == (theirs.shape, theirs.identity)
        if theirs.uses == ("multiplied",):
            assert (mine.inputs, mine.outputs, mine.stacked) == (theirs.inputs, theirs.outputs, theirs.stacked), (
                mine.name
            )
        if mine.uses:
            assert mine.uses == theirs.uses, mine.name


def test_two_of_four_follows_the_names():
    tree = maxtext()
    masks = jaxprune.prune(tree, 0.5, pattern=NM(2, 4), roles=checkpoints.named_roles(tree)).masks["params"]
    layers = masks["decoder"]["layers"]
    inputs = {"wi_0": layers["mlp"]["wi_0"]["kernel"], "query": layers["self_attention"]["query"]["kernel"]}
    for name, mask in {**inputs, "experts": jnp.moveaxis(layers["MoeBlock_0"]["wi_1"], 2, 0)}.items():
        groups = np.moveaxis(np.asarray(mask), 0, -1).reshape(-1, 4)  # the inputs, four by four
        assert (groups.sum(-1) == 2).all(), name
    alone = [masks["token_embedder"], masks["decoder"]["logits_dense"], layers["MoeBlock_0"]["gate"]]
    assert all(bool(jnp.all(mask)) for mask in jax.tree.leaves(alone))


def test_layers_that_are_not_scanned_have_no_layer_axis():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    layer = {"self_attention": {"out": {"kernel": shape(2, 4, 8)}}, "mlp": {"wo": {"kernel": shape(12, 8)}}}
    roles = checkpoints.named_roles({"decoder": {"layers_0": layer}})
    assert [leaf.axes for leaf in roles] == [("input", "output"), ("input", "input", "output")]


def test_names_of_hugging_face_are_outputs_first():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    roles = checkpoints.named_roles(
        {
            "lm_head.weight": shape(9, 4),
            "model.embed_tokens.weight": shape(9, 4),
            "model.layers.0.mlp.gate.weight": shape(3, 4),
            "model.layers.0.mlp.gate_proj.weight": shape(6, 4),
            "model.layers.0.post_attention_layernorm.weight": shape(4),
            "model.layers.0.self_attn.q_proj.bias": shape(4),
        }
    )
    assert [use for leaf in roles for use in leaf.uses] == ["embedding", "multiplied", "elementwise", "elementwise"]
    assert [leaf.note for leaf in roles if not leaf.uses] == ["the head", "a router"]
    assert roles["model.layers.0.mlp.gate_proj.weight"].inputs == (1,)


def test_unknown_names_are_an_error():
    with pytest.raises(ValueError, match=r"belong to neither; pass .*find_roles.*\n  dense/weights: float32\[2, 2\]"):
        _ = checkpoints.named_roles({"dense": {"weights": jnp.ones((2, 2))}})
    with pytest.raises(ValueError, match="wo/kernel"):  # a number of axes that the layout does not have
        _ = checkpoints.named_roles({"mlp": {"wo": {"kernel": jnp.ones((2, 2, 2))}}})


def check_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["params.msgpack", "orbax"])
def test_a_tree_is_read_as_it_was_written_and_by_its_own_program(name: str, tmp_path: Path):
    tree, path = maxtext(), tmp_path / name
    assert checkpoints.write(path, tree) == path
    check_same(checkpoints.read(path), tree)
    if path.is_file():
        check_same(serialization.from_bytes(tree, path.read_bytes()), tree)
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            check_same(checkpointer.restore(path, tree), tree)
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        _ = checkpoints.write(path, tree)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        _ = checkpoints.read(tmp_path / "nowhere")
    _ = (tmp_path / "damaged.msgpack").write_bytes(b"\xc1")
    with pytest.raises(ValueError, match=r"damaged.msgpack is damaged, or not a msgpack file"):
        _ = checkpoints.read(tmp_path / "damaged.msgpack")
    _ = (tmp_path / "number.msgpack").write_bytes(serialization.msgpack_serialize(3))
    with pytest.raises(ValueError, match="contains a int, not a tree"):
        _ = checkpoints.read(tmp_path / "number.msgpack")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a Hugging Face folder nor an Orbax checkpoint"):
        _ = checkpoints.read(tmp_path / "empty")
