"""The output folder: a new one, and under its name only once it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .problems import ProblemError


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
