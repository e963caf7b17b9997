"""Criteria from calibrated activations: `wanda` and `ria` for weights, `activation_mean` and `apoz` for channels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.criteria._scores import score_leaf, wide, within_outputs
from jaxprune.masks._exact import shards

PyTree = Any
Score = Callable[[jax.Array, Any], jax.Array]


@within_outputs
def wanda(params: PyTree, *, stats: Any = None, **signals: Any) -> PyTree:
    r"""Returns the size of a weight times the norm of its input over the samples.

        s_ij = |w_ij| ||x_i||

    Sun et al. 2023 (Wanda), arXiv 2306.11695, eq. 1. The paper compares the weights of one output with each other, not
    the weights of the whole layer, and shows that this matters. `prune` and `reconstruct` do the same (see
    `within_outputs`): they remove the same number of weights from each output, and take the input axes from `stats`.
    Pass `pattern=masks.Unstructured(axes=(0, 1))`, with all axes of a kernel, to rank the whole layer.

    Args:
      params: any tree.
      stats: the result of `calibrate(fn, params, batches, collect="square")`.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, in float32 at least. A leaf without statistics (`stats.uncovered` gives the reason)
      or that is not floating has a scalar zero and is not pruned.

    Raises:
      ValueError: stats are missing, do not fit the shapes of `params`, or contain no sums of squares.
      TypeError: `stats` was not returned by `calibrate`.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> w = jnp.array([[1.0, -2.0], [3.0, 1.0]])
      >>> stats = calibrate(lambda w, x: x @ w, w, [jnp.array([[2.0, 0.5]])], collect='square')
      >>> wanda(w, stats=stats).tolist()
      [[2.0, 4.0], [1.5, 0.5]]
    """
    del signals
    return _scores(params, stats, "wanda", lambda w, inputs: jnp.abs(w) * inputs.layout.along_inputs(inputs.norm))


def ria(params: PyTree, *, stats: Any = None, power: float = 0.5, specs: PyTree = None, **signals: Any) -> PyTree:
    r"""Returns the relative importance of each weight: its share of its row and column, times the norm of its input.

        s_ij = (|w_ij| / \sum_i |w_ij| + |w_ij| / \sum_j |w_ij|) ||x_i||^a

    Zhang et al. 2024 (Plug-and-Play, RIA), ICLR 2024, eq. 4 and 5. Rows and columns of small weights keep some of
    their weights. Each matrix of a stack (scanned layers, groups of a convolution) is normalised separately.

    Args:
      params: any tree.
      stats: the result of `calibrate(fn, params, batches, collect="square")`.
      power: a, a float; default 0.5 as in the paper; 0 ignores the activations.
      specs: inside `jax.shard_map`, the `PartitionSpec` of each parameter; a leaf sharded over devices raises. Default
        None.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, in float32 at least; 0 where a whole row or column is 0. A leaf without statistics or
      that is not floating has a scalar zero.

    Raises:
      ValueError: stats are missing, do not fit the shapes of `params`, or contain no sums of squares; a leaf is
        sharded.
      TypeError: `stats` was not returned by `calibrate`.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> w = jnp.array([[1.0, 3.0], [1.0, 1.0]])
      >>> stats = calibrate(lambda w, x: x @ w, w, [jnp.array([[4.0, 1.0]])], collect='square')
      >>> ria(w, stats=stats).tolist()
      [[1.5, 3.0], [1.0, 0.75]]
    """
    del signals
    shards.refuse_cut(params, specs, "criteria.ria")

    def score(w: jax.Array, inputs: Any) -> jax.Array:
        size = jnp.abs(inputs.layout.matrices(w))
        share = lambda axis: size / jnp.where(size.sum(axis, keepdims=True) == 0, 1.0, size.sum(axis, keepdims=True))
        return inputs.layout.leaf((share(1) + share(2)) * inputs.norm[:, :, None] ** power)

    return _scores(params, stats, "ria", score)


def activation_mean(params: PyTree, *, stats: Any = None, **signals: Any) -> PyTree:
    r"""Returns the absolute mean of the input of each weight, a criterion for channels.

        s_ij = |\sum_n x_ni / N|

    Molchanov et al. 2017, arXiv 1611.06440, section 2.2. The paper averages the outputs of a layer; this function
    averages the inputs of the next layer, so a channel is `masks.Channel(axis=-2)` of the next layer's kernel. Slimming
    removes the channel from both layers. All outputs of one input have the same score.

    Args:
      params: any tree.
      stats: the result of `calibrate(fn, params, batches, collect="total")`.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, in float32 at least. A leaf without statistics, or
      that is not floating, has a scalar zero.

    Raises:
      ValueError: stats are missing, do not fit the shapes of `params`, or contain no sums.
      TypeError: `stats` was not returned by `calibrate`.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> x = jnp.array([[1.0, -3.0], [1.0, 1.0]])
      >>> stats = calibrate(lambda w, x: x @ w, jnp.ones((2, 2)), [x], collect='total')
      >>> activation_mean(jnp.ones((2, 2)), stats=stats).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    del signals
    return _scores(params, stats, "activation_mean", lambda w, inputs: _spread(w, inputs, jnp.abs(inputs.mean)))


def apoz(params: PyTree, *, stats: Any = None, **signals: Any) -> PyTree:
    """Returns the fraction of samples with a nonzero input of a weight: a criterion for channels after a ReLU.

        s_ij = 1 - APoZ_i

    Hu et al. 2016 (Network Trimming), arXiv 1607.03250, eq. 1: one minus the average percentage of zeros, so that a
    larger score is more worth keeping. A channel is `masks.Channel(axis=-2)` of the kernel that reads the
    channel; see `activation_mean`.

    Args:
      params: any tree.
      stats: the result of `calibrate(fn, params, batches, collect="zeros")`.
      **signals: ignored.

    Returns:
      A tree of scores in [0, 1], in float32 at least. A leaf without statistics, or
      that is not floating, has a scalar zero.

    Raises:
      ValueError: stats are missing, do not fit the shapes of `params`, or contain no counts of zeros.
      TypeError: `stats` was not returned by `calibrate`.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> stats = calibrate(lambda w, x: x @ w, jnp.ones((2, 1)), [x], collect='zeros')
      >>> apoz(jnp.ones((2, 1)), stats=stats).tolist()
      [[1.0], [0.5]]
    """
    del signals
    return _scores(params, stats, "apoz", lambda w, inputs: _spread(w, inputs, 1.0 - inputs.zero_fraction))


def _spread(w: jax.Array, inputs: Any, values: jax.Array) -> jax.Array:
    return jnp.broadcast_to(inputs.layout.along_inputs(values), w.shape)


def _scores(params: PyTree, stats: Any, criterion: str, score: Score) -> PyTree:
    if stats is None:
        raise ValueError(f"criteria.{criterion} needs stats: pass stats=calibrate(fn, params, batches)")
    if not hasattr(stats, "leaves"):
        raise TypeError(f"criteria.{criterion}: stats must be the result of calibrate, got {type(stats).__name__}")
    leaves, treedef = jax.tree.flatten(params)
    sums = stats.leaves(params)
    if all(inputs is None for inputs in sums):
        there = ", ".join("/".join(identity) for identity in stats.inputs)
        raise ValueError(
            f"criteria.{criterion}: stats belongs to another network: it has none of the leaves of params; calibrate "
            f"these params. Its leaves are: {there}"
        )

    def of(leaf: Any, inputs: Any) -> jax.Array:
        if inputs is None:
            return jnp.zeros(())
        return score_leaf(lambda w: score(w.astype(wide(w.dtype)), inputs), leaf)

    return jax.tree.unflatten(treedef, [of(*pair) for pair in zip(leaves, sums, strict=True)])
