"""Progress bars: `bar`, and the one meaning of a `progress` argument everywhere in the library.

`progress=None` shows a bar where somebody watches: standard error is a terminal, or the code runs in a notebook.
`progress=True` always shows it, in a log file anew every ten seconds. `progress=False` never does. tqdm draws the bar.
Without tqdm, None shows nothing.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any


class _Silent:
    """Stands in for a tqdm bar that is not shown."""

    def __init__(self, items: Iterable[Any] | None) -> None:
        self._items = () if items is None else items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def update(self, n: int = 1) -> None:
        """Shows nothing."""


def bar(
    items: Iterable[Any] | None = None, progress: bool | None = None, *, what: str, total: int | None = None
) -> Any:
    """Returns a loop over items with a progress bar, or a bar that the caller moves.

    Args:
      items: the items of the loop.
      progress: True shows the bar, False does not, None shows it on a terminal and in a notebook if tqdm is installed.
      what: the name of the counted items, such as "rounds"; the label of the bar.
      total: number of items, where `len(items)` does not tell it. With no items, the number of steps of a bar that the
        caller moves with `update(n)`.

    Returns:
      An iterable over `items` that is also a context manager with `update(n)`, as tqdm's bars are.

    Raises:
      ImportError: `progress` is True and tqdm is not installed.

    Example:
      >>> [r for r in bar(range(3), False, what="rounds")]
      [0, 1, 2]
      >>> with bar(progress=False, what="steps", total=2) as steps:
      ...     steps.update(2)
    """
    if progress is False or (progress is None and not _is_watched()):
        return _Silent(items)
    try:
        tqdm = importlib.import_module("tqdm.auto")
    except ImportError as error:
        if progress is None:
            return _Silent(items)
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    seconds = 0.1 if _is_watched() else 10
    return tqdm.tqdm(items, desc=what, total=total, mininterval=seconds, **_size())


def _is_watched() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", {})


def _size() -> dict[str, int]:
    """Returns a size for terminals that report none, such as those of `script`, where tqdm would draw nothing."""
    try:
        return {} if os.get_terminal_size(sys.stderr.fileno()).columns else {"ncols": 80, "nrows": 24}
    except (OSError, ValueError, AttributeError):  # no terminal
        return {}
