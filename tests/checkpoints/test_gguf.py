"""GGUF files become Hugging Face folders: names, order of rows, config, errors."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import models
from jaxprune.checkpoints import Folder, import_gguf
from tests.models.test_decoder import _CASES, drawn, script

gguf: Any = pytest.importorskip("gguf", reason="needs the package gguf")
CONFIG = _CASES["llama"]["config"]
NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(path: Path, architecture: str = "llama", extra: str | None = None) -> Path:
    """The tiny Llama of the decoder's tests, as llama.cpp's converter lays it out."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(3)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_context_length(64)
    for name, array in drawn("llama").items():
        module = name.removesuffix(".weight")
        x = np.asarray(array)
        if module in OUTER:
            target = OUTER[module]
        else:
            _, _, block, *_, last = module.split(".")
            target = f"blk.{block}.{NAMES[last]}"
            if last in ("q_proj", "k_proj"):  # (head, which, half) -> (head, half, which)
                heads = 4 if last == "q_proj" else 2
                x = x.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(f"{target}.weight", np.ascontiguousarray(x))
    if extra:
        writer.add_tensor(extra, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_parameters_config_and_logits_are_those_of_the_model(tmp_path: Path):
    folder = Folder(import_gguf(write(tmp_path / "model.gguf"), tmp_path / "new"))
    found, want = folder.load(), drawn("llama")
    assert found.keys() == want.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(x, want[name], err_msg=name)
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        assert folder.config[key] == CONFIG[key]
    logits = jax.jit(models.decoder(folder.config))(found, jnp.asarray(script.TOKENS))
    np.testing.assert_allclose(np.asarray(logits)[script.SHOWN], np.array(_CASES["llama"]["logits"]), atol=1e-4)


def test_the_dtype_is_the_callers(tmp_path: Path):
    folder = Folder(import_gguf(write(tmp_path / "model.gguf"), tmp_path / "new", dtype=jnp.bfloat16))
    assert {x.dtype for x in folder.shapes.values()} == {jnp.dtype(jnp.bfloat16)}


def test_what_is_not_known_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing is not a file"):
        _ = import_gguf(tmp_path / "nothing", tmp_path / "new")
    _ = (tmp_path / "text").write_text("not a model")
    with pytest.raises(ValueError, match="text is damaged, or not a GGUF file"):
        _ = import_gguf(tmp_path / "text", tmp_path / "new")
    with pytest.raises(ValueError, match="has the architecture 'mamba'; import_gguf knows llama, qwen2, qwen3"):
        _ = import_gguf(write(tmp_path / "other", "mamba"), tmp_path / "new")
    with pytest.raises(ValueError, match=r"contains the parameter blk\.0\.ssm_a\.weight, which import_gguf does not"):
        _ = import_gguf(write(tmp_path / "extra", extra="blk.0.ssm_a.weight"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
