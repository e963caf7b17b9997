"""`Run`: a folder that stores the finished steps of one resumable computation and never overwrites them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune import _tree
from jaxprune.checkpoints import _disk

PyTree = Any


class Run:
    """The folder of one long computation that can be killed at any time and resumes after its last finished step.

    A JSON file in the folder describes the run: its options, its key, and the shapes and bits of its initial
    parameters. Each step is an Orbax checkpoint of named arrays. The JSON file and the steps get their names only when
    complete.

    Args:
      folder: the folder; it is created if it does not exist. It must be empty or belong to the same run.
      options: other values that identify the run: names with JSON values.
      params: the initial parameters.
      key: the JAX key.
      kind: one word for the run, used in the name of the JSON file and in messages; default "run".
      step: one word for a step, used in the names of the steps' folders; default "step".

    Raises:
      FileExistsError: the folder contains other files.
      ValueError: the folder belongs to another run (the message says what differs), or its description is damaged.
      ImportError: the package orbax-checkpoint is missing.

    Example:
      >>> import tempfile
      >>> folder, params, key = tempfile.mkdtemp(), {'w': np.ones(2)}, jax.random.key(0)
      >>> Run(folder, {'rate': 0.1}, params=params, key=key).save(0, {'loss': np.array(0.5)})
      >>> again = Run(folder, {'rate': 0.1}, params=params, key=key)
      >>> float(again.load(0)['loss']), again.load(1)
      (0.5, None)
      >>> Run(folder, {'rate': 0.2}, params=params, key=key)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: /... contains another run; they differ in:
        rate: saved 0.1, expected 0.2
    """

    def __init__(
        self, folder: Any, options: dict[str, Any], *, params: PyTree, key: Any, kind: str = "run", step: str = "step"
    ) -> None:
        _tree.check_instance(options, dict, "options", "a dict of what tells one run from another")
        _tree.check_key(key, needed_by="Run")
        self._orbax = _disk.optional("orbax.checkpoint", f"saving a {kind}")
        self._folder, self._step = Path(folder).absolute(), step
        identity = json.loads(json.dumps({"kind": f"jaxprune.{kind}/1", **_fingerprint(params, key), **options}))
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / f"{kind}.json"
        if not note.exists():
            # A process killed before it could rename its file leaves the file under a hidden name.
            if any(not path.match(f".{note.name}.*.part") for path in self._folder.iterdir()):
                raise FileExistsError(f"{self._folder} contains files of no {kind}; pass an empty or a new folder")
            text = json.dumps(identity, indent=1)
            _ = _disk.write_new(note, lambda part: part.write_text(text))
            return
        try:
            saved = json.loads(note.read_text())
        except ValueError as error:
            raise ValueError(
                f"{note} is damaged ({_disk.first_line(error)}): it does not say which {kind} the folder belongs to; "
                "pass a new folder"
            ) from error
        if not isinstance(saved, dict):
            raise ValueError(f"{note} does not describe a {kind}; pass a new folder")
        _disk.check_same(self._folder, kind, saved, identity)

    def load(self, number: int) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a finished step, or None if the step is not finished.

        Raises:
          ValueError: the step is damaged. The message names its folder.
        """
        path = self._path(number)
        if not path.exists():
            return None
        with self._orbax.StandardCheckpointer() as checkpointer:
            try:
                return {name: np.asarray(array) for name, array in checkpointer.restore(path).items()}
            except Exception as error:  # Orbax documents no type
                raise ValueError(
                    f"{path} is damaged: {_disk.first_line(error)}; remove this folder to run this {self._step} again"
                ) from error

    def save(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes a finished step, and returns when it is on the disk."""
        with self._orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._path(number), arrays)
            checkpointer.wait_until_finished()

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._step}_{number:04d}"


def _fingerprint(params: PyTree, key: Any) -> dict[str, Any]:
    data = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    digest, shapes = hashlib.sha256(), {}
    for name, leaf in _tree.named_leaves(params):
        array = np.asarray(leaf)
        shapes[name] = f"{array.dtype}{list(array.shape)}"
        digest.update(name.encode() + array.tobytes())
    return {"key": np.asarray(data).tolist(), "params": shapes, "bits": digest.hexdigest()}
