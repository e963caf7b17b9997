"""Networks on disk: parameters and masks through Orbax, and beside them what is needed to evaluate them again."""

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
        about: The rest, as JSON: it is written last, so that a folder which has it is complete.
    """
    ocp = need("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / STATE, {"params": params, "masks": masks})
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


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
    try:
        about = json.loads((folder / ABOUT).read_text())
        with ocp.StandardCheckpointer() as checkpointer:
            # Without a target, whose shapes only the checkpoint knows, Orbax returns the dicts that were saved.
            state = checkpointer.restore(folder.absolute() / STATE)
        return state["params"], state["masks"], about
    except Exception as error:  # Orbax, tensorstore and json have errors of their own
        raise ProblemError(f"The checkpoint {folder} is damaged ({brief(error)}): train again.") from error
