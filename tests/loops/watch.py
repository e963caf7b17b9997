"""What every training loop must hold: exact zeros at each step, exact counts, one compilation, resuming to the bit.

`Watch.train` runs a loop and looks at each step. In the middle it saves as the users of that loop do; at the end it
starts again from the saved state, and both must end in the same bits.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

import jaxprune
from jaxprune import _tree, masks, schedules, training

PyTree = Any
# `(carry, folder) -> a function that returns the restored carry`
Save = Callable[[PyTree, Path], Callable[[], PyTree]]
STEPS = 6


def gradual(**how: Any) -> training.Method:
    """Three revisions within the steps, the last one at half of the weights and after the middle."""
    return training.gradual(schedules.cubic(0, 4, 0.5), when=schedules.every(2, 0, 4), **how)


def by_orbax(carry: PyTree, folder: Path) -> Callable[[], PyTree]:
    """Through an Orbax checkpoint, onto the devices on which the arrays were."""
    like, types = _described(carry), _weak(carry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", carry)

    def restore() -> PyTree:
        with ocp.StandardCheckpointer() as checkpointer:
            return _weak_again(types, checkpointer.restore(folder / "state", like))

    return restore


def by_msgpack(carry: PyTree, folder: Path) -> Callable[[], PyTree]:
    """Through the bytes of `flax.serialization`, into a carry of zeros."""
    data, like, types = serialization.to_bytes(carry), jax.tree.map(np.zeros_like, carry), _weak(carry)
    return lambda: _weak_again(types, jax.tree.map(jnp.asarray, serialization.from_bytes(like, data)))


def by_pickle(carry: PyTree, folder: Path) -> Callable[[], PyTree]:
    """Through a pickle of NumPy arrays."""
    data, types = pickle.dumps(jax.tree.map(lambda x: np.asarray(without_key(x)), carry)), _weak(carry)
    keys = [_is_key(x) for x in jax.tree.leaves(carry)]

    def restore() -> PyTree:
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, pickle.loads(data)))
        leaves = [jax.random.wrap_key_data(x) if key else x for x, key in zip(leaves, keys, strict=True)]
        return _weak_again(types, structure.unflatten(leaves))

    return restore


def by_names(carry: PyTree, folder: Path) -> Callable[[], PyTree]:
    """Through a file of NumPy's with an array for each name, onto the devices on which the arrays were."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    named: dict[str, Any] = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
    np.savez(folder / "state.npz", **named)
    like = _described(carry)

    def restore() -> PyTree:
        with np.load(folder / "state.npz") as file:
            # NumPy does not know bfloat16.
            read = lambda path, x: jax.device_put(file[jax.tree_util.keystr(path)].view(x.dtype), x.sharding)
            return jax.tree_util.tree_map_with_path(read, like)

    return restore


def _described(carry: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), carry)


def by_equinox(carry: PyTree, folder: Path) -> Callable[[], PyTree]:
    """Through Equinox's serialised leaves."""
    eqx.tree_serialise_leaves(folder / "state.eqx", carry)
    return lambda: eqx.tree_deserialise_leaves(folder / "state.eqx", carry)


def _weak(carry: PyTree) -> list[bool]:
    """Which leaves have the weak type of a Python number, as the step of Flax's TrainState."""
    return [np.ndim(x) == 0 and bool(getattr(x, "weak_type", not hasattr(x, "dtype"))) for x in jax.tree.leaves(carry)]


def _weak_again(types: list[bool], carry: PyTree) -> PyTree:
    """The restored carry with its weak types; without them JAX would trace the step for other types."""
    leaves, structure = jax.tree.flatten(carry)
    return structure.unflatten([jnp.asarray(x.item()) if weak else x for x, weak in zip(leaves, types, strict=True)])


class Watch:
    """Counts how often a step is traced, and looks at the parameters and masks after each step.

    Attributes:
      traces: one entry for each trace of the step.
      removed: for each step, the number of removed weights by leaf.
      first_traces: the number of traces of the run that was not resumed.
    """

    def __init__(self) -> None:
        self.first_traces = 0
        self.traces: list[int] = []
        self.removed: list[dict[str, int]] = []

    def traced(self, step: Any) -> Any:
        """The step, which notes each trace."""

        def noted(*arguments: Any) -> Any:
            self.traces.append(1)
            return step(*arguments)

        return noted

    def train(self, step: Any, carry: PyTree, look: Any, save: Save, folder: Path, *, steps: int = STEPS) -> PyTree:
        """Runs `step(carry, i) -> carry`, looks at `look(carry) -> (params, opt_state)`, resumes from the middle.

        Fails unless the resumed run ends in the same bits; returns the last carry.
        """
        restore: Any = None
        for i in range(steps):
            if i == steps // 2:
                restore = save(carry, folder)
            carry = step(carry, i)
            self.look(*look(carry))
        end = bits(carry)
        self.first_traces = len(self.traces)
        again = restore()
        for i in range(steps // 2, steps):
            again = step(again, i)
        assert bits(again) == end
        return carry

    def look(self, params: PyTree, state: PyTree) -> None:
        """Fails unless every weight whose mask is False is exactly zero."""
        kept = _tree.align(params, masks.unpack(jaxprune.get_masks(state)), what="masks")
        pairs = zip(_tree.named_leaves(params), jax.tree.leaves(kept), strict=True)
        removed: dict[str, int] = {}
        for (name, leaf), mask in pairs:
            gone = ~np.broadcast_to(np.asarray(mask), np.shape(leaf))
            values = np.asarray(leaf).astype(np.float32)
            assert np.isfinite(values).all(), name
            assert np.count_nonzero(values[gone]) == 0, name
            if gone.any():
                removed[name] = int(gone.sum())
        self.removed.append(removed)

    def expect(self, removed: dict[str, int], *, traces: int = 1, resumed: int = 0) -> None:
        """Fails unless the last step ended with these numbers, and the step was traced so often.

        Args:
          removed: the number of removed weights by leaf.
          traces: the number of traces before the run is resumed.
          resumed: the number of further traces after it.
        """
        assert self.removed[-1] == removed
        assert self.first_traces == traces
        assert len(self.traces) == traces + resumed


def bits(tree: PyTree) -> list[Any]:
    """The dtype, shape and bytes of each array of a tree."""
    arrays = [np.asarray(without_key(x)) for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]
    return [(str(x.dtype), x.shape, x.tobytes()) for x in arrays]


def without_key(x: Any) -> Any:
    """An array; of a key its data."""
    return jax.random.key_data(x) if _is_key(x) else x


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def batch(step: int, features: int = 8) -> jax.Array:
    """The inputs of a step."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (4, features))
