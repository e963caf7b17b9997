"""`import_gguf`: dequantises a GGUF file into a Hugging Face folder, which the rest of the library reads.

The package `gguf` reads and dequantises. llama.cpp interleaves the rows of the query and key kernels of Llama models,
because its rotary positions turn neighbouring pairs. `import_gguf` restores the order of Hugging Face, whose rotary
positions turn the two halves of a head.
"""

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.checkpoints import _disk
from jaxprune.checkpoints.huggingface import FolderWriter

_FAMILIES = {"llama": ("llama", "LlamaForCausalLM"), "qwen2": ("qwen2", "Qwen2ForCausalLM")}
_FAMILIES |= {"qwen3": ("qwen3", "Qwen3ForCausalLM")}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def import_gguf(path: Any, output: Any, *, dtype: Any = jnp.float32) -> Path:
    """Writes the model of a GGUF file into a new Hugging Face folder.

    Use it for models that are published only as GGUF. The folder contains the dequantised kernels that the quantised
    model computes with, and is as large as an ordinary checkpoint of `dtype`.

    Args:
      path: the GGUF file, of the architecture llama (also Mistral and SmolLM), qwen2 or qwen3.
      output: the path of the new folder.
      dtype: the floating dtype of the parameters in the folder, float32 by default.

    Returns:
      The path of the folder. It contains `tokenizer.json` if the file embeds a byte-level BPE with a known
      pre-tokenizer (SmolLM's and GPT-2's); for other models copy the tokenizer of the original model into the folder.

    Raises:
      FileNotFoundError: there is no such file.
      FileExistsError: the output exists.
      ValueError: the file is not GGUF, has another architecture, or contains an unknown parameter.
      ImportError: the package gguf is missing.
    """
    package = _disk.optional("gguf", "reading a GGUF file")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file")
    try:
        reader = package.GGUFReader(str(file))
    except Exception as error:  # the package documents none
        raise ValueError(f"{file} is damaged, or not a GGUF file: {_disk.first_line(error)}") from error
    read = lambda key, default=None: reader.fields[key].contents() if key in reader.fields else default
    architecture = read("general.architecture")
    if architecture not in _FAMILIES:
        raise ValueError(f"{file} has the architecture {architecture!r}; import_gguf knows {', '.join(_FAMILIES)}")
    config = _config(read, architecture)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    blocks = config["num_hidden_layers"]
    parts: list[dict[str, Any]] = [{} for _ in range(blocks + 1)]
    for name in tensors:
        if name == "rope_freqs.weight":  # the config determines these
            continue
        place, renamed = _renamed(name, file)
        parts[blocks if place is None else place][renamed] = name
    with FolderWriter(output, config, parts=blocks + 1) as writer:
        for number, names in enumerate(parts):
            found = {}
            for renamed, name in names.items():
                array = package.dequantize(tensors[name].data, tensors[name].tensor_type).astype(np.float32)
                found[renamed] = jnp.asarray(_in_order(array, renamed, config, architecture), dtype)
            writer.add(number, found)
        tokenizer = _tokenizer(read)
        if tokenizer is not None:
            writer.write_text("tokenizer.json", tokenizer)
    return Path(output)


def _config(read: Any, architecture: str) -> dict[str, Any]:
    """Returns the `config.json` that belongs to the metadata of a GGUF file."""
    get = lambda key, default=None: read(f"{architecture}.{key}", default)
    family, name = _FAMILIES[architecture]
    heads = int(get("attention.head_count"))
    config = {
        "architectures": [name],
        "model_type": family,
        "hidden_size": int(get("embedding_length")),
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": float(get("rope.freq_base", 10000.0)),
        "max_position_embeddings": int(get("context_length", 2048)),
        "hidden_act": "silu",
        "head_dim": int(get("attention.key_length") or get("embedding_length") // heads),
    }
    for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos")):
        number = read(f"tokenizer.ggml.{theirs}_token_id")
        if number is not None:
            config[ours] = int(number)
    kind = get("rope.scaling.type")
    if kind not in (None, "none"):
        config["rope_scaling"] = {"rope_type": kind, "factor": float(get("rope.scaling.factor", 1.0))}
    return config


def _renamed(name: str, file: Path) -> tuple[int | None, str]:
    """Returns the block of a tensor, or None, and its name in a Hugging Face checkpoint."""
    if name in _OUTER:
        return None, _OUTER[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _INNER:
        raise ValueError(f"{file} contains the parameter {name}, which import_gguf does not know")
    return int(found[1]), f"model.layers.{found[1]}.{_INNER[found[2]]}.{found[3]}"


def _in_order(array: np.ndarray, name: str, config: dict[str, Any], architecture: str) -> np.ndarray:
    """Returns kernels and biases of queries and keys with each head's rows in the order of Hugging Face."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    module = name.split(".")[-2]
    if architecture != "llama" or module not in heads:
        return array
    # Rows in the file: (head, half, which of the pair); in Hugging Face: (head, which, half).
    return array.reshape(heads[module], -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _tokenizer(read: Any) -> str | None:
    """Returns the `tokenizer.json` of an embedded byte-level BPE; None where the pre-tokenizer is not known."""
    pre = read("tokenizer.ggml.pre")
    if read("tokenizer.ggml.model") != "gpt2" or pre not in ("smollm", "gpt-2"):
        return None
    tokenizers = _disk.optional("tokenizers", "converting the tokenizer of a GGUF file")
    tokens, kinds = read("tokenizer.ggml.tokens"), read("tokenizer.ggml.token_type", [])
    merges = [tuple(merge.split(" ")) for merge in read("tokenizer.ggml.merges")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [*digits, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    special = [tokenizers.AddedToken(t, normalized=False) for t, kind in zip(tokens, kinds, strict=False) if kind == 3]
    made.add_special_tokens(special)
    return made.to_str()
