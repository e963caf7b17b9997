"""The Flax models of transformers 4.57, small; `make zoo` installs them in an environment of their own."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

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
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "Albert": ({**TEXT, "embedding_size": 8}, "text"),
    "Bart": (ENCODER_DECODER, "both"),
    "Beit": (IMAGE, "image"),
    "Bert": (TEXT, "text"),
    "BigBird": ({**TEXT, "attention_type": "original_full"}, "text"),
    "Blenderbot": (ENCODER_DECODER, "both"),
    "BlenderbotSmall": (ENCODER_DECODER, "both"),
    "Bloom": ({"vocab_size": 24, "hidden_size": 16, "n_layer": 2, "n_head": 4}, "text"),
    "CLIP": (
        {"projection_dim": 12, "text_config": {**TEXT, "eos_token_id": 23}, "vision_config": IMAGE},
        "pair",
    ),
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
    "LongT5": ({**T5, "local_radius": 3, "encoder_attention_type": "local"}, "both"),
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
    "Wav2Vec2": (
        {**TEXT, "conv_dim": [8, 8], "conv_stride": [4, 2], "conv_kernel": [5, 3], "num_feat_extract_layers": 2,
         "feat_extract_norm": "layer", "do_stable_layer_norm": True, "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2, "codevector_dim": 8, "proj_codevector_dim": 8},
        "waves",
    ),
    "Whisper": (
        {**ENCODER_DECODER, "num_mel_bins": 6, "max_source_positions": 8, "max_target_positions": 16,
         "suppress_tokens": None, "begin_suppress_tokens": None},
        "sound",
    ),
    "XGLM": (
        {"vocab_size": 24, "d_model": 16, "num_layers": 2, "attention_heads": 4, "ffn_dim": 32,
         "max_position_embeddings": 16},
        "text",
    ),
    "XLMRoberta": (TEXT, "text"),
}  # fmt: skip


def given(kind: str) -> dict[str, Any]:
    """Inputs of one kind."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    if kind == "image":
        return {"pixel_values": draw(2, 3, 16, 16)}
    if kind == "waves":
        return {"input_values": draw(2, 80)}
    tokens = jnp.asarray(rng.integers(3, 24, (2, 6)))
    if kind == "sound":
        return {"input_features": draw(2, 6, 16), "decoder_input_ids": tokens}
    texts = {"input_ids": tokens, "attention_mask": jnp.ones_like(tokens)}
    if kind == "pair":
        return {**texts, "pixel_values": draw(2, 3, 16, 16)}
    return {**texts, "decoder_input_ids": tokens[:, :5]} if kind == "both" else texts


def build(name: str) -> tuple[Callable[[Any, Any], Any], Any, dict[str, Any]]:
    """Returns a model's function of parameters and inputs, the shapes of its parameters, and inputs.

    Raises:
      ModuleNotFoundError: transformers is missing.
    """
    transformers: Any = importlib.import_module("transformers")
    options, kind = MODELS[name]
    make, configure = getattr(transformers, f"Flax{name}Model"), getattr(transformers, f"{name}Config")
    inputs = given(kind)
    shaped = {"input_shape": (1, 16, 16, 3)} if kind == "image" else {}
    if kind == "pair":
        shaped = {"input_shape": ((1, 1), (1, 16, 16, 3))}
    if kind == "waves":
        shaped = {"input_shape": (1, 80)}
    with warnings.catch_warnings(), _older_clip():
        warnings.simplefilter("ignore")
        model = make(configure(**options), _do_init=False, **shaped)
        shape = model.input_shape if hasattr(model, "input_shape") else (1, 1)
        shapes = jax.eval_shape(lambda key: model.init_weights(key, shape), jax.random.key(0))

    def fn(params: Any, inputs: Any) -> Any:
        with _older_clip():
            return model(**inputs, params=params)[0]

    return fn, shapes, inputs


def _older_clip() -> Any:
    """T5 calls the limits `a_min` and `a_max`, as earlier versions of JAX did."""
    clip = jnp.clip
    older = lambda x, min=None, max=None, a_min=None, a_max=None: clip(  # noqa: A006
        x, min if a_min is None else a_min, max if a_max is None else a_max
    )
    return mock.patch.object(jnp, "clip", older)
