"""`Stats` and `Inputs`: the moments of the activations that each leaf meets."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree
from jaxprune._jaxprs.factors import Layout
from jaxprune._tree import Roles

PyTree = Any
Identity = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Sums over the activations that one leaf is multiplied by. A convolution has one sample for each output position.

    Attributes:
      layout: which axes of the leaf are inputs, outputs and a batch of matrices.
      count: the number of samples, [batch, inputs].
      gram: the Gram matrices X^T X, [batch, inputs, inputs]; None if "gram" was not collected.
      square: the sums of squares, [batch, inputs], which are the diagonals of the Gram matrices; None if not collected.
      total: the sums, [batch, inputs]; None if not collected.
      zeros: the number of samples that are exactly zero, [batch, inputs]; None if not collected.
    """

    layout: Layout = dataclasses.field(metadata={"static": True})
    count: Any
    gram: Any = None
    square: Any = None
    total: Any = None
    zeros: Any = None

    @property
    def mean(self) -> jax.Array:
        """The mean of each input, [batch, inputs]; 0 for an input without samples."""
        if self.total is None:
            raise ValueError("the mean was not collected; calibrate with collect=('total',) or more")
        return self.total / jnp.maximum(self.count, 1)

    @property
    def zero_fraction(self) -> jax.Array:
        """The fraction of samples in which each input is exactly zero (APoZ), [batch, inputs]."""
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
    """Leaves that are multiplied by the same activation.

    Attributes:
      names: the names of the leaves.
      loop: identifies the scan whose layers the leaves stack; None without such a scan.
    """

    names: tuple[str, ...]
    loop: tuple[int, ...] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experts:
    """Sums over the tokens that a router sends to each expert: [experts], or [layers, experts] in a scan.

    With the tokens t of expert j, its gates g_j(t) and its outputs f_j(t):

    Attributes:
      leaves: the weights of the experts: (name, axis of the experts), with None for a leaf that is one expert.
      tokens: the number of tokens.
      gate: the sum of g_j(t).
      norm: the sum of ||f_j(t)||.
      square: the sum of ||f_j(t)||^2.
      weighted: the sum of g_j(t) ||f_j(t)||.
    """

    leaves: tuple[tuple[str, int | None], ...] = dataclasses.field(metadata={"static": True})
    tokens: Any
    gate: Any
    norm: Any
    square: Any
    weighted: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """The result of `calibrate`: a pytree, which jit accepts and checkpoints can store.

    Attributes:
      inputs: the sums of each leaf, by the leaf's path as a tuple.
      uncovered: pairs (name, reason) of leaves that `where` selects but that could not be followed to a product.
      partly: pairs (name, reason) of leaves with sums that do not cover all uses of the leaf.
      together: groups of leaves that are multiplied by the same activation, in order of execution.
      roles: the result of `find_roles` for all leaves; None if the statistics were made by hand.
      experts: sums over the tokens of each expert, for every sum over experts that the function computes.
    """

    inputs: dict[Identity, Inputs]
    uncovered: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())
    partly: tuple[tuple[str, str], ...] = dataclasses.field(metadata={"static": True}, default=())
    together: tuple[Together, ...] = dataclasses.field(metadata={"static": True}, default=())
    roles: Roles | None = dataclasses.field(metadata={"static": True}, default=None)
    experts: tuple[Experts, ...] = ()

    def __getitem__(self, name: str) -> Inputs:
        """Returns the sums of the leaf with this name.

        Raises:
          KeyError: the leaf was not calibrated; the message gives the reason.
        """
        for identity, inputs in self.inputs.items():
            if "/".join(identity) == name:
                return inputs
        there = ", ".join("/".join(identity) for identity in self.inputs)
        why = dict(self.uncovered).get(name, f"was not calibrated; these leaves were: {there}")
        raise KeyError(f"{name}: {why}")

    def leaves(self, params: PyTree) -> list[Inputs | None]:
        """Returns the sums of each leaf in the order of `jax.tree.leaves(params)`; None if a leaf was not calibrated.

        Raises:
          ValueError: the shape of a leaf has changed since calibration.
        """
        found = []
        for path, leaf in _tree.with_paths(params):
            inputs = self.inputs.get(_tree.identity(path))
            if inputs is not None and tuple(leaf.shape) != inputs.layout.shape:
                raise ValueError(
                    f"{_tree.name(path)}: calibrated with shape {inputs.layout.shape}, but has shape "
                    f"{tuple(leaf.shape)} now; calibrate the parameters that you prune"
                )
            found.append(inputs)
        return found
