"""Leaves as packed masks and kept values, and back."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree, masks

PyTree = Any
# What safetensors calls the types that JAX has.
_DTYPES = {
    "BOOL": jnp.bool_, "U8": jnp.uint8, "I8": jnp.int8, "U16": jnp.uint16, "I16": jnp.int16, "U32": jnp.uint32,
    "I32": jnp.int32, "U64": jnp.uint64, "I64": jnp.int64, "F16": jnp.float16, "BF16": jnp.bfloat16,
    "F32": jnp.float32, "F64": jnp.float64, "C64": jnp.complex64,
    "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
}  # fmt: skip


class Content(NamedTuple):
    """A tree as a file holds it.

    Attributes:
      arrays: by name.
      about: for each leaf, in the order of `jax.tree.leaves`: `name`, `path`, `shape`, `dtype`, and `mask` (the shape
        of its mask; None where it is not pruned) and `kept`, the number of its kept values.
    """

    arrays: dict[str, np.ndarray]
    about: list[dict[str, Any]]


def split(params: PyTree, mask_tree: PyTree) -> Content:
    """Takes a tree apart.

    Raises:
      ValueError: two leaves of one name, values where the masks are False, arrays that no single process holds.
      TypeError: leaves that are not arrays of numbers.
    """
    pairs = jax.tree_util.tree_flatten_with_path(params)[0]
    held = jax.tree.structure(params).flatten_up_to(mask_tree)
    _check_leaves([(_tree.name(path), leaf) for path, leaf in pairs])
    arrays: dict[str, np.ndarray] = {}
    about, lost = [], []
    for (path, leaf), mask in zip(pairs, held, strict=True):
        name, array, bits = _tree.name(path), np.asarray(leaf), np.asarray(masks.as_bool(mask))
        entry = {"name": name, "path": _tree.identity(path), "shape": array.shape, "dtype": str(array.dtype)}
        if not bits.ndim and bits:
            arrays[name] = np.asarray(array, order="C")
            about.append(entry | {"mask": None, "kept": array.size})
            continue
        full = np.broadcast_to(bits, array.shape)
        arrays[f"{name}.mask"], arrays[f"{name}.values"] = np.packbits(bits, bitorder="little"), array[full]
        about.append(entry | {"mask": bits.shape, "kept": int(full.sum())})
        dropped = array[~full]
        if np.any(dropped != np.zeros((), array.dtype)):
            lost.append(f"  {name}: {np.count_nonzero(dropped)} of {dropped.size}")
    if lost:
        raise ValueError(
            "only kept values are saved, but there are others where the masks are False; zero them first "
            "(masks.apply(params, masks)), or save without masks:\n" + "\n".join(lost)
        )
    return Content(arrays, about)


def check(about: list[dict[str, Any]], like: PyTree, file: str) -> None:
    """Raises unless the leaves of a file are those of a tree.

    Raises:
      ValueError: they differ; the message names each leaf.
    """
    there = {tuple(entry["path"]): f"{entry['dtype']}{list(entry['shape'])}" for entry in about}
    here = {
        _tree.identity(path): f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
        for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]
    }
    lines = [
        f"  {'/'.join(path)}: in the file {there.get(path, 'missing')}, expected {here.get(path, 'nothing')}"
        for path in sorted({*there, *here})
        if there.get(path) != here.get(path)
    ]
    if lines:
        raise ValueError(f"{file} holds other parameters than those asked for:\n" + "\n".join(lines))


def join(about: list[dict[str, Any]], arrays: dict[str, np.ndarray], like: PyTree) -> tuple[PyTree, PyTree]:
    """Puts a tree together again: parameters and masks in the structure of `like`."""
    found = {tuple(entry["path"]): _join(entry, arrays) for entry in about}
    order = [_tree.identity(path) for path, _ in jax.tree_util.tree_flatten_with_path(like)[0]]
    structure = jax.tree.structure(like)
    params, held = ([found[path][part] for path in order] for part in (0, 1))
    return jax.tree.unflatten(structure, params), jax.tree.unflatten(structure, held)


def as_array(*, dtype: str, shape: list[int], data: Any) -> np.ndarray:
    """An array from what safetensors reads."""
    return np.frombuffer(data, np.dtype(_DTYPES[dtype])).reshape(shape)


def _join(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    name, shape = entry["name"], tuple(entry["shape"])
    if entry["mask"] is None:
        return arrays[name], np.array(True)
    size = int(np.prod(entry["mask"]))
    mask = np.unpackbits(arrays[f"{name}.mask"], count=size, bitorder="little").astype(bool).reshape(entry["mask"])
    full = np.broadcast_to(mask, shape)
    values = arrays[f"{name}.values"]
    if int(full.sum()) != len(values) or len(values) != entry["kept"]:
        raise ValueError(f"{name}: its mask keeps {int(full.sum())} values, the file has {len(values)} of them")
    array = np.zeros(shape, values.dtype)
    array[full] = values
    return array, mask


def _check_leaves(named: list[tuple[str, Any]]) -> None:
    known = {np.dtype(dtype) for dtype in _DTYPES.values()}
    wrong = [f"  {name}: {_kind(leaf)}" for name, leaf in named if getattr(leaf, "dtype", None) not in known]
    if wrong:
        raise TypeError(
            "only arrays of numbers are saved; leave other leaves out (eqx.filter), and save keys as "
            "jax.random.key_data(key):\n" + "\n".join(wrong)
        )
    spread = [f"  {name}" for name, leaf in named if not getattr(leaf, "is_fully_addressable", True)]
    if spread:
        raise ValueError(
            "arrays that lie on the devices of several processes are gathered first "
            "(jax.experimental.multihost_utils.process_allgather(params, tiled=True)) and saved by one process:\n"
            + "\n".join(spread)
        )
    names = [name for name, _ in named]
    files = [*names, *(f"{name}.{part}" for name in names for part in ("mask", "values"))]
    twice = sorted(name for name, count in Counter(files).items() if count > 1)
    if twice:
        raise ValueError(
            "leaves whose names would be the same in the file; rename one of each:\n  " + "\n  ".join(twice)
        )


def _kind(leaf: Any) -> str:
    return str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__
