"""What pruning returns: the parameters with zeros in them, and the masks that put them there."""

from typing import Any, NamedTuple

PyTree = Any


class Pruned(NamedTuple):
    """Pruned parameters.

    Attributes:
      params: the parameters, exactly zero where the masks are False.
      masks: bool arrays in the structure of `params`, True = kept, each broadcasting to its leaf; a scalar True for a
        leaf that was not pruned.
    """

    params: PyTree
    masks: PyTree
