"""Models of packages that are not among the test's dependencies; each is skipped where its package is missing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import slimming
from tests.cases import few
from tests.slimming import checks

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, not ours

SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "intermediate_size": 32, "max_position_embeddings": 16}
IMAGE = {**TEXT, "image_size": 16, "patch_size": 4}
ENCODER_DECODER = {
    "vocab_size": 24, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 24,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
GPT = {"vocab_size": 24, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
CONV = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
# The name of a model, its configuration; and what it is given.
TRANSFORMERS: dict[str, tuple[dict[str, Any], str]] = {
    "Albert": ({**TEXT, "embedding_size": 8}, "text"),
    "Bart": (ENCODER_DECODER, "both"),
    "Beit": (IMAGE, "image"),
    "Bert": (TEXT, "text"),
    "BigBird": ({**TEXT, "attention_type": "original_full"}, "text"),
    "Blenderbot": (ENCODER_DECODER, "both"),
    "BlenderbotSmall": (ENCODER_DECODER, "both"),
    "Bloom": ({"vocab_size": 24, "hidden_size": 16, "n_layer": 2, "n_head": 4}, "text"),
    "CLIPVision": (IMAGE, "image"),
    "CLIPText": (TEXT, "text"),
    "Dinov2": (IMAGE, "image"),
    "DistilBert": ({"vocab_size": 24, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32}, "text"),
    "Electra": ({**TEXT, "embedding_size": 8}, "text"),
    "Gemma": ({**TEXT, "num_key_value_heads": 2, "head_dim": 4}, "text"),
    "GPT2": (GPT, "text"),
    "GPTNeo": (
        {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4,
         "max_position_embeddings": 16},
        "text",
    ),
    "GPTJ": ({**GPT, "rotary_dim": 2}, "text"),
    "Llama": ({**TEXT, "num_key_value_heads": 2}, "text"),
    "Marian": (ENCODER_DECODER, "both"),
    "MBart": (ENCODER_DECODER, "both"),
    "Mistral": ({**TEXT, "num_key_value_heads": 2, "sliding_window": 8}, "text"),
    "MT5": (T5, "both"),
    "OPT": ({**TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16}, "text"),
    "Pegasus": (ENCODER_DECODER, "both"),
    "RegNet": ({**CONV, "groups_width": 4, "layer_type": "y"}, "image"),
    "ResNet": (CONV, "image"),
    "Roberta": (TEXT, "text"),
    "RobertaPreLayerNorm": (TEXT, "text"),
    "RoFormer": ({**TEXT, "embedding_size": 16}, "text"),
    "T5": (T5, "both"),
    "ViT": (IMAGE, "image"),
    "XGLM": (
        {"vocab_size": 24, "d_model": 16, "num_layers": 2, "attention_heads": 4, "ffn_dim": 32,
         "max_position_embeddings": 16},
        "text",
    ),
    "XLMRoberta": (TEXT, "text"),
}  # fmt: skip
FEW = ("Bert", "GPT2", "Llama", "ResNet", "T5", "ViT")


def check(fn: Any, params: Any, inputs: Any) -> slimming.Groups:
    """Removes about half of what may go exactly, at random, and compares with masking."""
    groups = slimming.find_groups(fn, params, inputs)
    scores = np.random.default_rng(0).uniform(size=groups.size)
    choice = slimming.choose(groups, scores, 0.5)
    assert not choice.keep.all(), str(groups)
    small = slimming.slim(fn, params, choice, inputs)
    expected = jax.jit(fn)(checks.masked(params, choice), inputs)
    assert checks.difference(expected, jax.jit(small.fn)(small.params, inputs)) < 1e-4
    return groups


def drawn(kind: str, size: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    if kind == "image":
        return {"pixel_values": jnp.asarray(rng.normal(size=(2, 3, size, size)), jnp.float32)}
    tokens = jnp.asarray(rng.integers(3, 24, (2, 6)))
    given = {"input_ids": tokens, "attention_mask": jnp.ones_like(tokens)}
    return {**given, "decoder_input_ids": tokens[:, :5]} if kind == "both" else given


@pytest.mark.parametrize("name", few(TRANSFORMERS, *FEW))
def test_flax_models_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    options, kind = TRANSFORMERS[name]
    try:
        make, configure = getattr(transformers, f"Flax{name}Model"), getattr(transformers, f"{name}Config")
        model = make(
            configure(**options), _do_init=False, **({"input_shape": (1, 16, 16, 3)} if kind == "image" else {})
        )
    except (AttributeError, ImportError, TypeError) as error:
        pytest.skip(f"these transformers have no Flax model {name} that this JAX builds: {error}")
    shape = model.input_shape if hasattr(model, "input_shape") else (1, 1)
    shapes = jax.eval_shape(lambda key: model.init_weights(key, shape), jax.random.key(0))
    fn = lambda p, given: model(**given, params=p)[0]
    groups = check(fn, checks.random_params(shapes), drawn(kind))
    assert len(groups) > 1


def test_haiku() -> None:
    hk = pytest.importorskip("haiku", reason="haiku is not installed")

    def net(x: Any, train: bool = False) -> Any:
        x = jax.nn.relu(hk.Conv2D(8, 3)(x))
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(12, 3, stride=2)(x), is_training=train))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.VarianceScaling(), model_size=12)(x, x, x)
        outputs, _ = hk.dynamic_unroll(hk.LSTM(10), x, hk.LSTM(10).initial_state(x.shape[0]), time_major=False)
        return hk.nets.MLP([16, 3])(outputs.mean(1))

    model = hk.without_apply_rng(hk.transform_with_state(net))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, x, train=True), jax.random.key(0))
    groups = check(lambda v, x: model.apply(*v, x)[0], checks.random_params(shapes), x)
    # Channels before and after the second convolution, heads, queries, values, states of the LSTM, the MLP.
    assert {4, 8, 10, 12, 16} <= {g.count for g in groups}
