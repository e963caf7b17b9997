"""Helpers for all files: `write_new` writes a file completely or not at all, `check_same` compares descriptions."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SHOWN = 10


def as_path(path: Any) -> Path:
    """Returns the path as a `Path`.

    Raises:
      TypeError: the argument is not a path; functions that save take the path as their first argument.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"the first argument, path, must be a string or a path; got {type(path).__name__}")
    return Path(path)


def check_new(path: Any) -> Path:
    """Raises unless a new file can be written to the path; returns the path.

    Raises:
      FileExistsError: the file exists.
      FileNotFoundError: the folder does not exist.
    """
    path = as_path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another name, or remove it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    return path


def write_new(path: Any, write: Callable[[Path], Any]) -> Path:
    """Writes a new file completely or not at all, even if the process is killed.

    Args:
      path: the file; its folder must exist.
      write: a function that writes the content to the path it receives, in the same folder.

    Returns:
      The path.

    Raises:
      FileExistsError: the file exists; it is not changed.
      FileNotFoundError: the folder does not exist.
    """
    path = check_new(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        write(part)
        part.chmod(mode)  # safetensors makes files that only their owner can read
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces a file that another process has written in the meantime.
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def optional(module: str, what: str) -> Any:
    """Imports a module of the `storage` extra.

    Args:
      module: the name of the module.
      what: the action that needs the module, for the message.

    Returns:
      The module.

    Raises:
      ModuleNotFoundError: the package is not installed. The message says how to install it.
      ImportError: the package is installed, but its import fails; the package's own error.
    """
    package = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or package).split(".")[0] != package:  # the package is there, and lacks another one
            raise
        name = {"orbax": "orbax-checkpoint"}.get(package, package)
        raise ModuleNotFoundError(f"{what} needs {name}: pip install {name}", name=package) from error


def check_same(path: Path, what: str, saved: Mapping[Any, Any], expected: Mapping[Any, Any], hint: str = "") -> None:
    """Raises unless the description in a file or folder equals the caller's.

    Args:
      path: the file or folder, for the message.
      what: the content of the file, such as "network" or "search".
      saved: the description in the file: from a name or a path of keys to a string or any JSON value.
      expected: the description of the caller, in the same form.
      hint: the probable cause, for the message.

    Raises:
      ValueError: the descriptions differ. The message names each difference.
    """
    found = [
        difference
        for key in sorted({*saved, *expected})
        for difference in _differences(
            key if isinstance(key, str) else "/".join(key), saved.get(key), expected.get(key)
        )
    ]
    if not found:
        return
    found.sort(key=lambda difference: None in difference)  # what only one of them has comes last
    lines = [f"  {name}: saved {_shown(there)}, expected {_shown(here)}" for name, there, here in found]
    lines = [*lines[:_SHOWN], f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else lines
    raise ValueError(
        f"{path} contains another {what}{hint}; pass what it was saved with, or another path. They differ in:\n"
        + "\n".join(lines)
    )


def nested(leaves: dict[tuple[str, ...], Any]) -> Any:
    """Makes nested dicts from paths; a single leaf with an empty path is returned unchanged."""
    if [*leaves] == [()]:
        return leaves[()]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _differences(name: str, saved: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    """Returns the innermost entries of two JSON values that differ, by their names."""
    if isinstance(saved, dict) and isinstance(expected, dict):
        pairs = [(f"{name}.{key}", saved.get(key), expected.get(key)) for key in sorted({*saved, *expected})]
    elif isinstance(saved, list) and isinstance(expected, list) and len(saved) == len(expected):
        pairs = [(f"{name}[{i}]", *both) for i, both in enumerate(zip(saved, expected, strict=True))]
    else:
        return [] if saved == expected else [(name, saved, expected)]
    return [found for pair in pairs for found in _differences(*pair)]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
