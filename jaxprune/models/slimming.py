"""Smaller language models from a folder: `slim_folder` removes neurons, heads, experts, channels and blocks.

The result is the ordinary smaller architecture: `config.json` has the new widths and depth, and every program that
loads the original folder also loads it. The dense model runs once over the calibration text, block by block.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _progress
from jaxprune.checkpoints import Folder, FolderWriter
from jaxprune.models.decoder import Parts
from jaxprune.models.pruning import BlockRunners, Hidden, checked_tokens, load_block, opened, outside_blocks
from jaxprune.slimming import block_influence

_DOWN = re.compile(r"(.*)\.(?:down_proj|w2)\.weight")
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
# How configs call the numbers of neurons and of experts.
_WIDTHS = {"mlp.shared_expert": "shared_expert_intermediate_size", "mlp": "intermediate_size"}
_EXPERTS = ("num_local_experts", "num_experts")


class SlimResult(NamedTuple):
    """The result of `slim_folder`.

    Attributes:
      blocks: the numbers of the removed blocks, in the source's numbering.
      influence: the influence of each block of the source, float64 [blocks].
      config: the new folder's config.
    """

    blocks: tuple[int, ...]
    influence: np.ndarray
    config: dict[str, Any]


class _Scores(NamedTuple):
    """Scores of one block's units.

    Attributes:
      neurons: for each MLP (`mlp`, `mlp.experts.3`) the energy that each neuron writes.
      heads: the energy that each key-value head writes, with its queries.
      channels: the energy of each channel of the hidden states after the block's norms.
      influence: the block's influence.
    """

    neurons: dict[str, np.ndarray]
    heads: np.ndarray
    channels: np.ndarray
    influence: float


class _Kept(NamedTuple):
    """Which units of one block stay: channels, key-value heads, the neurons of each MLP, experts."""

    channels: np.ndarray
    heads: np.ndarray
    neurons: dict[str, np.ndarray]
    experts: np.ndarray


def slim_folder(
    source: Any,
    output: Any,
    tokens: np.ndarray,
    *,
    mlp: float = 1.0,
    kv_heads: int | None = None,
    width: float = 1.0,
    experts: float = 1.0,
    drop_blocks: int | Sequence[int] = 0,
    progress: bool | None = None,
) -> SlimResult:
    r"""Makes a language model in a Hugging Face folder narrower and shallower, and writes it into a new folder.

    Use it if the model must be smaller and faster everywhere, and continue its training (`jaxprune.ensembles` has a
    distillation loss): removal without training costs far more than masks of the same size.

    Activations on the calibration text rank the units, as in Muralidharan et al. 2024 (Minitron, arXiv 2407.14679,
    section 2.2). Neurons of an MLP, key-value heads (each with its queries) and experts are ranked in each block by the
    energy that they write into the hidden states, $\sum_j \lVert a_j \rVert^2 \lVert w_j \rVert^2$ over their inputs j
    of the output projection: activations a, columns w of the kernel. For an expert, the norms run over the tokens that
    choose it, and a is multiplied by the router weight of each token. Channels of the hidden states are ranked by the
    sum over all blocks of the squared outputs of the block's norms. Blocks are ranked by the influence of Men et al.
    2024 (ShortGPT, arXiv 2403.03853, eq. 1), $1 - E[\cos(x_{in}, x_{out})]$. All blocks keep the same number of units,
    because the config has one number for all blocks. Each block chooses its own units, except channels.

    Args:
      source: the folder, or its path.
      output: the path of the new folder.
      tokens: the calibration text, int [windows, time].
      mlp: the fraction of each MLP's neurons to keep, in (0, 1]: floor(mlp n + 1/2) of n, at least one; default 1.
        The MLPs of experts are narrowed too.
      kv_heads: the number of key-value heads to keep in each block, 1 or more; None (default) for all.
      width: the fraction of the hidden states' channels to keep, in (0, 1]; default 1. Norms then average over fewer
        channels, so this option changes the model most.
      experts: the fraction of each block's routed experts to keep, in (0, 1]; default 1. If fewer experts stay than
        each token chooses (`num_experts_per_tok` of the config), this number is lowered to the experts that stay.
      drop_blocks: the number of blocks to remove, the least influential first; or the blocks' numbers; default 0.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      The removed blocks, the influence of all blocks, and the new config. If units have equal scores, the lowest index
      stays.

    Raises:
      FileExistsError: the output exists, or an unfinished output of a killed run exists.
      FileNotFoundError, ValueError: the source is not a complete checkpoint of a known family; a number is out of its
        range, or exceeds the number of units of the model. The message names the argument or file.
    """
    folder, cut = opened(source)
    tokens, config = checked_tokens(tokens, folder), folder.config
    counts = _counts(folder, cut, mlp, kv_heads, width, experts, drop_blocks)
    dropped = drop_blocks if isinstance(drop_blocks, int) else len(set(drop_blocks))
    with FolderWriter(output, config, parts=cut.blocks - dropped + 1) as writer:  # an output that exists fails here
        scores = _scores(folder, cut, tokens, progress)
        influence = np.array([score.influence for score in scores])
        if isinstance(drop_blocks, int):
            gone = sorted(int(i) for i in np.argsort(influence, kind="stable")[:drop_blocks])
        else:
            gone = sorted(set(drop_blocks))
        stay = [index for index in range(cut.blocks) if index not in gone]
        new = writer.config = {**_numbered(config, cut, stay), **counts}
        channels = _largest(np.sum([score.channels for score in scores], 0), new["hidden_size"])
        for place, index in enumerate(stay):
            kept = _kept(scores[index], channels, new, folder)
            small = _narrowed(load_block(folder, index), kept, config, new)
            writer.add(place, {f"model.layers.{place}.{name}": x for name, x in small.items()})
        # The embedding and the head are [vocabulary, channels], the last norm is [channels].
        writer.add(len(stay), {name: x[..., channels] for name, x in folder.load(outside_blocks(folder)).items()})
        writer.carry_over(folder)
    return SlimResult(tuple(gone), influence, new)


def _counts(
    folder: Folder, cut: Parts, mlp: float, kv_heads: int | None, width: float, experts: float, drop_blocks: Any
) -> dict[str, Any]:
    """Returns the entries of the new config that are numbers of units; an error if one is out of its range."""
    config = folder.config
    heads = config["num_attention_heads"]
    shared = config.get("num_key_value_heads") or heads
    for name, value in (("mlp", mlp), ("width", width), ("experts", experts)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is the fraction to keep and must be in (0, 1], got {value}")
    if kv_heads is not None and not 1 <= kv_heads <= shared:
        raise ValueError(f"kv_heads must be from 1 to {shared}, the key-value heads of {folder.path}; got {kv_heads}")
    count = drop_blocks if isinstance(drop_blocks, int) else len(set(drop_blocks))
    wrong = [] if isinstance(drop_blocks, int) else [i for i in drop_blocks if not 0 <= i < cut.blocks]
    if not 0 <= count < cut.blocks or wrong:
        raise ValueError(f"drop_blocks must leave one of the blocks 0 to {cut.blocks - 1}, got {drop_blocks!r}")
    asked = kv_heads not in (None, shared) or width < 1
    if asked and config["model_type"] == "phi3" and config.get("rope_scaling"):
        raise ValueError(
            f"{folder.path} is a Phi-3 with rope_scaling, whose heads and channels cannot be removed: transformers "
            "derives the length of the scaling factors from both; leave kv_heads and width out"
        )
    if asked and config["model_type"] == "olmoe":
        raise ValueError(
            f"{folder.path} is an OLMoE, whose heads and channels cannot be removed: transformers derives the size of "
            "a head from both; leave kv_heads and width out"
        )
    key = next((key for key in _EXPERTS if key in config), None)
    if experts < 1 and key is None:
        raise ValueError(f"{folder.path} has no routed experts; leave experts out")
    part = lambda fraction, n: max(1, int(np.floor(fraction * n + 0.5)))
    kept = shared if kv_heads is None else kv_heads
    new = {
        "num_attention_heads": heads // shared * kept,
        "num_key_value_heads": kept,
        # The default, width over heads, is no longer the size of a head.
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "hidden_size": part(width, config["hidden_size"]),
    }
    sizes = (*_WIDTHS.values(), "moe_intermediate_size")
    new |= {size: part(mlp, config[size]) for size in sizes if config.get(size)}
    if key is not None:
        new[key] = part(experts, config[key])
        new["num_experts_per_tok"] = min(config["num_experts_per_tok"], new[key])
    return new


def _scores(folder: Folder, cut: Parts, tokens: np.ndarray, progress: bool | None) -> list[_Scores]:
    """Returns the scores of the units of each block and its influence; holds one block in memory at a time."""
    hidden, runners, found = Hidden(folder, cut, tokens), BlockRunners(cut), []
    heads = folder.config.get("num_key_value_heads") or folder.config["num_attention_heads"]
    output = "self_attn.o_proj.weight"
    for index in _progress.bar(range(cut.blocks), progress, what="blocks"):
        params, run = load_block(folder, index, jnp.float32), runners.of(index)
        # One kernel that reads the output of each of the two norms: the whole input of attention, and of the MLP.
        first = next(name for name in ("self_attn.q_proj.weight", "self_attn.qkv_proj.weight") if name in params)
        routers = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "mlp.gate_up_proj.weight", "mlp.gate_proj.weight")
        second = next(name for name in routers if name in params)
        down = {own[1]: name for name in params if (own := _DOWN.fullmatch(name))}
        wanted = {first, second, output, *down.values()}
        stats = run.calibrate(params, hidden, lambda name, leaf, wanted=wanted: name in wanted, "square")
        square = lambda name, stats=stats: np.asarray(stats[name].square[0], np.float64)
        # Kernels are [outputs, inputs].
        energy = lambda name, params=params, square=square: square(name) * np.asarray((params[name] ** 2).sum(0))
        before = list(hidden)
        hidden.advance(run, params)
        influence = np.mean([float(block_influence((x, y))[0]) for x, y in zip(before, hidden, strict=True)])
        found.append(
            _Scores(
                {module: energy(name) for module, name in down.items()},
                energy(output).reshape(heads, -1).sum(1),
                square(first) + square(second),
                float(influence),
            )
        )
    return found


def _numbered(config: Mapping[str, Any], cut: Parts, stay: list[int]) -> dict[str, Any]:
    """Returns the config of the remaining blocks, with the entries that number blocks changed."""
    new = {**config, "num_hidden_layers": len(stay)}
    if config.get("sliding_window") or config.get("layer_types"):
        new["layer_types"] = ["sliding_attention" if cut.is_local(index) else "full_attention" for index in stay]
    if "mlp_only_layers" in config or config.get("decoder_sparse_step", 1) != 1:
        step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        is_dense = lambda index: index in dense or (index + 1) % step
        new |= {
            "mlp_only_layers": [place for place, index in enumerate(stay) if is_dense(index)],
            "decoder_sparse_step": 1,
        }
    return new


def _kept(scores: _Scores, channels: np.ndarray, new: Mapping[str, Any], folder: Folder) -> _Kept:
    old, key = folder.config, next((key for key in _EXPERTS if key in new), "")
    inside = {module: energy for module, energy in scores.neurons.items() if ".experts." in module}
    number = lambda module: int(module.rpartition(".")[2])
    of_experts = np.array([inside[module].sum() for module in sorted(inside, key=number)])
    neurons = {}
    for module, energy in scores.neurons.items():
        # The first size of the config that this MLP has; some configs have a separate name for the width of experts.
        sizes = ("moe_intermediate_size", "intermediate_size") if module in inside else (_WIDTHS[module],)
        size = next(size for size in sizes if old.get(size))
        neurons[module] = _largest(energy, new[size])
    kept = _largest(of_experts, new[key]) if inside else np.arange(0)
    return _Kept(channels, _largest(scores.heads, new["num_key_value_heads"]), neurons, kept)


def _narrowed(
    params: Mapping[str, jax.Array], kept: _Kept, config: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Returns the parameters of a block with fewer channels, heads, neurons and experts."""
    size, heads = new["head_dim"], config["num_attention_heads"]
    shared = config.get("num_key_value_heads") or heads
    keys = (kept.heads[:, None] * size + np.arange(size)).ravel()
    width = heads // shared * size  # of the queries that share one key-value head, which are neighbours
    queries = (kept.heads[:, None] * width + np.arange(width)).ravel()
    first, second = heads * size, (heads + shared) * size
    rows = {
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": keys,
        "self_attn.qkv_proj": np.concatenate([queries, first + keys, second + keys]),
        "self_attn.o_proj": kept.channels,
        "mlp.gate": kept.experts,
        "block_sparse_moe.gate": kept.experts,
    }
    columns = {"self_attn.o_proj": queries}
    for module, neurons in kept.neurons.items():
        rows |= {f"{module}.{name}": neurons for name in ("gate_proj", "up_proj", "w1", "w3")}
        rows |= {f"{module}.{name}": kept.channels for name in ("down_proj", "w2")}
        columns |= {f"{module}.{name}": neurons for name in ("down_proj", "w2")}
        both = np.concatenate([neurons, config["intermediate_size"] + neurons]) if module == "mlp" else neurons
        rows[f"{module}.gate_up_proj"] = both
    every = slice(None)

    def part(module: str, x: jax.Array) -> jax.Array:
        if x.ndim == 1:
            return x[kept.channels if module in _NORMS else rows.get(module, every)]
        # Kernels are [outputs, inputs]; kernels that `columns` does not name read the hidden states.
        return x[rows.get(module, every)][:, columns.get(module, kept.channels)]

    places = {f".experts.{expert}.": f".experts.{place}." for place, expert in enumerate(kept.experts)}
    out = {}
    for name, x in params.items():
        own = re.search(r"\.experts\.\d+\.", name)
        if own is None or own[0] in places:
            renamed = name if own is None else name.replace(own[0], places[own[0]])
            out[renamed] = part(name.rpartition(".")[0], x)
    return out


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the largest scores, ascending; if scores are equal, the lowest indices."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
