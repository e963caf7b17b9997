"""Networks on disk: parameters and masks through Orbax, and beside them what is needed to evaluate them again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .problems import ProblemError, brief, need

ABOUT = "about.json"
STATE = "state"


def save(folder: Path, params: Any, masks: Any, about: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        folder: A folder that is not there yet.
        params: The parameters.
        masks: The masks; ones of shape () for a dense network.
        about: The rest, as JSON. It is written last, with the fingerprints of what Orbax wrote: a folder that has it is
            complete.
    """
    ocp = need("orbax.checkpoint")
    state = folder.absolute() / STATE
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(state, {"params": params, "masks": masks})
    (folder / ABOUT).write_text(json.dumps({**about, "files": _fingerprints(state)}, indent=2) + "\n")


def load(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Read a checkpoint.

    Args:
        folder: As for `save`.

    Returns:
        The parameters, the masks and the rest.

    Raises:
        ProblemError: If there is none, or it is damaged.
    """
    ocp = need("orbax.checkpoint")
    if not (folder / ABOUT).is_file():
        inside = sorted(str(path.parent.relative_to(folder)) for path in folder.glob(f"**/{ABOUT}"))
        hint = f"choose one inside, such as {inside[0]}" if inside else "give a folder out of the demo's checkpoints/"
        raise ProblemError(f"{folder} is no checkpoint of the demo: {hint}.")
    state = folder.absolute() / STATE
    try:
        about = json.loads((folder / ABOUT).read_text())
        _check(state, about.pop("files"))
        with ocp.StandardCheckpointer() as checkpointer:
            # Without a target, whose shapes only the checkpoint knows, Orbax returns the dicts that were saved.
            found = checkpointer.restore(state)
        return found["params"], found["masks"], about
    except Exception as error:  # Orbax, tensorstore and json have errors of their own
        raise ProblemError(f"The checkpoint {folder} is damaged ({brief(error)}): train again.") from error


def _fingerprints(state: Path) -> dict[str, str]:
    files = (path for path in sorted(state.rglob("*")) if path.is_file())
    return {str(path.relative_to(state)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check(state: Path, expected: dict[str, str]) -> None:
    # Before Orbax looks: where it fails, its threads go on complaining after the one sentence that explains.
    found = _fingerprints(state)
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    if wrong:
        raise ValueError(f"{wrong[0]} is {'not what was saved' if wrong[0] in found else 'missing'}")
