"""Sparse parameters in a safetensors file: packed masks, only the values that are kept, and a checksum."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.checkpoints import files, leaves

PyTree = Any
_KIND = "jaxprune.checkpoints/1"


class Saved(NamedTuple):
    """What a file takes.

    Attributes:
      path: the file.
      bytes: its size.
      dense: the bytes of the parameters themselves.
      masks: the bytes of the masks in it.
      values: the bytes of the kept values in it, those of unpruned leaves among them.
    """

    path: Path
    bytes: int
    dense: int
    masks: int
    values: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes:,} bytes, {self.bytes / max(1, self.dense):.1%} of the dense parameters"
            f" ({self.masks:,} masks, {self.values:,} values, {self.bytes - self.masks - self.values:,} header)"
        )


class Loaded(NamedTuple):
    """What a file held.

    Attributes:
      params: the parameters, zero where the masks are False.
      masks: their masks, bool; a scalar True for a leaf that is not pruned.
      manifest: what was saved as such, or None.
    """

    params: PyTree
    masks: PyTree
    manifest: Any


def save(path: Any, params: PyTree, mask_tree: PyTree | None = None, *, manifest: Any = None) -> Saved:
    """Writes pruned parameters and their masks to a new file in the safetensors format.

    A pruned leaf `a/b` becomes two arrays: `a/b.mask`, a bit an entry of the mask, and `a/b.values`, its kept values in
    row-major order and its own dtype. Another leaf is `a/b` as it is. The metadata say where all belongs, hold the
    manifest, and a SHA-256 of everything. Nothing is pickled.

    Args:
      path: a file that does not exist, in a folder that does.
      params: any pytree of arrays, zero where the masks are False (`masks.apply`).
      mask_tree: bool or packed masks in its structure; None for parameters without masks, such as a slim network's.
      manifest: anything that JSON can hold, such as `json.loads(slimmed.manifest.to_json())`.

    Returns:
      The sizes.

    Raises:
      FileExistsError: the file exists; nothing is overwritten.
      ValueError: masks that do not fit; parameters that are not zero where the masks are False, which would be lost;
        arrays that no single process holds.
      TypeError: leaves that are not arrays of numbers; a manifest that is not JSON.
      ImportError: the package safetensors is missing.

    Example:
      >>> import tempfile
      >>> params, held = {'w': jnp.array([[0.0, 2.0]])}, {'w': jnp.array([[False, True]])}
      >>> path = tempfile.mkdtemp() + '/net.safetensors'
      >>> save(path, params, held).values
      4
      >>> load(path, params).params['w'].tolist()
      [[0.0, 2.0]]
    """
    package = files.optional("safetensors.numpy")
    if mask_tree is None:
        mask_tree = jax.tree.map(lambda _: True, params)
    _tree.check_masks(params, mask_tree)
    content = leaves.split(params, mask_tree)
    about = json.dumps({"kind": _KIND, "leaves": content.about, "manifest": manifest})
    # One entry: the package writes several in an order of its own, and equal networks should be equal files.
    metadata = {"jaxprune": json.dumps({"sha256": _digest(about, content.arrays), "about": about})}
    written = files.write_new(path, lambda part: package.save_file(content.arrays, part, metadata))
    sizes = {"mask": 0, "values": 0}
    for name, array in content.arrays.items():
        sizes["mask" if name.endswith(".mask") else "values"] += array.nbytes
    dense = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return Saved(written, written.stat().st_size, dense, sizes["mask"], sizes["values"])


def load(path: Any, like: PyTree) -> Loaded:
    """Reads a file from `save`.

    Args:
      path: the file.
      like: arrays or ShapeDtypeStructs in the structure of the parameters, such as `jax.eval_shape(model.init, ...)`.
        Where one has a sharding its leaf is put there, and so is a mask of full shape.

    Returns:
      The parameters, bit for bit, their masks, and the manifest.

    Raises:
      ValueError: the file is none of `save`, is damaged (any bit of it), or holds other leaves, shapes or dtypes.
      ImportError: the package safetensors is missing.
    """
    package = files.optional("safetensors")
    data = Path(path).read_bytes()
    try:
        arrays = {name: leaves.as_array(**found) for name, found in package.deserialize(data)}
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (package.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged, truncated, or no safetensors file: {error}") from error
    metadata = header.get("__metadata__", {})
    if "jaxprune" not in metadata:
        raise ValueError(f"{path} is not from jaxprune.checkpoints.save: its metadata have no entry `jaxprune`")
    try:
        noted = json.loads(metadata["jaxprune"])
        whole = noted["sha256"] == _digest(noted["about"], arrays)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its metadata cannot be read: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: its content does not have the checksum that was saved with it")
    about = json.loads(noted["about"])
    if about["kind"] != _KIND:
        raise ValueError(f"{path} is of the kind {about['kind']!r}; this version reads {_KIND!r}")
    leaves.check(about["leaves"], like, str(path))
    params, found = leaves.join(about["leaves"], arrays, like)
    return Loaded(_place(params, like), _place(found, like), about["manifest"])


def _place(values: PyTree, like: PyTree) -> PyTree:
    def put(value: np.ndarray, leaf: Any) -> jax.Array:
        sharding = getattr(leaf, "sharding", None)
        if sharding is None or value.shape != tuple(leaf.shape):
            return jnp.asarray(value)
        return jax.device_put(value, sharding)

    return jax.tree.map(put, values, like)


def _digest(about: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        array = arrays[name]
        # Name, dtype and shape too: the same bytes in another shape are other weights.
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
