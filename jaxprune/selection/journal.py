"""What a search has found out so far, on disk: one line for each evaluation, added as it ends."""

import json
import os
from pathlib import Path
from typing import Any

_KIND = "jaxprune.selection.search/1"


class Journal:
    """The file of one search; with no path it remembers nothing.

    The first line says which search it is, each other one holds an evaluation. A line is written at once and flushed to
    the disk; a last line that was cut off when the process was killed is taken away, and its evaluation runs again.

    Args:
      path: made if missing; None for no file.
      identity: what makes the search the same.

    Raises:
      ValueError: the file is of another search, or of none.
    """

    def __init__(self, path: Any, identity: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._known: dict[str, float] = {}
        if self._path is None:
            return
        identity = json.loads(json.dumps({"kind": _KIND, **identity}, default=str))
        if not self._path.exists() or not _whole_lines(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, "w", identity)
            return
        first, *lines = self._path.read_text().splitlines()
        self._check(first, identity)
        for line in lines:
            entry = json.loads(line)
            self._known[entry["name"]] = float(entry["loss"])

    def known(self, name: str) -> float | None:
        """The loss of an evaluation that has ended, or None."""
        return self._known.get(name)

    def add(self, name: str, candidate: Any, loss: float) -> None:
        """Notes an evaluation that has ended."""
        self._known[name] = loss
        if self._path is not None:
            _write(self._path, "a", {"name": name, "candidate": candidate, "loss": loss})

    def _check(self, first: str, identity: dict[str, Any]) -> None:
        try:
            held = json.loads(first)
        except ValueError:
            held = None
        if not isinstance(held, dict) or held.get("kind") != _KIND:
            raise ValueError(f"{self._path} is not the journal of a search; pass a new file")
        differing = [k for k in sorted({*held, *identity}) if held.get(k) != identity.get(k)]
        if differing:
            lines = [f"  {k}: there {held.get(k)}, here {identity.get(k)}" for k in differing]
            raise ValueError(f"{self._path} holds another search; they differ in:\n" + "\n".join(lines))


def _write(path: Path, mode: str, entry: dict[str, Any]) -> None:
    with path.open(mode) as file:
        _ = file.write(json.dumps(entry, default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> bool:
    """Takes away a last line that has no end; whether any is left."""
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as file:
            _ = file.truncate(len(whole))
    return bool(whole)
