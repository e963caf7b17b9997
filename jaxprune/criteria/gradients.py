"""Criteria that estimate the change in loss: `gradient`, `snip` and `fisher` from gradients, `obd` from curvature.

`hessian_diagonal` computes the second derivatives of the loss that `obd` takes. `grasp`, `synflow` and `synflow_masks`
prune before training, and differentiate the function itself.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, masks
from jaxprune.criteria._scores import map_scores, need, wide
from jaxprune.masks._exact import counts

PyTree = Any
_GRADS = "jax.grad(loss)(params, batch)"


def gradient(params: PyTree, *, grads: PyTree = None, power: int = 1, **signals: Any) -> PyTree:
    """Returns the first-order Taylor estimate of the change in loss when a weight is removed.

        s = |w g|^power

    Power 2 gives the score of Molchanov et al. 2019, arXiv 1906.10771, for single weights; power 1 gives its square
    root, the score of Molchanov et al. 2017, arXiv 1611.06440. Both give the same ranking of single weights, and differ
    in sums over blocks, channels or batches.

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
    """Returns the connection sensitivity of each weight, for pruning before training.

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
    """Returns the second-order change in loss, with the diagonal of the empirical Fisher matrix for the Hessian.

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
    return map_scores(_fisher, params, squared_grads)


def _fisher(w: jax.Array, squared: jax.Array) -> jax.Array:
    w, squared = _widened(w, squared)
    return w * w * squared


def _saliency(params: PyTree, grads: PyTree, power: int, criterion: str, hint: str = _GRADS) -> PyTree:
    if power not in (1, 2):
        raise ValueError(f"criteria.{criterion}: power must be 1 or 2; got {power!r}")
    grads = need(grads, params, criterion=criterion, argument="grads", hint=hint)
    return map_scores(_product if power == 1 else _squared_product, params, grads)


def _product(w: jax.Array, g: jax.Array) -> jax.Array:
    w, g = _widened(w, g)
    return jnp.abs(w * g)


def _squared_product(w: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.square(_product(w, g))


def _widened(w: jax.Array, signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = wide(jnp.promote_types(w.dtype, signal.dtype))
    return w.astype(dtype), signal.astype(dtype)


def obd(params: PyTree, *, hessian_diagonal: PyTree = None, **signals: Any) -> PyTree:
    """Returns the second-order change of the loss when a weight is set to zero (optimal brain damage).

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
    return map_scores(_obd, params, diagonal)


def _obd(w: jax.Array, h: jax.Array) -> jax.Array:
    return _fisher(w, h) / 2


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


Criterion = Callable[..., PyTree]


def grasp(
    loss: Callable[..., Any], *inputs: PyTree, where: _tree.Where = None, roles: _tree.Roles | None = None
) -> Criterion:
    """Returns a criterion that keeps the weights that contribute most to the norm of the gradient (GraSP).

        s = w (H g),    H the Hessian and g the gradient of the loss

    Wang et al. 2020 (GraSP), arXiv 2002.07376, algorithms 1 and 2. The paper's score is -w (H g), and the paper removes
    the LARGEST scores; here a larger score means keep, so the sign is reversed. Scores may be negative. Rank them over
    all leaves (`allocation.one_ranking`). The paper divides the logits by 200 before the softmax; do this in `loss`.

    H g is one forward-over-reverse product (`jax.jvp` of `jax.grad`), at about the cost of two gradients.

    Args:
      loss: (params, *inputs) -> scalar.
      inputs: passed to the loss, such as a batch of examples and their labels.
      where: the leaves that may be pruned: a predicate `(name, leaf) -> bool`, a glob or a list of globs; default:
        every leaf that may be pruned. The gradient is taken for these leaves only; the other leaves are constants.
      roles: what `jaxprune.find_roles` returned, to tell which leaves are weights; None (default) uses conventions.
        Pass the roles that you pass to `prune`.

    Returns:
      A criterion: params -> scores in float32 at least; a scalar zero for leaves that are not floating.

    Example:
      >>> loss = lambda params: (params['kernel'] ** 3).sum()
      >>> grasp(loss)({'kernel': jnp.array([[1.0, -2.0]])})  # w H g = w 6w 3w^2
      {'kernel': Array([[ 18., 288.]], dtype=float32)}
    """
    loss = _tree.scalar(loss, "loss", "loss(params, *inputs)")

    def criterion(params: PyTree, **signals: Any) -> PyTree:
        del signals
        fn, leaves, as_tree = _tree.differentiable(lambda p: loss(p, *inputs), params)
        flags = zip(jax.tree.leaves(params), jax.tree.leaves(_tree.prunable(params, where, roles)), strict=True)
        chosen = [flag for leaf, flag in flags if _tree.is_floating(leaf)]
        gradient = jax.grad(fn)
        tangents = [g if c else jnp.zeros_like(g) for g, c in zip(gradient(leaves), chosen, strict=True)]
        _, products = jax.jvp(gradient, (leaves,), (tangents,))
        scores = [w.astype(wide(w.dtype)) * h.astype(wide(w.dtype)) for w, h in zip(leaves, products, strict=True)]
        return as_tree(scores)

    return criterion


def synflow(fn: Callable[..., Any], *inputs: PyTree) -> Criterion:
    """Returns the criterion of synaptic flow: the sum over all paths from input to output through a weight.

        s = |w| dR/d|w|,    R = sum of fn(|params|, 1, ..., 1)

    Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1. The criterion needs no data and no labels: it replaces
    all parameters (biases, normalisation, and running statistics if they are in `params`) by their absolute values and
    all inputs by ones. The paper's guarantee that no layer collapses holds for the iterative form, `synflow_masks`, and
    not for one shot.

    `fn` must run in inference mode: batch statistics of an all-ones batch are degenerate. R is a product over layers
    and may overflow float32 in deep networks without normalisation; scores are then inf or NaN. In this case scale the
    parameters down or use float64 (`jax.enable_x64`).

    Args:
      fn: (params, *inputs) -> an array or a tree of arrays; its floating arrays are summed.
      inputs: arrays or ShapeDtypeStructs. Floating inputs are replaced by ones of their shape; other inputs (token
        indices) are passed unchanged. One example is enough; a batch of n multiplies the scores by n.

    Returns:
      A criterion: params -> scores, 0 or more, in float32 at least; a scalar zero for leaves that are not floating.

    Example:
      >>> fn = lambda params, x: x @ params['a'] @ params['b']
      >>> params = {'a': jnp.array([[1.0, -2.0]]), 'b': jnp.array([[3.0], [0.0]])}
      >>> synflow(fn, jnp.zeros((1, 1)))(params)['a']
      Array([[3., 0.]], dtype=float32)
    """
    _tree.check_function(fn, "fn", "fn(params, *inputs)")
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, wide(x.dtype)) if _tree.is_floating(x) else x, inputs)
    call = lambda params: _tree.call(fn, "fn", "fn(params, *inputs)", params, *ones)

    def criterion(params: PyTree, **signals: Any) -> PyTree:
        del signals
        total, leaves, as_tree = _tree.differentiable(lambda p: _sum_floating(call(p)), params)
        # float16 and bfloat16 overflow at once, so the sum over all paths is computed in float32 at least.
        absolute = [jnp.abs(w.astype(wide(w.dtype))) for w in leaves]
        slopes = jax.grad(total)(absolute)
        return as_tree([jnp.abs(w * slope) for w, slope in zip(absolute, slopes, strict=True)])

    return criterion


def _sum_floating(outputs: PyTree) -> jax.Array:
    sums = [y.astype(wide(y.dtype)).sum() for y in jax.tree.leaves(outputs) if _tree.is_floating(y)]
    if not sums:
        raise ValueError("criteria.synflow: fn returns no floating array, so there is no flow to measure")
    return functools.reduce(jnp.add, sums)


def synflow_masks(
    fn: Callable[..., Any],
    params: PyTree,
    sparsity: Any,
    *inputs: PyTree,
    iterations: int = 100,
    where: _tree.Where = None,
    roles: _tree.Roles | None = None,
) -> PyTree:
    """Returns the masks of iterative synaptic flow pruning, which needs no data.

        for i = 1..n: score the masked parameters; keep the fraction (1 - s)^(i/n) of all weights together

    Tanaka et al. 2020 (SynFlow), arXiv 2006.05467, algorithm 1. The scores of a layer have a constant sum, so they rise
    as the layer loses weights, and no layer loses its last weight while another layer still has weights to lose. The
    loop is one `lax.scan` with one gradient and one selection in each step. A removed weight stays removed.

    Args:
      fn: (params, *inputs) -> arrays, in inference mode; see `criteria.synflow`.
      params: the parameters at initialisation.
      sparsity: the fraction of the entries of all pruned leaves to remove, in [0, 1): a Python number or a traced
        scalar.
      inputs: arrays or ShapeDtypeStructs; see `criteria.synflow`.
      iterations: n, 1 or more; default 100; 1 prunes in one shot.
      where: the leaves to prune: a predicate `(name, leaf) -> bool`, a glob or a list of globs; default: every leaf
        that may be pruned.
      roles: what `jaxprune.find_roles(fn, params, *inputs)` returned, to tell which leaves are weights; None (default)
        uses conventions.

    Returns:
      Masks that remove exactly floor(s N + 1/2) of all N entries. If scores are equal, the first leaf and the lowest
      index are kept.

    Raises:
      ValueError: `sparsity` is outside [0, 1), or `iterations` is below 1; no leaf may be pruned, or `where` matches
        none; or `fn` returns no floating array.
      TypeError: `fn` is not a function, `sparsity` is not a number, or `where` has another type or selects a leaf that
        is not floating.

    Example:
      >>> fn = lambda params, x: x @ params['a'] @ params['b']
      >>> params = {'a': jnp.array([[3.0, 1.0]]), 'b': jnp.array([[-1.0], [2.0]])}
      >>> jax.tree.map(lambda m: m.ravel().tolist(), synflow_masks(fn, params, 0.5, jnp.ones((1, 1))))
      {'a': [True, False], 'b': [True, False]}
    """
    _tree.check_sparsity(sparsity)
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more; got {iterations}")
    _tree.check_function(fn, "fn", "fn(params, *inputs)")
    chosen = _tree.selected(params, where, roles)
    entries = sum(math.prod(x.shape) for x, c in zip(jax.tree.leaves(params), chosen, strict=True) if c)
    criterion = synflow(fn, *inputs)

    def remove(kept: PyTree, removed: masks.Count) -> tuple[PyTree, None]:
        scores = criterion(masks.apply(params, kept))
        # Removed weights score 0, like weights on dead paths. Where the flow overflows, inf - inf is NaN.
        scores = jax.tree.map(lambda s, m: jnp.where(m, jnp.nan_to_num(s), -jnp.inf) if m.ndim else s, scores, kept)
        return masks.select_global(scores, removed, where=lambda name, _: name in names), None

    names = {name for (name, _), c in zip(_tree.named_leaves(params), chosen, strict=True) if c}
    start = masks.ones(params, where=where, roles=roles)
    if not entries:
        return start
    return jax.lax.scan(remove, start, _removed(sparsity, iterations, entries))[0]


def _removed(sparsity: Any, iterations: int, entries: int) -> masks.Count:
    """Returns the total number of removed entries after each iteration; the last number follows `sparsity` exactly."""
    parts = np.arange(1, iterations) / iterations
    if isinstance(sparsity, jax.Array):
        way = -jnp.expm1(jnp.log1p(-sparsity) * jnp.asarray(parts, sparsity.dtype))
        return counts.removed(jnp.append(way, sparsity), entries)
    way = [*-np.expm1(np.log1p(-float(sparsity)) * parts), float(sparsity)]
    steps = [counts.removed(float(s), entries) for s in way]
    return masks.Count(*(jnp.array(limbs, jnp.int32) for limbs in zip(*steps, strict=True)))
