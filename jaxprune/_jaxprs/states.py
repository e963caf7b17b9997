"""What a value in a jaxpr is, seen from the parameters: one of them in another shape, data, or neither."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

Views = list[np.ndarray]


@dataclass(frozen=True)
class Weight:
    """Parameter leaves seen through casts, reshapes, slices and the like: an entry is zero where the leaf's is.

    Attributes:
      leaves: the inputs of the jaxpr that it is made of; more than one after a concatenation.
      view: takes an array in the shape of each of these inputs to the arrays in the shape of the value, one for
        each time the value is met: a leaf that a scan slices is met once for each slice.
      slices: how many arrays `view` gives.
      broadcast: whether an entry of a leaf stands in several places of the value.
    """

    leaves: tuple[int, ...]
    view: Callable[[Mapping[int, np.ndarray]], Views]
    slices: int = 1
    broadcast: bool = False

    def then(self, step: Callable[[np.ndarray], np.ndarray], *, broadcast: bool = False) -> "Weight":
        """The same leaves, seen through one more step."""
        return replace(
            self, view=lambda leaves: [step(x) for x in self.view(leaves)], broadcast=self.broadcast or broadcast
        )

    def split(self, into: Callable[[np.ndarray], Sequence[np.ndarray]], n: int) -> "Weight":
        """The same leaves, in n pieces that are met one after the other."""
        return replace(
            self, view=lambda leaves: [piece for x in self.view(leaves) for piece in into(x)], slices=self.slices * n
        )


@dataclass(frozen=True)
class Lost:
    """Made of parameters alone, but in a way in which an entry of a leaf is no longer one entry of the value.

    Attributes:
      leaves: the inputs of the jaxpr that went in.
      primitive: what could not be followed.
      picked: whether data told which entries were taken, as in an embedding: whatever is computed from it is data.
    """

    leaves: frozenset[int]
    primitive: str
    picked: bool = False


@dataclass(frozen=True)
class Constant:
    """Made of neither parameters nor data.

    Attributes:
      zero: whether it is known to be zero everywhere.
    """

    zero: bool = False


@dataclass(frozen=True)
class Data:
    """Made of inputs that are not parameters.

    Attributes:
      mask: whether it is a cast boolean, so that a product with it is a selection.
    """

    mask: bool = False


State: TypeAlias = Weight | Lost | Constant | Data


def following(leaf: int) -> Weight:
    """The state of an input that is a parameter leaf."""
    return Weight((leaf,), lambda leaves: [leaves[leaf]])


def mix(states: Sequence[State], primitive: str) -> State:
    """The state of a value that depends on others in any other way than those that can be followed."""
    if any(isinstance(s, Data) or (isinstance(s, Lost) and s.picked) for s in states):
        return Data()
    lost = [s for s in states if isinstance(s, Lost)]
    leaves = frozenset(leaf for s in states if isinstance(s, (Weight, Lost)) for leaf in s.leaves)
    if not leaves:
        return Constant()
    return Lost(leaves, lost[0].primitive if lost else primitive)


def join(first: State, second: State, primitive: str) -> State:
    """The state of a value that is the one or the other: after a cond, or in the next round of a loop."""
    if first == second or first is second:
        return first
    if isinstance(first, Constant) and isinstance(second, Constant):
        return Constant()
    return mix([first, second], primitive)
