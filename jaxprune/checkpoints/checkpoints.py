"""Orbax checkpoints of whole training states, restored to the same state or not at all."""

from pathlib import Path
from typing import Any

import jax

from jaxprune import _tree
from jaxprune.checkpoints import files

PyTree = Any


def restore(path: Any, like: PyTree) -> PyTree:
    """A state from an Orbax checkpoint, after a check that it is this state.

    The checkpoint is any that Orbax's `StandardCheckpointer().save(path, state)` or
    `CheckpointManager.save(step, args=StandardSave(state))` wrote (there the path is `folder/step/default`). Orbax by
    itself restores None for an array that was saved as None, and says little about what differs; here every leaf is
    compared first.

    Args:
      path: the folder of the checkpoint.
      like: the state, or its shapes (`jax.eval_shape(init, ...)`). Where a leaf has a sharding it is restored to that,
        whatever number of devices it was saved from; `jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype,
        sharding=s), shapes, shardings)` makes such a tree.

    Returns:
      The state in the structure of `like`, bit for bit.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the checkpoint is of another state (the message names the leaves), or cannot be read. Orbax finds
        files that are missing or short; it does not find a flipped bit in the numbers: `checkpoints.save` does.
      ImportError: the package orbax-checkpoint is missing.

    The checkpoint is only read.
    """
    orbax = files.optional("orbax.checkpoint")
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder, so no checkpoint of Orbax")
    with orbax.StandardCheckpointer() as checkpointer:
        try:
            saved = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:  # of many kinds, and none documented
            raise ValueError(f"{path} is no checkpoint of Orbax, or is damaged: {_first_line(error)}") from error
        _check(saved, like, path)
        try:
            return checkpointer.restore(path, jax.tree.map(_abstract, like))
        except Exception as error:
            raise ValueError(f"{path} cannot be read, it may be truncated: {_first_line(error)}") from error


def _check(saved: PyTree, like: PyTree, path: Path) -> None:
    there = {_tree.identity(p): _kind(leaf) for p, leaf in jax.tree_util.tree_flatten_with_path(saved)[0]}
    here = {_tree.identity(p): _kind(leaf) for p, leaf in jax.tree_util.tree_flatten_with_path(like)[0]}
    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if not names:
        return
    lines = [
        f"  {'/'.join(name)}: saved {there.get(name, 'nothing')}, expected {here.get(name, 'nothing')}"
        for name in names[:10]
    ]
    lines += [f"  and {len(names) - 10} more"] if len(names) > 10 else []
    hint = ""
    if any(name[-1] == "bits" for name in names):
        packed = any(name[-1] == "bits" for name in names if name in there)
        hint = f"; it has {'packed' if packed else 'bool'} masks: pass sparsify(..., packed={packed})"
    raise ValueError(f"{path} is a checkpoint of another state{hint}\n" + "\n".join(lines))


def _kind(leaf: Any) -> str:
    if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def _abstract(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(leaf, jax.Array) or sharding is None:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
