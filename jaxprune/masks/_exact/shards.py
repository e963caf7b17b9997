"""Arrays of which each device of a `jax.shard_map` holds a part, ranked as the whole that they are.

Inside a `shard_map` (or `pmap`) an array is one device's part, and nothing in it says of what. So the caller says how
each leaf is cut, in the terms of the `shard_map` itself: by its `in_specs`. Everything that counts, ranks or draws asks
here what the whole looks like, and adds up over the axes of the mesh what each device found in its part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune import _tree
from jaxprune.masks._exact import counts
from jaxprune.masks._exact.axes import replicate
from jaxprune.masks._exact.counts import Count

PyTree = Any
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shards:
    """How an array is cut: for each of its axes the axes of the mesh, first the slowest, and into how many parts.

    Attributes:
      names: for each axis names of mesh axes; none for an axis that is whole. Axes that are left out are whole.
      parts: for each axis, how many parts.
    """

    names: tuple[tuple[str, ...], ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether there are more parts than one, or could be."""
        return any(self.names)

    def whole(self, shape: Shape) -> Shape:
        """The shape of the array of which one device's part has this shape."""
        return tuple(n * self.cuts(axis) for axis, n in enumerate(shape))

    def cuts(self, axis: int) -> int:
        """Into how many parts an axis is cut."""
        return self.parts[axis] if axis < len(self.parts) else 1

    def number(self, axes: Sequence[int]) -> int:
        """How many parts there are along some axes."""
        return math.prod(self.cuts(axis) for axis in axes)

    def along(self, axes: Sequence[int]) -> tuple[str, ...]:
        """The axes of the mesh that cut these axes."""
        return tuple(name for axis in axes if axis < len(self.names) for name in self.names[axis])

    @property
    def all_names(self) -> tuple[str, ...]:
        """The axes of the mesh that cut any axis, in one order whatever the layout."""
        return tuple(sorted(self.along(range(len(self.names)))))

    def take(self, order: Sequence[int | None]) -> "Shards":
        """The layout of an array whose axes are these of this one; None for an axis that is whole."""
        names = [self.along([axis]) if axis is not None else () for axis in order]
        return Shards(tuple(names), tuple(self.cuts(axis) if axis is not None else 1 for axis in order))

    def position(self, axes: Sequence[int]) -> Any:
        """The place of this device's part along some axes, the last of them fastest: int32."""
        place: Any = np.int32(0)
        for axis in axes:
            names = self.along([axis])
            place = place * np.int32(self.cuts(axis)) + (lax.axis_index(names) if names else np.int32(0))
        return place

    def start(self, axis: int, size: int) -> Any:
        """The index along an axis at which this device's part, of this size, begins."""
        return self.position([axis]) * np.int32(size)

    def own(self, values: jax.Array, shape: Shape) -> jax.Array:
        """This device's part, which has this shape, of an array that it holds whole; further axes stay whole."""
        for axis, size in enumerate(shape):
            if self.along([axis]):
                values = lax.dynamic_slice_in_dim(values, self.start(axis, size), size, axis)
        return values

    def spread(self, values: jax.Array, shape: Shape) -> jax.Array:
        """The inverse of `own`: the whole array with zeros at the parts of other devices, for a sum over devices."""
        for axis, size in enumerate(shape):
            if self.along([axis]):
                whole = list(values.shape)
                whole[axis] = size * self.cuts(axis)
                start = self.start(axis, size)
                values = lax.dynamic_update_slice_in_dim(jnp.zeros(whole, values.dtype), values, start, axis)
        return values


WHOLE = Shards()


def of_leaves(params: PyTree, specs: PyTree = None) -> list[Shards]:
    """How each leaf is cut, in the order of `jax.tree.leaves`.

    Args:
      params: parameters, or a tree in their structure.
      specs: a tree of `PartitionSpec` in the structure of the parameters, or a prefix of it, as the `in_specs` of a
        `shard_map` are. None: the leaves are whole, as they are outside of a `shard_map` whatever `specs` says.

    Raises:
      TypeError: what is no tree of PartitionSpecs.
      ValueError: it is no beginning of the tree, or some of its axes are not bound where others are.
    """
    size = len(jax.tree.leaves(params))
    if specs is None:
        return [WHOLE] * size
    wrong = [x for x in jax.tree.leaves(specs, is_leaf=_is_spec) if not _is_spec(x)]
    if wrong:
        raise TypeError(
            "specs takes PartitionSpecs, the in_specs of the shard_map for the parameters: a name alone does not "
            f"say which axis of a leaf is cut; got {wrong[0]!r}"
        )
    try:
        specs = jax.tree.leaves(jax.tree.broadcast(specs, params, is_leaf=_is_spec), is_leaf=_is_spec)
    except ValueError as error:
        raise ValueError(f"specs must have the structure of the parameters, or the beginning of it: {error}") from None
    sizes = _bound({name for spec in specs for part in _parts(spec) for name in part})
    return [_layout(spec, sizes) for spec in specs] if sizes else [WHOLE] * size


def total(parts: Count, names: tuple[str, ...]) -> Count:
    """Adds up over axes of the mesh what each device counted in its part: the same on all of them."""
    if not names:
        return parts
    # Limbs of 16 bits, of which no number of devices that there is makes more than 31.
    return counts.normalise(Count(*lax.psum(jnp.stack(counts.normalise(parts)), names)))


def total_slices(value: Count, layout: Shards, batch: Shape) -> Count:
    """Adds up what devices counted in each slice of their parts.

    Args:
      value: [*batch, ...].
      layout: how the array is cut.
      batch: its leading axes, of which each position is a slice.

    Returns:
      A normalised Count of [slices of the whole, ...], the same on every device.
    """
    value, rest = counts.normalise(value), value.low.shape[len(batch) :]
    spread = Count(*(layout.spread(replicate(limb), batch).reshape(-1, *rest) for limb in value))
    return total(spread, layout.all_names)


def tie(arrays: Sequence[jax.Array], turn: PyTree, layouts: Sequence[Shards]) -> list[tuple[jax.Array, PyTree]]:
    """Each array with `turn`, tied to it so that the compiler takes nothing that is made of the array out of a loop.

    All outputs must be used. One barrier for all; but where arrays are cut, one for each, for what comes out of a
    barrier is taken to differ between devices as all of what goes in does.
    """
    if any(layout.is_cut for layout in layouts):
        return [lax.optimization_barrier((x, turn)) for x in arrays]
    held, turn = lax.optimization_barrier((list(arrays), turn))
    return [(x, turn) for x in held]


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec | NamedSharding | Shards)


def _parts(spec: Any) -> list[tuple[str, ...]]:
    if isinstance(spec, Shards):
        return list(spec.names)
    parts = spec.spec if isinstance(spec, NamedSharding) else spec
    return [() if part is None else part if isinstance(part, tuple) else (part,) for part in parts]


def _layout(spec: Any, sizes: dict[str, int]) -> Shards:
    names = tuple(tuple(part) for part in _parts(spec))
    return Shards(names, tuple(math.prod(sizes[name] for name in part) for part in names))


def _bound(names: set[str]) -> dict[str, int]:
    """The sizes of the axes of the mesh; none where no such axis is bound, outside of a shard_map."""
    sizes, missing = {}, []
    for name in sorted(names):
        try:
            sizes[name] = lax.axis_size(name)
        except NameError:
            missing.append(name)
    if sizes and missing:
        raise ValueError(
            f"specs: no axis {', '.join(missing)} of the mesh is bound here, while {', '.join(sizes)} is; take the "
            "in_specs of the shard_map that this is called in"
        )
    return sizes


def refuse_cut(params: PyTree, specs: PyTree, what: str) -> None:
    """Raises where leaves are cut, for what needs them whole.

    Raises:
      ValueError: naming the leaves.
    """
    pairs = zip(_tree.named_leaves(params), of_leaves(params, specs), strict=True)
    lines = [f"  {name}: {layout.names}" for (name, _), layout in pairs if layout.is_cut]
    if lines:
        raise ValueError(f"{what} needs whole leaves; call it outside of the shard_map:\n" + "\n".join(lines))
