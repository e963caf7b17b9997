"""What every training loop must hold: exact zeros at each step, the exact count at the end, one compilation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from jaxprune import _tree, masks, schedules, training

PyTree = Any
STEPS = 6


def gradual(**how: Any) -> training.Method:
    """Three revisions within the steps, the last one at half of the weights."""
    return training.gradual(schedules.cubic(0, 4, 0.5), when=schedules.every(2, 0, 4), **how)


class Watch:
    """Counts how often a step is traced, and looks at the parameters and masks after each step.

    Attributes:
      traces: one entry for each trace of the step.
      removed: for each step, the number of removed weights by leaf.
    """

    def __init__(self) -> None:
        self.traces: list[int] = []
        self.removed: list[dict[str, int]] = []

    def traced(self, step: Any) -> Any:
        """The step, which notes each trace."""

        def noted(*arguments: Any) -> Any:
            self.traces.append(1)
            return step(*arguments)

        return noted

    def look(self, params: PyTree, state: PyTree) -> None:
        """Fails unless every weight whose mask is False is exactly zero."""
        kept = _tree.align(params, masks.unpack(jaxprune.get_masks(state)), what="masks")
        pairs = zip(_tree.named_leaves(params), jax.tree.leaves(kept), strict=True)
        removed: dict[str, int] = {}
        for (name, leaf), mask in pairs:
            gone = ~np.broadcast_to(np.asarray(mask), np.shape(leaf))
            values = np.asarray(jnp.asarray(leaf, jnp.float32))
            assert np.isfinite(values).all(), name
            assert np.count_nonzero(values[gone]) == 0, name
            if gone.any():
                removed[name] = int(gone.sum())
        self.removed.append(removed)

    def expect(self, removed: dict[str, int], *, traces: int = 1) -> None:
        """Fails unless the last step ended with these numbers, and the step was traced so often."""
        assert self.removed[-1] == removed
        assert len(self.traces) == traces


def batch(step: int, features: int = 8) -> jax.Array:
    """The inputs of a step."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (4, features))
