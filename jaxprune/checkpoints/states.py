"""`restore`: returns a training state from an Orbax checkpoint, or says what differs."""

from pathlib import Path
from typing import Any

import jax

from jaxprune import _tree
from jaxprune.checkpoints import _disk

PyTree = Any
_Names = tuple[str, ...]


def restore(path: Any, like: PyTree) -> PyTree:
    """Restores a training state from an Orbax checkpoint, after checking that the checkpoint contains this state.

    Use it for checkpoints written by `StandardCheckpointer().save(path, state)` or `CheckpointManager.save(step,
    args=StandardSave(state))` (whose path is `folder/step/default`), including Flax NNX states. Orbax itself returns
    None for an array that was saved as None, and reports few differences; `restore` first compares every leaf. It does
    not change the checkpoint.

    Args:
      path: the folder of the checkpoint.
      like: the state, or its shapes (`jax.eval_shape(init, ...)`). A leaf with a sharding is restored to this sharding,
        whatever number of devices saved it; make such a tree by `jax.tree.map(lambda x, s:
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)`. NNX Variables and their plain values
        count as the same leaves.

    Returns:
      The state in the structure of `like`, equal bit for bit to the saved state.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the checkpoint contains another state (the message names the leaves), or cannot be read. Orbax detects
        missing and truncated files, but unlike `checkpoints.load` no flipped bits in arrays.
      ImportError: the package orbax-checkpoint is missing.

    Example:
      >>> import tempfile, orbax.checkpoint as ocp
      >>> state, path = {'w': jax.numpy.arange(3.0)}, tempfile.mkdtemp() + '/state'
      >>> with ocp.StandardCheckpointer() as checkpointer:
      ...     checkpointer.save(path, state)
      >>> restore(path, state)['w'].tolist()
      [0.0, 1.0, 2.0]
    """
    orbax = _disk.optional("orbax.checkpoint", "checkpoints.restore")
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; pass the folder of an Orbax checkpoint")
    with orbax.StandardCheckpointer() as checkpointer:
        try:
            there = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:  # Orbax documents no type
            message = f"{path} is not an Orbax checkpoint, or is damaged: {_disk.first_line(error)}"
            raise ValueError(message) from error
        saved = {_names(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(there)[0]}
        leaves = [(_saved_name(p, saved), leaf) for p, leaf in _tree.with_paths(like)]
        _check(path, saved, dict(leaves))
        target = jax.tree.map(_abstract, like)
        if [name for name, _ in leaves] != [_names(p) for p, _ in jax.tree_util.tree_flatten_with_path(like)[0]]:
            # If Variables were saved and values are requested, or the reverse, read in the saved containers.
            target = _disk.nested({name: _abstract(leaf) for name, leaf in leaves})
        try:
            found = checkpointer.restore(path, target)
        except Exception as error:
            raise ValueError(f"{path} cannot be read; it may be truncated: {_disk.first_line(error)}") from error
    arrays = {_names(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(found)[0]}
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name, _ in leaves])


def _saved_name(path: Any, saved: dict[_Names, Any]) -> _Names:
    """The name under which a leaf was saved, with or without the `value` of a Variable."""
    plain = _tree.identity(path)
    options = [_names(path), plain, (*plain, "value")]
    return next((name for name in options if name in saved), plain)


def _check(path: Path, saved: dict[_Names, Any], leaves: dict[_Names, Any]) -> None:
    there = {name: _kind(leaf) for name, leaf in saved.items()}
    here = {name: _kind(leaf) for name, leaf in leaves.items()}
    hint = ""
    if any(name[-1:] == ("bits",) for name in {*there, *here} if there.get(name) != here.get(name)):
        packed = any(name[-1:] == ("bits",) for name in there if there.get(name) != here.get(name))
        hint = f", it has {'packed' if packed else 'bool'} masks: pass sparsify(..., packed={packed})"
    _disk.check_same(path, "state", there, here, hint)


def _names(path: Any) -> _Names:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


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
