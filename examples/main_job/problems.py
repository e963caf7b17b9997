"""What stops the demo and is for its user to solve: one sentence, no traceback."""

import importlib
from types import ModuleType


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
