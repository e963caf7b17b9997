"""Scores of single predictions, and calibration error: kernels over arrays that run under jit and vmap.

All take logits; the logarithm of probabilities serves as well (`predictions.logits_of`).
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def correct(logits: Array, labels: Array) -> Array:
    """Whether the largest logit is the label's; of equal ones the class of the lowest index counts.

    Args:
      logits: (n, classes).
      labels: (n,).

    Returns:
      bool (n,).
    """
    return jnp.argmax(logits, axis=1) == labels


def log_losses(logits: Array, labels: Array) -> Array:
    """The negative log-likelihood -log p_y of each sample, in nats; inf where p_y = 0.

    Args:
      logits: (n, classes), floating.
      labels: (n,), integers in [0, classes); not looked into, for they may be traced (`evaluate` looks).

    Returns:
      (n,).

    Example:
      >>> round(float(log_losses(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
      1.3863
    """
    log_p = jax.nn.log_softmax(logits, axis=1)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def brier_losses(logits: Array, labels: Array) -> Array:
    """The squared distance sum_k (p_k - [k = y])^2 of each sample (Brier 1950), in [0, 2].

    For two classes this is twice the one-sided form that some texts use.

    Args:
      logits: (n, classes), floating.
      labels: (n,), integers in [0, classes); not looked into, for they may be traced (`evaluate` looks).

    Returns:
      (n,).

    Example:
      >>> brier_losses(jnp.zeros((1, 4)), jnp.array([2])).tolist()
      [0.75]
    """
    targets = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return ((jax.nn.softmax(logits, axis=1) - targets) ** 2).sum(1)


def confidences(logits: Array) -> Array:
    """The largest probability of each sample, (n,)."""
    return jax.nn.softmax(logits, axis=1).max(1)


def equal_width(values: Array, bins: int) -> Array:
    """The bin of each probability: bin m of M holds ((m - 1)/M, m/M], and the first also 0.

    Args:
      values: probabilities, (n,).
      bins: M, static.

    Returns:
      int32 (n,) in [0, bins).

    Example:
      >>> equal_width(jnp.array([0.0, 0.25, 0.26, 1.0]), 4).tolist()
      [0, 0, 1, 3]
    """
    edges = jnp.arange(1, bins, dtype=values.dtype) / bins
    return jnp.searchsorted(edges, values, side="left").astype(jnp.int32)


def binned_error(values: Array, outcomes: Array, index: Array, bins: int) -> Array:
    """The calibration error sum_m n_m/n |mean outcome in m - mean value in m| over bins.

    Naeini et al. 2015 (AAAI), Guo et al. 2017 (arXiv:1706.04599, eq. 3). Empty bins add nothing.

    Args:
      values: predicted probabilities, (n,).
      outcomes: what happened, 0 or 1, (n,).
      index: the bin of each, (n,).
      bins: how many bins, static.

    Returns:
      A scalar in [0, 1].
    """
    gaps = jax.ops.segment_sum(outcomes - values, index, bins)
    return jnp.abs(gaps).sum() / values.shape[0]
