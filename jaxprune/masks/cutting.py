"""The units of each pattern where devices share an array: whether a cut leaves them whole, and how they are shared."""

import math

import jax

from jaxprune.masks.patterns import NM, Block, Channel, Pattern, Unstructured
from jaxprune.masks.shards import Layout, Shape


def problem(pattern: Pattern, shape: Shape, batch_axes: int, layout: Layout) -> str | None:
    """What is wrong with a cut.

    Args:
      pattern: it fits the whole array.
      shape: of one device's part.
      batch_axes: how many leading axes are slices.
      layout: how the array is cut.

    Returns:
      What is wrong, and what to do; None if nothing is.
    """
    if not layout.is_cut or isinstance(pattern, Unstructured | Channel):
        return None
    if isinstance(pattern, Block):
        sizes = pattern.sizes(len(shape))
        if all(n % size == 0 for n, size in zip(shape, sizes, strict=True)):
            return None
        return f"blocks of {sizes} do not divide the parts {shape} that devices hold; shard it along other axes"
    if isinstance(pattern, NM):
        if _holds_groups(pattern, shape, batch_axes, layout):
            return None
        return (
            f"groups of m={pattern.m} along the reduction axes lie on several devices, whose parts are {shape}; "
            "shard it along other axes, or give it another axis by path"
        )
    return f"{pattern} does not say what its units are in a part of an array; prune it outside of the shard_map"


def _holds_groups(pattern: NM, shape: Shape, batch_axes: int, layout: Layout) -> bool:
    """Whether every group is on one device."""
    together = pattern.reduction_axes(len(shape), batch_axes)
    if layout.whole(shape)[together[-1]] % pattern.m == 0:
        return shape[together[-1]] % pattern.m == 0
    # Groups run through all of the axes: a part holds a stretch of them only if just the first axis is cut.
    return not layout.along(together[1:]) and math.prod(shape[a] for a in together) % pattern.m == 0


def unit_layout(pattern: Pattern, ndim: int, batch_axes: int, layout: Layout) -> Layout:
    """How the units of an array that is cut so are shared."""
    if not layout.is_cut:
        return layout
    if isinstance(pattern, Unstructured):
        return layout.take(pattern.order(ndim))
    if isinstance(pattern, Channel):
        stay = [*range(batch_axes), pattern.axis % ndim]
        return layout.take([axis if axis in stay else None for axis in range(ndim)])
    return layout


def units(pattern: Pattern, scores: jax.Array, batch_axes: int, layout: Layout) -> jax.Array:
    """The scores of the units of this device's part; of channels, what all devices hold of them."""
    if isinstance(pattern, Channel):
        return pattern.units(scores, batch_axes, layout)
    return pattern.units(scores, batch_axes)
