"""Corrupted images: `corruptions` (noise, blur, contrast), and the logits of a model on them, `corrupted_logits`."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import _tree

Array = jax.Array

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)


class Corruption(NamedTuple):
    """A way to corrupt images at several levels.

    Attributes:
      apply: `(images, level, key) -> images`, traceable.
      levels: the levels for `apply`, from the weakest corruption to the strongest.
    """

    apply: Callable[[Array, Any, Array], Array]
    levels: tuple[float, ...]


def noise(images: Any, sigma: Any, *, key: Array, low: float = 0.0, high: float = 1.0) -> Array:
    """Adds Gaussian noise of standard deviation sigma (high - low), and clips to [low, high].

    Args:
      images: floating, any shape, in [low, high].
      sigma: a fraction of the range, 0 or more; may be traced.
      key: a JAX key.
      low: the value of black; default 0.0.
      high: the value of white; default 1.0.

    Returns:
      Images in the same shape and dtype.

    Raises:
      TypeError: images are not floating.
      ValueError: low is not below high.

    Example:
      >>> noisy = noise(jnp.full((1, 8, 8), 0.5), 0.1, key=jax.random.key(0))
      >>> bool(0.05 < noisy.std() < 0.15)
      True
    """
    return _noise(_checked(images, low, high), sigma, key, low, high)


def blur(images: Any, sigma: Any, *, radius: int = 4) -> Array:
    """Blurs images with a Gaussian of sigma pixels; the border values continue beyond the border.

    Args:
      images: floating, (n, height, width) or (n, height, width, channels).
      sigma: the standard deviation in pixels, 0 or more; may be traced. 0 does not change the images.
      radius: the radius of the kernel, static; at least 4 sigma, because weights beyond it are left out. Default 4.

    Returns:
      Images in the same shape and dtype.

    Raises:
      TypeError: images that are not floating.
      ValueError: images have other axes.

    Example:
      >>> image = jnp.zeros((1, 9, 9)).at[0, 4, 4].set(1.0)
      >>> [round(float(x), 3) for x in blur(image, 1.0)[0, 4, 3:6]]  # 0.399^2 at the centre
      [0.097, 0.159, 0.097]
    """
    images = jnp.asarray(images)
    if images.ndim not in (3, 4):
        raise ValueError(f"images must be (n, height, width) or (n, height, width, channels); got {images.shape}")
    return _blur(_checked(images, 0, 1), sigma, radius)


def contrast(images: Any, factor: Any) -> Array:
    """Lowers the contrast of each image: mean + factor (image - mean), with the mean of the image.

    Args:
      images: floating, (n, ...).
      factor: 1 does not change the images, 0 replaces each image by its mean; may be traced.

    Returns:
      Images in the same shape and dtype.

    Raises:
      TypeError: images that are not floating.

    Example:
      >>> contrast(jnp.array([[0.0, 1.0]]), 0.5).tolist()
      [[0.25, 0.75]]
    """
    return _contrast(_checked(images, 0, 1), factor)


def corruptions(*, low: float = 0.0, high: float = 1.0, scale: float = 1.0) -> dict[str, Corruption]:
    """Returns noise, blur and contrast in the five levels of CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261).

    Args:
      low: the value of black; default 0.
      high: the value of white; default 1.
      scale: a factor for the blur's sigma, above 0; default 1, which suits images of 32 x 32 pixels.

    Returns:
      Corruptions for `corrupted_logits`, by name: `noise`, `blur`, `contrast`.

    Raises:
      ValueError: `low` is not below `high`, or `scale` is not above 0.

    Example:
      >>> corruptions()['contrast'].levels
      (0.75, 0.5, 0.4, 0.3, 0.15)
    """
    _check_range(low, high)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite; got {scale}")
    return {
        "noise": Corruption(lambda x, level, key: noise(x, level, key=key, low=low, high=high), NOISE),
        "blur": Corruption(
            lambda x, level, key: blur(x, level, radius=max(1, math.ceil(4 * scale))), tuple(scale * s for s in BLUR)
        ),
        "contrast": Corruption(lambda x, level, key: contrast(x, level), CONTRAST),
    }


def corrupted_logits(
    predict: Callable[[Array], Array], images: Any, *, key: Array, ways: Mapping[str, Corruption] | None = None
) -> dict[str, Array]:
    """Runs a model on corrupted images, at each level of each corruption.

    Use the same key for all models that you compare, so that all models get the same noise.

    Args:
      predict: `images -> logits (n, classes)`.
      images: floating, as `predict` takes them, in the range that the corruptions expect.
      key: a JAX key.
      ways: corruptions by name; None (default) for `corruptions()`, for images in [0, 1].

    Returns:
      Logits (levels, n, classes), by the name of the corruption; for `Predictions.corrupted`.

    Raises:
      TypeError: images are not floating, or an argument has another type.

    Example:
      >>> found = corrupted_logits(lambda x: x.reshape(len(x), -1), jnp.ones((2, 4, 4)), key=jax.random.key(0))
      >>> {name: logits.shape for name, logits in found.items()}
      {'noise': (5, 2, 16), 'blur': (5, 2, 16), 'contrast': (5, 2, 16)}
    """
    ways = corruptions() if ways is None else ways
    if not callable(predict):
        swapped = "; predict and images are swapped" if callable(images) else ""
        raise TypeError(f"predict must be a function images -> logits; got {_tree.shown(predict)}{swapped}")
    _tree.check_key(key, needed_by="corrupted_logits")
    for name, way in ways.items():
        _tree.check_instance(way, Corruption, f"ways[{name!r}]", "assess.Corruption(apply, levels)")
    return {
        name: jnp.stack(
            [
                predict(way.apply(images, level, jax.random.fold_in(jax.random.fold_in(key, i), j)))
                for j, level in enumerate(way.levels)
            ]
        )
        for i, (name, way) in enumerate(ways.items())
    }


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low, the value of black, must be below high; got {low} and {high}")


def _checked(images: Any, low: float, high: float) -> Array:
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating, got {images.dtype}: divide pixels of 0 to 255 by 255")
    _check_range(low, high)
    return images


@jax.jit
def _noise(images: Array, sigma: Any, key: Array, low: Any, high: Any) -> Array:
    drawn = sigma * (high - low) * jax.random.normal(key, images.shape)
    return jnp.clip(images + drawn, low, high).astype(images.dtype)


@partial(jax.jit, static_argnums=2)
def _blur(images: Array, sigma: Any, radius: int) -> Array:
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    sigma = jnp.asarray(sigma, jnp.float32)
    # At sigma 0 the weights are 1 at the centre and 0 elsewhere, not 0 / 0.
    weights = jnp.where(offsets == 0, 1.0, jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-6)) ** 2))
    weights = weights / weights.sum()
    blurred = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    for axis in (1, 2):
        length = images.shape[axis]
        shifted = [
            jnp.take(blurred, jnp.clip(jnp.arange(length) + k - radius, 0, length - 1), axis) * weights[k]
            for k in range(2 * radius + 1)
        ]
        blurred = sum(shifted[1:], shifted[0])
    return blurred.astype(images.dtype)


@jax.jit
def _contrast(images: Array, factor: Any) -> Array:
    mean = images.mean(tuple(range(1, images.ndim)), keepdims=True)
    return (mean + factor * (images - mean)).astype(images.dtype)
