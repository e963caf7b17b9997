"""Writes hf_decoders.json: what transformers computes for a tiny random decoder of every family.

Run once, in an environment with torch and transformers; the tests read what it wrote and need neither:

    pip install torch==2.13.0 'transformers==4.57.6' && python tests/reference/hf_decoders.py

Parameters are not stored: `parameters` draws them from their names and shapes, here and in the tests. For each case the
file has the config, the shape of each parameter, and some of the logits, float32.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = np.random.default_rng(7).integers(3, 61, (2, 20))
SHOWN = np.s_[:, [0, 3, 11, 19], ::6]

BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True}),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, dynamic": (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8},
    ),
    "llama 3": ("llama", {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3}}),
    "llama, yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "mistral": ("mistral", {"sliding_window": 5, "head_dim": 8}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "gemma3_text",
        {**GEMMA, "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": ("phi3", {"sliding_window": 6}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 8, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5}),
}


def parameters(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Random parameters, each drawn from its name: norms near their start, kernels large enough to matter."""
    found = {}
    for name, shape in shapes.items():
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        start = 1.0 if "norm" in name and "gemma" not in name else 0.0
        found[name] = start + 0.1 * drawn if "norm" in name else 0.2 * drawn
    return found


def main() -> None:
    """Runs transformers on every case."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoConfig, AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    written = {}
    for case, (family, more) in CASES.items():
        config = AutoConfig.for_model(family, **{**BASE, **more})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        state = dict(model.state_dict())
        if config.tie_word_embeddings:
            del state["lm_head.weight"]
        shapes = {name: list(array.shape) for name, array in state.items()}
        drawn = {name: torch.tensor(array) for name, array in parameters(shapes).items()}
        missing = model.load_state_dict(drawn, strict=False)
        assert not missing.unexpected_keys
        with torch.no_grad():
            logits = model(torch.tensor(TOKENS)).logits.numpy()
        kept = json.loads(config.to_json_string())  # as save_pretrained writes it
        written[case] = {"config": kept, "shapes": shapes, "logits": np.round(logits[SHOWN].astype(float), 6).tolist()}
    path = Path(__file__).with_suffix(".json")
    _ = path.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in written.items()) + "\n}\n")


if __name__ == "__main__":
    main()
