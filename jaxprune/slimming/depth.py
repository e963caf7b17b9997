"""Depth: `block_influence` scores blocks of a residual network, `keep_blocks` removes blocks from its parameters."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array
PyTree = Any


def block_influence(hidden: Sequence[Any] | Any) -> Array:
    r"""Returns how much each block of a residual network changes the direction of its input.

        BI_i = 1 - E[ x_i . x_{i+1} / (||x_i|| ||x_{i+1}||) ]

    Men et al. 2024 (ShortGPT), arXiv 2403.03853, eq. 1: x_i is the input of block i and x_{i+1} its output; the mean
    is over samples and positions. Blocks with a small influence are candidates to remove. Only directions count,
    because a later normalisation removes the lengths.

    Args:
      hidden: blocks + 1 arrays (n, ..., features) of one shape: the input of each block, and the output of the last; or
        one array with the hidden states stacked on its first axis.

    Returns:
      (blocks,) in [0, 2], in float32 or wider; larger is more worth keeping. A vector of zeros has a cosine of 0 with
      every other vector.

    Raises:
      ValueError: there are fewer than two arrays, their shapes differ, or they have NaN or infinite values.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> block_influence([x, 3 * x, x[:, ::-1]]).tolist()
      [0.0, 1.0]
    """
    shapes = [np.shape(x) for x in hidden]
    if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) < 2:
        raise ValueError(
            "hidden must be two arrays (n, ..., features) or more, all of one shape (a block that changes it, "
            f"such as one that halves an image, has no influence to compare); got {shapes}"
        )
    stacked = jnp.stack([jnp.asarray(x) for x in hidden])
    if not isinstance(stacked, Tracer) and not bool(jnp.isfinite(stacked).all()):
        raise ValueError("hidden holds NaN or infinite values")
    return _influence(stacked.astype(jnp.promote_types(stacked.dtype, jnp.float32)))


def keep_influential(influence: Any, count: int) -> np.ndarray:
    """Marks the blocks to keep: all but the `count` blocks with the smallest influence.

    Args:
      influence: (blocks,) numbers, such as `block_influence` returns.
      count: the number of blocks to remove, 0 to blocks - 1.

    Returns:
      (blocks,) bool, True = kept. Of equal influences the later block is removed.

    Raises:
      ValueError: `count` is out of range, or an influence is NaN.

    Example:
      >>> keep_influential([0.3, 0.1, 0.2], 2).tolist()
      [True, False, False]
    """
    influence = np.asarray(influence, np.float64)
    if influence.ndim != 1 or np.isnan(influence).any() or not 0 <= count < influence.size:
        raise ValueError(
            f"influence must have one number a block, none of them NaN, and one must stay; got shape "
            f"{influence.shape} and count {count}"
        )
    keep = np.zeros(influence.size, bool)
    keep[np.argsort(-influence, kind="stable")[: influence.size - count]] = True
    return keep


def keep_blocks(blocks: PyTree, keep: Any) -> PyTree:
    """Takes the kept blocks out of the parameters, for a network that runs over any number of blocks.

    Args:
      blocks: a list or tuple of the parameters of each block; or one tree whose leaves have the blocks on their first
        axis, as `jax.lax.scan` over layers takes them.
      keep: (blocks,) bool, True = kept.

    Returns:
      A container of the same kind with fewer blocks.

    Raises:
      ValueError: `keep` does not have one bool per block, or keeps none. The message names the leaves that have
        another first axis.

    Example:
      >>> keep_blocks({'w': jnp.arange(6).reshape(3, 2)}, [True, False, True])['w'].tolist()
      [[0, 1], [4, 5]]
    """
    keep = np.asarray(keep)
    if keep.dtype != np.bool_ or keep.ndim != 1 or not keep.any():
        raise ValueError(f"keep must be bools, one a block, one of them True; got {keep.dtype} {keep.shape}")
    if isinstance(blocks, (list, tuple)):
        if len(blocks) != len(keep):
            raise ValueError(f"there are {len(blocks)} blocks and {len(keep)} entries of keep")
        return type(blocks)(block for block, stays in zip(blocks, keep, strict=True) if stays)
    paths = jax.tree_util.tree_flatten_with_path(blocks)[0]
    wrong = [
        f"  {jax.tree_util.keystr(path)}: {np.shape(leaf)}" for path, leaf in paths if np.shape(leaf)[:1] != keep.shape
    ]
    if wrong:
        raise ValueError(f"each leaf must have {len(keep)} blocks on its first axis:\n" + "\n".join(wrong))
    places = np.flatnonzero(keep)
    return jax.tree.map(lambda leaf: leaf[places], blocks)


@jax.jit
def _influence(hidden: Array) -> Array:
    length = jnp.linalg.norm(hidden, axis=-1, keepdims=True)
    unit = jnp.where(length > 0, hidden / jnp.where(length > 0, length, 1.0), 0.0)
    cosine = (unit[:-1] * unit[1:]).sum(-1)
    return jnp.clip(1.0 - cosine.reshape(cosine.shape[0], -1).mean(1), 0.0, 2.0)
