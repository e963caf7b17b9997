"""Language models from a folder, block by block: `prune_folder` and `perplexity`.

Only one block's weights are in memory at a time. The hidden states that go into a block are kept; the block runs once
to be calibrated and once more, pruned, to make the hidden states of the next one: two passes, whatever the depth
(Frantar and Alistarh 2023, arXiv 2301.00774, section 4).
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _progress, reconstruction
from jaxprune import masks as masks_
from jaxprune.checkpoints import Folder, FolderWriter
from jaxprune.models.decoder import Parts, block_params, parts
from jaxprune.reconstruction.sequential import BlockRunner

_ROUTERS = ("*mlp.gate.weight", "*block_sparse_moe.gate.weight", "*shared_expert_gate.weight")


def is_pruned(name: str, leaf: Any) -> bool:
    """Whether `prune_folder` prunes a parameter by default: the kernels of attention and MLPs in the blocks.

    Args:
      name: the parameter's name in the checkpoint.
      leaf: an array or a ShapeDtypeStruct.

    Returns:
      False for embeddings, heads, norms, biases and the routers of experts.

    Example:
      >>> kernel = jax.ShapeDtypeStruct((8, 4), jnp.float32)
      >>> is_pruned('model.layers.0.mlp.up_proj.weight', kernel), is_pruned('lm_head.weight', kernel)
      (True, False)
    """
    is_router = any(fnmatchcase(name, glob) for glob in _ROUTERS)
    return name.startswith("model.layers.") and len(leaf.shape) == 2 and not is_router


class BlockResult(NamedTuple):
    """What became of one block.

    Attributes:
      errors: for each pruned kernel, by its name in the checkpoint, the squared change of its outputs on the
        calibration text over their squared size.
      sparsity: the fraction of the kernels' entries that is zero.
      seconds: the wall time.
    """

    errors: dict[str, float]
    sparsity: float
    seconds: float


class Perplexity(NamedTuple):
    """The perplexity of a text, with a 95 % interval over its windows.

    Attributes:
      value: exp of the mean negative log-likelihood of a token, given those before it in its window.
      low: the lower end of the interval.
      high: the upper end.
      tokens: how many tokens were predicted.
      seconds: the wall time, compilation included.
    """

    value: float
    low: float
    high: float
    tokens: int
    seconds: float


def prune_folder(
    source: Any,
    output: Any,
    tokens: np.ndarray,
    sparsity: Any = None,
    *,
    options: Mapping[str, Any] | None = None,
    where: Any = None,
    resume: bool = False,
    progress: bool | None = None,
) -> list[BlockResult]:
    """Prunes a language model from a Hugging Face folder into a new folder.

    Use it for models that do not fit into memory, or simply because the checkpoint is where the model lies. The kernels
    of attention and MLPs are pruned; embeddings, heads, norms and the routers of experts are left as they are.

    Args:
      source: the folder, or its path; see `decoder` for the families.
      output: the path of the new folder. A run that was killed has left `OUTPUT.unfinished`.
      tokens: the calibration text, int [windows, time].
      sparsity: the fraction removed from each kernel, in [0, 1); or a mapping from globs over names such as
        `model.layers.0.*` to fractions (kernels that match none stay dense); or None for a pattern of n of m.
      options: further options of `jaxprune.reconstruct`: `method`, `pattern`, `damping`, `block`.
      where: which kernels: a glob, a list of globs, or a predicate `(name, leaf) -> bool` over the names in the
        checkpoint; None for all of attention and MLPs, without routers.
      resume: whether to go on with an unfinished folder, to the same bits.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      The result of each block that was pruned in this call.

    Raises:
      FileExistsError: the output exists, or an unfinished one does and `resume` is False.
      FileNotFoundError, ValueError: the source is not a complete checkpoint of a known family; `reconstruct` cannot do
        what is asked; a kernel's inputs are not finite. The message names the file or the parameter.
    """
    folder = source if isinstance(source, Folder) else Folder(source)
    options = dict(options or {})
    tokens = checked_tokens(tokens, folder)
    cut = parts(folder.config)
    asked = {"sparsity": sparsity, "where": where, **options}
    identity = {
        "source": str(folder.path.absolute()),
        "tokens": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "options": {name: repr(value) for name, value in sorted(asked.items())},
    }
    rest = [name for name in folder.shapes if not name.startswith("model.layers.")]
    writer = FolderWriter(output, folder.config, parts=cut.blocks + 1, identity=identity, resume=resume)
    run = BlockRunners(cut)
    results: list[BlockResult] = []
    with writer, _progress.bar(total=cut.blocks, progress=progress, what="blocks") as bar:
        outer = folder.load(rest, dtype=jnp.float32)
        hidden = [cut.embed(outer, row) for row in jnp.asarray(tokens)[:, None]]
        del outer
        for index in range(cut.blocks):
            prefix = f"model.layers.{index}."
            names = [name for name in folder.shapes if name.startswith(prefix)]
            if writer.has(index):
                stored = writer.load(index)
            else:
                began = time.perf_counter()
                whole = block_params(folder.load(names, dtype=jnp.float32), index)
                chosen = _predicate(where, prefix)
                pruned, stats = run.of(index).prune(
                    whole, hidden, _of_block(sparsity, names, prefix), where=chosen, **options
                )
                errors = reconstruction.relative_errors(whole, pruned.params, stats)
                stored = {prefix + k: v.astype(folder.shapes[prefix + k].dtype) for k, v in pruned.params.items()}
                writer.add(index, stored)
                removed = float(masks_.sparsity(pruned.params, pruned.masks))
                errors = {prefix + name: error for name, error in errors.items()}
                results.append(BlockResult(errors, removed, time.perf_counter() - began))
            # What is stored goes on, rounded to the dtype of the folder, so that a resumed run has the same bits.
            params = block_params({name: x.astype(jnp.float32) for name, x in stored.items()}, index)
            hidden = run.of(index).forward(params, hidden)
            bar.update()
        if not writer.has(cut.blocks):
            writer.add(cut.blocks, folder.load(rest))
        writer.carry_over(folder)
    return results


def perplexity(source: Any, tokens: np.ndarray, *, batch: int = 4, progress: bool | None = None) -> Perplexity:
    """The perplexity of a language model in a Hugging Face folder on a text.

    The model is read and run block by block in float32, so that it may be larger than memory.

    Args:
      source: the folder, or its path.
      tokens: the text, int [windows, time], at least two windows of at least two tokens.
      batch: how many windows are run at a time.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      The perplexity and its interval: exp(m ± 1.96 s / sqrt(n)), with m and s the mean and the standard deviation over
      the n windows of a window's mean negative log-likelihood.

    Raises:
      FileNotFoundError, ValueError: the folder is not a complete checkpoint of a known family; the text is too short.
    """
    folder = source if isinstance(source, Folder) else Folder(source)
    tokens = checked_tokens(tokens, folder)
    if tokens.shape[0] < 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be at least two windows of two tokens, got {tokens.shape}; pass a longer text")
    began, cut = time.perf_counter(), parts(folder.config)
    run = BlockRunners(cut)
    outer = folder.load([name for name in folder.shapes if not name.startswith("model.layers.")], dtype=jnp.float32)
    rows = [jnp.asarray(tokens[i : i + batch]) for i in range(0, len(tokens), batch)]
    hidden = [cut.embed(outer, row[:, :-1]) for row in rows]
    for index in _progress.bar(range(cut.blocks), progress, what="blocks"):
        prefix = f"model.layers.{index}."
        names = [name for name in folder.shapes if name.startswith(prefix)]
        params = block_params(folder.load(names, dtype=jnp.float32), index)
        hidden = run.of(index).forward(params, hidden)
    losses = np.concatenate([np.asarray(_losses(cut, outer, x, row)) for x, row in zip(hidden, rows, strict=True)])
    mean, error = losses.mean(), losses.std(ddof=1) / math.sqrt(len(losses))
    low, high = (math.exp(mean + side * 1.96 * error) for side in (-1, 1))
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return Perplexity(math.exp(mean), low, high, count, time.perf_counter() - began)


class BlockRunners:
    """The blocks of a decoder: one compiled program for each kind of block and each shape of its arrays."""

    def __init__(self, cut: Parts) -> None:
        self._cut = cut
        self._runners: dict[int, BlockRunner] = {}

    def of(self, index: int) -> BlockRunner:
        """The runner of the block of this number."""
        alike = self._cut.alike(index)
        if alike not in self._runners:
            block = lambda params, hidden: self._cut.block(params, hidden, alike)
            self._runners[alike] = BlockRunner(block, collect="gram")  # whatever the method: the errors need them
        return self._runners[alike]


@partial(jax.jit, static_argnums=0)
def _losses(cut: Parts, outer: Any, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean negative log-likelihood of each window."""
    logits = cut.head(outer, hidden)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - picked).mean(-1)


def checked_tokens(tokens: Any, folder: Folder) -> np.ndarray:
    """The tokens as int32 [windows, time]; an error where they are not, or do not belong to the folder's vocabulary."""
    tokens = np.ascontiguousarray(tokens)
    vocabulary = folder.shapes["model.embed_tokens.weight"].shape[0]
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers [windows, time], got {tokens.dtype} {tokens.shape}")
    if not tokens.size:
        raise ValueError("tokens is empty: the text is shorter than one window; pass a longer text or shorter windows")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(
            f"tokens run from {tokens.min()} to {tokens.max()}, and {folder.path} has a vocabulary of {vocabulary}; "
            "encode the text by the folder's own tokenizer"
        )
    return tokens.astype(np.int32)


def _of_block(sparsity: Any, names: Sequence[str], prefix: str) -> Any:
    """The sparsity of a block's leaves: mappings are over names in the checkpoint."""
    if not isinstance(sparsity, Mapping):
        return sparsity
    return {
        name.removeprefix(prefix): next((v for glob, v in sparsity.items() if fnmatchcase(name, glob)), 0.0)
        for name in names
    }


def _predicate(where: Any, prefix: str) -> Callable[[str, Any], bool]:
    """Which leaves of a block are pruned, for names without the block's prefix."""
    if where is None or callable(where):
        whole = where or is_pruned
        return lambda name, leaf: bool(whole(prefix + name, leaf))
    globs = [where] if isinstance(where, str) else list(where)
    return lambda name, leaf: len(leaf.shape) == 2 and any(fnmatchcase(prefix + name, glob) for glob in globs)
