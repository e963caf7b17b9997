"""`reconstruct` prunes trees of parameters and repairs the kept weights; `relative_errors` measures the repair."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune import _tree, criteria
from jaxprune._jaxprs.factors import Layout
from jaxprune.calibration import Stats
from jaxprune.masks import Pruned
from jaxprune.prune import How
from jaxprune.reconstruction import gram
from jaxprune.reconstruction.alps import alps
from jaxprune.reconstruction.least_squares import least_squares, obs
from jaxprune.reconstruction.plan import Leaf, having, plan, with_statistics
from jaxprune.reconstruction.removal import Given, Grouped, Target
from jaxprune.reconstruction.sparsegpt import sparsegpt

PyTree = Any
Kernel = Callable[[jax.Array, jax.Array, Target], tuple[jax.Array, jax.Array]]

_TOGETHER = 1 << 24  # entries of all the Gram matrices processed at once


def _leave(weight: jax.Array, gram_matrix: jax.Array, target: Given) -> tuple[jax.Array, jax.Array]:
    return jnp.where(target.mask, weight, 0), target.mask


class Method(NamedTuple):
    """How to prune and repair one weight matrix.

    Attributes:
      name: for messages.
      kernel: `(weight, gram, target) -> (weight, mask)`.
      criterion: chooses the masks if the user passes no criterion and no masks; None: the kernel chooses them.
      needs: the field of the statistics that the kernel reads; "layout" if it reads none.
    """

    name: str
    kernel: Callable[..., tuple[jax.Array, jax.Array]]
    criterion: criteria.Criterion | None = None
    needs: str = "gram"


_NAMED = (
    Method("sparsegpt", sparsegpt),
    Method("obs", obs),
    Method("alps", alps),
    Method("least_squares", least_squares, criteria.wanda),
    Method("wanda", _leave, criteria.wanda, "layout"),
    Method("ria", _leave, criteria.ria, "layout"),
    Method("magnitude", _leave, criteria.magnitude, "layout"),
)
METHODS = {method.name: method for method in _NAMED}


def reconstruct(
    params: PyTree,
    stats: Stats | None,
    sparsity: Any = None,
    *,
    method: str | Kernel = "sparsegpt",
    masks: PyTree | None = None,
    **how: Unpack[How],
) -> Pruned:
    r"""Prunes parameters in one shot and changes the kept weights so that outputs change little.

    A method repairs the kept weights. The masks have one of three sources, and each source works with every method:

    - `masks=...`: the masks that you pass;
    - `criterion=...`: any criterion, for example `reconstruct(params, stats, 0.5, method="least_squares",
      criterion=criteria.ria)`;
    - neither of them: the method's own choice.

    | method | own masks | repair of the kept weights |
    |---|---|---|
    | "sparsegpt" | chosen in its sweep | in the same sweep; see `sparsegpt` |
    | "alps" | by the alternating direction method of multipliers, slower and better | least squares; see `alps` |
    | "obs" | by Optimal Brain Surgeon (Hassibi and Stork 1993), for small layers | least squares; see `obs` |
    | "least_squares" | by `criteria.wanda` | least squares; see `least_squares` |
    | "wanda" | by `criteria.wanda` | none |
    | "ria" | by `criteria.ria` | none |
    | "magnitude" | by `criteria.magnitude` | none |
    | a function | chosen by the function | by the function |

    Each leaf is a weight matrix [inputs, outputs] or a stack of matrices. Calibration has determined which axes are
    inputs: dense kernels, convolutions (inputs are height x width x channels of the kernel), groups of a convolution,
    attention projections with head axes, scanned layers. Each matrix is repaired separately. With the named methods, no
    output of a matrix has a larger error on the calibration data than with the same mask and no repair. The library
    does not check this for your own function.

    Args:
      params: any tree; the parameters that were calibrated.
      stats: the result of `calibrate` for `params`, with Gram matrices for a repair and with the statistics that the
        criterion needs (squares for Wanda).
      sparsity: the fraction removed, in [0, 1): a number, which the allocation shares among the leaves (by default
        each gets the same); a mapping from globs to numbers (leaves that match none are not pruned); or a tree of
        numbers or `masks.Count` in the structure of `params`, such as an allocation's `sparsities`. A method that
        chooses its own masks removes exactly $\lfloor s n + 1/2 \rfloor$ of a leaf's n entries, spread evenly over its
        matrices. A criterion removes as many as `prune` does. Default None, for `masks` or an N:M pattern.
      method: a name from the table; a function of that name with options, such as `functools.partial(
        reconstruction.sparsegpt, block=64)`; or your own function, `(weight [inputs, outputs], gram, target) ->
        (weight, mask)`, which is traced by jit and vmap. The target is `Entries`, `Grouped` or `Given`. Default
        "sparsegpt".
      masks: masks to use unchanged, for instance from `masks.select`; a leaf whose mask is a scalar True is not
        changed. Excludes `sparsity`, `criterion`, `allocation`, `pattern` and `batch_axes`.
      **how: how weights are chosen: criterion, allocation, pattern, where, batch_axes, key, roles; see `jaxprune.How`.
        By default `where` selects the calibrated leaves that `prune` selects (`stats.uncovered` names leaves that
        could not be calibrated), the roles come from calibration, and scanned layers are `batch_axes`. Without a
        criterion the pattern must be `Unstructured()` or `NM(n, m)`.

    Returns:
      `Pruned(params, masks)`; dtypes are kept, and a leaf that is not pruned is the same array. `print` shows the
      sparsity of each leaf, and why a leaf was not pruned.

    Raises:
      ValueError: a leaf has no statistics, or lacks the statistics that the method needs; m does not divide the inputs;
        a Gram matrix is not positive definite (raise the method's `damping`); parameters are not finite; arguments
        contradict each other. The message names the leaves.
      TypeError: a sparsity is not a number.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> params = {'dense': {'kernel': jax.random.normal(jax.random.key(0), (8, 4)), 'bias': jnp.zeros(4)}}
      >>> fn = lambda p, x: x @ p['dense']['kernel'] + p['dense']['bias']
      >>> stats = calibrate(fn, params, [jax.random.normal(jax.random.key(1), (100, 8))])
      >>> new = reconstruct(params, stats, 0.5)
      >>> int(new.masks['dense']['kernel'].sum()), bool(new.masks['dense']['bias'])
      (16, True)
    """
    chosen = method_of(method)
    wanted = plan(params, stats, sparsity, masks, with_criterion(how, chosen, masks), chosen.name, chosen.needs)
    new, structure = jax.tree.flatten(params)
    kept = [jnp.ones((), bool)] * len(new)
    for leaf, target in wanted.of(params, stats, wanted.leaves):
        if target is not None:
            new[leaf.position], kept[leaf.position] = prune_leaf(leaf, target, chosen.kernel)
    check_finite(wanted.leaves, [new[leaf.position] for leaf in wanted.leaves])
    return Pruned(structure.unflatten(new), structure.unflatten(kept), *wanted.known)


def relative_errors(params: PyTree, new: PyTree, stats: Stats) -> dict[str, float]:
    r"""Returns the relative change of each calibrated leaf's outputs, $\|X (W - W')\|^2 / \|X W\|^2$, by leaf name.

    Args:
      params: the parameters that were calibrated.
      new: other parameters of the same structure and shapes.
      stats: the result of `calibrate`, with Gram matrices.

    Returns:
      A float for each leaf that has a Gram matrix. If all outputs of a leaf were zero before, there is nothing to
      divide by, and the number is $\|X W'\|^2$.

    Raises:
      ValueError: a calibrated leaf has no Gram matrix; `new` has another structure or other shapes than `params`; or
        `params` has other shapes than at calibration.
      TypeError: `stats` is not what `calibrate` returns, or `new` and `stats` are swapped.

    Example:
      >>> from jaxprune.calibration import calibrate
      >>> stats = calibrate(lambda w, x: x @ w, jnp.ones((2, 2)), [jnp.eye(2)])
      >>> relative_errors(jnp.ones((2, 2)), jnp.zeros((2, 2)), stats)
      {'': 1.0}
    """
    if isinstance(new, Stats):
        raise TypeError("new must be parameters and stats what calibrate returns; got Stats: new and stats are swapped")
    _tree.check_same(params, new, what="new")
    other = jax.tree.leaves(new)
    errors = {}
    for leaf in having(with_statistics(params, stats), "gram"):
        inputs = leaf.inputs
        errors[leaf.name] = float(_relative_error(leaf.array, other[leaf.position], inputs.gram, inputs.layout))
    return errors


@partial(jax.jit, static_argnames="layout")
def _relative_error(old: jax.Array, new: jax.Array, grams: jax.Array, layout: Layout) -> jax.Array:
    old, new = (layout.matrices(jnp.asarray(x, jnp.float32)) for x in (old, new))
    moved, size = (jax.vmap(gram.output_errors)(x, grams).sum() for x in (old - new, old))
    return moved / jnp.where(size > 0, size, 1.0)


def method_of(method: str | Kernel) -> Method:
    """Returns the method with this name, or the method around a user's function.

    Raises:
      ValueError: there is no method of this name.
    """
    if callable(method):
        function = getattr(method, "func", method)
        known = next((named for named in _NAMED if named.kernel is function), Method("method", method))
        return known._replace(kernel=_Hashable.of(method))
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)} or a function, got {method!r}")
    return METHODS[method]


def with_criterion(how: How, method: Method, masks: PyTree | None) -> How:
    """Adds the method's own criterion if the user gave neither a criterion nor masks.

    Raises:
      ValueError: the method is a criterion without repair, and the user passed another.
    """
    if "criterion" in how and method.needs == "layout":
        raise ValueError(
            f"method={method.name!r} is a criterion without repair, but another criterion= was passed; to keep the "
            'weights unchanged call jaxprune.prune, to repair them pass another method, such as method="least_squares"'
        )
    if "criterion" in how or masks is not None or method.criterion is None:
        return how
    return {**how, "criterion": method.criterion}


class _Hashable(NamedTuple):
    """A `functools.partial` that compares by function and options, so that jit reuses its compiled program."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        if not isinstance(function, functools.partial):
            return function
        bound = _Hashable(function.func, function.args, tuple(sorted(function.keywords.items())))
        try:
            _ = hash(bound)
        except TypeError:  # an array among the options
            return function
        return bound

    def __call__(self, *args: Any) -> Any:
        return self.function(*self.arguments, *args, **dict(self.options))


def prune_leaf(
    leaf: Leaf, target: Target, kernel: Callable[..., Any], matrix: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Runs a kernel on the matrices of a leaf, or on one of them.

    Args:
      leaf: the leaf.
      target: what to remove from all its matrices.
      kernel: `(weight, gram, target) -> (weight, mask)`.
      matrix: the index of the only matrix to prune; None for all matrices.

    Returns:
      The leaf and its mask. Matrices that are not pruned are unchanged, with all entries kept.
    """
    layout, moments = leaf.inputs.layout, leaf.inputs.gram
    groups = target if isinstance(target, Grouped) else None
    given = (jnp.asarray(leaf.array), moments, None if groups else target, matrix)
    return _run_leaf(*given, layout=layout, kernel=_Hashable.of(kernel), groups=groups)


@partial(jax.jit, static_argnames=("layout", "kernel", "groups"))
def _run_leaf(
    array: jax.Array, grams: jax.Array | None, targets: Any, matrix: Any, *, layout: Layout, kernel: Any, groups: Any
) -> tuple[jax.Array, jax.Array]:
    # The copies with another order of the axes are in the program, which needs less memory for them.
    matrices = layout.matrices(array)
    grams = jnp.zeros((len(matrices), 0, 0)) if grams is None else grams
    if matrix is None:
        new, mask = _run(matrices, grams, targets, kernel=kernel, groups=groups)
        return layout.leaf(new), layout.leaf(mask)
    only = lambda x: lax.dynamic_slice_in_dim(x, matrix, 1)
    # A layer that was calibrated alone has only its own Gram matrix.
    own = only(grams) if len(grams) == len(matrices) else grams
    new, mask = _run(only(matrices), own, jax.tree.map(only, targets), kernel=kernel, groups=groups)
    put = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, matrix, 0)
    return layout.leaf(put(matrices, new)), layout.leaf(put(jnp.ones(matrices.shape, bool), mask))


def run_matrices(matrices: jax.Array, grams: jax.Array, target: Target, kernel: Callable[..., Any]) -> tuple[Any, Any]:
    """Runs a kernel on stacked matrices [n, inputs, outputs] and their Gram matrices; compiled once for each shape."""
    if isinstance(target, Grouped):
        return _run(matrices, grams, None, kernel=_Hashable.of(kernel), groups=target)
    return _run(matrices, grams, target, kernel=_Hashable.of(kernel), groups=None)


@partial(jax.jit, static_argnames=("kernel", "groups"))
def _run(
    matrices: jax.Array, grams: jax.Array, targets: Any, *, kernel: Callable[..., Any], groups: Grouped | None
) -> tuple[jax.Array, jax.Array]:
    # vmap runs all matrices at once, or as many as fit the bound on the size of their Gram matrices.
    form = "method(weight, gram_matrix, target)"
    one = lambda x: _tree.call(kernel, "method", form, x[0], x[1], groups or x[2])
    n, size = len(matrices), grams.shape[1] ** 2
    chunk = max(d for d in range(1, n + 1) if n % d == 0 and (d == 1 or d * size <= _TOGETHER))
    stacked = (matrices, grams, targets)
    if n == 1:  # vmap would copy the Gram matrix
        return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x.reshape(x.shape[1:]), stacked)))
    return jax.vmap(one)(stacked) if chunk == n else lax.map(one, stacked, batch_size=chunk)


@jax.jit
def _finite(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_finite(leaves: Sequence[Leaf], new: Sequence[jax.Array]) -> None:
    """Raises unless the leaves are finite before and after. A kernel returns NaN for a matrix that it cannot invert.

    Raises:
      ValueError: a leaf is not finite, before or after; the message names the leaves.
    """
    finite = jax.device_get(_finite([(leaf.array, x) for leaf, x in zip(leaves, new, strict=True)]))
    before = [_tree.label(leaf.name) for leaf, (old, _) in zip(leaves, finite, strict=True) if not old]
    if before:
        raise ValueError("parameters are not finite:\n" + "\n".join(f"  {name}" for name in before))
    after = [_tree.label(leaf.name) for leaf, (_, now) in zip(leaves, finite, strict=True) if not now]
    if after:
        raise ValueError(
            "the Gram matrix is not positive definite: raise the damping, for example by "
            "method=functools.partial(reconstruction.sparsegpt, damping=0.1), or calibrate on more data:\n"
            + "\n".join(f"  {name}" for name in after)
        )
