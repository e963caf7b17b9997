"""Trees on disk: `restore` for training states, `read` and `write` for Orbax and msgpack, `Run` for resumable runs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _tree
from jaxprune.checkpoints import _disk
from jaxprune.checkpoints._described import described
from jaxprune.checkpoints.huggingface import Folder

PyTree = Any
_Names = tuple[str, ...]


def restore(path: Any, like: PyTree) -> PyTree:
    """Restores a training state from an Orbax checkpoint, after checking that the checkpoint contains this state.

    Use it for checkpoints written by `StandardCheckpointer().save(path, state)` or `CheckpointManager.save(step,
    args=StandardSave(state))` (whose path is `folder/step/default`), including Flax NNX states. Orbax itself returns
    None for an array that was saved as None, and reports few differences; `restore` first compares every leaf. It does
    not change the checkpoint.

    Args:
      path: the folder of the checkpoint.
      like: the state, or its shapes (`jax.eval_shape(init, ...)`). A leaf with a sharding is restored to this sharding,
        also if another number of devices saved it; make such a tree by `jax.tree.map(lambda x, s:
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)`. NNX Variables and their plain values
        count as the same leaves.

    Returns:
      The state in the structure of `like`, equal bit for bit to the saved state.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the checkpoint contains another state (the message names the leaves), or cannot be read. Orbax detects
        missing and truncated files, but unlike `checkpoints.load` no flipped bits in arrays.
      ImportError: the package orbax-checkpoint is missing.

    Example:
      >>> import tempfile, orbax.checkpoint as ocp
      >>> state, path = {'w': jax.numpy.arange(3.0)}, tempfile.mkdtemp() + '/state'
      >>> with ocp.StandardCheckpointer() as checkpointer:
      ...     checkpointer.save(path, state)
      >>> restore(path, state)['w'].tolist()
      [0.0, 1.0, 2.0]
    """
    orbax = _disk.optional("orbax.checkpoint", "checkpoints.restore")
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; pass the folder of an Orbax checkpoint")
    with orbax.StandardCheckpointer() as checkpointer:
        try:
            there = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:  # Orbax documents no type
            message = f"{path} is not an Orbax checkpoint, or is damaged: {_disk.first_line(error)}"
            raise ValueError(message) from error
        saved = {_names(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(there)[0]}
        leaves = [(_saved_name(p, saved), leaf) for p, leaf in _tree.with_paths(like)]
        _check(path, saved, dict(leaves))
        target = jax.tree.map(_abstract, like)
        if [name for name, _ in leaves] != [_names(p) for p, _ in jax.tree_util.tree_flatten_with_path(like)[0]]:
            # If Variables were saved and values are requested, or the reverse, read in the saved containers.
            target = _disk.nested({name: _abstract(leaf) for name, leaf in leaves})
        try:
            found = checkpointer.restore(path, target)
        except Exception as error:
            raise ValueError(f"{path} cannot be read; it may be truncated: {_disk.first_line(error)}") from error
    arrays = {_names(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name, _ in leaves])


def read(path: Any) -> PyTree:
    """Reads a tree of arrays: Flax's msgpack, an Orbax checkpoint, or a Hugging Face folder.

    Use it for parameters that other programs saved; `load` reads files of `save`, `restore` compares a training state
    with the state that is expected, and `Folder` reads large models part by part.

    Args:
      path: a msgpack file (`flax.serialization.to_bytes` wrote it), or a folder.

    Returns:
      Nested dicts of arrays, all on the first device; a flat dict by dotted names for a Hugging Face folder. Lists and
      tuples are dicts with the keys "0", "1" and so on.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: the file is damaged, or is not in one of the formats.
      ImportError: the package orbax-checkpoint or safetensors is missing.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + '/params.msgpack'
      >>> _ = write(path, {'dense': {'kernel': jnp.ones((2, 3))}})
      >>> read(path)['dense']['kernel'].shape
      (2, 3)
    """
    path = _disk.as_path(path).absolute()
    if path.is_file():
        from flax import serialization  # slow to import

        try:
            found = serialization.msgpack_restore(path.read_bytes())
        except Exception as error:  # msgpack documents several
            raise ValueError(f"{path} is damaged, or not a msgpack file: {_disk.first_line(error)}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} contains a {type(found).__name__}, not a tree of arrays")
        return jax.tree.map(jnp.asarray, found)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    if (path / "config.json").is_file():
        return Folder(path).load()
    orbax = _disk.optional("orbax.checkpoint", "reading an Orbax checkpoint")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with orbax.StandardCheckpointer() as checkpointer:
        try:
            there = checkpointer.metadata(path).item_metadata.tree
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), there)
            return checkpointer.restore(path, target)
        except Exception as error:  # Orbax documents no type
            raise ValueError(
                f"{path} is neither a Hugging Face folder nor an Orbax checkpoint, or it is damaged: "
                f"{_disk.first_line(error)}"
            ) from error


def write(path: Any, params: PyTree) -> Path:
    """Writes a tree of arrays as msgpack or as an Orbax checkpoint; `read` reads the result.

    Args:
      path: a new file that ends in `.msgpack`, or a new folder for an Orbax checkpoint. `FolderWriter` writes Hugging
        Face folders.
      params: nested containers of arrays.

    Returns:
      The path.

    Raises:
      FileExistsError: the path exists; nothing is overwritten.
      FileNotFoundError: the folder above it does not exist.
      ImportError: the package orbax-checkpoint is missing.
    """
    path = _disk.check_new(path)
    if path.suffix == ".msgpack":
        from flax import serialization

        return _disk.write_new(path, lambda part: part.write_bytes(serialization.to_bytes(params)))
    orbax = _disk.optional("orbax.checkpoint", "writing an Orbax checkpoint")
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), params)
    return path


class Run:
    """The folder of one long computation that can be killed at any time and resumes after its last finished step.

    A JSON file in the folder describes the run: its options, its key, and the shapes and bits of its initial
    parameters. Each step is an Orbax checkpoint of named arrays. The JSON file and the steps get their final names
    only when they are complete.

    Args:
      folder: the folder; it is created if it does not exist. It must be empty or belong to the same run.
      options: other values that identify the run, by name: numbers, texts, arrays, functions, partials, dataclasses and
        containers of them. A function counts by its name and the values in its closure, an array by its bits; an object
        that would be known by its address only is not compared.
      params: the initial parameters.
      key: the JAX key.
      kind: one word for the run, used in the name of the JSON file and in messages; default "run".
      step: one word for a step, used in the names of the steps' folders; default "step".

    Raises:
      FileExistsError: the folder contains other files.
      ValueError: the folder belongs to another run (the message names the differences), or its description is damaged.
      ImportError: the package orbax-checkpoint is missing.

    Example:
      >>> import tempfile
      >>> folder, params, key = tempfile.mkdtemp(), {'w': np.ones(2)}, jax.random.key(0)
      >>> Run(folder, {'rate': 0.1}, params=params, key=key).save(0, {'loss': np.array(0.5)})
      >>> again = Run(folder, {'rate': 0.1}, params=params, key=key)
      >>> float(again.load(0)['loss']), again.load(1)
      (0.5, None)
      >>> Run(folder, {'rate': 0.2}, params=params, key=key)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: /... contains another run; ... They differ in:
        rate: saved 0.1, expected 0.2
    """

    def __init__(
        self, folder: Any, options: dict[str, Any], *, params: PyTree, key: Any, kind: str = "run", step: str = "step"
    ) -> None:
        _tree.check_instance(options, dict, "options", "a dict of what tells one run from another")
        _tree.check_key(key, needed_by="Run")
        self._orbax = _disk.optional("orbax.checkpoint", f"saving a {kind}")
        self._folder, self._step = Path(folder).absolute(), step
        identity = {"kind": f"jaxprune.{kind}/1", **_fingerprint(params, key)}
        identity |= {name: described(value) for name, value in options.items()}
        identity = json.loads(json.dumps(identity))
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / f"{kind}.json"
        if not note.exists():
            # A process killed before it could rename its file leaves the file under a hidden name.
            if any(not path.match(f".{note.name}.*.part") for path in self._folder.iterdir()):
                raise FileExistsError(
                    f"{self._folder} contains files that belong to no {kind}; pass an empty or a new folder"
                )
            self._describe(note, identity)
            return
        try:
            saved = json.loads(note.read_text())
        except ValueError as error:
            raise ValueError(
                f"{note} is damaged ({_disk.first_line(error)}): it does not say which {kind} the folder belongs to; "
                "pass a new folder"
            ) from error
        if not isinstance(saved, dict):
            raise ValueError(f"{note} does not describe a {kind}; pass a new folder")
        if saved.get("kind") == identity["kind"] and not any(self._folder.glob(f"{step}_*")):
            note.unlink()  # a run that failed before its first step has nothing to resume
            self._describe(note, identity)
            return
        _disk.check_same(self._folder, kind, saved, identity)

    def _describe(self, note: Path, identity: dict[str, Any]) -> None:
        _disk.write_new(note, lambda part: part.write_text(json.dumps(identity, indent=1)))

    def load(self, number: int) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a finished step, or None if the step is not finished.

        Raises:
          ValueError: the step is damaged. The message names its folder.
        """
        path = self._path(number)
        if not path.exists():
            return None
        with self._orbax.StandardCheckpointer() as checkpointer:
            try:
                return {name: np.asarray(array) for name, array in checkpointer.restore(path).items()}
            except Exception as error:  # Orbax documents no type
                raise ValueError(
                    f"{path} is damaged: {_disk.first_line(error)}; remove this folder to run this {self._step} again"
                ) from error

    def save(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes a finished step, and returns when it is on the disk."""
        with self._orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._path(number), arrays)
            checkpointer.wait_until_finished()

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._step}_{number:04d}"


def _saved_name(path: Any, saved: dict[_Names, Any]) -> _Names:
    """Returns the name under which a leaf was saved, with or without the `value` of a Variable."""
    plain = _tree.identity(path)
    options = [_names(path), plain, (*plain, "value")]
    return next((name for name in options if name in saved), plain)


def _check(path: Path, saved: dict[_Names, Any], leaves: dict[_Names, Any]) -> None:
    there = {name: _kind(leaf) for name, leaf in saved.items()}
    here = {name: _kind(leaf) for name, leaf in leaves.items()}
    hint = ""
    if any(name[-1:] == ("bits",) for name in {*there, *here} if there.get(name) != here.get(name)):
        packed = any(name[-1:] == ("bits",) for name in there if there.get(name) != here.get(name))
        hint = f", it has {'packed' if packed else 'bool'} masks: pass sparsify(..., packed={packed})"
    numbers = [
        name for name in here if here[name] in ("int", "float", "bool") and there.get(name) not in (None, here[name])
    ]
    if numbers and not hint:
        hint = (
            " (Python numbers become arrays in a step, such as TrainState.step: pass like=jax.eval_shape(make_state))"
        )
    _disk.check_same(path, "state", there, here, hint)


def _names(path: Any) -> _Names:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _kind(leaf: Any) -> str:
    if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return _tree.kind(leaf)


def _abstract(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(leaf, jax.Array) or sharding is None:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _fingerprint(params: PyTree, key: Any) -> dict[str, Any]:
    data = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    digest, shapes = hashlib.sha256(), {}
    for name, leaf in _tree.named_leaves(params):
        array = np.asarray(leaf)
        shapes[name] = f"{array.dtype}{list(array.shape)}"
        digest.update(name.encode() + array.tobytes())
    return {"key": np.asarray(data).tolist(), "params": shapes, "bits": digest.hexdigest()}
