"""Criteria on activations: `wanda` and `ria` score weights, `activation_mean` and `apoz` score channels."""

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
    r"""Scores each weight by its size times the norm of its input over the samples.

        s_ij = |w_ij| ||x_i||

    Sun et al. 2023 (Wanda), arXiv 2306.11695, eq. 1. The paper compares the weights of one output with each other, not
    those of the whole layer, and finds that this matters. `prune` and `reconstruct` do the same (`within_outputs`): the
    same number of weights is removed from each output, whose inputs lie along the axes that `stats` knows. The pattern
    `masks.Unstructured(axes=(0, 1))`, with all axes of a kernel, ranks the whole layer.

    Args:
      params: any tree.
      stats: what `calibrate(fn, params, batches, collect="square")` returns.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, at least float32. A leaf without statistics (`stats.uncovered` says why) and a leaf
      that is not floating score a scalar zero and are not pruned.

    Raises:
      ValueError: stats are missing, belong to other shapes, or hold no sums of squares.
      TypeError: `stats` is not what `calibrate` returns.

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
    r"""Scores each weight by its relative importance: its share of its input's and its output's weights, times a norm.

        s_ij = (|w_ij| / \sum_i |w_ij| + |w_ij| / \sum_j |w_ij|) ||x_i||^a

    Zhang et al. 2024 (Plug-and-Play, RIA), ICLR 2024, eq. 4 and 5. An input or output whose weights are all
    small keeps some of them. The sums run within each matrix of a stack (scanned layers, groups of a convolution).

    Args:
      params: any tree.
      stats: what `calibrate(fn, params, batches, collect="square")` returns.
      power: the exponent a, 0 or more, 0.5 by default as in the paper; 0 ignores the activations.
      specs: inside `jax.shard_map`, the `PartitionSpec` of each parameter; leaves that devices share are refused.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, at least float32; 0 where a whole row or column is 0. A leaf without statistics
      scores a scalar zero.

    Raises:
      ValueError: stats are missing, belong to other shapes, or hold no sums of squares; devices share a leaf.
      TypeError: `stats` is not what `calibrate` returns.

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
    r"""Scores each channel by the absolute mean of its activations, for `masks.Channel(axis=-2)`.

        s_ij = |\sum_n x_ni / N|

    Molchanov et al. 2017, arXiv 1611.06440, section 2.2. The paper takes the mean over a layer's outputs; here it
    is taken over the inputs of the layer that reads them. A channel is therefore `masks.Channel(axis=-2)` of the
    reading layer's kernel; slimming also removes it from the layer that computes it. All weights of one input have the
    same score.

    Args:
      params: any tree.
      stats: what `calibrate(fn, params, batches, collect="total")` returns.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, at least float32. A leaf without statistics scores a scalar zero.

    Raises:
      ValueError: stats are missing, belong to other shapes, or hold no totals.
      TypeError: `stats` is not what `calibrate` returns.

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
    """Scores each channel by the fraction of samples in which it is not zero: for channels after a ReLU.

        s_ij = 1 - APoZ_i

    Hu et al. 2016 (Network Trimming), arXiv 1607.03250, eq. 1. APoZ is the average percentage of zeros; one minus it is
    larger for channels more worth keeping. As for `activation_mean`, the scores belong to the inputs of the layer that
    reads the channels: use `masks.Channel(axis=-2)`.

    Args:
      params: any tree.
      stats: what `calibrate(fn, params, batches, collect="zeros")` returns.
      **signals: ignored.

    Returns:
      A tree of scores in [0, 1], at least float32. A leaf without statistics scores a scalar zero.

    Raises:
      ValueError: stats are missing, belong to other shapes, or hold no counts of zeros.
      TypeError: `stats` is not what `calibrate` returns.

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
        raise TypeError(f"criteria.{criterion}: stats must be what calibrate returns, got {type(stats).__name__}")
    leaves, treedef = jax.tree.flatten(params)

    def of(leaf: Any, inputs: Any) -> jax.Array:
        if inputs is None:
            return jnp.zeros(())
        return score_leaf(lambda w: score(w.astype(wide(w.dtype)), inputs), leaf)

    return jax.tree.unflatten(treedef, [of(*pair) for pair in zip(leaves, stats.leaves(params), strict=True)])
