"""Networks in one safetensors file: `save` and `load` for pruned parameters, `save_slim` and `load_slim` for slim ones.

The file format: a pruned leaf `a/b` is stored as two arrays. `a/b.mask` is its mask with one bit for each entry; the
first entry is the lowest bit of the first byte. `a/b.values` has its kept values in row-major order and in its dtype. A
leaf that is not pruned is stored as one array `a/b`. The metadata entry `jaxprune` is JSON: the path, shape and dtype
of each leaf, `about`, and a SHA-256 of everything. Nothing is pickled, and every safetensors reader can open the file.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxprune import _tree
from jaxprune import masks as masks_
from jaxprune.checkpoints import _disk
from jaxprune.masks.packing import is_packed
from jaxprune.slimming import Manifest, Slimmed

PyTree = Any
_KIND = "jaxprune.network/1"
_FUNCTION = "jaxprune.function"
# The safetensors names of dtypes.
_DTYPES = {
    "BOOL": jnp.bool_, "U8": jnp.uint8, "I8": jnp.int8, "U16": jnp.uint16, "I16": jnp.int16, "U32": jnp.uint32,
    "I32": jnp.int32, "U64": jnp.uint64, "I64": jnp.int64, "F16": jnp.float16, "BF16": jnp.bfloat16,
    "F32": jnp.float32, "F64": jnp.float64, "C64": jnp.complex64,
    "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
}  # fmt: skip


class Saved(NamedTuple):
    """The sizes of a file that `save` or `save_slim` wrote; print it for a summary.

    Attributes:
      path: the file.
      bytes: the size of the file.
      dense: the size of the parameters in memory, in bytes.
      masks: the size of the masks in the file, in bytes.
      values: the size of the kept values in the file, in bytes, including leaves that are not pruned.
    """

    path: Path
    bytes: int
    dense: int
    masks: int
    values: int

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.bytes:,} bytes, {self.bytes / max(1, self.dense):.1%} of the parameters in memory"
            f" ({self.masks:,} masks, {self.values:,} values, {self.bytes - self.masks - self.values:,} names,"
            " structure and function)"
        )


class Loaded(NamedTuple):
    """A network read from a file.

    Attributes:
      params: the parameters, zero where the masks are False.
      masks: bool masks; a scalar True for a leaf that is not pruned.
      about: the JSON value that was saved with the network, or None.
    """

    params: PyTree
    masks: PyTree
    about: Any


def save(path: Any, params: PyTree, masks: PyTree | None = None, about: Any = None) -> Saved:
    """Writes a network to a new safetensors file: kept values, masks as bits, a checksum.

    Use `save(path, *pruned)` for a `Pruned` and `save(path, *ticket)` for a `lottery.Ticket`. Use `save_slim` for a
    slim network with its function.

    Args:
      path: a new file in an existing folder.
      params: any pytree of arrays, zero where the masks are False (`masks.apply`).
      masks: bool or packed masks of the same leaves; their containers may differ from the containers of `params`, as in
        an `nnx.Optimizer`. None (default): the network is not pruned, or is slim.
      about: any JSON value, such as the network's origin and metrics; default None.

    Returns:
      The sizes.

    Raises:
      FileExistsError: the file exists; nothing is overwritten.
      ValueError: masks do not fit; parameters are not zero where the masks are False, and would be lost; arrays are
        spread over several processes.
      TypeError: leaves are not arrays of numbers, or `about` is not JSON.
      ImportError: the package safetensors is missing.

    Example:
      >>> import tempfile
      >>> params, masks = {'w': jnp.array([[0.0, 2.0]])}, {'w': jnp.array([[False, True]])}
      >>> path = tempfile.mkdtemp() + '/net.safetensors'
      >>> save(path, params, masks).values
      4
      >>> load(path, params).params['w'].tolist()
      [[0.0, 2.0]]
    """
    if isinstance(params, Slimmed) or inspect.isfunction(params):  # or save(path, *slimmed)
        raise TypeError(
            f"params must be a tree of arrays; got {_tree.shown(params)}. To save a slim network with its function, "
            "call save_slim(path, slimmed, *inputs)"
        )
    if isinstance(params, masks_.Pruned):
        raise TypeError("params is a Pruned, parameters and masks together; pass both: save(path, *pruned)")
    return _write(path, params, masks, about, {})


def load(path: Any, like: PyTree = None) -> Loaded:
    """Reads a network from a file that `save` or `save_slim` wrote.

    From a slim network it reads the smaller parameters alone, for further training or for code of your own;
    `load_slim` also returns the function. `Folder` reads a Hugging Face folder, such as `jaxprune slim` writes.

    Args:
      path: the file.
      like: arrays or ShapeDtypeStructs in the structure of the parameters, such as `jax.eval_shape(model.init, ...)`.
        The result has this structure. A parameter, and a mask of full shape, gets the sharding of its leaf in `like`.
        None (default) returns nested dicts, keyed by the parts of each leaf's path.

    Returns:
      The parameters, equal bit for bit to the saved ones, their masks, and `about`.

    Raises:
      ValueError: `save` did not write the file, any bit of the file is damaged, or its leaves, shapes or dtypes differ
        from `like`.
      ImportError: the package safetensors is missing.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + '/net.safetensors'
      >>> _ = save(path, {'dense': {'kernel': jnp.ones((2, 3))}}, about={'accuracy': 0.9})
      >>> network = load(path)
      >>> network.params['dense']['kernel'].shape, network.about
      ((2, 3), {'accuracy': 0.9})
    """
    return _read(path, like)[0]


def save_slim(
    path: Any,
    slimmed: Slimmed,
    *inputs: Any,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    gradient: bool = False,
) -> Saved:
    """Writes a slim network and its function to a new safetensors file.

    The file contains the smaller parameters in the format of `save`, the manifest, and the function as a StableHLO
    program (`jax.export`). `load_slim` needs neither the original network nor its code.

    Args:
      path: a new file in an existing folder.
      slimmed: the result of `jaxprune.slim`; after fine-tuning `dataclasses.replace(slimmed, params=trained)`.
      *inputs: arrays or ShapeDtypeStructs: the loaded function takes inputs of these shapes.
        `jax.ShapeDtypeStruct(jax.export.symbolic_shape('batch, 28, 28, 1'), jnp.float32)` allows any batch size, where
        the function writes `x.shape[0]` and not `len(x)`.
      platforms: the kinds of devices on which the loaded function can run, with the names of `jax.export`; default
        ("cpu", "cuda", "tpu").
      gradient: whether the loaded function can be differentiated, once and in reverse mode, for further training. The
        program is then about three times as large, and writing it takes seconds. Default: False.

    Returns:
      The sizes.

    Raises:
      FileExistsError: the file exists; nothing is overwritten.
      ValueError: the function cannot be exported: its inputs or outputs have containers other than dicts, lists, tuples
        and classes registered with `jax.export`; it replaces leaves of its parameters in place, such as running
        statistics in training; or `gradient` is True and the function has no gradient in reverse mode, such as a
        `while_loop`.
      TypeError: parameters are not arrays of numbers, or the function uses a symbolic size as a Python number.
      ImportError: the package safetensors or flatbuffers is missing.

    Example:
      >>> import tempfile, jaxprune
      >>> params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
      >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
      >>> small = jaxprune.slim(fn, params, {'a[1]': [0, 2]}, jnp.ones((5, 3)))
      >>> path = tempfile.mkdtemp() + '/slim.safetensors'
      >>> _ = save_slim(path, small, jnp.ones((5, 3)))
      >>> fn, params, manifest = load_slim(path)
      >>> params['a'].shape, fn(params, jnp.ones((5, 3))).shape
      ((3, 2), (5, 2))
    """
    _tree.check_instance(slimmed, Slimmed, "slimmed", "what slim returned; save other networks by checkpoints.save")
    # Checked before tracing and compiling, because jax.export needs flatbuffers only at its end.
    _ = _disk.check_new(path), _disk.optional("flatbuffers", "saving a function")
    if any(None in getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(inputs)):
        raise TypeError(
            "inputs have None in a shape; for any batch size pass "
            "jax.ShapeDtypeStruct(jax.export.symbolic_shape('batch, 28, 28, 1'), jnp.float32)"
        )
    structure = jax.tree.structure(slimmed.params)
    lost: list[str] = []

    def flat(leaves: list[Any], *inputs: Any) -> PyTree:
        # A list of leaves, because the containers of the parameters may not be registered with jax.export.
        given = jax.tree.unflatten(structure, leaves)
        out = slimmed.fn(given, *inputs)
        pairs = zip(_tree.named_leaves(given), leaves, strict=True)
        lost[:] = [name for (name, new), old in pairs if new is not old]
        return out

    try:
        exported = export.export(jax.jit(flat), platforms=platforms)(jax.tree.leaves(slimmed.params), *inputs)
        program = exported.serialize(vjp_order=int(gradient))
    except ValueError as error:
        without = "leave gradient=False, " if gradient else ""
        raise ValueError(
            f"the function cannot be exported: {error}\nTo save it, {without}take and return only dicts, lists, tuples "
            "and arrays, or use symbolic shapes only where the function allows them; or save the parameters alone: "
            "save(path, slimmed.params)"
        ) from error
    except TypeError as error:
        if "_DimExpr" not in str(error):
            raise
        raise TypeError(
            "the function uses a symbolic size of its inputs as a Python number; write x.shape[0] for len(x), or save "
            "the function for inputs of fixed shapes"
        ) from error
    _refuse(
        ValueError,
        "the saved function would not replace these leaves of its parameters in place, as the function does; save the "
        "function as it is used for evaluation, or a function that returns the new leaves",
        lost,
    )
    about = {"manifest": json.loads(slimmed.manifest.to_json())}
    return _write(path, slimmed.params, None, about, {_FUNCTION: np.frombuffer(program, np.uint8)})


def load_slim(path: Any, like: PyTree = None) -> Slimmed:
    """Reads a slim network and its function from a file that `save_slim` wrote.

    The function runs under jit but has no vmap; it has a gradient if it was saved with `gradient=True`. Without one, to
    train on, call `jaxprune.slim(fn, params, loaded.manifest, *inputs)` with the original network, and load the
    parameters with `load`.

    Args:
      path: the file.
      like: arrays or ShapeDtypeStructs in the structure of the smaller parameters, if their containers are not dicts;
        see `load`. Default None.

    Returns:
      `Slimmed(fn, params, manifest)`.

    Raises:
      ValueError: the file is damaged, contains no function, or its parameters differ from `like`. The returned function
        raises a ValueError if it is called with other shapes or dtypes than it was saved for, or is differentiated
        although it was saved without a gradient.
      ImportError: the package safetensors or flatbuffers is missing.
    """
    _ = _disk.optional("flatbuffers", "loading a function")
    loaded, arrays, paths = _read(path, like)
    if _FUNCTION not in arrays:
        raise ValueError(f"{path} contains a network without its function; read it with checkpoints.load")
    exported = export.deserialize(bytearray(arrays[_FUNCTION]))
    (leaves, *inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    saved = _named(dict(zip(paths, leaves, strict=True)), inputs)
    call = exported.call
    if not exported.has_vjp():
        call = jax.custom_vjp(exported.call)
        call.defvjp(lambda *args: _no_gradient(path), lambda residuals, cotangent: ())

    def fn(params: PyTree, *inputs: Any) -> PyTree:
        leaves = {_tree.identity(p): leaf for p, leaf in _tree.with_paths(params)}
        _check_call(path, saved, _named(leaves, inputs))
        return call([leaves[p] for p in paths], *inputs)

    return Slimmed(fn, loaded.params, Manifest.from_json(json.dumps(loaded.about["manifest"])))


def _check_call(path: Any, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises a ValueError unless a saved function can take these arguments, by name."""
    given = {name: jax.typeof(value) for name, value in given.items()}
    kind = lambda found: "nothing" if found is None else _kind(found)
    wrong = {
        name: f"  {name}: saved {kind(saved.get(name))}, got {kind(given.get(name))}"
        for name in {**saved, **given}
        if not _fits(saved.get(name), given.get(name))
    }
    if not wrong:
        return
    way = "pass the parameters that load_slim returned, or trained ones of the same shapes"
    if any(name.startswith("input") for name in wrong):
        way = (
            "save it again by save_slim with inputs of these shapes, or for any batch size with "
            "jax.ShapeDtypeStruct(jax.export.symbolic_shape('batch, 28, 28, 1'), jnp.float32)"
        )
    lines = "\n".join(list(wrong.values())[:10])
    raise ValueError(f"the function in {path} was saved for other arguments; {way}:\n{lines}")


def _named(params: dict[tuple[str, ...], Any], inputs: Sequence[Any]) -> dict[str, Any]:
    of_inputs = {f"input {_tree.name(path)}": x for path, x in _tree.with_paths(list(inputs))}
    return {f"params {'/'.join(path)}": x for path, x in params.items()} | of_inputs


def _fits(saved: Any, given: Any) -> bool:
    if saved is None or given is None or saved.dtype != given.dtype or len(saved.shape) != len(given.shape):
        return False
    # A symbolic size fits any size.
    return all(not isinstance(n, int) or n == m for n, m in zip(saved.shape, given.shape, strict=True))


def _no_gradient(path: Any) -> Any:
    raise ValueError(
        f"the function in {path} was saved without a gradient: save it by save_slim(..., gradient=True), or call "
        "jaxprune.slim(fn, params, loaded.manifest, *inputs) with the original network"
    )


def _write(path: Any, params: PyTree, masks: PyTree, about: Any, extra: dict[str, np.ndarray]) -> Saved:
    """Writes a file as `save` does, with additional arrays, whose names must differ from the names of leaves."""
    package = _disk.optional("safetensors.numpy", "saving a network")
    if masks is None:
        masks = jax.tree.map(lambda _: np.ones((), bool), params)  # arrays, as the variables of NNX contain
    masks = _tree.align(params, masks, what="masks", is_leaf=is_packed)
    _tree.check_masks(params, masks)
    arrays, leaves = _split(params, masks_.unpack(masks), [*extra])
    arrays |= extra
    described = json.dumps({"kind": _KIND, "leaves": leaves, "about": about})
    # One entry, because the package writes several entries in any order, and equal networks should give equal files.
    metadata = {"jaxprune": json.dumps({"sha256": _digest(described, arrays), "content": described})}
    written = _disk.write_new(path, lambda part: package.save_file(arrays, part, metadata))
    sizes = {"mask": 0, "values": 0}
    for name, array in arrays.items():
        if name not in extra:
            sizes["mask" if name.endswith(".mask") else "values"] += array.nbytes
    dense = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return Saved(written, written.stat().st_size, dense, sizes["mask"], sizes["values"])


def _read(path: Any, like: PyTree) -> tuple[Loaded, dict[str, np.ndarray], list[tuple[str, ...]]]:
    """Reads a file. Returns what `load` returns, all arrays of the file by name, and the leaves' paths in its order."""
    package = _disk.optional("safetensors", "loading a network")
    path = _disk.as_path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        folder = ", or read a Hugging Face folder by checkpoints.Folder" if path.is_dir() else ""
        raise FileNotFoundError(f"{path} {kind}; pass the file that checkpoints.save or save_slim wrote{folder}")
    data = path.read_bytes()
    try:
        arrays = {name: _as_array(**found) for name, found in package.deserialize(data)}
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (package.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged, truncated, or not a safetensors file: {error}") from error
    metadata = header.get("__metadata__", {})
    if "jaxprune" not in metadata:
        raise ValueError(f"{path} is not from jaxprune.checkpoints.save: its metadata have no entry `jaxprune`")
    try:
        noted = json.loads(metadata["jaxprune"])
        whole = noted["sha256"] == _digest(noted["content"], arrays)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its metadata cannot be read: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: the checksum of its content differs from the saved checksum")
    content = json.loads(noted["content"])
    if content["kind"] != _KIND:
        raise ValueError(f"{path} has the kind {content['kind']!r}; this version reads {_KIND!r}")
    entries = {tuple(entry["path"]): entry for entry in content["leaves"]}
    if like is None:
        like = _disk.nested({p: jax.ShapeDtypeStruct(entry["shape"], entry["dtype"]) for p, entry in entries.items()})
    wanted = [(_tree.identity(p), leaf) for p, leaf in _tree.with_paths(like)]
    saved = {p: f"{entry['dtype']}{list(entry['shape'])}" for p, entry in entries.items()}
    _disk.check_same(Path(path), "network", saved, {p: _kind(leaf) for p, leaf in wanted})
    pairs = [_join(entries[p], arrays) for p, _ in wanted]
    params, masks = (
        [_place(pair[part], leaf) for pair, (_, leaf) in zip(pairs, wanted, strict=True)] for part in (0, 1)
    )
    structure = jax.tree.structure(like)
    loaded = Loaded(jax.tree.unflatten(structure, params), jax.tree.unflatten(structure, masks), content["about"])
    return loaded, arrays, [*entries]


def _split(params: PyTree, masks: PyTree, taken: list[str]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Returns the arrays of the file by name, and a description of each leaf in the order of `jax.tree.leaves`."""
    pairs = _tree.with_paths(params)
    _check_leaves([(_tree.name(path), leaf) for path, leaf in pairs], taken)
    arrays: dict[str, np.ndarray] = {}
    leaves, lost = [], []
    for (path, leaf), mask in zip(pairs, jax.tree.structure(params).flatten_up_to(masks), strict=True):
        name, array, bits = _tree.name(path), np.asarray(leaf), np.asarray(mask)
        entry = {"name": name, "path": _tree.identity(path), "shape": array.shape, "dtype": str(array.dtype)}
        if not bits.ndim and bits:
            arrays[name] = np.asarray(array, order="C")
            leaves.append(entry | {"mask": None, "kept": array.size})
            continue
        full = np.broadcast_to(bits, array.shape)
        arrays[f"{name}.mask"], arrays[f"{name}.values"] = np.packbits(bits, bitorder="little"), array[full]
        leaves.append(entry | {"mask": bits.shape, "kept": int(full.sum())})
        removed = array[~full]
        if np.any(removed != np.zeros((), array.dtype)):
            lost.append(f"  {name}: {np.count_nonzero(removed)} of {removed.size}")
    if lost:
        raise ValueError(
            "only kept values are saved, but these leaves are not zero where their masks are False; zero them first "
            "(masks.apply(params, masks)), or save without masks:\n" + "\n".join(lost)
        )
    return arrays, leaves


def _join(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns one leaf and its mask."""
    name, shape = entry["name"], tuple(entry["shape"])
    if entry["mask"] is None:
        return arrays[name], np.array(True)
    size = int(np.prod(entry["mask"]))
    mask = np.unpackbits(arrays[f"{name}.mask"], count=size, bitorder="little").astype(bool).reshape(entry["mask"])
    full = np.broadcast_to(mask, shape)
    values = arrays[f"{name}.values"]
    if int(full.sum()) != len(values) or len(values) != entry["kept"]:
        raise ValueError(f"{name}: its mask keeps {int(full.sum())} values, but the file has {len(values)}")
    array = np.zeros(shape, values.dtype)
    array[full] = values
    return array, mask


def _place(value: np.ndarray, leaf: Any) -> jax.Array:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or value.shape != tuple(leaf.shape):
        return jnp.asarray(value)
    return jax.device_put(value, sharding)


def _digest(described: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(described.encode())
    for name in sorted(arrays):
        array = arrays[name]
        # The digest includes name, dtype and shape, because the same bytes in another shape are other weights.
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _as_array(*, dtype: str, shape: list[int], data: Any) -> np.ndarray:
    return np.frombuffer(data, np.dtype(_DTYPES[dtype])).reshape(shape)


def _check_leaves(named: list[tuple[str, Any]], taken: list[str]) -> None:
    known = {np.dtype(dtype) for dtype in _DTYPES.values()}
    _refuse(
        TypeError,
        "only arrays of numbers are saved; leave other leaves out (eqx.filter), and save keys as "
        "jax.random.key_data(key)",
        [f"{name}: {_kind(leaf, shape=False)}" for name, leaf in named if getattr(leaf, "dtype", None) not in known],
    )
    _refuse(
        ValueError,
        "arrays on the devices of several processes must be gathered first "
        "(jax.experimental.multihost_utils.process_allgather(params, tiled=True)) and saved by one process",
        [name for name, leaf in named if not getattr(leaf, "is_fully_addressable", True)],
    )
    names = [name for name, _ in named]
    counts = Counter([*names, *(f"{name}.{part}" for name in names for part in ("mask", "values")), *taken])
    _refuse(
        ValueError,
        "leaves must have different names in the file; rename one of each",
        sorted(name for name, count in counts.items() if count > 1),
    )


def _refuse(error: Callable[[str], Exception], message: str, lines: list[str]) -> None:
    if lines:
        raise error(f"{message}:\n  " + "\n  ".join(lines))


def _kind(leaf: Any, *, shape: bool = True) -> str:
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}{list(leaf.shape)}" if shape else str(leaf.dtype)
