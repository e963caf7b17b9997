"""What calibration found: for each leaf, the moments of the activations that it meets."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune._jaxprs import Roles
from jaxprune._jaxprs.layouts import Layout

PyTree = Any
Identity = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """The activations that one leaf meets, summed over samples.

    Attributes:
      layout: how the leaf is [batch, inputs, outputs].
      count: how many samples each input has seen, [batch, inputs]. A convolution's sample is an output position.
      gram: X^T X, [batch, inputs, inputs], or None where it was not asked for.
      square: the sums of squares, [batch, inputs] (the Gram matrix's diagonal), or None.
      total: the sums, [batch, inputs], or None.
      zeros: how many were exactly zero, [batch, inputs], or None.
    """

    layout: Layout = dataclasses.field(metadata={"static": True})
    count: Any
    gram: Any = None
    square: Any = None
    total: Any = None
    zeros: Any = None

    @property
    def mean(self) -> jax.Array:
        """The mean of each input, [batch, inputs]; 0 where nothing was seen."""
        if self.total is None:
            raise ValueError("the mean was not collected; calibrate with collect=('total',) or more")
        return self.total / jnp.maximum(self.count, 1)

    @property
    def zero_fraction(self) -> jax.Array:
        """The fraction of samples in which each input was zero (APoZ), [batch, inputs]."""
        if self.zeros is None:
            raise ValueError("zeros were not counted; calibrate with collect=('zeros',) or more")
        return self.zeros / jnp.maximum(self.count, 1)

    @property
    def norm(self) -> jax.Array:
        """The norm of each input over the samples, [batch, inputs]."""
        if self.square is None:
            raise ValueError("squares were not summed; calibrate with collect=('square',) or ('gram',)")
        return jnp.sqrt(self.square)


class Together(NamedTuple):
    """Leaves that meet the same activation.

    Attributes:
      names: the leaves.
      loop: the scan whose layers they are, if their matrices are one for each of its rounds; else None.
    """

    names: tuple[str, ...]
    loop: tuple[int, ...] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """What `calibrate` returns; a pytree, so that it goes through jit and into checkpoints.

    Attributes:
      inputs: by the leaf's identity (`_tree.identity` of its path).
      uncovered: pairs (name, why) of leaves that were asked for and have no entry.
      partly: pairs (name, what else it went into) of leaves with an entry, not all of whose uses are seen.
      together: groups of leaves that meet the same activation, in the order in which they do.
      roles: what each leaf of the function is for, as `find_roles` finds it; None where stats were made by hand.
    """

    inputs: dict[Identity, Inputs]
    uncovered: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())
    partly: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())
    together: tuple[Together, ...] = dataclasses.field(metadata={"static": True}, default=())
    roles: Roles | None = dataclasses.field(metadata={"static": True}, default=None)

    def __getitem__(self, name: str) -> Inputs:
        """The entry of the leaf of this name.

        Raises:
          KeyError: it has none; the message says why, if it was asked for.
        """
        for identity, inputs in self.inputs.items():
            if "/".join(identity) == name:
                return inputs
        raise KeyError(f"{name}: {dict(self.uncovered).get(name, 'was not calibrated')}")

    def leaves(self, params: PyTree) -> list[Inputs | None]:
        """The entries in the order of `jax.tree.leaves(params)`, None where there is none.

        Raises:
          ValueError: an entry's layout is not of its leaf's shape.
        """
        found = []
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            inputs = self.inputs.get(_tree.identity(path))
            if inputs is not None and tuple(leaf.shape) != inputs.layout.shape:
                raise ValueError(
                    f"{_tree.name(path)}: calibrated with shape {inputs.layout.shape}, is now {tuple(leaf.shape)}; "
                    "calibrate the parameters that are pruned"
                )
            found.append(inputs)
        return found
