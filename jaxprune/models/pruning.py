"""Language models from a folder, block by block: `prune_folder` and `perplexity`.

Only one block's weights are in memory at a time. The hidden states that enter the block are kept. Each block runs
twice: first dense, to be calibrated, and then pruned, to compute the hidden states for the next block (Frantar and
Alistarh 2023, arXiv 2301.00774, section 4).
"""

import contextlib
import ctypes
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _progress, _tree
from jaxprune.calibration import Stats
from jaxprune.checkpoints import Folder, FolderWriter
from jaxprune.models.decoder import Parts, block_params, parts
from jaxprune.reconstruction import reconstruct, relative_errors
from jaxprune.reconstruction.blocks import BlockRunner

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_HIDDEN_DTYPES = ("float32", "bfloat16", "float16")


class BlockResult(NamedTuple):
    """The result of pruning one block.

    Attributes:
      errors: for each pruned kernel, by its name in the checkpoint, the squared change of its outputs on the
        calibration text over their squared size.
      sparsity: the fraction of the pruned kernels' entries that was removed.
      seconds: the wall time.
    """

    errors: dict[str, float]
    sparsity: float
    seconds: float


class Perplexity(NamedTuple):
    """The perplexity of a text, with a 95 % interval over its windows.

    Attributes:
      value: exp of the mean negative log-likelihood of a token, given the earlier tokens of its window.
      low: the lower end of the interval.
      high: the upper end.
      tokens: the number of predicted tokens.
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
    hidden_dtype: Any = jnp.float32,
    hidden_on_disk: bool = False,
    resume: bool = False,
    progress: bool | None = None,
) -> list[BlockResult]:
    """Prunes a language model from a Hugging Face folder into a new folder.

    Use it for a model on disk, also if the model does not fit into memory. This function prunes the kernels of
    attention and MLPs. It does not change embeddings, heads, norms, biases and the routers of experts. Memory
    holds one block of the model in float32, its Gram matrices, and the method's arrays for the block's largest kernel.

    Args:
      source: the folder, or its path; see `decoder` for the families.
      output: the path of the new folder. A killed run leaves `OUTPUT.unfinished`.
      tokens: the calibration text, int [windows, time].
      sparsity: the fraction removed from each kernel, in [0, 1); or a mapping from globs over names such as
        `model.layers.0.*` to fractions (a kernel that matches no glob is not pruned); or None for an N:M pattern.
      options: further options of `jaxprune.reconstruct`: `method`, `pattern`, `criterion`, `allocation`.
      where: which kernels: None (default) selects all kernels of attention and MLPs, without routers. A glob, or a list
        of globs, over the names in the checkpoint narrows this rule; a predicate `(name, leaf) -> bool` replaces it.
      hidden_dtype: the dtype in which the hidden states are kept, float32 (default), bfloat16 or float16; blocks
        compute in float32.
      hidden_on_disk: whether to keep the hidden states in a temporary file beside the output, mapped into memory;
        default False.
      resume: whether to continue an unfinished folder, to the same bits; default False.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      The result of each block, in order. Blocks that an earlier run finished have the results of that run.

    Raises:
      FileExistsError: the output exists, or an unfinished output exists and `resume` is False.
      FileNotFoundError, ValueError: the source is not a complete checkpoint of a known family; a glob of `sparsity`
        matches no parameter; `reconstruct` does not support an option; no token of the calibration text reaches a
        kernel, such as the kernel of an expert. The message names the file or the parameter.
    """
    folder, cut = opened(source)
    options = dict(options or {})
    tokens = checked_tokens(tokens, folder)
    if jnp.dtype(hidden_dtype).name not in _HIDDEN_DTYPES:
        raise ValueError(f"hidden_dtype must be one of {', '.join(_HIDDEN_DTYPES)}; got {hidden_dtype}")
    asked = {"sparsity": sparsity, "where": where, "hidden_dtype": jnp.dtype(hidden_dtype).name, **options}
    identity = {
        "source": str(folder.path.absolute()),
        "windows": "{} of {} tokens".format(*tokens.shape),
        "text": hashlib.sha256(tokens.tobytes()).hexdigest(),
        **dict(sorted(asked.items())),
    }
    rest, kernels = outside_blocks(folder), _kernels(folder, where)
    if isinstance(sparsity, Mapping):
        names = list(folder.shapes)
        values = _tree.of_names(sparsity, names, default=0.0, what="sparsity", kind="parameter")
        sparsity = dict(zip(names, values, strict=True))
    writer = FolderWriter(output, folder.config, parts=cut.blocks + 1, identity=identity, resume=resume)
    run = BlockRunners(cut)
    results: list[BlockResult] = []
    with writer, _little_memory(), _progress.bar(total=cut.blocks, progress=progress, what="blocks") as bar:
        hidden = Hidden(folder, cut, tokens, hidden_dtype, Path(output).absolute().parent if hidden_on_disk else None)
        for index in range(cut.blocks):
            prefix = f"model.layers.{index}."
            if writer.has(index):
                stored = writer.load(index)
                results.append(BlockResult(**writer.about(index)))
            else:
                began = time.perf_counter()
                params = load_block(folder, index)
                chosen = lambda name, leaf, prefix=prefix: bool(kernels(prefix + name, leaf))
                errors, removed = _prune_block(
                    *(run.of(index), params, hidden, _of_block(sparsity, params, prefix), chosen, options),
                    *(prefix, folder.shapes),
                )
                stored = {prefix + k: v.astype(folder.shapes[prefix + k].dtype) for k, v in params.items()}
                del params
                results.append(BlockResult(errors, removed, time.perf_counter() - began))
                writer.add(index, stored, about=results[-1]._asdict())
            # The next block is calibrated on what is stored, rounded to the dtype of the folder, so that a resumed run
            # has the same bits.
            if index + 1 < cut.blocks:
                hidden.advance(run.of(index), block_params(stored, index))
            del stored
            _return_memory()
            bar.update()
        if not writer.has(cut.blocks):
            writer.add(cut.blocks, folder.load(rest))
        writer.carry_over(folder)
    return results


def _prune_block(
    run: BlockRunner,
    params: dict[str, jax.Array],
    hidden: Iterable[jax.Array],
    sparsity: Any,
    where: Callable[[str, Any], bool],
    options: Mapping[str, Any],
    prefix: str,
    dtypes: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, float], float]:
    """Prunes the kernels in `params` in place; returns the error of each, by its whole name, and the sparsity.

    Kernels are pruned one by one: only the current kernel is in float32, and its Gram matrix is freed before the next.
    An allocation compares kernels, so all kernels of the block are then pruned together.
    """
    names = [name for name, leaf in params.items() if where(name, leaf) and _tree.is_floating(leaf)]
    if not names:
        return {}, 0.0
    stats = run.calibrate(params, hidden, where)  # Gram matrices for every method, because the errors need them
    # The largest Gram matrix and the largest kernels come last, when the other kernels are short.
    names = sorted(names, key=lambda name: (params[name].shape[-1], params[name].size))
    if options.get("method") != "magnitude":
        _check_seen(stats, prefix)
    errors: dict[str, float] = {}
    removed = total = 0.0
    for group in [names] if "allocation" in options else [[name] for name in names]:
        own = replace(stats, inputs={k: x for k, x in stats.inputs.items() if "/".join(k) in group})
        among = lambda name, leaf, group=group: name in group
        params |= {name: params[name].astype(jnp.float32) for name in group}
        pruned = reconstruct(params, own, sparsity, where=among, **options)
        errors |= {prefix + name: error for name, error in relative_errors(params, pruned.params, own).items()}
        for name in group:
            removed += float(1 - np.asarray(pruned.masks[name]).mean()) * params[name].size
            total += params[name].size
            params[name] = pruned.params[name].astype(dtypes[prefix + name].dtype)
            stats.inputs.pop((name,), None)
        del own, pruned
        _return_memory()
    return errors, removed / max(total, 1)


def _return_memory() -> None:
    """Returns freed memory to the operating system: glibc keeps much of what XLA's compiler and arrays have freed."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another operating system or C library
        getattr(ctypes.CDLL(None), function)(*arguments)


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """Keeps little freed memory in the process: of large arrays at once, of XLA's compiler before its program runs."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, 2**22)
    _glibc("mallopt", _M_TRIM_THRESHOLD, 2**20)
    after = lambda event, *_, **__: _return_memory() if event.endswith("backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(after)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(after)
        # The values that glibc reaches by itself in a process with large arrays.
        _glibc("mallopt", _M_MMAP_THRESHOLD, 2**25)
        _glibc("mallopt", _M_TRIM_THRESHOLD, 2**26)


def _check_seen(stats: Stats, prefix: str) -> None:
    unseen = sorted(
        prefix + "/".join(name) for name, inputs in stats.inputs.items() if not np.asarray(inputs.square).any()
    )
    if unseen:
        more = f" and of {len(unseen) - 1} more" if len(unseen) > 1 else ""
        raise ValueError(
            f"the calibration text never reaches the inputs of {unseen[0]}{more}: calibrate on more text, leave the "
            'kernel out by where, or pass method="magnitude", which needs no text'
        )


def perplexity(source: Any, tokens: np.ndarray, *, batch: int = 4, progress: bool | None = None) -> Perplexity:
    """Returns the perplexity of a language model in a Hugging Face folder on a text.

    This function reads and runs the model block by block in float32, so the model may be larger than memory.

    Args:
      source: the folder, or its path.
      tokens: the text, int [windows, time], at least two windows of at least two tokens.
      batch: the number of windows that run together; default 4.
      progress: True shows a progress bar, False does not, None shows it on a terminal and in a notebook.

    Returns:
      The perplexity and its interval: exp(m ± 1.96 s / sqrt(n)), at least 1, with m and s the mean and the standard
      deviation over the n windows of a window's mean negative log-likelihood.

    Raises:
      FileNotFoundError, ValueError: the folder is not a complete checkpoint of a known family; the text is too short.
    """
    folder, cut = opened(source)
    tokens = checked_tokens(tokens, folder)
    if tokens.shape[0] < 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be at least two windows of two tokens, got {tokens.shape}; pass more windows")
    began, run = time.perf_counter(), BlockRunners(cut)
    outer = folder.load(outside_blocks(folder), dtype=jnp.float32)
    rows = [jnp.asarray(tokens[i : i + batch]) for i in range(0, len(tokens), batch)]
    hidden = [cut.embed(outer, row[:, :-1]) for row in rows]
    for index in _progress.bar(range(cut.blocks), progress, what="blocks"):
        params = load_block(folder, index, jnp.float32)
        for place, x in enumerate(run.of(index).forward(params, hidden)):
            hidden[place] = x
    losses = np.concatenate([np.asarray(_losses(cut, outer, x, row)) for x, row in zip(hidden, rows, strict=True)])
    mean, error = losses.mean(), losses.std(ddof=1) / math.sqrt(len(losses))
    low, high = (math.exp(max(0.0, mean + side * 1.96 * error)) for side in (-1, 1))
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    return Perplexity(math.exp(mean), low, high, count, time.perf_counter() - began)


@partial(jax.jit, static_argnums=0)
def _losses(cut: Parts, outer: Any, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the mean negative log-likelihood of each window."""
    logits = cut.head(outer, hidden)
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - picked).mean(-1)


class BlockRunners:
    """The blocks of a decoder, computed in float32: one compiled program for each kind of block and its arrays."""

    def __init__(self, cut: Parts) -> None:
        self._cut = cut
        self._runners: dict[int, BlockRunner] = {}

    def of(self, index: int) -> BlockRunner:
        """Returns the runner of the block of this number."""
        alike = self._cut.alike(index)
        if alike not in self._runners:
            wide = lambda x: x.astype(jnp.float32) if _tree.is_floating(x) else x
            block = lambda params, hidden: self._cut.block(jax.tree.map(wide, params), hidden, alike)
            self._runners[alike] = BlockRunner(block)
        return self._runners[alike]


class Hidden:
    """The hidden states of all windows, which blocks read in float32, one window at a time.

    Args:
      folder: the folder, for the embedding.
      cut: its function.
      tokens: int [windows, time].
      dtype: the dtype in which hidden states are kept.
      folder_of_file: where a temporary file with the hidden states is made; None (default) keeps them in memory.
    """

    def __init__(
        self, folder: Folder, cut: Parts, tokens: np.ndarray, dtype: Any = jnp.float32, folder_of_file: Any = None
    ) -> None:
        name = "model.embed_tokens.weight"
        width, self._dtype = folder.shapes[name].shape[1], jnp.dtype(dtype)
        # Only the rows of the text's own words become float32: the whole table can be larger than a block.
        words, places = np.unique(tokens, return_inverse=True)
        outer = {name: np.asarray(folder.load([name])[name])[words].astype(np.float32)}
        embed = jax.jit(cut.embed)
        self._rows: Any = [None] * len(tokens)
        if folder_of_file is not None:
            with tempfile.TemporaryFile(dir=folder_of_file) as file:  # without a name, so a killed run leaves nothing
                self._rows = np.memmap(file, self._dtype, "w+", shape=(len(tokens), 1, tokens.shape[1], width))
        for place, row in enumerate(places.reshape(tokens.shape)[:, None].astype(np.int32)):
            self._keep(place, embed(outer, row))

    def __iter__(self) -> Iterator[jax.Array]:
        return (jnp.asarray(row, jnp.float32) for row in self._rows)

    def advance(self, run: BlockRunner, params: Mapping[str, jax.Array]) -> None:
        """Replaces each window's hidden states with the outputs of a block."""
        for place, x in enumerate(run.forward(params, self)):
            self._keep(place, x)

    def _keep(self, place: int, x: jax.Array) -> None:
        self._rows[place] = (
            np.asarray(x.astype(self._dtype)) if isinstance(self._rows, np.memmap) else x.astype(self._dtype)
        )


def opened(source: Any) -> tuple[Folder, Parts]:
    """Opens a folder, and checks from shapes alone that its parameters fit its config.

    Raises:
      FileNotFoundError, ValueError: the folder is not a complete checkpoint of a known family; a parameter is missing
        or does not fit. The message names it.
    """
    folder = source if isinstance(source, Folder) else Folder(source)
    cut = parts(folder.config)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in folder.shapes.items()}
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    hidden = _shape_of(folder, "", cut.embed, shapes, tokens)
    known = set()
    for index in range(cut.blocks):
        own = block_params(shapes, index)
        key = (cut.alike(index), tuple((name, x.shape) for name, x in own.items()))
        if key not in known:
            block = lambda params, hidden, index=index: cut.block(params, hidden, index)
            after = _shape_of(folder, f"model.layers.{index}.", block, own, hidden)
            if after.shape != hidden.shape:
                raise ValueError(f"{folder.path}: block {index} changes the width of the hidden states")
            known.add(key)
    _ = _shape_of(folder, "", cut.head, shapes, hidden)
    return folder, cut


def _shape_of(folder: Folder, prefix: str, fn: Callable[..., Any], params: Mapping[str, Any], x: Any) -> Any:
    try:
        return jax.eval_shape(fn, params, x)
    except KeyError as error:
        raise ValueError(
            f"{folder.path} has no parameter {prefix}{error.args[0]}, which its config.json requires; download the "
            "folder again"
        ) from error
    except (TypeError, ValueError) as error:
        where = f"the parameters {prefix}*" if prefix else "its embedding, last norm or head"
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{folder.path}: {where} do not fit config.json ({lines[0]})") from error


def load_block(folder: Folder, index: int, dtype: Any = None) -> dict[str, jax.Array]:
    """Loads the parameters of one block, without their prefix; `dtype` None keeps the dtypes of the folder."""
    names = [name for name in folder.shapes if name.startswith(f"model.layers.{index}.")]
    return block_params(folder.load(names, dtype=dtype), index)


def outside_blocks(folder: Folder) -> list[str]:
    """Returns the names of the parameters outside the blocks: embedding, last norm and head."""
    return [name for name in folder.shapes if not name.startswith("model.layers.")]


def prunable(folder: Folder) -> Callable[[str, Any], bool]:
    """Makes a predicate over parameters: whether `prune_folder` prunes it by default."""
    kernels = {leaf.name for leaf in folder.roles if leaf.uses == ("multiplied",)}
    return lambda name, leaf: name in kernels and name.startswith("model.layers.")


def checked_tokens(tokens: Any, folder: Folder) -> np.ndarray:
    """Returns the tokens as int32 [windows, time].

    Raises:
      ValueError: tokens are not integers [windows, time], or are not in the folder's vocabulary.
    """
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


def _of_block(sparsity: Any, params: Iterable[str], prefix: str) -> Any:
    """Returns the sparsity of a block's leaves; a mapping is over names in the checkpoint."""
    return {name: sparsity[prefix + name] for name in params} if isinstance(sparsity, Mapping) else sparsity


def _kernels(folder: Folder, where: Any) -> Callable[[str, Any], Any]:
    """Makes a predicate over the names in the checkpoint: whether `where` selects a kernel.

    Raises:
      ValueError: a glob matches no kernel that is pruned by default; nothing is selected.
    """
    usual = prunable(folder)
    names = [name for name, leaf in folder.shapes.items() if usual(name, leaf)]
    if where is None or callable(where):
        chosen = where or usual
        if not any(chosen(name, leaf) for name, leaf in folder.shapes.items()):
            raise ValueError(f"where selects no kernel of {folder.path}; its kernels are: {', '.join(names[:10])}, ...")
        return chosen
    globs = [where] if isinstance(where, str) else list(where)
    unmatched = [glob for glob in globs if not any(_tree.matches(name, glob) for name in names)]
    if unmatched or not globs:
        raise ValueError(
            f"where: no kernel of {folder.path} matches {unmatched or globs}; a glob narrows the default rule, and a "
            f"predicate where=lambda name, leaf: ... replaces it. The kernels are: {', '.join(names[:10])}, ..."
        )
    return lambda name, leaf: usual(name, leaf) and any(_tree.matches(name, glob) for glob in globs)
