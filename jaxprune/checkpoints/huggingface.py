"""Hugging Face checkpoints: `Folder` reads safetensors folders, `FolderWriter` writes new ones.

A folder contains `config.json`, one `model.safetensors` or several files with `model.safetensors.index.json`, and other
files (a tokenizer, a model card), which are copied. Names are dotted, kernels are [outputs, inputs], and a tied head is
stored once. Arrays are read one at a time from memory-mapped files, so a model may be larger than memory.

`named_roles` gives the roles of parameters and their axes, from names of Hugging Face and MaxText. MaxText has kernels
[inputs, outputs] whose axis 1 is the layer if layers are scanned; attention kernels have head axes; experts are before
layers, [experts, layers, inputs, outputs].
"""

import functools
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune.checkpoints import _disk
from jaxprune.checkpoints._described import described

PyTree = Any

_ONE, _INDEX, _CONFIG, _NOTE = "model.safetensors", "model.safetensors.index.json", "config.json", ".jaxprune.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_DTYPES |= {"I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32", "BOOL": "bool"}


class Folder:
    """A checkpoint on disk. Opening it reads only the headers.

    Attributes:
      path: the folder.
      config: the content of `config.json`.
      shapes: a `jax.ShapeDtypeStruct` for each parameter, by its dotted name, in the order of the names.

    Args:
      path: the folder.

    Raises:
      FileNotFoundError: the folder, `config.json` or the safetensors files do not exist; or the index names a file that
        does not exist.
      ValueError: a file is truncated or damaged, or the index does not match the parameters of the files.
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
                f"{self.path / _INDEX} says that {wrong[0]} is in {self._files[wrong[0]]}, but it is not; download the "
                "folder again"
            )
        self._files = found
        self.shapes = dict(sorted(self.shapes.items()))

    def load(self, names: Iterable[str] | None = None, *, dtype: Any = None) -> dict[str, jax.Array]:
        """Returns parameters as arrays.

        Args:
          names: the names of the parameters; None (default) for all.
          dtype: the floating dtype to which floating parameters are cast; None (default) keeps each dtype.

        Returns:
          A flat dict from dotted names to arrays.

        Raises:
          KeyError: no parameter has this name.
        """
        wanted: dict[str, list[str]] = {}
        for name in self.shapes if names is None else names:
            if name not in self._files:
                raise KeyError(f"{self.path} has no parameter {name!r}")
            wanted.setdefault(self._files[name], []).append(name)
        out: dict[str, jax.Array] = {}
        for file, inside in wanted.items():
            # The framework "flax", like jnp.asarray, would compile a program for each shape.
            with self._package.safe_open(self.path / file, framework="numpy") as opened:
                for name in inside:
                    array = jax.device_put(opened.get_tensor(name))
                    is_floating = jnp.issubdtype(array.dtype, jnp.floating)
                    out[name] = array.astype(dtype) if dtype is not None and is_floating else array
        return out

    @functools.cached_property
    def roles(self) -> _tree.Roles:
        """The roles of the parameters by their names; see `named_roles`. Pass them as `roles=` to `jaxprune.prune`."""
        return named_roles(self.shapes, unknown=True)

    def other_files(self) -> list[Path]:
        """Returns the files other than config and weights, such as the tokenizer, without hidden files and folders."""
        weights = {*self._files.values(), _INDEX, _CONFIG}
        inside = (path for path in sorted(self.path.iterdir()) if path.is_file() and not path.name.startswith("."))
        return [path for path in inside if path.name not in weights]

    def _where(self) -> dict[str, str]:
        """Returns the file of each parameter, according to the index; empty if one file contains all parameters."""
        if (self.path / _INDEX).is_file():
            files = _json(self.path / _INDEX).get("weight_map")
            if not isinstance(files, dict) or not files:
                raise ValueError(f"{self.path / _INDEX} has no weight_map; download the folder again")
            missing = sorted({file for file in files.values() if not (self.path / file).is_file()})
            if missing:
                raise FileNotFoundError(
                    f"{self.path / _INDEX} names {', '.join(missing)}, which are missing; download the missing files"
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
                            f"{self.path / file}: {name} has dtype {kind}, which is not supported; dequantise it"
                        )
                    found[name] = jax.ShapeDtypeStruct(tuple(part.get_shape()), jnp.dtype(_DTYPES[kind]))
        except self._package.SafetensorError as error:
            raise ValueError(
                f"{self.path / file} is truncated or damaged ({_disk.first_line(error)}); copy or download it again"
            ) from error
        return found


class FolderWriter:
    """A new checkpoint, written part by part; a killed run with an `identity` can resume after its last finished part.

    An incomplete folder is called `PATH.unfinished`. Leaving the `with` block without an error writes the index and
    renames the folder. An error before the first part removes the folder, and so does any error in a run without
    identity. Nothing is overwritten.

    Args:
      path: the new folder.
      config: the content of `config.json`; the attribute `config` may be replaced until the `with` block ends.
      parts: the number of parts; each becomes a file `model-00001-of-0000N.safetensors`.
      identity: values that identify the run, by name, as in the options of `Run`; a resumed run must have the same
        identity. None (default): the run cannot be resumed.
      resume: whether to continue an unfinished folder; default False: an unfinished folder raises.

    Raises:
      FileExistsError: the folder exists; or an unfinished folder exists and is not resumed.
      ValueError: the unfinished folder belongs to another run; the message names the differences.
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
        self.path, self._parts, self.config = Path(path), parts, dict(config)
        self._resumable = identity is not None
        self._unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists and is not overwritten; choose another folder")
        own = {"parts": parts, **{name: described(value) for name, value in (identity or {}).items()}}
        own = json.loads(json.dumps(own))
        note = self._unfinished / _NOTE
        if self._unfinished.exists():
            if not resume or identity is None:
                way = "continue it (resume=True, --resume) or remove it" if self._resumable else "remove it"
                raise FileExistsError(f"{self._unfinished} is left over from an earlier run; {way}")
            _disk.check_same(self._unfinished, "run", _json(note), own)
        else:
            self._unfinished.mkdir(parents=True)
            _disk.write_new(note, lambda part: part.write_text(json.dumps(own)))

    def __enter__(self) -> "FolderWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._finish()
        elif not self._resumable or not any(map(self.has, range(self._parts))):
            shutil.rmtree(self._unfinished)  # nothing that a later run could use is lost
        elif isinstance(error, KeyboardInterrupt):
            error.add_note(f"finished parts stay in {self._unfinished}; continue with resume=True, --resume")

    def has(self, number: int) -> bool:
        """Returns whether the part with this number (from 0) is already written."""
        return self._file(number).is_file()

    def add(self, number: int, params: Mapping[str, jax.Array], about: Any = None) -> None:
        """Writes a part, and returns when it is on the disk; `about` is a JSON value that a resumed run reads again.

        Raises:
          FileExistsError: the part exists.
          OSError: the part cannot be written, for example because the disk is full.
        """
        arrays, file = dict(params), self._file(number)
        save = lambda part: self._package.save_file(arrays, part, metadata={"format": "pt"})
        try:
            self._about(number).write_text(json.dumps(about))  # first, so that no finished part is without it
            _disk.write_new(file, save)
        except FileExistsError:
            raise
        except (OSError, _disk.optional("safetensors", "writing a folder").SafetensorError) as error:
            way = f"; finished parts stay in {self._unfinished}: make room and continue (resume=True, --resume)"
            raise OSError(
                f"{file} cannot be written ({_disk.first_line(error)})"
                + (way if self._resumable else "; make room and run again")
            ) from error

    def load(self, number: int) -> dict[str, jax.Array]:
        """Reads a part that is already written."""
        return self._package.load_file(self._file(number))

    def about(self, number: int) -> Any:
        """Reads what `add` was told about a part that is already written."""
        return _json(self._about(number))

    def carry_over(self, folder: Folder) -> None:
        """Copies the other files of a folder, such as its tokenizer and model card."""
        for path in folder.other_files():
            target = self._unfinished / path.name
            if not target.exists():
                shutil.copyfile(path, target)

    def write_text(self, name: str, text: str) -> None:
        """Writes an additional file, such as a report."""
        (self._unfinished / name).write_text(text)

    def _file(self, number: int) -> Path:
        return self._unfinished / f"model-{number + 1:05d}-of-{self._parts:05d}.safetensors"

    def _about(self, number: int) -> Path:
        return self._unfinished / f"{_NOTE.removesuffix('.json')}-{number + 1:05d}.json"

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
        for name, content in ((_INDEX, index), (_CONFIG, self.config)):
            (self._unfinished / name).write_text(json.dumps(content, indent=2) + "\n")
        self._unfinished.rename(self.path)
        # Last, so that a run killed before the renaming can still resume.
        for note in (_NOTE, *(self._about(number).name for number in range(self._parts))):
            (self.path / note).unlink(missing_ok=True)


def _json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({_disk.first_line(error)}); copy or download it again") from error


_Axes = tuple[str, ...]
# The end of a leaf's path; its use, empty if it is not pruned by default; its axes without layers; a description.
_MAXTEXT: tuple[tuple[str, tuple[Any, ...], _Axes, str], ...] = (
    (r"(query|key|value)/kernel", ("multiplied",), ("input", "output", "output"), ""),
    (r"\w*attention\w*/out/kernel", ("multiplied",), ("input", "input", "output"), ""),
    (r"wi(_\d)?/kernel|wo/kernel", ("multiplied",), ("input", "output"), ""),
    (r"\w*moe_?block\w*/(wi(_\d)?|wo)", ("multiplied",), ("stacked", "input", "output"), ""),
    (r"gate/kernel", (), ("input", "output"), "a router"),
    (r"embedding", ("embedding",), ("indexed", "output"), ""),
    (r"logits_dense/kernel", (), ("input", "output"), "the head"),
    (r"scale|bias", ("elementwise",), ("entry",), ""),
)
_HUGGING_FACE: tuple[tuple[str, tuple[Any, ...], _Axes, str], ...] = (
    (r"(.*\.)?(embed_tokens|wte|wpe|embeddings?)\.weight", ("embedding",), ("indexed", "output"), ""),
    (r"(.*\.)?lm_head\.weight", (), ("output", "input"), "the head"),
    (r".*(\.gate|shared_expert_gate|router)\.weight", (), ("output", "input"), "a router"),
    (r".*norm\w*\.weight|.*\.bias", ("elementwise",), ("entry",), ""),
    (r".*\.weight", ("multiplied",), ("output", "input"), ""),
)


def named_roles(params: PyTree, *, unknown: bool = False) -> _tree.Roles:
    """Returns the role of each leaf and the meaning of its axes, from names in the layout of a known program.

    Use it to prune a checkpoint without its function: pass the result as `roles=` wherever weights are chosen, so that
    N:M patterns run along inputs, and embeddings, norms, biases, routers and the head are not pruned by default. If
    there is a function, `jaxprune.find_roles(fn, params, *inputs)` is exact for any layout.

    Args:
      params: a flat dict by the dotted names of Hugging Face, or nested dicts in the layout of MaxText; arrays or
        ShapeDtypeStructs. Layers of MaxText may be scanned (`layers`, on axis 1) or separate (`layers_0`).
      unknown: whether leaves with other names are allowed, and get the use "other"; default False: they raise.

    Returns:
      The roles, in the order of `jax.tree.leaves(params)`.

    Raises:
      ValueError: names or numbers of axes fit neither layout; the message names the leaves.

    Example:
      >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
      >>> roles = named_roles({'decoder': {'layers': {'mlp': {'wo': {'kernel': shape(32, 6, 8)}}}}})
      >>> roles['decoder/layers/mlp/wo/kernel'].axes
      ('input', 'stacked', 'output')
    """
    leaves = _tree.with_paths(params)
    dotted = bool(leaves) and all(
        len(path) == 1 and _tree.name(path).endswith((".weight", ".bias")) for path, _ in leaves
    )
    found, wrong = [], []
    for path, leaf in leaves:
        role = _role(path, leaf, _HUGGING_FACE if dotted else _MAXTEXT)
        if role is None:
            wrong.append(f"  {_tree.name(path)}: {_tree.shown(leaf)}")
            shape, note = tuple(getattr(leaf, "shape", ())), "its name is not known"
            axes = ("unknown",) * len(shape)
            role = _tree.LeafRole(_tree.name(path), _tree.identity(path), shape, ("other",), axes, note=note)
        found.append(role)
    if wrong and not unknown:
        raise ValueError(
            "named_roles knows the layouts of Hugging Face and MaxText by name, and these leaves belong to neither; "
            "pass jaxprune.find_roles(fn, params, *inputs) or name axes in the pattern:\n" + "\n".join(wrong[:20])
        )
    return _tree.Roles(tuple(found))


def _role(path: Any, leaf: Any, table: Any) -> _tree.LeafRole | None:
    """Returns the role of a leaf by the first line of the table that its name matches; None if no line fits."""
    name, shape = _tree.name(path), tuple(getattr(leaf, "shape", ()))
    line = next((line for line in table if re.search(f"(^|/)({line[0]})$", name, re.IGNORECASE)), None)
    if line is None:
        return None
    _, uses, axes, note = line
    if "layers" in _tree.identity(path) and len(shape) > len(axes):
        axes = (axes[0], "stacked", *axes[1:])
    if axes[0] == "entry":  # the bias of an attention projection has head axes
        axes = (*axes, *["entry"] * (len(shape) - len(axes)))
    if len(shape) != len(axes):
        return None
    return _tree.LeafRole(name, _tree.identity(path), shape, uses, axes, note=note)
