"""`LeafRole` and `Roles`: the role of each parameter leaf, and the meaning of its axes."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import jax

from jaxprune._tree import paths
from jaxprune._tree.tables import table

PyTree = Any
Axes = tuple[int, ...]
Use = Literal["multiplied", "embedding", "elementwise", "other", "unknown"]


@dataclasses.dataclass(frozen=True)
class LeafRole:
    """The role of one leaf, from the function that uses it (`find_roles`) or from conventions about names and types.

    Attributes:
      name: the path of the leaf.
      identity: the path as a tuple.
      shape: the shape; () for a leaf that is not an array.
      uses: how the function uses the leaf: "multiplied" (a matrix product or convolution sums over one of its axes),
        "embedding" (data choose which entries are read), "elementwise" (a bias or scale), "other" (a use that could not
        be followed); "unknown" if there is neither a function nor a convention.
      axes: for each axis "input" (summed over), "window" (of a convolution, also summed over), "output", "stacked" (one
        matrix for each index: scan, experts, a batch of matrices), "group" (of a grouped convolution), "indexed" (of an
        embedding), "entry" (of a bias or scale), "single" (of size 1), "unknown", or several of them joined by "+", the
        slowest first, if the axis is split.
      layout: the leaf as [batch, inputs, outputs] if a function multiplies it, always in one way; else None.
      note: the reason if the role is uncertain, or the convention that gave it; else "".
    """

    name: str
    identity: tuple[str, ...]
    shape: Axes
    uses: tuple[Use, ...]
    axes: tuple[str, ...]
    layout: Any = None
    note: str = ""

    @cached_property
    def role(self) -> Literal["multiplied", "embedding", "elementwise", "other", "unknown", "several", "unused"]:
        """The only use of the leaf, "several" or "unused"."""
        if len(self.uses) == 1:
            return self.uses[0]
        return "several" if self.uses else "unused"

    @cached_property
    def inputs(self) -> Axes:
        """The axes that are summed over, including the window of a convolution."""
        return self._axes("input", "window")

    @cached_property
    def windows(self) -> Axes:
        """The axes of a convolution's window."""
        return self._axes("window")

    @cached_property
    def outputs(self) -> Axes:
        """The axes of a product's outputs; for a depthwise convolution, its groups."""
        return tuple(a for a in self._axes("output") or self._axes("group") if a not in self.inputs)

    @cached_property
    def stacked(self) -> Axes:
        """The axes that consist only of layers, experts or other independent matrices."""
        # A vmapped convolution has groups that are layers, apart from its outputs; a depthwise one has only groups.
        stacked = {"stacked", "group"} if self._axes("output") else {"stacked"}
        return tuple(a for a, kinds in enumerate(self.axes) if set(kinds.split("+")) <= stacked)

    @cached_property
    def is_weight(self) -> bool:
        """Whether the default rule prunes the leaf: a matrix, or a leaf of two axes about which nothing is known."""
        return self.role in ("multiplied", "unknown") and self._is_matrix

    @cached_property
    def is_unclear(self) -> bool:
        """Whether the function may multiply the leaf, in a way that could not be followed."""
        return self.role == "other" and self._is_matrix

    @property
    def why_left_alone(self) -> str:
        """The reason why the default rule does not prune the leaf."""
        if self.role in ("multiplied", "unknown"):
            axes = len(self.shape) - len(self.stacked)
            return f"{axes} axes apart from stacked ones" if self.stacked else f"{axes} axes" if axes != 1 else "1 axis"
        said = {
            "embedding": "an embedding",
            "elementwise": "a bias or scale",
            "several": f"used in several ways ({', '.join(self.uses)})",
            "unused": "the function does not use it",
        }
        return self.note or said.get(self.role, self.role)

    @property
    def unclear_axes(self) -> str:
        """Why patterns cannot follow the axes of the leaf; empty if they can."""
        if any("+" in kinds and {"input", "window"} & set(kinds.split("+")) for kinds in self.axes):
            return f"its inputs are a part of an axis of {self.shape}"
        if not self.inputs and "single" not in self.axes:
            because = f" ({self.note})" if self.note else f" (its role: {self.role})"
            return f"which axes of {self.shape} are inputs is not known{because}"
        return ""

    def stack(self, axes: Axes) -> "LeafRole":
        """Returns the role with these axes stacked."""
        if not set(axes) - set(self.stacked):
            return self
        return dataclasses.replace(self, axes=tuple("stacked" if a in axes else x for a, x in enumerate(self.axes)))

    @cached_property
    def _is_matrix(self) -> bool:
        return len(self.shape) - len(self.stacked) >= 2

    def _axes(self, *kinds: str) -> Axes:
        return tuple(a for a, own in enumerate(self.axes) if set(kinds) & set(own.split("+")))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Roles:
    """The roles of all leaves of a tree of parameters.

    `Roles` is hashable and a pytree without leaves: `jax.jit` accepts it as an argument, static or not, and in
    closures.

    Attributes:
      leaves: one `LeafRole` for each leaf, in the order of `jax.tree.leaves`.
    """

    leaves: tuple[LeafRole, ...]

    def __getitem__(self, name: str) -> LeafRole:
        for leaf in self.leaves:
            if leaf.name == name:
                return leaf
        raise KeyError(f"no leaf {name!r}; there are: {', '.join(leaf.name for leaf in self.leaves)}")

    def __iter__(self) -> Iterator[LeafRole]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    def __str__(self) -> str:
        rows = [
            (leaf.name, "x".join(map(str, leaf.shape)), leaf.role, ", ".join(leaf.axes), leaf.note)
            for leaf in self.leaves
        ]
        return table(("leaf", "shape", "role", "axes", "note"), rows, numbers=False)

    def of(self, params: PyTree, *, scores: bool = False, parts: bool = False) -> tuple[LeafRole, ...]:
        """Returns the roles of the leaves of a tree, in the tree's order.

        Args:
          params: a tree of the parameters that `find_roles` received, or of some of them, with None for the others.
          scores: whether the tree may have scalars in place of arrays, as scores of leaves that are not pruned.
          parts: whether the leaves may be the parts of arrays that a device holds inside `jax.shard_map`.

        Raises:
          ValueError: a leaf has no role, or had another shape; the message names the leaves.
        """
        found, wrong = [], []
        for path, leaf in paths.with_paths(params):
            role, shape = self._known.get(paths.identity(path)), tuple(getattr(leaf, "shape", ()))
            found.append(role)
            if role is None:
                wrong.append(f"  {paths.name(path)}: was not among the parameters of find_roles")
            elif role.shape != shape and not (scores and not shape) and not (parts and len(shape) == len(role.shape)):
                wrong.append(f"  {paths.name(path)}: has shape {shape}, but had {role.shape} when roles were found")
        if wrong:
            raise ValueError("these roles belong to other parameters; call find_roles again:\n" + "\n".join(wrong[:20]))
        return tuple(found)

    @cached_property
    def _known(self) -> Mapping[tuple[str, ...], LeafRole]:
        return {leaf.identity: leaf for leaf in self.leaves}
