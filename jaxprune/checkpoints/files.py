"""New files that appear whole or not at all, and packages that only some users have."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_new(path: Any, write: Callable[[Path], Any]) -> Path:
    """Writes a file that does not exist yet; under its name it is either whole or missing, whenever the process ends.

    Args:
      path: the file; its folder exists.
      write: writes the content to the path it is given, in the same folder.

    Returns:
      The path.

    Raises:
      FileExistsError: the file exists. It is left as it is.
      FileNotFoundError: its folder does not.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists, and nothing is overwritten; choose another name or remove it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        # A link, unlike a renaming, never replaces what another process has put there meanwhile.
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def optional(name: str, what: str = "this", *, extra: str = "storage") -> Any:
    """A package that jaxprune does not depend on.

    Args:
      name: the module.
      what: what needs it, for the message.
      extra: which of jaxprune's extras brings it.

    Raises:
      ImportError: it is missing; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{what} needs {name.split('.')[0]}: pip install jaxprune[{extra}]") from error
