"""The leaves of an optimizer's state that mirror parameters: momenta, averages, accumulated gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree, masks

PyTree = Any


def zero_removed(state: PyTree, params: PyTree, mask_tree: PyTree) -> PyTree:
    """The optimizer's state with zeros at removed places.

    A leaf of the state mirrors a parameter if its path ends in the parameter's path, it has the parameter's shape, and
    it is inexact; the longest such path counts. That finds the moments of every optimizer of Optax, also below
    `partition`, `masked`, `MultiSteps` and `inject_hyperparams`; what has another shape, such as the factored moments
    of adafactor or a layer's scalar in novograd, is left alone.

    Args:
      state: any state of an optimizer.
      params: the parameters that it was initialised with.
      mask_tree: their masks.

    Returns:
      A tree in the structure of `state`.

    Raises:
      ValueError: masks of another structure than the parameters.

    Example:
      >>> import optax
      >>> params, held = {'w': jnp.array([[1.0, 2.0]])}, {'w': jnp.array([[True, False]])}
      >>> zero_removed(optax.TraceState({'w': jnp.array([[5.0, 6.0]])}), params, held).trace['w'].tolist()
      [[5.0, 0.0]]
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    mask_leaves = jax.tree.structure(params).flatten_up_to(mask_tree)
    mirrored = {
        _tree.identity(path): (leaf.shape, mask)
        for (path, leaf), mask in zip(leaves, mask_leaves, strict=True)
        if jnp.ndim(mask)
    }
    lengths = sorted({len(path) for path in mirrored}, reverse=True)

    def clean(path: tuple[Any, ...], leaf: Any) -> Any:
        names = _tree.identity(path)
        for length in lengths:
            found = mirrored.get(names[len(names) - length :]) if length <= len(names) else None
            if found:
                shape, mask = found
                mirrors = getattr(leaf, "shape", None) == shape and jnp.issubdtype(leaf.dtype, jnp.inexact)
                return jnp.where(masks.unpack(mask, leaf), leaf, jnp.zeros((), leaf.dtype)) if mirrors else leaf
        return leaf

    return jax.tree_util.tree_map_with_path(clean, state)
