"""Pruning the input first: which pixels a network with weights of its own for each pixel makes the least of."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune import masks

HIDDEN, STEPS, BATCH, RATE = 64, 500, 128, 1e-3
PENALTY = 1e-3


class Pixels(NamedTuple):
    """Which pixels stayed.

    Attributes:
        kept: bool (height, width).
        scores: The norms that decided, (height, width).
    """

    kept: np.ndarray
    scores: np.ndarray

    def apply(self, images: np.ndarray) -> np.ndarray:
        """The images with 0 where a pixel is gone."""
        return np.where(self.kept[..., None], images, np.zeros((), images.dtype))

    def __str__(self) -> str:
        """A map: # stayed, . is gone."""
        return "\n".join("".join("#" if stays else "." for stays in row) for row in self.kept)


def choose(train: tuple[np.ndarray, np.ndarray], fraction: float, *, classes: int, seed: int) -> Pixels:
    """Keep a fraction of the pixels.

    One hidden layer is trained with a group lasso on the rows of its kernel, one group a pixel (Scardapane et al. 2017,
    arXiv:1607.00485); the norms of the groups are the scores. A convolution cannot tell pixels apart.

    Args:
        train: Training images, uint8 (n, height, width, channels), and labels. Nothing else is looked at.
        fraction: Of the pixels to keep, in (0, 1]: exactly floor(fraction n + 1/2) of them stay.
        classes: How many classes there are.
        seed: Of weights and batches.

    Returns:
        The choice; of equal scores the pixel that comes first stays.
    """
    images, labels = train
    height, width, channels = images.shape[1:]
    x = jnp.asarray(images.reshape(len(images), -1) / np.float32(images.max()))
    first = _train(x, jnp.asarray(labels), height * width, classes, jax.random.key(seed))
    norms = jnp.linalg.norm(first.reshape(height * width, channels * HIDDEN), axis=1)
    chosen = masks.select(norms[None], 1 - fraction)
    return Pixels(np.asarray(chosen).reshape(height, width), np.asarray(norms).reshape(height, width))


def _train(x: jax.Array, labels: jax.Array, pixels: int, classes: int, key: jax.Array) -> Any:
    a, b, steps = jax.random.split(key, 3)
    inputs = x.shape[1]
    params = {
        "first": jax.random.normal(a, (inputs, HIDDEN)) * (2 / inputs) ** 0.5,
        "bias": jnp.zeros(HIDDEN),
        "last": jax.random.normal(b, (HIDDEN, classes)) * HIDDEN**-0.5,
    }
    optimizer = optax.adam(RATE)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = jax.nn.relu(x @ params["first"] + params["bias"]) @ params["last"]
        lasso = jnp.sqrt(
            (params["first"].reshape(pixels, -1) ** 2).sum(1) + 1e-12
        ).sum()  # the channels of one together
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean() + PENALTY * lasso

    @jax.jit
    def fit(params: Any, x: jax.Array, labels: jax.Array, keys: jax.Array) -> Any:
        def step(carry: tuple, key: jax.Array) -> tuple:
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(x))
            updates, state = optimizer.update(jax.grad(loss)(params, x[rows], labels[rows]), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return fit(params, x, labels, jax.random.split(steps, STEPS))["first"]
