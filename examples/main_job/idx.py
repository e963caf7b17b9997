"""Reading IDX files, the format that MNIST and its relatives are published in.

A file is a header (two zero bytes, a type code, the number of axes, then each axis as a big-endian 32-bit integer)
and the numbers in C order; often the whole is gzipped. https://yann.lecun.org/exdb/mnist describes it.
"""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from .files import ProblemError

UNSIGNED_BYTES = 0x08
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
"""What each file is called, with or without `.gz`."""


def read(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or plain (told apart by its first two bytes).

    Args:
        path: The file.

    Returns:
        A uint8 array with the axes that the header states.

    Raises:
        ProblemError: If the file is truncated, damaged, too long or no IDX file of bytes.
    """
    raw = _unpacked(path)
    axes = raw[3] if len(raw) >= 4 else 0
    start = 4 + 4 * axes
    if raw[:3] != bytes([0, 0, UNSIGNED_BYTES]) or not 1 <= axes <= 4:
        raise ProblemError(
            f"{path} is not an IDX file of unsigned bytes: point --data-dir at a folder of MNIST-like files."
        )
    if len(raw) < start:
        raise ProblemError(f"{path} is truncated in its header ({len(raw)} bytes): copy or download it again.")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    size = math.prod(shape)
    if len(raw) - start < size:
        held = f"its header promises {size:,} bytes and it holds {len(raw) - start:,}"
        raise ProblemError(f"{path} is truncated ({held}): copy or download it again.")
    if len(raw) - start > size:
        held = f"its header promises {size:,} bytes and it holds {len(raw) - start:,}"
        raise ProblemError(f"{path} is longer than it says ({held}): copy or download it again.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise ProblemError(f"{path} is truncated (its gzip stream breaks off): copy or download it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ProblemError(f"{path} is damaged ({error}): copy or download it again.") from error


def find(folder: Path) -> dict[tuple[str, str], Path]:
    """Find the four files of a folder.

    Args:
        folder: Where they lie.

    Returns:
        The paths, with the keys of `FILES`.

    Raises:
        ProblemError: If the folder or any of the files is missing; all missing ones are named.
    """
    if not folder.is_dir():
        raise ProblemError(
            f"There is no folder {folder}: point --data-dir at one that holds {', '.join(FILES.values())}."
        )
    found = {}
    for key, name in FILES.items():
        candidates = (folder / f"{name}{suffix}" for suffix in ("", ".gz"))
        path = next((path for path in candidates if path.is_file()), None)
        if path is not None:
            found[key] = path
    missing = [name for key, name in FILES.items() if key not in found]
    if missing:
        raise ProblemError(f"{folder} lacks {', '.join(missing)} (plain or .gz): add what is missing.")
    return found


def read_split(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images of a split and their labels.

    Args:
        images: An IDX file of three axes (n, height, width), or four with channels last.
        labels: An IDX file of one axis (n).

    Returns:
        Images (n, height, width, channels) and labels (n,), both uint8.

    Raises:
        ProblemError: If a file is damaged, has other axes than these, or their lengths differ.
    """
    pixels, classes = read(images), read(labels)
    if pixels.ndim not in (3, 4) or classes.ndim != 1:
        axes = f"{pixels.ndim} and {classes.ndim} axes"
        raise ProblemError(
            f"{images} and {labels} have {axes}, not 3 (or 4) and 1: check that they are images and labels."
        )
    if len(pixels) != len(classes) or not len(pixels):
        counts = f"{len(pixels):,} images and {len(classes):,} labels"
        raise ProblemError(f"{images} and {labels} do not belong together ({counts}): copy or download both again.")
    return pixels.reshape(*pixels.shape[:3], -1), classes


def fingerprint(paths: list[Path]) -> str:
    """SHA-256 of the bytes of several files, in the order given: it names the data without reading them twice."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
