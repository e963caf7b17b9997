"""The network: what the Linen and the NNX version have in common, and which of them is used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

CONVOLUTIONS = ((16, 2), (32, 2), (64, 1))
"""Features and stride of each 3 x 3 convolution."""
HIDDEN = 128
NAMES = ("linen", "nnx")


class Model(NamedTuple):
    """A network as two pure functions: all that the rest of the demo, and jaxprune, ever see of Flax.

    Attributes:
        init: A random key to parameters, a dict of dicts of arrays.
        apply: Parameters and images (n, height, width, channels) to logits (n, classes).
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def make(name: str, shape: tuple[int, int, int], classes: int) -> Model:
    """Make the network.

    Args:
        name: `"linen"` or `"nnx"`.
        shape: Height, width and channels of an image.
        classes: The number of classes.

    Returns:
        The model; both kinds have the same tree of parameters and compute the same function of it.
    """
    from . import models_linen, models_nnx

    kinds = {"linen": models_linen.model, "nnx": models_nnx.model}
    return kinds[name](shape, classes)
