"""Checkpoints as Hugging Face writes them: `Folder` reads safetensors folders, `FolderWriter` writes new ones.

A folder holds `config.json`, one `model.safetensors` or several files with `model.safetensors.index.json`, and further
files (a tokenizer, a model card) that are carried over. Names are dotted, kernels are [outputs, inputs], a tied head is
stored once. Arrays are read from memory-mapped files, one at a time, so that a model may be larger than memory.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.checkpoints import _disk

_ONE, _INDEX, _CONFIG, _NOTE = "model.safetensors", "model.safetensors.index.json", "config.json", ".jaxprune.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_DTYPES |= {"I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "BOOL": "bool"}


class Folder:
    """A checkpoint on disk. Opening it reads the headers alone.

    Attributes:
      path: the folder.
      config: the content of `config.json`.
      shapes: a `jax.ShapeDtypeStruct` for each parameter, by its dotted name, in the order of the names.

    Args:
      path: the folder.

    Raises:
      FileNotFoundError: there is no such folder, no `config.json`, or no safetensors file; or the index names a file
        that is not there.
      ValueError: a file is truncated or damaged, or holds other parameters than the index says.
      ImportError: the package safetensors is missing.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / 'model'
      >>> with FolderWriter(path, {'model_type': 'llama'}, parts=1) as writer:
      ...     writer.add(0, {'model.norm.weight': jnp.ones(2)})
      >>> folder = Folder(path)
      >>> folder.config['model_type'], folder.load()['model.norm.weight'].tolist()
      ('llama', [1.0, 1.0])
    """

    def __init__(self, path: Any) -> None:
        self._package = _disk.optional("safetensors", "reading a Hugging Face folder")
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is not a folder")
        self.config: dict[str, Any] = _json(self.path / _CONFIG)
        self._files = self._where()
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
        found: dict[str, str] = {}
        for file in sorted(set(self._files.values()) or {_ONE}):
            for name, shape in self._header(file).items():
                self.shapes[name], found[name] = shape, file
        wrong = sorted(name for name, file in self._files.items() if found.get(name) != file)
        if wrong:
            raise ValueError(
                f"{self.path / _INDEX} says that {wrong[0]} is in {self._files[wrong[0]]}, and it is not; download the "
                "folder again"
            )
        self._files = found
        self.shapes = dict(sorted(self.shapes.items()))

    def load(self, names: Iterable[str] | None = None, *, dtype: Any = None) -> dict[str, jax.Array]:
        """Returns parameters as arrays.

        Args:
          names: which parameters; None for all.
          dtype: the floating dtype to cast floating parameters to; None keeps each one's own.

        Returns:
          A flat dict by dotted names.

        Raises:
          KeyError: there is no parameter of that name.
        """
        wanted: dict[str, list[str]] = {}
        for name in self.shapes if names is None else names:
            if name not in self._files:
                raise KeyError(f"{self.path} has no parameter {name!r}")
            wanted.setdefault(self._files[name], []).append(name)
        out: dict[str, jax.Array] = {}
        for file, inside in wanted.items():
            with self._package.safe_open(self.path / file, framework="flax") as opened:
                for name in inside:
                    array = opened.get_tensor(name)
                    is_floating = jnp.issubdtype(array.dtype, jnp.floating)
                    out[name] = array.astype(dtype) if dtype is not None and is_floating else array
        return out

    def other_files(self) -> list[Path]:
        """The files beside config and weights, such as the tokenizer's; hidden ones and folders are left out."""
        weights = {*self._files.values(), _INDEX, _CONFIG}
        inside = (path for path in sorted(self.path.iterdir()) if path.is_file() and not path.name.startswith("."))
        return [path for path in inside if path.name not in weights]

    def _where(self) -> dict[str, str]:
        """The file of each parameter, as the index says; empty where one file holds all."""
        if (self.path / _INDEX).is_file():
            files = _json(self.path / _INDEX).get("weight_map")
            if not isinstance(files, dict) or not files:
                raise ValueError(f"{self.path / _INDEX} has no weight_map; download the folder again")
            missing = sorted({file for file in files.values() if not (self.path / file).is_file()})
            if missing:
                raise FileNotFoundError(
                    f"{self.path / _INDEX} names {', '.join(missing)}, not in the folder; download what is missing"
                )
            return files
        if (self.path / _ONE).is_file():
            return {}
        pickles = list(self.path.glob("*.bin"))
        hint = "; convert the PyTorch pickles by transformers' save_pretrained(safe_serialization=True)"
        raise FileNotFoundError(f"{self.path} has neither {_ONE} nor {_INDEX}{hint if pickles else ''}")

    def _header(self, file: str) -> dict[str, jax.ShapeDtypeStruct]:
        found = {}
        try:
            with self._package.safe_open(self.path / file, framework="flax") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    kind = part.get_dtype()
                    if kind not in _DTYPES:
                        raise ValueError(
                            f"{self.path / file}: {name} has dtype {kind}, which is not read; dequantise it"
                        )
                    found[name] = jax.ShapeDtypeStruct(tuple(part.get_shape()), jnp.dtype(_DTYPES[kind]))
        except self._package.SafetensorError as error:
            raise ValueError(
                f"{self.path / file} is truncated or damaged ({_disk.first_line(error)}); copy or download it again"
            ) from error
        return found


class FolderWriter:
    """A new checkpoint, written part by part; a killed run goes on after its last finished part.

    Until it is complete the folder is called `PATH.unfinished`; leaving the `with` block without an error writes the
    index and gives it its name. An error before the first part leaves nothing. Nothing is ever written over.

    Args:
      path: the new folder.
      config: the content of its `config.json`.
      parts: how many parts there will be; each becomes a file `model-00001-of-0000N.safetensors`.
      identity: what makes this the same run, as anything that JSON can hold: a resumed one must have the same.
      resume: whether to go on with an unfinished folder. Without it, an unfinished folder is an error.

    Raises:
      FileExistsError: the folder exists; or an unfinished one does and `resume` is False.
      ValueError: the unfinished folder is of another run; the message says what differs.
    """

    def __init__(
        self,
        path: Any,
        config: Mapping[str, Any],
        *,
        parts: int,
        identity: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self._package = _disk.optional("safetensors.flax", "writing a Hugging Face folder")
        self.path, self._parts, self._config = Path(path), parts, dict(config)
        self._unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists, and nothing is overwritten; choose another folder")
        own = json.loads(json.dumps({"parts": parts, **(identity or {})}))
        note = self._unfinished / _NOTE
        if self._unfinished.exists():
            if not resume:
                raise FileExistsError(
                    f"{self._unfinished} is left of an earlier run; go on with it (resume=True, --resume) or remove it"
                )
            _disk.check_same(self._unfinished, "run", _json(note), own)
        else:
            self._unfinished.mkdir(parents=True)
            _disk.write_new(note, lambda part: part.write_text(json.dumps(own)))

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._finish()
        elif not any(map(self.has, range(self._parts))):
            shutil.rmtree(self._unfinished)  # nothing is lost, and the corrected call need not resume

    def has(self, number: int) -> bool:
        """Whether the part of this number, from 0 on, is written."""
        return self._file(number).is_file()

    def add(self, number: int, params: Mapping[str, jax.Array]) -> None:
        """Writes a part, and returns once it is on the disk."""
        arrays = dict(params)
        save = lambda part: self._package.save_file(arrays, part, metadata={"format": "pt"})
        _disk.write_new(self._file(number), save)

    def load(self, number: int) -> dict[str, jax.Array]:
        """Reads a part that is written."""
        return self._package.load_file(self._file(number))

    def carry_over(self, folder: Folder) -> None:
        """Copies the other files of a folder: its tokenizer, its model card."""
        for path in folder.other_files():
            target = self._unfinished / path.name
            if not target.exists():
                shutil.copyfile(path, target)

    def write_text(self, name: str, text: str) -> None:
        """Writes a further file, such as a report."""
        (self._unfinished / name).write_text(text)

    def _file(self, number: int) -> Path:
        return self._unfinished / f"model-{number + 1:05d}-of-{self._parts:05d}.safetensors"

    def _finish(self) -> None:
        files, size = {}, 0
        for number in range(self._parts):
            file = self._file(number)
            if not file.is_file():
                raise ValueError(f"{self._unfinished}: part {number} of {self._parts} was not written")
            with _disk.optional("safetensors", "").safe_open(file, framework="flax") as opened:
                names = list(opened.keys())
            files |= dict.fromkeys(names, file.name)
            size += file.stat().st_size
        index = {"metadata": {"total_size": size}, "weight_map": files}
        for name, content in ((_INDEX, index), (_CONFIG, self._config)):
            (self._unfinished / name).write_text(json.dumps(content, indent=2) + "\n")
        self._unfinished.rename(self.path)
        (self.path / _NOTE).unlink()  # last: a run that is killed before the new name can still be resumed


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({_disk.first_line(error)}); copy or download it again") from error
