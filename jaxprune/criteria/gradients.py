"""`gradient`, `snip` and `fisher`: criteria that estimate the change in loss from gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.criteria._scores import map_scores, need, wide

PyTree = Any
_GRADS = "jax.grad(loss)(params, batch)"


def gradient(params: PyTree, *, grads: PyTree = None, power: int = 1, **signals: Any) -> PyTree:
    """Returns the first-order Taylor estimate of the change in loss when a weight is removed.

        s = |w g|^power

    Power 2 gives the score of Molchanov et al. 2019, arXiv 1906.10771, for single weights; power 1 gives its square
    root, the score of Molchanov et al. 2017, arXiv 1611.06440. Both rank single weights alike, and differ in sums over
    blocks, channels or batches.

    Args:
      params: any tree.
      grads: gradients of the loss, of the structure and shapes of `params`.
      power: 1 (default) or 2.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, in float32 at least (in 16 bits products of weights and gradients underflow); a
      scalar zero for leaves that are not floating.

    Raises:
      ValueError: grads are missing or do not fit the params, or `power` is not 1 or 2.

    Example:
      >>> gradient({'kernel': jnp.array([-2.0, 3.0])}, grads={'kernel': jnp.array([0.5, 0.0])})
      {'kernel': Array([1., 0.], dtype=float32)}
    """
    del signals
    return _saliency(params, grads, power, "gradient")


def snip(params: PyTree, *, grads: PyTree = None, **signals: Any) -> PyTree:
    """Connection sensitivity, for pruning before training.

        s = |w g|

    Lee et al. 2019 (SNIP), arXiv 1810.02340: w g is the derivative of the loss with respect to a mask of ones. The
    paper divides by the sum over all weights, which changes no ranking; this function does not. Use gradients of one
    mini-batch at initialisation, and `allocation.one_ranking`.

    Args:
      params: any tree.
      grads: gradients of the loss, of the structure and shapes of `params`.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, in float32 at least; a scalar zero for leaves that are not floating.

    Raises:
      ValueError: grads are missing or do not fit the params.

    Example:
      >>> snip({'kernel': jnp.array([-2.0, 3.0])}, grads={'kernel': jnp.array([0.5, 0.0])})
      {'kernel': Array([1., 0.], dtype=float32)}
    """
    del signals
    return _saliency(params, grads, 1, "snip")


def fisher(params: PyTree, *, grads: PyTree = None, squared_grads: PyTree = None, **signals: Any) -> PyTree:
    """The second-order change in loss, with the diagonal of the empirical Fisher matrix in place of the Hessian.

        s = w^2 F,    F = mean_n g_n^2 (`squared_grads`), or else (mean_n g_n)^2 (`grads`)

    Theis et al. 2018, arXiv 1801.05787 (the paper scores feature maps and has a factor 1/2, which changes no ranking).
    F is the mean over examples of the SQUARED gradient of each example:
    `calibration.accumulate_gradients(loss, params, batches, per_example=True).square`. Without it, F is the square of
    the gradient of the mean loss; the scores are then the squares of the scores of `gradient` and vanish as training
    converges, unlike the paper's.

    Args:
      params: any tree.
      grads: gradients of the mean loss, of the structure and shapes of `params`; not needed with `squared_grads`.
      squared_grads: means of squared gradients of single examples, of the same structure and shapes.
      **signals: ignored.

    Returns:
      A tree of scores, 0 or more, in float32 at least; a scalar zero for leaves that are not floating.

    Raises:
      ValueError: both signals are missing, or a signal does not fit the params.

    Example:
      >>> fisher({'kernel': jnp.array([-2.0, 3.0])}, squared_grads={'kernel': jnp.array([0.5, 1.0])})
      {'kernel': Array([2., 9.], dtype=float32)}
    """
    del signals
    if squared_grads is None:
        return _saliency(
            params, grads, 2, "fisher", hint=f"{_GRADS}, or squared_grads=calibration.accumulate_gradients(...).square"
        )
    squared_grads = need(squared_grads, params, criterion="fisher", argument="squared_grads", hint="")

    def score(w: jax.Array, squared: jax.Array) -> jax.Array:
        w, squared = _widened(w, squared)
        return w * w * squared

    return map_scores(score, params, squared_grads)


def _saliency(params: PyTree, grads: PyTree, power: int, criterion: str, hint: str = _GRADS) -> PyTree:
    if power not in (1, 2):
        raise ValueError(f"criteria.{criterion}: power must be 1 or 2; got {power!r}")
    grads = need(grads, params, criterion=criterion, argument="grads", hint=hint)

    def score(w: jax.Array, g: jax.Array) -> jax.Array:
        w, g = _widened(w, g)
        product = jnp.abs(w * g)
        return product if power == 1 else product * product

    return map_scores(score, params, grads)


def _widened(w: jax.Array, signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = wide(jnp.promote_types(w.dtype, signal.dtype))
    return w.astype(dtype), signal.astype(dtype)
