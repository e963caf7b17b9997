"""The decoder: RMSNorm, rotary positions, grouped-query attention, gated MLPs and routed experts, by `config.json`.

The decoder reads every width from the arrays and not from the config: heads from the rows of the projections, experts
from the names of the parameters, the MLP's width from its kernels. The same function therefore computes a checkpoint
whose layers were pruned to different widths. The config gives what arrays do not show: the size of a head, the norms'
epsilon, rotary frequencies, windows, soft caps, and how many experts a token takes.

Kernels are [outputs, inputs] as PyTorch stores them. Norms and softmax are computed in float32 and cast back to the
dtype of the hidden states, as transformers does.

`rotate` turns queries and keys by their positions (rotary positions, Su et al. 2021, arXiv 2104.09864), at the
frequencies that `frequencies` computes, with scaling to longer texts.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import _tree

Params = Mapping[str, jax.Array]

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
)
"""The `model_type`s that `decoder` knows."""

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


class Parts(NamedTuple):
    """A decoder cut into three functions.

    Attributes:
      embed: `(params, tokens) -> hidden`: int tokens [batch, time] to hidden states [batch, time, width].
      block: `(params, hidden, index) -> hidden`: the block with the number `index`, a Python int; `params` are the
        block's parameters, as `block_params(params, index)` returns them.
      head: `(params, hidden) -> logits`: the last norm and the output projection, [batch, time, vocabulary].
      blocks: the number of blocks.
      alike: `index -> index`: the first block with the same computation. A program compiled for the first block also
        runs this block, if their arrays have the same shapes.
      is_local: `index -> bool`: whether the block attends only to a sliding window of the text.
    """

    embed: Callable[[Params, jax.Array], jax.Array]
    block: Callable[[Params, jax.Array, int], jax.Array]
    head: Callable[[Params, jax.Array], jax.Array]
    blocks: int
    alike: Callable[[int], int]
    is_local: Callable[[int], bool]


def decoder(config: Mapping[str, Any]) -> Callable[[Params, jax.Array], jax.Array]:
    """Returns the function of a Hugging Face decoder.

    Use it to calibrate, prune, slim or evaluate a language model from a folder: the parameters keep their names, so you
    can write them back.

    Args:
      config: the content of `config.json`; `model_type` is one of `FAMILIES`.

    Returns:
      `fn(params, tokens) -> logits`. `params` is a flat dict of arrays by their names in the checkpoint, kernels
      [outputs, inputs], all of one floating dtype; `tokens` are integers [batch, time]; `logits` are
      [batch, time, vocabulary] in the dtype of the parameters. The function has no cache: each call computes the whole
      text. It unrolls the layers; for large models compile one block at a time (`parts`).

    Raises:
      ValueError: an unknown `model_type`, activation or kind of rotary scaling; the message lists the known values, and
        explains how to use your own function.

    Example:
      >>> config = {'model_type': 'llama', 'hidden_size': 8, 'num_attention_heads': 2, 'num_hidden_layers': 0}
      >>> params = {'model.embed_tokens.weight': jnp.eye(4, 8), 'model.norm.weight': jnp.ones(8)}
      >>> decoder(config)(params, jnp.array([[0, 3]])).shape
      (1, 2, 4)
    """
    embed, block, head, blocks, *_ = parts(config)

    def fn(params: Params, tokens: jax.Array) -> jax.Array:
        hidden = embed(params, tokens)
        for index in range(blocks):
            hidden = block(block_params(params, index), hidden, index)
        return head(params, hidden)

    return fn


def block_params(params: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Returns the parameters of one block, without the prefix `model.layers.{index}.`.

    Args:
      params: all parameters by their names in the checkpoint, arrays or anything else.
      index: the number of the block, from 0.

    Returns:
      A dict with names such as `self_attn.q_proj.weight`.

    Raises:
      ValueError: no parameter belongs to the block.

    Example:
      >>> block_params({'model.layers.3.mlp.up_proj.weight': 1, 'model.norm.weight': 2}, 3)
      {'mlp.up_proj.weight': 1}
    """
    prefix = f"model.layers.{index}."
    found = {name.removeprefix(prefix): x for name, x in params.items() if name.startswith(prefix)}
    if not found:
        numbers = {int(name.split(".")[2]) for name in params if re.match(r"model\.layers\.\d+\.", name)}
        has = f"it has blocks {min(numbers)} to {max(numbers)}" if numbers else "no name begins with model.layers."
        raise ValueError(f"params has no block {index}; {has}, and num_hidden_layers of a config must be their number")
    return found


def parts(config: Mapping[str, Any]) -> Parts:
    """Returns the function of `decoder`, as embedding, block and head.

    Use it to work block by block, with only one block's weights in memory.

    Args:
      config: the content of `config.json`.

    Returns:
      The three functions and the number of blocks.

    Raises:
      ValueError: an unknown `model_type`, activation or kind of rotary scaling, as for `decoder`.

    Example:
      >>> parts({'model_type': 'llama', 'hidden_size': 8, 'num_attention_heads': 2, 'num_hidden_layers': 3}).blocks
      3
    """
    _tree.check_instance(config, Mapping, "config", "the mapping in config.json, such as Folder(path).config")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"config.json has model_type {family!r}; decoder knows {', '.join(FAMILIES)}. For another architecture "
            "pass a function of your own, fn(params, tokens) -> logits, to calibrate, prune, slim and reconstruct"
        )
    needed = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
    needed += ["num_experts_per_tok"] if family in ("mixtral", "olmoe") or family.endswith("_moe") else []
    if missing := [key for key in needed if key not in config]:
        raise ValueError(f"config.json has no {missing[0]}, which a model of the family {family} needs")
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise ValueError(f"config.json has hidden_act {activation!r}; decoder knows {', '.join(_ACTIVATIONS)}")
    is_gemma = family.startswith("gemma")
    norm = _norm(float(config.get("rms_norm_eps", 1e-6)), offset=1.0 if is_gemma else 0.0)
    attend = _attention(config, norm)
    feed = _feed_forward(config, _ACTIVATIONS[activation])
    cap = config.get("final_logit_softcapping")

    def embed(params: Params, tokens: jax.Array) -> jax.Array:
        table = params["model.embed_tokens.weight"]
        hidden = table[tokens]
        return hidden * jnp.asarray(table.shape[1] ** 0.5, table.dtype) if is_gemma else hidden

    def block(params: Params, hidden: jax.Array, index: int) -> jax.Array:
        # Gemma 2 and 3 also normalise the outputs of attention and MLP; post_attention_layernorm is that norm there.
        after = "pre_feedforward_layernorm.weight" in params
        out = attend(params, norm(hidden, params["input_layernorm.weight"]), index)
        hidden = hidden + (norm(out, params["post_attention_layernorm.weight"]) if after else out)
        before = "pre_feedforward_layernorm.weight" if after else "post_attention_layernorm.weight"
        out = feed(params, norm(hidden, params[before]))
        return hidden + (norm(out, params["post_feedforward_layernorm.weight"]) if after else out)

    def head(params: Params, hidden: jax.Array) -> jax.Array:
        # A tied head is stored once, as the embedding.
        weight = params.get("lm_head.weight", params["model.embed_tokens.weight"])
        logits = norm(hidden, params["model.norm.weight"]) @ weight.T
        return jnp.tanh(logits / cap) * cap if cap else logits

    blocks = int(config["num_hidden_layers"])
    is_local = _windowed(config)
    first = {is_local(index): index for index in reversed(range(blocks))}
    return Parts(embed, block, head, blocks, lambda index: first[is_local(index)], is_local)


def _norm(eps: float, *, offset: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * lax.rsqrt((wide * wide).mean(-1, keepdims=True) + eps)
        if offset:  # Gemma stores the difference from one and multiplies before it casts
            return (wide * (offset + weight.astype(jnp.float32))).astype(x.dtype)
        return weight * wide.astype(x.dtype)

    return norm


def _linear(params: Params, name: str, x: jax.Array) -> jax.Array:
    y = x @ params[f"{name}.weight"].T
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def _attention(config: Mapping[str, Any], norm: Callable) -> Callable[[Params, jax.Array, int], jax.Array]:
    """Returns the attention of a block: `(params of the block, x [batch, time, channels], index) -> x`."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    heads, shared = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    scale = float(config.get("query_pre_attn_scalar") or size) ** -0.5
    cap, clip = config.get("attn_logit_softcapping"), config.get("clip_qkv")
    turns = frequencies(config, size)
    local = frequencies({**config, "rope_theta": config.get("rope_local_base_freq"), "rope_scaling": None}, size)
    is_local = _windowed(config)

    def project(params: Params, x: jax.Array) -> list[jax.Array]:
        if "self_attn.qkv_proj.weight" in params:  # Phi-3 keeps the three in one kernel, in the config's proportions
            y = _linear(params, "self_attn.qkv_proj", x)
            first, second = (y.shape[-1] * n // (heads + 2 * shared) for n in (heads, heads + shared))
            found = [y[..., :first], y[..., first:second], y[..., second:]]
        else:
            found = [_linear(params, f"self_attn.{name}_proj", x) for name in "qkv"]
        for i, name in enumerate(("self_attn.q_norm.weight", "self_attn.k_norm.weight")):
            # OLMoE normalises the whole projection; Qwen 3 and Gemma 3 normalise each head.
            if name in params and params[name].shape[0] == found[i].shape[-1] != size:
                found[i] = norm(found[i], params[name])
        if clip:
            found = [jnp.clip(y, -clip, clip) for y in found]
        found = [y.reshape(*y.shape[:-1], -1, size) for y in found]
        for i, name in enumerate(("self_attn.q_norm.weight", "self_attn.k_norm.weight")):
            if name in params and params[name].shape[0] == size:
                found[i] = norm(found[i], params[name])
        return found

    def attend(params: Params, x: jax.Array, index: int) -> jax.Array:
        batch, time, _ = x.shape
        window = config.get("sliding_window") if is_local(index) else None
        wave = local if window and config.get("rope_local_base_freq") else turns
        q, k, v = project(params, x)  # [batch, time, heads, size]
        q, k = rotate(q, wave(time)), rotate(k, wave(time))
        q = q.reshape(batch, time, k.shape[2], -1, size)  # the queries of each key-value head
        scores = jnp.einsum("btgrd,bsgd->bgrts", q, k).astype(jnp.float32) * scale
        scores = jnp.tanh(scores / cap) * cap if cap else scores
        ago = jnp.arange(time)[:, None] - jnp.arange(time)
        seen = (ago >= 0) & (ago < window) if window else ago >= 0
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)).astype(x.dtype)
        out = jnp.einsum("bgrts,bsgd->btgrd", weights, v).reshape(batch, time, -1)
        return _linear(params, "self_attn.o_proj", out)

    return attend


def _windowed(config: Mapping[str, Any]) -> Callable[[int], bool]:
    """Returns which blocks attend only to a window of the text."""
    family, kinds = config["model_type"], config.get("layer_types")
    if not config.get("sliding_window"):
        return lambda index: False
    if kinds:
        return lambda index: kinds[index] == "sliding_attention"
    if family == "gemma2":
        return lambda index: index % 2 == 0
    if family == "gemma3_text":
        every = config.get("sliding_window_pattern", 6)
        return lambda index: (index + 1) % every != 0
    if family.startswith("qwen"):
        first = config.get("max_window_layers", 28)
        return lambda index: bool(config.get("use_sliding_window")) and index >= first
    return lambda index: True


def _feed_forward(config: Mapping[str, Any], activation: Callable) -> Callable[[Params, jax.Array], jax.Array]:
    """Returns the MLP of a block, or its mixture of experts: `(params of the block, x) -> x`."""

    def gated(params: Params, x: jax.Array, prefix: str, gate: str, up: str, down: str, weight: Any = 1) -> jax.Array:
        hidden = activation(_linear(params, f"{prefix}.{gate}", x)) * _linear(params, f"{prefix}.{up}", x)
        return _linear(params, f"{prefix}.{down}", hidden * weight)

    def routed(params: Params, x: jax.Array, prefix: str, names: tuple[str, str, str]) -> jax.Array:
        pattern = re.compile(re.escape(prefix) + r"\.experts\.(\d+)\.")
        experts = sorted({int(found[1]) for name in params if (found := pattern.match(name))})
        logits = _linear(params, f"{prefix}.gate", x)
        gates = jax.nn.softmax(logits.astype(jnp.float32))
        top, chosen = lax.top_k(gates, min(config["num_experts_per_tok"], len(experts)))
        if config.get("norm_topk_prob", config["model_type"] == "mixtral"):
            top = top / top.sum(-1, keepdims=True)
        weight = jnp.zeros_like(gates).at[(*jnp.indices(chosen.shape)[:-1], chosen)].set(top).astype(x.dtype)
        out = jnp.zeros_like(x)
        for place, expert in enumerate(experts):
            # An expert reads zeros in place of the tokens that did not choose it, and its hidden neurons carry the
            # token's weight, so that calibration sums the expert's inputs and outputs.
            own = weight[..., place : place + 1]
            out = out + gated(params, jnp.where(own > 0, x, 0), f"{prefix}.experts.{expert}", *names, own)
        return out

    def feed(params: Params, x: jax.Array) -> jax.Array:
        if "block_sparse_moe.gate.weight" in params:
            return routed(params, x, "block_sparse_moe", ("w1", "w3", "w2"))
        if "mlp.gate.weight" in params:
            out = routed(params, x, "mlp", ("gate_proj", "up_proj", "down_proj"))
            if "mlp.shared_expert_gate.weight" not in params:
                return out
            shared = gated(params, x, "mlp.shared_expert", "gate_proj", "up_proj", "down_proj")
            return out + jax.nn.sigmoid(_linear(params, "mlp.shared_expert_gate", x)) * shared
        if "mlp.gate_up_proj.weight" in params:  # Phi-3: both halves in one kernel
            gate, up = jnp.split(_linear(params, "mlp.gate_up_proj", x), 2, axis=-1)
            return _linear(params, "mlp.down_proj", activation(gate) * up)
        return gated(params, x, "mlp", "gate_proj", "up_proj", "down_proj")

    return feed


KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


class Wave(NamedTuple):
    """The cosines and sines of a text's angles, float32 [time, turned / 2], times an amplitude."""

    cos: jax.Array
    sin: jax.Array


def rotate(x: jax.Array, wave: Wave) -> jax.Array:
    """Rotates each head's vectors by their position, pairing the first half of the rotated part with the second half.

    Args:
      x: [batch, time, heads, size].
      wave: the cosines and sines of the positions. If they cover fewer than `size` entries, the other entries stay.

    Returns:
      An array in the shape and dtype of `x`.
    """
    half = wave.cos.shape[-1]
    # With a symbolic batch size x[..., :half] is a gather, which hides from `slim` that these are channels.
    ends = [0, half, 2 * half, x.shape[-1]]
    first, second, rest = (lax.slice_in_dim(x, *pair, axis=-1) for pair in itertools.pairwise(ends))
    cos, sin = (part[:, None].astype(x.dtype) for part in wave)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)


def frequencies(config: Mapping[str, Any], size: int) -> Callable[[int], Wave]:
    """Returns the rotary waves of a config.

    Args:
      config: a config with `rope_theta`, `rope_scaling`, `partial_rotary_factor`, `max_position_embeddings`.
      size: the size of a head.

    Returns:
      A function `time -> Wave` for the positions 0 to time - 1, with a Python int `time`.

    Raises:
      ValueError: an unknown kind of scaling.
    """
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in KINDS:
        raise ValueError(f"config.json has rope_scaling of type {kind!r}; decoder knows {', '.join(KINDS)}")
    theta = float(config.get("rope_theta") or 10000.0)
    turned = int(size * config.get("partial_rotary_factor", 1.0))
    longest = config.get("max_position_embeddings") or 2048
    plain = theta ** (-np.arange(0, turned, 2, dtype=np.float64) / turned)

    def wave(time: int) -> Wave:
        speeds, amplitude = _scaled(kind, scaling, plain, theta, turned, longest, config, time)
        angles = np.outer(np.arange(time), speeds.astype(np.float32)).astype(np.float32)
        return Wave(jnp.asarray(np.cos(angles) * amplitude), jnp.asarray(np.sin(angles) * amplitude))

    return wave


def _scaled(
    kind: str,
    scaling: Mapping[str, Any],
    plain: np.ndarray,
    theta: float,
    turned: int,
    longest: int,
    config: Mapping[str, Any],
    time: int,
) -> tuple[np.ndarray, np.float32]:
    """Returns the angle per position, float64 [turned / 2], and the amplitude of the cosines and sines."""
    factor, one = float(scaling.get("factor") or 1.0), np.float32(1.0)
    if kind == "linear":
        return plain / factor, one
    if kind == "dynamic" and time > longest:
        # "NTK-aware": the base grows with the text.
        base = theta * ((factor * time / longest) - (factor - 1)) ** (turned / (turned - 2))
        return base ** (-np.arange(0, turned, 2) / turned), one
    if kind == "llama3":
        return _llama3(plain, factor, scaling), one
    if kind == "yarn":
        return _yarn(plain, factor, theta, turned, scaling, longest)
    if kind == "longrope":
        original = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
        trained = original or longest
        stretch = np.asarray(scaling["long_factor" if time > trained else "short_factor"], np.float64)
        factor = longest / trained if original else factor
        amplitude = scaling.get("attention_factor")
        if amplitude is None:
            amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
        return plain / stretch, np.float32(amplitude)
    return plain, one


def _llama3(plain: np.ndarray, factor: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """Divides the frequency of slow waves by `factor`, keeps fast waves, and interpolates between them (Llama 3.1)."""
    trained = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = trained * plain / (2 * np.pi)  # how often each wave turns over the trained length
    mix = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - mix) * plain / factor + mix * plain


def _yarn(
    plain: np.ndarray, factor: float, theta: float, turned: int, scaling: Mapping[str, Any], longest: int
) -> tuple[np.ndarray, np.float32]:
    """YaRN, Peng et al. 2023, arXiv 2309.00071, section 3.2 and eq. 22."""
    trained = scaling.get("original_max_position_embeddings") or longest
    place = lambda turns: turned * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = place(scaling.get("beta_fast") or 32), place(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    ramp = np.clip((np.arange(turned // 2) - low) / max(high - low, 0.001), 0, 1)
    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        scale = lambda by: 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1
        by, whole = scaling.get("mscale"), scaling.get("mscale_all_dim")
        amplitude = scale(by) / scale(whole) if by and whole else scale(1)
    return plain / factor * ramp + plain * (1 - ramp), np.float32(amplitude)
