"""Images of another kind than those a network was trained on: it should notice."""

from typing import Any

import numpy as np

from .problems import need


def photographs(size: int) -> np.ndarray:
    """Patches of the two photographs that scikit-learn bundles, in grey.

    Args:
        size: Their height and width.

    Returns:
        uint8 (456, size, size).
    """
    image: Any = need("PIL.Image")
    bundled: Any = need("sklearn.datasets").load_sample_images()
    patches = [x[i : i + 32, j : j + 32] for x in bundled.images for i in range(0, 396, 33) for j in range(0, 608, 33)]
    resize = lambda patch: image.fromarray(patch).convert("L").resize((size, size), image.Resampling.BILINEAR)
    return np.stack([np.asarray(resize(patch)) for patch in patches])


def digits(size: int) -> np.ndarray:
    """The digits that scikit-learn bundles, in colour.

    Args:
        size: Their height and width.

    Returns:
        uint8 (1797, size, size, 3), grey as 0 to 255.
    """
    image: Any = need("PIL.Image")
    bundled: Any = need("sklearn.datasets").load_digits()
    resize = lambda x: image.fromarray(x).resize((size, size), image.Resampling.BILINEAR).convert("RGB")
    return np.stack([np.asarray(resize(x)) for x in np.rint(bundled.images * 255 / 16).astype(np.uint8)])


def like(shape: tuple[int, ...], white: float) -> tuple[str, np.ndarray]:
    """Foreign images in the shape and range of a network's own.

    Args:
        shape: Height, width and channels.
        white: The largest pixel.

    Returns:
        What they are, and the images, float32 (n, height, width, channels): photographs for grey images, digits for
        colour ones, which are photographs themselves.
    """
    height, width, channels = shape
    size = max(height, width)
    name, found = ("photographs", photographs(size)[..., None]) if channels == 1 else ("digits", digits(size))
    return name, found[:, :height, :width].astype(np.float32) * np.float32(white / 255)
