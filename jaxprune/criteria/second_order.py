"""`obd` and `hessian_diagonal`: criteria from the second derivative of the loss in each weight."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.criteria._scores import map_scores, need, wide

PyTree = Any


def obd(params: PyTree, *, hessian_diagonal: PyTree = None, **signals: Any) -> PyTree:
    """Optimal brain damage: the second-order change in loss when a weight is set to zero.

        s = w^2 h / 2,    h the diagonal of the Hessian of the loss

    LeCun et al. 1990 (Optimal Brain Damage, NeurIPS 2), for a trained network: the formula assumes that the gradient is
    zero and ignores the rest of the Hessian. Away from a minimum h and the score may be negative: by the estimate,
    removing the weight lowers the loss, so the weight is removed first. Scores are changes of one loss, so
    slimming adds them up over units: `slimming.group_scores(groups, scores, reduce="sum", normalise=None)`. "l2" would
    lose the sign.

    Args:
      params: any tree.
      hessian_diagonal: h, of the structure and shapes of `params`; the result of `criteria.hessian_diagonal`. For
        `prune` pass `criterion=functools.partial(criteria.obd, hessian_diagonal=h)`.
      **signals: ignored.

    Returns:
      A tree of scores in float32 at least; a scalar zero for leaves that are not floating.

    Raises:
      ValueError: the diagonal is missing or does not fit the params.

    Example:
      >>> obd({'kernel': jnp.array([-2.0, 3.0])}, hessian_diagonal={'kernel': jnp.array([0.5, -2.0])})
      {'kernel': Array([ 1., -9.], dtype=float32)}
    """
    del signals
    diagonal = need(
        hessian_diagonal,
        params,
        criterion="obd",
        argument="hessian_diagonal",
        hint="criteria.hessian_diagonal(loss, params, batches, key=key)",
    )

    def score(w: jax.Array, h: jax.Array) -> jax.Array:
        dtype = wide(jnp.promote_types(w.dtype, h.dtype))
        w = w.astype(dtype)
        return w * w * h.astype(dtype) / 2

    return map_scores(score, params, diagonal)


def hessian_diagonal(
    loss: Callable[[PyTree, PyTree], Any],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    key: jax.Array,
    samples: int = 16,
) -> PyTree:
    r"""Returns the diagonal of the Hessian of the loss, estimated from products with random signs.

        h = mean over batches and samples of  z * (H z),    z = +1 or -1 with probability 1/2 each

    Hutchinson's estimator. Bekas et al. 2007 (Applied Numerical Mathematics 57, 1214-1229) apply it to the diagonal,
    Yao et al. 2021 (AdaHessian, arXiv 2006.00719) to networks; AdaHessian's averages over kernels and momentum are not
    used here. The estimate is unbiased. One sample of one batch has the variance $\sum_{j \ne i} H_{ij}^2$ at weight i.
    The variance is zero where the Hessian is diagonal; elsewhere the standard error falls as
    1 / sqrt(samples x batches).

    H z is a Jacobian-vector product of the gradient. The gradient is linearised once for each batch, so a sample costs
    about as much as a gradient. The second derivative of ReLU counts as zero.

    Args:
      loss: `loss(params, batch)` -> scalar, a mean over the batch, twice differentiable.
      params: any tree; leaves that are not floating are passed to `loss` unchanged.
      batches: an iterable of trees of arrays. Batches of any size have the same weight; each shape compiles
        once.
      key: a key of `jax.random`. Each sample of each batch draws its own signs.
      samples: the number of samples for each batch, 1 or more; default 16.

    Returns:
      A tree of arrays in the shapes of the params, float32 at least; a scalar zero for leaves that are not floating.

    Raises:
      ValueError: there are no batches; `samples` is below 1; an estimate is not finite (the message names the leaves).

    Example:
      >>> loss = lambda params, x: (x * params['kernel'] ** 3).sum()  # H is diagonal: 6 x w
      >>> batches = [jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])]
      >>> hessian_diagonal(loss, {'kernel': jnp.array([1.0, -1.0])}, batches, key=jax.random.key(0), samples=1)
      {'kernel': Array([12., -6.], dtype=float32)}
    """
    if samples < 1:
        raise ValueError(f"samples must be 1 or more; got {samples}")
    _tree.check_key(key, needed_by="hessian_diagonal")
    loss = _tree.scalar(loss, "loss", "loss(params, batch)")
    _, floating, as_tree = _tree.differentiable(lambda p: p, params)

    @jax.jit
    def step(total: list, values: list, batch: PyTree, key: jax.Array) -> list:
        fn, _, _ = _tree.differentiable(lambda p: loss(p, batch), params)
        _, times_hessian = jax.linearize(jax.grad(fn), values)

        def draw(total: list, key: jax.Array) -> tuple[list, None]:
            keys = jax.random.split(key, max(len(values), 1))
            signs = [jax.random.rademacher(k, w.shape, w.dtype) for k, w in zip(keys, values, strict=False)]
            products = times_hessian(signs)
            added = zip(total, signs, products, strict=True)
            return [t + z.astype(t.dtype) * p.astype(t.dtype) for t, z, p in added], None

        return jax.lax.scan(draw, total, jax.random.split(key, samples))[0]

    total, count = [jnp.zeros(w.shape, wide(w.dtype)) for w in floating], 0
    _tree.check_batches(batches)
    for batch in batches:
        total, count = step(total, floating, batch, jax.random.fold_in(key, count)), count + 1
    if not count:
        raise ValueError("batches is empty: the diagonal of the Hessian needs at least one batch")
    _check_finite(params, total)
    return as_tree([t / (count * samples) for t in total])


def _check_finite(params: PyTree, totals: list[jax.Array]) -> None:
    names = [name for name, leaf in _tree.named_leaves(params) if _tree.is_floating(leaf)]
    finite = jax.device_get([jnp.isfinite(t).all() for t in totals])
    bad = [f"  {name}" for name, fine in zip(names, finite, strict=True) if not fine]
    if bad:
        raise ValueError("the diagonal of the Hessian is not finite for:\n" + "\n".join(bad))
