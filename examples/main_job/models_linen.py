"""The network in Flax Linen. It has the same layers, with the same names, as the one in `models_nnx.py`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .models import CONVOLUTIONS, HIDDEN, Model


class CNN(nn.Module):
    """Three convolutions and two dense layers: the image's height and width are halved twice."""

    classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images (n, height, width, channels) to logits (n, classes)."""
        x = images
        for i, (features, stride) in enumerate(CONVOLUTIONS):
            x = nn.relu(nn.Conv(features, (3, 3), strides=stride, name=f"conv_{i}")(x))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(HIDDEN, name="hidden")(x))
        return nn.Dense(self.classes, name="logits")(x)


def model(shape: tuple[int, int, int], classes: int) -> Model:
    """Make the network for images of a shape (height, width, channels)."""
    module = CNN(classes)
    example = jnp.zeros((1, *shape))

    def apply(params: Any, images: jax.Array) -> Any:
        return module.apply({"params": params}, images)

    return Model(init=lambda key: module.init(key, example)["params"], apply=apply)
