"""A training that saves every step and goes on where it was: the program that `test_kills.py` kills.

python tests/distributed/resumed.py FOLDER STEPS
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import jaxprune
from jaxprune import checkpoints, training

METHOD = training.rigl(0.75, 300, key=jax.random.key(0), every=4)
OPTIMIZER = jaxprune.sparsify(optax.adam(0.01), METHOD, packed=True)


def start() -> Any:
    """The state to begin with."""
    keys = jax.random.split(jax.random.key(1), 2)
    params = {name: jax.random.normal(key, (12, 40)) / 4 for name, key in zip(("in", "out"), keys, strict=True)}
    return {"params": params, "state": OPTIMIZER.init(params)}


@jax.jit
def step(state: Any, number: Any) -> Any:
    """One step, on data that its number makes."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(2), number), (16, 12))
    loss = lambda p: jnp.mean((jnp.tanh(x @ p["in"]) @ p["out"].T - jnp.sin(x)) ** 2)
    updates, inner = OPTIMIZER.update(jax.grad(loss)(state["params"]), state["state"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "state": inner}


def main(folder: Path, steps: int) -> None:
    """Trains to the end, from the last step that is whole."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as manager:
        state, done = start(), manager.latest_step()
        if done is not None:
            state = checkpoints.restore(folder / str(done) / "default", state)
        print("from", done, flush=True)
        for number in range(done or 0, steps):
            state = step(state, number)
            # The name of a checkpoint is the number of steps made.
            _ = manager.save(number + 1, args=ocp.args.StandardSave(state))
            print("made", number + 1, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
