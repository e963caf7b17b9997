"""Rounds on disk: a folder that belongs to one search, never overwrites, and tells what is finished."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import _tree, checkpoints

PyTree = Any
_FILE = "search.json"
_KIND = "jaxprune.lottery.iterative_pruning/1"


def fingerprint(params: PyTree, key: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What makes a search the same: its numbers and names, its key, and the bits of its first weights."""
    data = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    digest = hashlib.sha256()
    shapes = {}
    for name, leaf in _tree.named_leaves(params):
        array = np.asarray(leaf)
        shapes[name] = f"{array.dtype}{list(array.shape)}"
        digest.update(name.encode() + array.tobytes())
    return {"kind": _KIND, "key": np.asarray(data).tolist(), "params": shapes, "bits": digest.hexdigest(), **asked}


class Store:
    """The folder of one search.

    Args:
      folder: made if missing. It must be empty or hold this very search.
      identity: from `fingerprint`.

    Raises:
      FileExistsError: it holds something else.
      ValueError: it holds another search; the message says what differs.
      ImportError: orbax is missing.
    """

    def __init__(self, folder: Any, identity: dict[str, Any]) -> None:
        self._orbax = checkpoints.optional("orbax.checkpoint", "saving rounds")
        self._folder = Path(folder).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / _FILE
        if not note.exists():
            if any(self._folder.iterdir()):
                raise FileExistsError(f"{self._folder} holds files of no search; pass an empty or a new folder")
            with note.open("x") as file:
                json.dump(identity, file, indent=1)
            return
        held = json.loads(note.read_text())
        differing = [k for k in sorted({*held, *identity}) if held.get(k) != identity.get(k)]
        if differing:
            lines = [f"  {k}: there {_short(held.get(k))}, here {_short(identity.get(k))}" for k in differing]
            raise ValueError(f"{self._folder} holds another search; they differ in:\n" + "\n".join(lines))

    def load(self, r: int) -> dict[str, Any] | None:
        """The arrays of a finished round, or None."""
        if not self._path(r).exists():
            return None
        with self._orbax.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self._path(r))

    def save(self, r: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes a round; it appears under its name only once it is whole."""
        with self._orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._path(r), arrays)
            checkpointer.wait_until_finished()

    def _path(self, r: int) -> Path:
        return self._folder / f"round_{r:04d}"


def bar(size: int, progress: bool) -> Iterable[int]:
    """The numbers of the rounds, with a progress bar or without."""
    if not progress:
        return range(size)
    return checkpoints.optional("tqdm", "progress=True", extra="examples").tqdm(range(size), desc="rounds")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
