"""`Shards`: how the devices of a `jax.shard_map` share an array, which is ranked as a whole.

Inside a `shard_map` (or `pmap`) each device sees only its shard and cannot infer the shape of the whole array. So the
caller says how each leaf is sharded, by the `in_specs` of the `shard_map`. Counting, ranking and drawing ask `Shards`
for the shape of the whole array, and add up the results of all devices over the axes of the mesh.

In an Explicit mesh the type of an array names the devices of its axes: `split`, `join` and `place_like` keep them.

`exact_sum` adds floats so that the bits are the same for every order, on one device and on a thousand. The last bits of
a float sum change with the layout of the data, and a last bit may decide which of two channels is kept. So each number
becomes an integer multiple of a power of two near the largest number, and integers add up exactly.
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
from jaxprune.masks._exact.counts import Count

PyTree = Any
Shape = tuple[int, ...]


def split(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Splits each axis into (n / size, size): the result has twice as many axes.

    A sharded axis stays sharded along the first of its two axes if the number of devices divides it; else it is
    gathered.
    """
    shape = [part for n, size in zip(x.shape, sizes, strict=True) for part in (n // size, size)]
    spec = _spec(x)
    if spec is None:
        return x.reshape(shape)
    mesh = jax.typeof(x).sharding.mesh
    kept = [
        part if (n // size) % _devices(mesh, part) == 0 else None
        for part, n, size in zip(spec, x.shape, sizes, strict=True)
    ]
    halves = [part for outer in kept for part in (outer, None)]
    return jax.lax.reshape(_place(x, mesh, kept), shape, out_sharding=NamedSharding(mesh, PartitionSpec(*halves)))


def join(x: jax.Array) -> jax.Array:
    """Joins each pair of neighbouring axes: the inverse of `split`."""
    shape = [a * b for a, b in zip(x.shape[::2], x.shape[1::2], strict=True)]
    spec = _spec(x)
    if spec is None:
        return x.reshape(shape)
    mesh = jax.typeof(x).sharding.mesh
    halves = [part for outer in spec[::2] for part in (outer, None)]
    return jax.lax.reshape(_place(x, mesh, halves), shape, out_sharding=NamedSharding(mesh, PartitionSpec(*spec[::2])))


def replicate(x: jax.Array) -> jax.Array:
    """Puts an array on every device if its type names the devices; otherwise the compiler decides."""
    return x if _spec(x) is None else _place(x, jax.typeof(x).sharding.mesh, [])


def place_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """Puts an array on the devices of another array of its shape, if the type of the other array names them."""
    place = jax.typeof(other).sharding
    return x if jax.typeof(x).sharding.spec == place.spec else jax.sharding.reshard(x, place)


def named_sharding(x: jax.Array) -> NamedSharding | None:
    """Returns the sharding of an array for `out_sharding`, if its type names the devices; else None."""
    place = jax.typeof(x).sharding
    return None if all(part is None for part in place.spec) else place


def _spec(x: jax.Array) -> list[Any] | None:
    place = named_sharding(x)
    return None if place is None else [*place.spec, *[None] * (x.ndim - len(place.spec))]


def _place(x: jax.Array, mesh: Any, spec: list[Any]) -> jax.Array:
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _devices(mesh: Any, part: Any) -> int:
    names = () if part is None else part if isinstance(part, tuple) else (part,)
    return math.prod(mesh.shape[name] for name in names)


@dataclass(frozen=True)
class Shards:
    """How an array is sharded: for each axis, the axes of the mesh (the slowest first) and the number of shards.

    Attributes:
      names: for each axis the names of mesh axes, empty if the axis is not sharded. Missing trailing axes are not
        sharded.
      parts: for each axis, the number of shards.
    """

    names: tuple[tuple[str, ...], ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether an axis is sharded, possibly into a single shard."""
        return any(self.names)

    def whole(self, shape: Shape) -> Shape:
        """Returns the shape of the whole array, from the shape of one shard."""
        return tuple(n * self.cuts(axis) for axis, n in enumerate(shape))

    def cuts(self, axis: int) -> int:
        """Returns the number of shards along an axis."""
        return self.parts[axis] if axis < len(self.parts) else 1

    def number(self, axes: Sequence[int]) -> int:
        """Returns the number of shards along several axes."""
        return math.prod(self.cuts(axis) for axis in axes)

    def along(self, axes: Sequence[int]) -> tuple[str, ...]:
        """Returns the axes of the mesh that shard these axes."""
        return tuple(name for axis in axes if axis < len(self.names) for name in self.names[axis])

    @property
    def all_names(self) -> tuple[str, ...]:
        """The axes of the mesh that shard any axis, in the same order for every layout."""
        return tuple(sorted(self.along(range(len(self.names)))))

    def take(self, order: Sequence[int | None]) -> "Shards":
        """Returns the layout of an array with the axes `order` of this array; None is an axis that is not sharded."""
        names = [self.along([axis]) if axis is not None else () for axis in order]
        return Shards(tuple(names), tuple(self.cuts(axis) if axis is not None else 1 for axis in order))

    def position(self, axes: Sequence[int]) -> Any:
        """Returns the index of this device's shard along some axes, the last axis fastest: int32."""
        place: Any = np.int32(0)
        for axis in axes:
            names = self.along([axis])
            place = place * np.int32(self.cuts(axis)) + (lax.axis_index(names) if names else np.int32(0))
        return place

    def start(self, axis: int, size: int) -> Any:
        """Returns the index along an axis at which this device's shard, of this size, begins."""
        return self.position([axis]) * np.int32(size)

    def own(self, values: jax.Array, shape: Shape) -> jax.Array:
        """Returns this device's shard, of shape `shape`, of a whole array; additional axes stay whole."""
        for axis, size in enumerate(shape):
            if self.along([axis]):
                values = lax.dynamic_slice_in_dim(values, self.start(axis, size), size, axis)
        return values

    def spread(self, values: jax.Array, shape: Shape) -> jax.Array:
        """Returns the whole array from this device's shard, with zeros in all other shards, to sum over devices."""
        for axis, size in enumerate(shape):
            if self.along([axis]):
                whole = list(values.shape)
                whole[axis] = size * self.cuts(axis)
                start = self.start(axis, size)
                values = lax.dynamic_update_slice_in_dim(jnp.zeros(whole, values.dtype), values, start, axis)
        return values


WHOLE = Shards()


def of_leaves(params: PyTree, specs: PyTree = None) -> list[Shards]:
    """Returns how each leaf is sharded, in the order of `jax.tree.leaves`.

    Args:
      params: parameters, or a tree in their structure.
      specs: a tree of `PartitionSpec` in the structure of the parameters or a prefix of it, like the `in_specs` of a
        `shard_map`. None: the leaves are whole; outside a `shard_map` they are whole for any `specs`.

    Raises:
      TypeError: `specs` is not a tree of PartitionSpecs.
      ValueError: `specs` is not a prefix of the tree, or only some of its mesh axes are bound.
    """
    size = len(jax.tree.leaves(params))
    if specs is None:
        return [WHOLE] * size
    wrong = [x for x in jax.tree.leaves(specs, is_leaf=_is_spec) if not _is_spec(x)]
    if wrong:
        raise TypeError(
            "specs takes PartitionSpecs, the in_specs of the shard_map for the parameters: a name alone does not "
            f"say which axis of a leaf is sharded; got {wrong[0]!r}"
        )
    try:
        specs = jax.tree.leaves(jax.tree.broadcast(specs, params, is_leaf=_is_spec), is_leaf=_is_spec)
    except ValueError as error:
        raise ValueError(f"specs must have the structure of the parameters, or a prefix of it: {error}") from None
    sizes = _bound({name for spec in specs for part in _parts(spec) for name in part})
    return [_layout(spec, sizes) for spec in specs] if sizes else [WHOLE] * size


def total(parts: Count, names: tuple[str, ...]) -> Count:
    """Adds up the counts of all devices over axes of the mesh; every device gets the same sum."""
    if not names:
        return parts
    # Limbs of 16 bits: their sum over any realistic number of devices fits 31 bits.
    return counts.normalise(Count(*lax.psum(jnp.stack(counts.normalise(parts)), names)))


def total_slices(value: Count, layout: Shards, batch: Shape) -> Count:
    """Adds up the counts of all devices for each slice.

    Args:
      value: [*batch, ...].
      layout: how the array is sharded.
      batch: the leading axes of the shard; each position is a slice.

    Returns:
      A normalised Count of [slices of the whole, ...], the same on every device.
    """
    value, rest = counts.normalise(value), value.low.shape[len(batch) :]
    spread = Count(*(layout.spread(replicate(limb), batch).reshape(-1, *rest) for limb in value))
    return total(spread, layout.all_names)


def tie(arrays: Sequence[jax.Array], turn: PyTree, layouts: Sequence[Shards]) -> list[tuple[jax.Array, PyTree]]:
    """Ties `turn` to each array, so that the compiler does not move computations on the array out of a loop.

    All outputs must be used. One barrier ties all arrays. If arrays are sharded, each needs its own barrier, because
    the outputs of a barrier vary over all mesh axes over which any of its inputs varies.
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
    """Returns the sizes of the mesh axes; empty outside a shard_map, where no axis is bound."""
    sizes, missing = {}, []
    for name in sorted(names):
        try:
            sizes[name] = lax.axis_size(name)
        except NameError:
            missing.append(name)
    if sizes and missing:
        raise ValueError(
            f"specs: mesh axes {', '.join(missing)} are not bound here, but {', '.join(sizes)} is; pass the in_specs "
            "of the enclosing shard_map"
        )
    return sizes


def refuse_cut(params: PyTree, specs: PyTree, what: str) -> None:
    """Raises if leaves are sharded, for functions that need whole leaves.

    Raises:
      ValueError: a leaf is sharded; the message names the leaves.
    """
    pairs = zip(_tree.named_leaves(params), of_leaves(params, specs), strict=True)
    lines = [f"  {name}: {layout.names}" for (name, _), layout in pairs if layout.is_cut]
    if lines:
        raise ValueError(f"{what} needs whole leaves; call it outside the shard_map:\n" + "\n".join(lines))


_BITS = 29  # bits of the largest number; parts below 2^-29 of it are rounded off
_STRETCH = 16  # entries that are added first
_APART = 64  # the least number of partial sums that are left, so that devices can share them


def exact_sum(x: jax.Array, along: tuple[int, ...], layout: Shards = WHOLE) -> jax.Array:
    r"""Returns the sum over some axes, with the same bits for every layout.

    $s = 2^{e} \sum_i \lfloor 2^{-e} x_i \rceil$ with $e$ the exponent of $\max_i |x_i|$ less 29: each number is
    rounded to 2^-29 of the largest, and the sum is exact before it is rounded to float32.

    Args:
      x: floating, any shape; float64 is summed with the precision of float32.
      along: the axes to sum over; they keep size 1.
      layout: how devices of a shard_map share the array; all shards are summed.

    Returns:
      float32, summed axes with size 1. NaN if an entry is NaN or both infinities occur, else an infinity if one occurs.

    Example:
      >>> exact_sum(jnp.array([[1.0, 2.0], [3.0, 4.5]]), (0,)).tolist()
      [[4.0, 6.5]]
    """
    x = x.astype(jnp.float32)
    if not x.size:
        return x.sum(along, keepdims=True)
    # If all entries are finite, these two give the largest magnitude; otherwise their sum is the result.
    largest, smallest = x.max(along, keepdims=True), x.min(along, keepdims=True)
    if layout.along(along):
        largest, smallest = lax.pmax(largest, layout.along(along)), lax.pmin(smallest, layout.along(along))
    exponent = jnp.maximum(jnp.frexp(jnp.maximum(jnp.abs(largest), jnp.abs(smallest)))[1], -90)
    # Powers of two from ldexp are exact, and so is the product, so fusion cannot change the bits.
    multiple = jnp.round(x * jnp.ldexp(jnp.float32(1), _BITS - exponent)).astype(jnp.int32)
    added = _add(multiple, along, layout) * jnp.ldexp(jnp.float32(1), exponent - _BITS)
    return jnp.where(jnp.isfinite(largest) & jnp.isfinite(smallest), added, largest + smallest)


def _add(multiple: jax.Array, along: tuple[int, ...], layout: Shards) -> jax.Array:
    # Limbs are so narrow that their sum fits 31 bits; the top limb has the sign.
    size = math.prod(layout.whole(multiple.shape)[a] for a in along)
    width = 30 - max(1, math.ceil(math.log2(max(2, size))))
    if width < 1:
        raise ValueError(f"cannot sum {size} entries exactly; at most 2^29")
    parts, rest = [], multiple
    for _ in range(_BITS // width):
        parts.append(rest & ((1 << width) - 1))
        rest = rest >> width
    summed = [part.sum(along, keepdims=True) for part in _in_stretches([*parts, rest], along)]
    *limbs, top = lax.psum(summed, layout.along(along)) if layout.along(along) else summed
    # After carrying, all limbs but the top are below 2^width, so there are few roundings, and always the same ones.
    carried = []
    carry = jnp.zeros_like(top)
    for limb in limbs:
        whole = limb + carry
        carried.append(whole & ((1 << width) - 1))
        carry = whole >> width
    value = (top + carry).astype(jnp.float32)
    for limb in reversed(carried):
        value = value * (1 << width) + limb.astype(jnp.float32)
    return value


def _in_stretches(limbs: list[jax.Array], along: tuple[int, ...]) -> list[jax.Array]:
    """Sums all limbs over short runs of the last axis to sum over.

    On a CPU XLA does this in one pass, without temporary arrays of the input's size. A sum over a whole leading axis
    would read memory with long strides, which is far slower, or copy all limbs.
    """
    axis, ndim = along[-1], limbs[0].ndim
    size = limbs[0].shape[axis]
    stretch = max(d for d in range(1, _STRETCH + 1) if size % d == 0 and (d == 1 or size // d >= _APART))
    sizes = tuple(stretch if a == axis else 1 for a in range(ndim))
    zeros = [np.int32(0)] * len(limbs)
    return jax.lax.reduce(
        [split(limb, sizes) for limb in limbs],
        zeros,
        lambda a, b: [jax.lax.add(x, y) for x, y in zip(a, b, strict=True)],
        tuple(range(1, 2 * ndim, 2)),
    )
