"""Pictures inside a text: arrays as PNG and figures as SVG, without files."""

import base64
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(pixels: np.ndarray) -> bytes:
    r"""An image as a PNG file (ISO/IEC 15948): no filter, one compressed chunk.

    Args:
      pixels: uint8, (height, width) grey or (height, width, 3) RGB.

    Returns:
      The bytes of the file.

    Raises:
      ValueError: another dtype or other axes.

    Example:
      >>> png(np.zeros((2, 3), np.uint8))[:8]
      b'\x89PNG\r\n\x1a\n'
    """
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            f"pixels must be uint8, (height, width) or (height, width, 3); got {pixels.dtype} {pixels.shape}"
        )
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # each row begins with its filter: 0, none
    colour = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def data_uri(pixels: np.ndarray) -> str:
    """An image as the `src` of an `<img>` that needs no file and no network."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def to_pixels(images: Any) -> np.ndarray:
    """Images as uint8 for `png`.

    Args:
      images: (n, height, width) or (n, height, width, channels) with 1 or 3 channels; uint8, or floating in [0, 1].

    Returns:
      uint8 (n, height, width) or (n, height, width, 3).

    Raises:
      ValueError: other axes or channels, or values outside [0, 1].
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(f"images must be (n, height, width) with 1 or 3 channels last; got {images.shape}")
    if images.dtype == np.uint8:
        return images
    if not (np.issubdtype(images.dtype, np.floating) and (images >= 0).all() and (images <= 1).all()):
        raise ValueError(f"images must be uint8, or floating in [0, 1]; got {images.dtype}")
    return np.rint(255 * images).astype(np.uint8)


def svg(figure: "Figure") -> str:
    """A Matplotlib figure as an `<svg>` element to stand in HTML: no header, no metadata, the same text each time."""
    import matplotlib as mpl

    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "jaxprune"}):
        figure.savefig(out, format="svg", metadata=none)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
