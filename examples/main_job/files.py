"""What the demo writes and reads: a new folder for the results, networks on disk, and problems told in one sentence."""

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxprune import checkpoints

ABOUT, NETWORK = "about.json", "network.safetensors"


class ProblemError(Exception):
    """Something that the user can put right; the message is one sentence that says what to do."""


def brief(error: Exception) -> str:
    """What someone else's error says, shortened to fit into a sentence: some go on for pages."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
    return line if len(line) < 400 else f"{line[:200]} ... {line[-100:]}"


def need(module: str) -> ModuleType:
    """Import a package that the examples need and the library does not.

    Args:
        module: Its name, such as `"tensorflow_datasets"`.

    Returns:
        The module.

    Raises:
        ProblemError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = 'run `pip install "jaxprune[examples]"` first'
        raise ProblemError(f"{error.name} is not installed: {hint}.") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into, and rename it to `path` when all is written.

    Args:
        path: The folder that shall be there in the end. Until then the files lie beside it, in `path.unfinished-PID`:
            a run that is killed leaves nothing that looks finished, and one that fails leaves nothing.

    Yields:
        The folder to write into.

    Raises:
        ProblemError: If `path` exists already, or cannot be made.
    """
    taken = f"{path} exists already and is left as it is: choose a new folder with --output."
    if os.path.lexists(path):
        raise ProblemError(taken)
    unfinished = path.with_name(f"{path.name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise ProblemError(f"{path} cannot be made ({error.strerror}): choose another folder with --output.") from error
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    try:
        unfinished.rename(path)
    except OSError as error:
        raise ProblemError(f"{path} was made by someone else meanwhile: the results lie in {unfinished}.") from error


def save_network(folder: Path, params: Any, masks: Any, about: dict[str, Any]) -> int:
    """Write a network: `network.safetensors` with weights and masks, and `about.json` with the rest.

    Args:
        folder: A folder that is not there yet.
        params: The parameters.
        masks: The masks; ones of shape () for a dense network.
        about: What is needed to evaluate the network again, as JSON. It is written last: a folder that has it is
            complete.

    Returns:
        The bytes of `network.safetensors`.
    """
    folder.mkdir(parents=True)
    saved = checkpoints.save(folder / NETWORK, params, masks)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return saved.bytes


def load_about(folder: Path) -> dict[str, Any]:
    """Read the `about.json` of a network.

    Raises:
        ProblemError: If there is none, or it is damaged.
    """
    if not (folder / ABOUT).is_file():
        inside = sorted(str(path.parent.relative_to(folder)) for path in folder.glob(f"**/{ABOUT}"))
        hint = f"choose one inside, such as {inside[0]}" if inside else "give a folder out of the demo's checkpoints/"
        raise ProblemError(f"{folder} is no checkpoint of the demo: {hint}.")
    try:
        return json.loads((folder / ABOUT).read_text())
    except ValueError as error:
        raise _damaged(folder, error) from error


def load_network(folder: Path, like: Any) -> tuple[Any, Any]:
    """Read the parameters and the masks of a network.

    Args:
        folder: As for `save_network`.
        like: Arrays, or their shapes, in the structure of the parameters.

    Raises:
        ProblemError: If the file is missing or damaged.
    """
    try:
        loaded = checkpoints.load(folder / NETWORK, like)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    return loaded.params, loaded.masks


def _damaged(folder: Path, error: Exception) -> ProblemError:
    return ProblemError(f"The checkpoint {folder} is damaged ({brief(error)}): train again.")
