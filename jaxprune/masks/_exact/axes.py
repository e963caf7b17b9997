"""`split` and `join` axes, `place_like`: for arrays whose type may name the devices of an axis (Explicit meshes)."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


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
    """The inverse of `split`: joins each pair of neighbouring axes."""
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
    """The sharding of an array for `out_sharding`, if its type names the devices; else None."""
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
