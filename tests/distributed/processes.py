"""What one of several processes does: the program that `test_processes.py` starts.

python tests/distributed/processes.py NUMBER OF PORT FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np


def main(number: int, of: int, port: int, folder: Path) -> None:
    """Joins the others, prunes and trains what lies on all of them, and saves what every one must find alike."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8 // of)
    if of > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=of, process_id=number)
    import orbax.checkpoint as ocp
    from jax.experimental import multihost_utils

    import jaxprune
    from jaxprune import checkpoints, masks
    from tests.distributed import layouts, problem

    assert (jax.process_count(), jax.device_count()) == (of, 8)
    mesh = layouts.make_mesh("auto", jax.devices())
    places = layouts.shardings(mesh, "mixed")
    gather: Any = lambda tree: jax.tree.map(
        lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
    )

    def put(tree: Any, where: Any) -> Any:
        make = lambda x, at: jax.make_array_from_callback(x.shape, at, lambda i: np.asarray(x)[i])
        return jax.tree.map(make, tree, where)

    params = put(layouts.init_params(), places)
    optimizer = problem.make_optimizer("set", packed=True)
    shapes = jax.eval_shape(optimizer.init, params)
    at = problem.infer(shapes, params, places)
    state = jax.jit(optimizer.init, out_shardings=at)(params)
    step: Any = jax.jit(problem.make_step(optimizer), out_shardings=(places, at))
    rows = jax.NamedSharding(mesh, jax.P("x"))
    for i in range(problem.STEPS):
        params, state = step(params, state, jax.tree.map(lambda x: put(x, rows), problem.batch(i)))
    held = jax.jit(lambda s: masks.unpack(jaxprune.get_masks(s)))(state)
    found = {"params": gather(params), "masks": gather(held)}

    # One process saves the sparse parameters; all save and restore the state.
    if number == 0:
        _ = checkpoints.save(folder / f"params-{of}", found["params"], found["masks"])
    whole = {"params": params, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / f"state-{of}", whole)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), whole)
    restored = checkpoints.restore(folder / f"state-{of}", like)
    found["restored"] = gather(restored["params"])
    leaves = {f"{i:03d}": leaf for i, leaf in enumerate(jax.tree.leaves(found))}
    np.savez(folder / f"found-{of}-{number}.npz", **leaves)  # pyright: ignore[reportArgumentType]
    print("done", flush=True)


if __name__ == "__main__":
    this, processes, opened = map(int, sys.argv[1:4])
    main(this, processes, opened, Path(sys.argv[4]))
