"""Smaller language models from a folder: `slim_folder` removes MLP neurons, key-value heads and whole blocks.

The result is the ordinary smaller architecture: `config.json` says the new widths and depth, and the program that the
folder came from loads it. The dense model runs once over the calibration text, block by block.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _progress
from jaxprune.checkpoints import Folder, FolderWriter
from jaxprune.models.decoder import block_params, parts
from jaxprune.models.pruning import BlockRunners, checked_tokens


class SlimResult(NamedTuple):
    """What `slim_folder` removed.

    Attributes:
      blocks: the numbers of the removed blocks, in the source's numbering.
      influence: the influence of each block of the source, float64 [blocks].
      config: the new folder's config.
    """

    blocks: tuple[int, ...]
    influence: np.ndarray
    config: dict[str, Any]


class _Scores(NamedTuple):
    """Of one block: the energy that each neuron and each key-value head writes, and the block's influence."""

    neurons: np.ndarray
    heads: np.ndarray
    influence: float


def slim_folder(
    source: Any,
    output: Any,
    tokens: np.ndarray,
    *,
    mlp: float = 1.0,
    kv_heads: int | None = None,
    drop_blocks: int | Sequence[int] = 0,
    progress: bool | None = None,
) -> SlimResult:
    r"""Makes a language model in a Hugging Face folder narrower and shallower, and writes it into a new folder.

    Use it where the model has to be smaller and faster everywhere, and train it on afterwards (`jaxprune.ensembles` has
    a distillation loss): removal without training costs far more than masks of the same size.

    Neurons of an MLP and key-value heads (each with the queries that share it) are ranked in each block by the energy
    that they write into the hidden states, $\sum_j \lVert a_j \rVert^2 \lVert w_j \rVert^2$ over their inputs j of the
    output projection: activations a over the calibration text, columns w of the kernel. Blocks are ranked by the
    influence of Men et al. 2024 (ShortGPT, arXiv 2403.03853, eq. 1), $1 - E[\cos(x_{in}, x_{out})]$; those of least
    influence go. All blocks keep equally many units, as the config has one number for all; which ones differs by block.

    Args:
      source: the folder, or its path.
      output: the path of the new folder.
      tokens: the calibration text, int [windows, time].
      mlp: the fraction of each MLP's neurons that stays, in (0, 1]: floor(mlp n + 1/2) of n, at least one.
      kv_heads: how many key-value heads of each block stay, 1 or more; None for all.
      drop_blocks: how many blocks go, those of least influence; or their numbers.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      What was removed. Of equal scores the unit of lowest index stays.

    Raises:
      FileExistsError: the output exists.
      FileNotFoundError, ValueError: the source is not a complete checkpoint of a known family, or has routed experts; a
        number is out of its range. The message names it.
    """
    folder = source if isinstance(source, Folder) else Folder(source)
    tokens = checked_tokens(tokens, folder)
    cut, config = parts(folder.config), folder.config
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    _check(folder, mlp, kv_heads, drop_blocks, heads, cut.blocks)
    scores = _scores(folder, tokens, progress)
    influence = np.array([score.influence for score in scores])
    if isinstance(drop_blocks, int):
        gone = sorted(int(i) for i in np.argsort(influence, kind="stable")[:drop_blocks])
    else:
        gone = sorted(set(drop_blocks))
    stay = [index for index in range(cut.blocks) if index not in gone]
    new = _new_config(config, stay, mlp, kv_heads)
    rest = [name for name in folder.shapes if not name.startswith("model.layers.")]
    with FolderWriter(output, new, parts=len(stay) + 1) as writer:
        for place, index in enumerate(stay):
            names = [name for name in folder.shapes if name.startswith(f"model.layers.{index}.")]
            own = block_params(folder.load(names), index)
            small = _narrowed(own, scores[index], config, new)
            writer.add(place, {f"model.layers.{place}.{name}": x for name, x in small.items()})
        writer.add(len(stay), folder.load(rest))
        writer.carry_over(folder)
    return SlimResult(tuple(gone), influence, new)


def _check(folder: Folder, mlp: float, kv_heads: Any, drop_blocks: Any, heads: int, blocks: int) -> None:
    if not 0 < mlp <= 1:
        raise ValueError(f"mlp is the fraction of neurons that stays and must be in (0, 1], got {mlp}")
    if kv_heads is not None and not 1 <= kv_heads <= heads:
        raise ValueError(f"kv_heads must be from 1 to {heads}, the key-value heads of {folder.path}; got {kv_heads}")
    count = drop_blocks if isinstance(drop_blocks, int) else len(set(drop_blocks))
    wrong = [] if isinstance(drop_blocks, int) else [i for i in drop_blocks if not 0 <= i < blocks]
    if not 0 <= count < blocks or wrong:
        raise ValueError(f"drop_blocks must leave one of the blocks 0 to {blocks - 1}, got {drop_blocks!r}")
    if kv_heads not in (None, heads) and folder.config["model_type"] == "phi3" and folder.config.get("rope_scaling"):
        raise ValueError(
            f"{folder.path} is a Phi-3 with rope_scaling, whose heads cannot be removed: transformers derives the "
            "length of the scaling factors from the number of heads; leave kv_heads out"
        )
    if any(".experts." in name for name in folder.shapes):
        raise ValueError(f"{folder.path} has routed experts, which slim_folder does not remove; use prune_folder")


def _scores(folder: Folder, tokens: np.ndarray, progress: bool | None) -> list[_Scores]:
    cut = parts(folder.config)
    outer = folder.load(["model.embed_tokens.weight"], dtype=jnp.float32)
    hidden = [cut.embed(outer, row) for row in jnp.asarray(tokens)[:, None]]
    runners, found = BlockRunners(cut), []
    heads = folder.config.get("num_key_value_heads") or folder.config["num_attention_heads"]
    outputs = ["mlp.down_proj.weight", "self_attn.o_proj.weight"]
    for index in _progress.bar(range(cut.blocks), progress, what="blocks"):
        names = [name for name in folder.shapes if name.startswith(f"model.layers.{index}.")]
        params, run = block_params(folder.load(names, dtype=jnp.float32), index), runners.of(index)
        stats = run.calibrate(params, hidden, lambda name, leaf: name in outputs, "square")
        energy = [
            np.asarray(stats[name].square[0] * (params[name] ** 2).sum(0), np.float64)  # kernels are [outputs, inputs]
            for name in outputs
        ]
        after = run.forward(params, hidden)
        cosine = np.mean([float(_cosine(x, y)) for x, y in zip(hidden, after, strict=True)])
        found.append(_Scores(energy[0], energy[1].reshape(heads, -1).sum(1), 1 - float(cosine)))
        hidden = after
    return found


@jax.jit
def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return ((x * y).sum(-1) / jnp.where(norms > 0, norms, 1.0)).mean()


def _new_config(config: Mapping[str, Any], stay: list[int], mlp: float, kv_heads: int | None) -> dict[str, Any]:
    heads, shared = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    kept = shared if kv_heads is None else kv_heads
    new = {
        **config,
        "num_hidden_layers": len(stay),
        "intermediate_size": max(1, int(np.floor(mlp * config["intermediate_size"] + 0.5))),
        "num_attention_heads": heads // shared * kept,
        "num_key_value_heads": kept,
        # The default, width over heads, is no longer the size of a head.
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }
    cut = parts(config)
    if config.get("sliding_window") or config.get(
        "layer_types"
    ):  # by number, which removal changes; so it is said for each block
        local = cut.is_local
        new["layer_types"] = ["sliding_attention" if local(index) else "full_attention" for index in stay]
    return new


def _narrowed(
    params: Mapping[str, jax.Array], scores: _Scores, config: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The parameters of a block with fewer neurons and heads."""
    size, heads = new["head_dim"], config["num_attention_heads"]
    shared = config.get("num_key_value_heads") or heads
    neurons = _largest(scores.neurons, new["intermediate_size"])
    kept = _largest(scores.heads, new["num_key_value_heads"])
    keys = (kept[:, None] * size + np.arange(size)).ravel()
    width = heads // shared * size  # of the queries that share one key-value head, which are neighbours
    queries = (kept[:, None] * width + np.arange(width)).ravel()
    first, second = heads * size, (heads + shared) * size
    rows = {
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": keys,
        "self_attn.qkv_proj": np.concatenate([queries, first + keys, second + keys]),
        "mlp.gate_proj": neurons,
        "mlp.up_proj": neurons,
        "mlp.gate_up_proj": np.concatenate([neurons, config["intermediate_size"] + neurons]),
    }
    columns = {"self_attn.o_proj.weight": queries, "mlp.down_proj.weight": neurons}
    out = {}
    for name, x in params.items():
        module = name.rpartition(".")[0]
        out[name] = x[rows[module]] if module in rows else x[:, columns[name]] if name in columns else x
    return out


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the largest scores, ascending; of equal ones the lowest."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])
