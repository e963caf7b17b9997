"""The CNN, in Flax Linen and in NNX, and its training: plain Flax, JAX and Optax, nothing of jaxprune."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

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


class LinenCNN(nn.Module):
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


def linen_model(shape: tuple[int, int, int], classes: int) -> Model:
    """Make the network for images of a shape (height, width, channels)."""
    module = LinenCNN(classes)
    example = jnp.zeros((1, *shape))

    def apply(params: Any, images: jax.Array) -> Any:
        return module.apply({"params": params}, images)

    return Model(init=lambda key: module.init(key, example)["params"], apply=apply)


class NnxCNN(nnx.Module):
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


def nnx_model(shape: tuple[int, int, int], classes: int) -> Model:
    """Make the network for images of a shape (height, width, channels)."""
    abstract = nnx.eval_shape(lambda: NnxCNN(shape, classes, nnx.Rngs(0)))
    graph, _ = nnx.split(abstract)
    return Model(
        init=lambda key: nnx.to_pure_dict(nnx.state(NnxCNN(shape, classes, nnx.Rngs(key)), nnx.Param)),
        apply=lambda params, images: nnx.merge(graph, params)(images),
    )


def make(name: str, shape: tuple[int, int, int], classes: int) -> Model:
    """Make the network.

    Args:
        name: `"linen"` or `"nnx"`.
        shape: Height, width and channels of an image.
        classes: The number of classes.

    Returns:
        The model; both kinds have the same tree of parameters and compute the same function of it.
    """
    return {"linen": linen_model, "nnx": nnx_model}[name](shape, classes)


class Fit(NamedTuple):
    """What a run leaves behind: the parameters, the optimizer's state, and the seconds that its steps took."""

    params: Any
    opt_state: Any
    seconds: float


def scaled(model: Model, mean: float, deviation: float) -> Model:
    """The model, with its images shifted and scaled by the mean and the deviation of the training images."""
    return model._replace(apply=lambda params, images: model.apply(params, (images - mean) / deviation))


def batches(images: np.ndarray, labels: np.ndarray, *, steps: int, size: int, seed: list[int]) -> Iterator[tuple]:
    """Draw `steps` batches, going through a new permutation of the images each time they are used up."""
    rng = np.random.default_rng(seed)
    rows = np.empty(0, int)
    for _ in range(steps):
        while len(rows) < size:
            rows = np.concatenate([rows, rng.permutation(len(images))])
        yield images[rows[:size]], labels[rows[:size]]
        rows = rows[size:]


class Trainer:
    """The training loop of one method, compiled once.

    The loop over steps is Python's: XLA runs a convolution inside `lax.scan` about fifteen times slower on a CPU.
    """

    def __init__(self, model: Model, optimizer: Callable[[Any], optax.GradientTransformation]):
        """Keep the model and `optimizer`, a function of what differs between the runs of this method."""

        def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            logits = model.apply(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(params: Any, opt_state: Any, choice: Any, images: jax.Array, labels: jax.Array) -> tuple:
            value, grads = jax.value_and_grad(loss)(params, images, labels)
            updates, opt_state = optimizer(choice).update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self._init = jax.jit(lambda params, choice: optimizer(choice).init(params))
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self.compile_seconds = 0.0
        self._compiled: Any = None

    def run(self, params: Any, choice: Any, data: Iterator[tuple], tick: Callable[[float], None]) -> Fit:
        """Train from `params` on.

        Args:
            params: Where to start; left untouched.
            choice: What is handed to the optimizer's function: None, a sparsity or masks.
            data: Batches of images and labels.
            tick: Called with the loss after each step.

        Returns:
            The trained parameters and the state of the optimizer.
        """
        choice = jax.tree.map(jnp.asarray, choice)
        params = jax.tree.map(jnp.copy, params)
        opt_state = self._init(params, choice)
        seconds = 0.0
        for images, labels in data:
            step = self._compile(params, opt_state, choice, images, labels)
            began = time.perf_counter()
            params, opt_state, value = step(params, opt_state, choice, images, labels)
            value = float(value)
            seconds += time.perf_counter() - began
            tick(value)
        return Fit(params, opt_state, seconds)

    def _compile(self, *args: Any) -> Any:
        if self._compiled is None:
            began = time.perf_counter()
            self._compiled = self._step.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - began
        return self._compiled


@partial(jax.jit, static_argnums=0)
def _logits(apply: Callable, params: Any, images: jax.Array) -> jax.Array:
    return apply(params, images)


def predict(apply: Callable, params: Any, images: np.ndarray, size: int = 1000) -> jax.Array:
    """The logits of many images, some at a time."""
    parts = [_logits(apply, params, images[i : i + size]) for i in range(0, len(images), size)]
    return jnp.concatenate(parts)
