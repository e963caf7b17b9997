"""A network that takes fewer inputs: the mask over features, the smaller first layer, and what is kept by name."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.slimming import Choice, Manifest, find_groups, smaller

PyTree = Any
_INPUT, _PARAMS = "input", "params"


@dataclasses.dataclass(frozen=True, eq=False)
class Narrowed:
    """A network of fewer inputs.

    Attributes:
      fn: a function `fn(params, x, *rest)` of the smaller parameters and of the features that are kept.
      params: the smaller parameters.
      mask: (features,) bools, True is kept.
      kept: the names of the features kept, in order.
      axis: the axis of the features in x.
      manifest: what stays of each leaf, for optimizer states and such: see `slimming.Manifest`.
      inexact: None where the smaller function equals `fn` with zeros for the weights that are gone; else why not.
    """

    fn: Callable[..., PyTree]
    params: PyTree
    mask: np.ndarray
    kept: tuple[str, ...]
    axis: int
    manifest: Manifest
    inexact: str | None

    def take(self, x: Any) -> Any:
        """The features that are kept, of an array that has all of them."""
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
    """Makes a network physically smaller that no longer looks at some of its inputs.

    The rows of the first layer that meet a removed feature go, wherever the traced program shows them to be: through
    a flattening of images after a dense layer, in several layers that read the input, behind a normalisation with
    constants. The smaller function of the features kept equals `fn` with zeros for those weights, whatever the other
    features are; so also `fn` of zeros for the other features, or of their means where a mean is subtracted first.
    Where features are put together before the first layer (a normalisation over them) it does not, and `inexact` says
    why.

    Args:
      fn: a function `fn(params, x, *rest)`.
      params: its parameters, any tree.
      mask: (features,) bools, True is kept.
      x: inputs or their ShapeDtypeStruct.
      *rest: further inputs or their shapes.
      axis: the axis of the features in x.
      names: what the features are called; by default their numbers.

    Returns:
      The smaller function, its parameters, and the names of what is kept.

    Raises:
      ValueError: the mask is not of the features, keeps none, there are not as many names, or the function needs its
        input whole: a convolution over the axis, an output of the input itself.

    Example:
      >>> net = lambda w, x: jnp.tanh(x @ w['first']) @ w['second']
      >>> w = {'first': jnp.ones((3, 4)), 'second': jnp.ones((4, 2))}
      >>> small = narrow(net, w, [True, False, True], jnp.ones((5, 3)), names=['age', 'day', 'dose'])
      >>> small.kept, small.params['first'].shape, small.fn(small.params, jnp.ones((5, 2))).shape
      (('age', 'dose'), (2, 4), (5, 2))
    """
    mask = _checked(mask, x, axis)
    labels = [str(i) for i in range(len(mask))] if names is None else list(map(str, names))
    if len(labels) != len(mask):
        raise ValueError(f"there are {len(mask)} features and {len(labels)} names")
    joint = lambda both, *rest: fn(both[_PARAMS], both[_INPUT], *rest)
    manifest, inexact = _decide(joint, params, mask, x, rest, axis % len(x.shape))
    kept = tuple(label for label, stays in zip(labels, mask, strict=True) if stays)
    own = _of_params(manifest)
    return Narrowed(_narrowed(joint, manifest, axis % len(x.shape)), own.shrink(params), mask, kept, axis, own, inexact)


def _decide(
    joint: Callable[..., PyTree], params: PyTree, mask: np.ndarray, x: Any, rest: tuple[Any, ...], axis: int
) -> tuple[Manifest, str | None]:
    # The input is one more leaf of the parameters, the first: its features are units as the channels of a layer are.
    groups = find_groups(joint, {_INPUT: jax.ShapeDtypeStruct(x.shape, x.dtype), _PARAMS: params}, *rest)
    if mask.all():
        return Choice.remove(groups, {}).manifest(), None
    units = groups.units[0][axis]
    gone = units[~mask].ravel()
    if units.shape[-1] != 1 or (units < 0).any() or np.isin(units[mask], gone).any():
        raise ValueError(f"features cannot go from axis {axis} of x, {tuple(x.shape)}:\n" + _why(groups, axis))
    removed = {g.name: gone[(gone >= g.first) & (gone < g.first + g.count)] - g.first for g in groups}
    removed = {name: np.unique(numbers) for name, numbers in removed.items() if numbers.size}
    inexact = next((groups[name].inexact for name in removed if groups[name].inexact), None)
    return Choice.remove(groups, removed).manifest(), inexact


def _narrowed(joint: Callable[..., PyTree], manifest: Manifest, axis: int) -> Callable[..., PyTree]:
    made: dict[tuple[int, ...], Callable[..., PyTree]] = {}
    features = (manifest.leaves[0].shape or ())[axis]

    def narrowed(params: PyTree, x: Any, *rest: Any) -> PyTree:
        # A manifest knows one shape of each leaf; the input comes in batches of any size.
        shape = (*x.shape[:axis], features, *x.shape[axis + 1 :])
        if shape not in made:
            leaves = (manifest.leaves[0]._replace(shape=shape), *manifest.leaves[1:])
            made[shape] = smaller(joint, Manifest(leaves), fix_outputs=True)
        return made[shape]({_INPUT: x, _PARAMS: params}, *rest)

    return narrowed


def _of_params(manifest: Manifest) -> Manifest:
    """The manifest without the input, and with paths from the parameters' root."""
    own = [(kept, kept.identity[1:]) for kept in manifest.leaves[1:]]
    return Manifest(tuple(kept._replace(name="/".join(path), identity=path) for kept, path in own))


def _checked(mask: Any, x: Any, axis: int) -> np.ndarray:
    mask = np.asarray(mask)
    if not hasattr(x, "shape") or not -len(x.shape) <= axis < len(x.shape):
        raise ValueError(f"x must be an array or its shape, with an axis {axis}; got {getattr(x, 'shape', type(x))}")
    if mask.dtype != np.bool_ or mask.shape != (x.shape[axis],):
        raise ValueError(
            f"mask must be {x.shape[axis]} bools, one for each feature on axis {axis} of x; "
            f"got {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise ValueError("mask keeps no feature; a network needs one at least")
    return mask


def _why(groups: Any, axis: int) -> str:
    found = [
        f"  {f.positions} of {f.of} positions: {f.reason}" for f in groups.frozen if (f.name, f.axis) == (_INPUT, axis)
    ]
    return "\n".join(found) or "  a feature stands for several units at once: choose among them with find_groups"
