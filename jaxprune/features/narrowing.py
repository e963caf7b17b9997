"""Scores to a smaller network: `top` and `eliminate` make a mask over features, `narrow` a network that takes fewer.

`eliminate` works in rounds that score the remaining features again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.features import _checks
from jaxprune.slimming import Choice, Manifest, find_groups
from jaxprune.slimming.slim import smaller

Array = jax.Array
PyTree = Any
_INPUT, _PARAMS = "input", "params"


@dataclasses.dataclass(frozen=True, eq=False)
class Narrowed:
    """A network that takes fewer input features.

    Attributes:
      fn: the smaller function `fn(params, x, *rest)`; its `x` has only the kept features.
      params: the smaller parameters.
      mask: (features,) bool, True = kept.
      kept: the names of the kept features, in order.
      axis: the axis of the features in `x`.
      manifest: the kept positions of each leaf; `manifest.shrink` makes optimizer states smaller too.
      inexact: None if the smaller function equals `fn` with zeros for the removed weights; otherwise the reason why
        not.
    """

    fn: Callable[..., PyTree]
    params: PyTree
    mask: np.ndarray
    kept: tuple[str, ...]
    axis: int
    manifest: Manifest
    inexact: str | None

    def take(self, x: Any) -> Any:
        """Returns the kept features of an array that has all features on `axis`."""
        if x.shape[self.axis] != len(self.mask):
            raise ValueError(f"x must have all {len(self.mask)} features on axis {self.axis}; it has shape {x.shape}")
        return x.take(np.flatnonzero(self.mask), axis=self.axis)


def narrow(
    fn: Callable[..., PyTree],
    params: PyTree,
    mask: Any,
    x: Any,
    *rest: Any,
    axis: int = -1,
    names: Sequence[str] | None = None,
) -> Narrowed:
    """Makes a network that no longer uses some of its input features physically smaller.

    The function removes the weights that multiply a removed feature, wherever the traced program uses them: in a dense
    layer after flattened images, in several layers that read the input, after a normalisation by constants. On the kept
    features the smaller function equals `fn` with zeros for the removed weights, for any values of the removed
    features. This is impossible where the features are combined before the first layer (a normalisation over the
    features); `inexact` then gives the reason.

    Args:
      fn: a function `fn(params, x, *rest)`.
      params: its parameters, any pytree.
      mask: (features,) bool, True = kept.
      x: the input, or its ShapeDtypeStruct.
      *rest: further inputs, or their ShapeDtypeStructs.
      axis: the axis of the features in `x`; default -1.
      names: the names of the features; default None: their numbers.

    Returns:
      A `Narrowed`: the smaller function, its parameters, and the names of the kept features.

    Raises:
      ValueError: `mask` does not have one bool for each feature or keeps none, `names` has another length, or no
        feature can be removed from the input: `fn` convolves over the axis, or returns the input itself.

    Example:
      >>> net = lambda w, x: jnp.tanh(x @ w['first']) @ w['second']
      >>> w = {'first': jnp.ones((3, 4)), 'second': jnp.ones((4, 2))}
      >>> small = narrow(net, w, [True, False, True], jnp.ones((5, 3)), names=['age', 'day', 'dose'])
      >>> small.kept, small.params['first'].shape, small.fn(small.params, jnp.ones((5, 2))).shape
      (('age', 'dose'), (2, 4), (5, 2))
    """
    mask = np.asarray(mask)
    if not hasattr(x, "shape") or not -len(x.shape) <= axis < len(x.shape):
        raise ValueError(f"x must be an array or its shape, with an axis {axis}; got {getattr(x, 'shape', type(x))}")
    if mask.dtype != np.bool_ or mask.shape != (x.shape[axis],):
        raise ValueError(
            f"mask must be {x.shape[axis]} bools, one for each feature on axis {axis} of x; "
            f"got {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise ValueError("mask keeps no feature; a network needs at least one")
    labels = [str(i) for i in range(len(mask))] if names is None else list(map(str, names))
    if len(labels) != len(mask):
        raise ValueError(f"names must have one entry for each of the {len(mask)} features; got {len(labels)}")
    joint = lambda both, *rest: fn(both[_PARAMS], both[_INPUT], *rest)
    manifest, inexact = _removed(joint, params, mask, x, rest, axis % len(x.shape))
    kept = tuple(label for label, stays in zip(labels, mask, strict=True) if stays)
    # The user's manifest excludes the input, and its paths start at the root of the parameters.
    paths = [(leaf, leaf.identity[1:]) for leaf in manifest.leaves[1:]]
    own = Manifest(tuple(leaf._replace(name="/".join(path), identity=path) for leaf, path in paths))
    return Narrowed(_smaller(joint, manifest, axis % len(x.shape)), own.shrink(params), mask, kept, axis, own, inexact)


def _removed(
    joint: Callable[..., PyTree], params: PyTree, mask: np.ndarray, x: Any, rest: tuple[Any, ...], axis: int
) -> tuple[Manifest, str | None]:
    # The input becomes the first leaf of the parameters, so that features are units like the channels of a layer.
    groups = find_groups(joint, {_INPUT: jax.ShapeDtypeStruct(x.shape, x.dtype), _PARAMS: params}, *rest)
    if mask.all():
        return Choice.remove(groups, {}).manifest(), None
    units = groups.units[0][axis]
    gone = units[~mask].ravel()
    if units.shape[-1] != 1 or (units < 0).any() or np.isin(units[mask], gone).any():
        raise ValueError(f"cannot remove features from axis {axis} of x, {tuple(x.shape)}:\n" + _why(groups, axis))
    removed = {g.name: gone[(gone >= g.first) & (gone < g.first + g.count)] - g.first for g in groups}
    removed = {name: np.unique(numbers) for name, numbers in removed.items() if numbers.size}
    inexact = next((groups[name].inexact for name in removed if groups[name].inexact), None)
    return Choice.remove(groups, removed).manifest(), inexact


def _smaller(joint: Callable[..., PyTree], manifest: Manifest, axis: int) -> Callable[..., PyTree]:
    made: dict[tuple[int, ...], Callable[..., PyTree]] = {}
    features = (manifest.leaves[0].shape or ())[axis]

    def narrowed(params: PyTree, x: Any, *rest: Any) -> PyTree:
        # A manifest has one shape for each leaf, but inputs have batches of any size.
        shape = (*x.shape[:axis], features, *x.shape[axis + 1 :])
        if shape not in made:
            leaves = (manifest.leaves[0]._replace(shape=shape), *manifest.leaves[1:])
            made[shape] = smaller(joint, Manifest(leaves), fix_outputs=True)
        return made[shape]({_INPUT: x, _PARAMS: params}, *rest)

    return narrowed


def _why(groups: Any, axis: int) -> str:
    own = [f for f in groups.frozen if (f.name, f.axis) == (_INPUT, axis)]
    reasons = [f"  {f.positions} of {f.of} positions: {f.reason}" for f in own]
    return "\n".join(reasons) or "  a feature consists of several units; choose units with find_groups and use slim"


class Round(NamedTuple):
    """One round of an elimination.

    Attributes:
      mask: (features,) bool, True = the feature was scored in this round.
      scores: (features,) the scores; NaN for the other features.
    """

    mask: np.ndarray
    scores: np.ndarray


def top(scores: Any, count: int) -> np.ndarray:
    """Keeps the features with the largest scores.

    Args:
      scores: (features,) numbers.
      count: the number of features to keep, 1 to `features`.

    Returns:
      (features,) bool mask with `count` True, True = kept. If scores are equal, the first feature is kept.

    Raises:
      ValueError: `scores` is not a vector or has NaN, or `count` is out of range.

    Example:
      >>> top([0.1, 0.7, 0.7, 0.2], 2).tolist()
      [False, True, True, False]
    """
    scores = _checks.scores(scores)
    _checks.count(count, scores.size)
    mask = np.zeros(scores.shape, bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def eliminate(
    score: Callable[[Array, Array], Any], features: int, keep: int, *, key: Array, sparsity: float = 0.5
) -> tuple[np.ndarray, list[Round]]:
    """Removes features in rounds: each round scores the remaining features and removes the worst ones.

    Guyon et al. 2002, Machine Learning 46 (recursive feature elimination), remove one feature in each round. The scores
    of a network trained on many useless features are noisy; each round has fewer useless features, so its scores are
    better. For example, `score` may train a network on the features of the mask and return its `input_norms`.

    Args:
      score: `(mask, key) -> scores`, both (features,). Scores of removed features are ignored. A jitted `score`
        compiles once, because every mask has the same shape.
      features: the number of features.
      keep: the number of features to keep, 1 to `features`.
      key: a JAX key; round r gets `fold_in(key, r)`.
      sparsity: the fraction of the remaining features to remove in each round, in (0, 1), rounded down; default 0.5.
        Each round removes at least one feature, and stops at `keep` features.

    Returns:
      (features,) bool mask, True = kept; and a list of rounds. If scores are equal, the first feature is kept.

    Raises:
      ValueError: `keep` or `sparsity` is out of range, or the scores have another shape or NaN for a remaining
        feature.

    Example:
      >>> mask, rounds = eliminate(lambda mask, key: jnp.arange(8), 8, 2, key=jax.random.key(0))
      >>> mask.nonzero()[0].tolist(), [int(r.mask.sum()) for r in rounds]
      ([6, 7], [8, 4])
    """
    _tree.check_function(score, "score", "score(mask, key) -> one number a feature")
    _tree.check_instance(features, int | np.integer, "features", "the number of features")
    _tree.check_key(key, needed_by="eliminate")
    if not 1 <= keep <= features:
        raise ValueError(f"keep must be in 1 to {features}, the number of features; got {keep}")
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be in (0, 1), the fraction of the features removed in a round; got {sparsity}")
    mask, rounds = np.ones(features, bool), []
    while (left := int(mask.sum())) > keep:
        scores = np.asarray(score(jnp.asarray(mask), jax.random.fold_in(key, len(rounds))), np.float64)
        if scores.shape != mask.shape or np.isnan(scores[mask]).any():
            raise ValueError(
                f"score must return one number for each feature, {mask.shape}, and no NaN where the mask is True; "
                f"got {scores.shape}"
            )
        rounds.append(Round(mask, np.where(mask, scores, np.nan)))
        mask = top(np.where(mask, scores, -np.inf), max(keep, left - max(1, int(sparsity * left))))
    return mask, rounds
