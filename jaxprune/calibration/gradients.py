"""`accumulate_gradients`: the mean gradient and mean squared gradient over batches, for Fisher and Taylor criteria."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree

PyTree = Any


class Gradients(NamedTuple):
    """Gradients over batches, in the structure of the parameters; leaves that are not floating have a scalar zero.

    Attributes:
      mean: the mean of the gradients of the batches, in float32 or wider.
      square: the mean of their squares. For batches of one example this is the diagonal of the empirical Fisher matrix.
      batches: the number of batches.
    """

    mean: PyTree
    square: PyTree
    batches: int


def accumulate_gradients(
    loss: Callable[[PyTree, PyTree], jax.Array], params: PyTree, batches: Iterable[PyTree]
) -> Gradients:
    r"""The mean of $\nabla L(\theta; b)$ over batches b, and the mean of its square, elementwise.

    Pass `mean` to criteria as `grads`, and `square` to `criteria.fisher` as `squared_grads`. Each shape of batch
    compiles once. The sums are float32 (float64 for float64 parameters) and take twice the memory of the parameters.

    Args:
      loss: a function `loss(params, batch)` that returns a scalar, the mean over the batch.
      params: any tree; leaves that are not floating are passed to `loss` unchanged.
      batches: an iterable of trees of arrays. Every batch has the same weight, whatever its size. A leading axis may be
        sharded over devices.

    Returns:
      The means and the number of batches, as `Gradients`.

    Raises:
      ValueError: there are no batches, or gradients are not finite; the message names the leaves.

    Example:
      >>> loss = lambda w, x: (w * x).sum()
      >>> found = accumulate_gradients(loss, jnp.ones(2), [jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])])
      >>> found.mean.tolist(), found.square.tolist(), found.batches
      ([2.0, 0.0], [5.0, 0.0], 2)
    """
    leaves, treedef = jax.tree.flatten(params)
    at = [i for i, leaf in enumerate(leaves) if _tree.is_floating(leaf)]

    def fill(values: list) -> PyTree:
        every = list(leaves)
        for i, value in zip(at, values, strict=True):
            every[i] = value
        return jax.tree.unflatten(treedef, every)

    @jax.jit
    def step(sums: tuple[list, list], values: list, batch: PyTree) -> tuple[list, list]:
        found = jax.grad(lambda v: loss(fill(v), batch))(values)
        wide = [g.astype(s.dtype) for g, s in zip(found, sums[0], strict=True)]
        return [s + g for s, g in zip(sums[0], wide, strict=True)], [
            s + g * g for s, g in zip(sums[1], wide, strict=True)
        ]

    floating = [jnp.asarray(leaves[i]) for i in at]
    zeros = lambda: [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in floating]
    sums, count = (zeros(), zeros()), 0
    _tree.check_batches(batches)
    for batch in batches:
        sums, count = step(sums, floating, batch), count + 1
    if not count:
        raise ValueError("batches is empty: gradients need at least one batch")
    _check_finite(params, at, sums[1])
    trees = []
    for part in sums:
        every = [jnp.zeros(())] * len(leaves)
        for i, value in zip(at, part, strict=True):
            every[i] = value / count
        trees.append(jax.tree.unflatten(treedef, every))
    return Gradients(trees[0], trees[1], count)


def _check_finite(params: PyTree, at: list[int], squares: list[jax.Array]) -> None:
    finite = jax.device_get([jnp.isfinite(x).all() for x in squares])
    names = [name for name, _ in _tree.named_leaves(params)]
    bad = [f"  {names[i]}" for i, fine in zip(at, finite, strict=True) if not fine]
    if bad:
        raise ValueError("gradients are not finite for:\n" + "\n".join(bad))
