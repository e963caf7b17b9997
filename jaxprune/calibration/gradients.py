"""`accumulate_gradients`: means of gradients and of squared gradients, for the Fisher, Taylor and movement criteria."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree

PyTree = Any


class Gradients(NamedTuple):
    """Means of gradients, in the structure of the parameters; leaves that are not floating have a scalar zero.

    Attributes:
      mean: the mean of the gradients, in float32 at least.
      square: the mean of the squared gradients. For gradients of single examples this is the diagonal of the empirical
        Fisher matrix.
      samples: the number of gradients.
    """

    mean: PyTree
    square: PyTree
    samples: int


def accumulate_gradients(
    loss: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    per_example: bool = False,
) -> Gradients:
    r"""Returns the mean of $\nabla L(\theta; b)$ over batches b, and the elementwise mean of its square.

    Pass `mean` to criteria as `grads`, and `square` to `criteria.fisher` as `squared_grads`. With `per_example` the
    gradients are of single examples: `square` is then the diagonal of the empirical Fisher matrix (Theis et al. 2018,
    arXiv 1801.05787). The squared gradients of batches underestimate it. Each shape of batch compiles once. Memory
    holds one gradient and two sums in float32 (float64 for float64 parameters).

    Args:
      loss: `loss(params, batch)` -> scalar, a mean over the batch; with `per_example`, `loss(params, example)`.
      params: any tree; leaves that are not floating are passed to `loss` unchanged.
      batches: an iterable of trees of arrays. Batches of any size have the same weight. A leading axis may be
        sharded over devices.
      per_example: whether to compute one gradient for each example instead of one for each batch. All arrays of a batch
        must then share their leading axis. Default False.

    Returns:
      The means and the number of gradients, as `Gradients`.

    Raises:
      ValueError: there are no batches; with `per_example`, a batch is empty or its arrays share no leading axis; a
        gradient is not finite (the message names the leaves).

    Example:
      >>> loss = lambda w, x: (w * x).sum()
      >>> found = accumulate_gradients(loss, jnp.ones(2), [jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])])
      >>> found.mean.tolist(), found.square.tolist(), found.samples
      ([2.0, 0.0], [5.0, 0.0], 2)
    """
    loss = _tree.scalar(loss, "loss", "loss(params, batch)")
    _, floating, as_tree = _tree.differentiable(lambda p: p, params)

    @jax.jit
    def step(sums: tuple[list, list], values: list, batch: PyTree) -> tuple[list, list]:
        def add(sums: tuple[list, list], batch: PyTree) -> tuple[tuple[list, list], None]:
            fn, _, _ = _tree.differentiable(lambda p: loss(p, batch), params)
            wide = [g.astype(s.dtype) for g, s in zip(jax.grad(fn)(values), sums[0], strict=True)]
            totals = [s + g for s, g in zip(sums[0], wide, strict=True)]
            return (totals, [s + g * g for s, g in zip(sums[1], wide, strict=True)]), None

        return jax.lax.scan(add, sums, batch)[0] if per_example else add(sums, batch)[0]

    zeros = lambda: [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in floating]
    sums, count = (zeros(), zeros()), 0
    _tree.check_batches(batches)
    for batch in batches:
        count += _examples(batch) if per_example else 1
        sums = step(sums, floating, batch)
    if not count:
        raise ValueError("batches is empty: gradients need at least one batch")
    named = [name for name, leaf in _tree.named_leaves(params) if _tree.is_floating(leaf)]
    finite = jax.device_get([jnp.isfinite(x).all() for x in sums[1]])
    bad = [f"  {name}" for name, fine in zip(named, finite, strict=True) if not fine]
    if bad:
        raise ValueError("gradients are not finite for:\n" + "\n".join(bad))
    mean, square = (as_tree([x / count for x in part]) for part in sums)
    return Gradients(mean, square, count)


def _examples(batch: PyTree) -> int:
    sizes = [jnp.shape(x)[:1] for x in jax.tree.leaves(batch)]
    if len(set(sizes)) != 1 or sizes[0] in ((), (0,)):
        raise ValueError(
            f"with per_example the arrays of a batch must share a leading axis that is not empty; got axes {sizes}"
        )
    return sizes[0][0]
