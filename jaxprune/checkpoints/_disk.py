"""What all files share: `write_new` writes them whole, `check_same` compares them with what the caller expects."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SHOWN = 10


def as_path(path: Any) -> Path:
    """The path as a `Path`.

    Raises:
      TypeError: the argument is no path; a function that saves takes the path first.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, the first argument; got {type(path).__name__}")
    return Path(path)


def check_new(path: Any) -> Path:
    """Raises unless a path can be written to: nothing is there, and its folder exists. Returns the path.

    Raises:
      FileExistsError: the file exists.
      FileNotFoundError: the folder does not exist.
    """
    path = as_path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists, and nothing is overwritten; choose another name or remove it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    return path


def write_new(path: Any, write: Callable[[Path], Any]) -> Path:
    """Writes a file that does not exist yet. Under its name the file is whole or absent, whenever the process ends.

    Args:
      path: the file. Its folder exists.
      write: writes the content to the path that it is given, in the same folder.

    Returns:
      The path.

    Raises:
      FileExistsError: the file exists. It is left as it is.
      FileNotFoundError: the folder does not exist.
    """
    path = check_new(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces a file that another process has written meanwhile.
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def optional(module: str, what: str) -> Any:
    """Imports a module of the `storage` extra.

    Args:
      module: its name.
      what: what needs it, for the message.

    Raises:
      ImportError: the module is missing. The message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module.split('.')[0]}: pip install jaxprune[storage]") from error


def check_same(path: Path, what: str, saved: Mapping[Any, Any], expected: Mapping[Any, Any], hint: str = "") -> None:
    """Raises unless what a file or folder describes is what the caller expects.

    Args:
      path: the file or folder, for the message.
      what: what it holds, such as "network" or "search".
      saved: what it describes: a name or a path of keys, and a string or anything that JSON can hold.
      expected: the same of the caller.
      hint: the probable cause, for the message.

    Raises:
      ValueError: they differ. The message names each difference.
    """
    names = sorted(name for name in {*saved, *expected} if saved.get(name) != expected.get(name))
    if not names:
        return
    lines = [
        f"  {name if isinstance(name, str) else '/'.join(name)}: "
        f"saved {_shown(saved.get(name))}, expected {_shown(expected.get(name))}"
        for name in names[:_SHOWN]
    ]
    lines += [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    raise ValueError(f"{path} holds another {what}{hint}; they differ in:\n" + "\n".join(lines))


def nested(leaves: dict[tuple[str, ...], Any]) -> Any:
    """Nested dicts by path; a tree that is a single leaf stays one."""
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
    """The first line of an error's message, or the name of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
