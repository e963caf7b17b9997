"""The network in Flax NNX. It has the same layers, with the same names, as the one in `models_linen.py`."""

import jax
from flax import nnx

from .models import CONVOLUTIONS, HIDDEN, Model


class CNN(nnx.Module):
    """Three convolutions and two dense layers: the image's height and width are halved twice."""

    def __init__(self, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs):
        """Make the layers for images of a shape (height, width, channels)."""
        height, width, channels = shape
        for i, (features, stride) in enumerate(CONVOLUTIONS):
            setattr(self, f"conv_{i}", nnx.Conv(channels, features, (3, 3), strides=stride, rngs=rngs))
            height, width, channels = -(-height // stride), -(-width // stride), features
        self.hidden = nnx.Linear(height * width * channels, HIDDEN, rngs=rngs)
        self.logits = nnx.Linear(HIDDEN, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images (n, height, width, channels) to logits (n, classes)."""
        x = images
        for i in range(len(CONVOLUTIONS)):
            x = nnx.relu(getattr(self, f"conv_{i}")(x))
        x = x.reshape(len(x), -1)
        return self.logits(nnx.relu(self.hidden(x)))


def model(shape: tuple[int, int, int], classes: int) -> Model:
    """Make the network for images of a shape (height, width, channels)."""
    abstract = nnx.eval_shape(lambda: CNN(shape, classes, nnx.Rngs(0)))
    graph, _ = nnx.split(abstract)
    return Model(
        init=lambda key: nnx.to_pure_dict(nnx.state(CNN(shape, classes, nnx.Rngs(key)), nnx.Param)),
        apply=lambda params, images: nnx.merge(graph, params)(images),
    )
