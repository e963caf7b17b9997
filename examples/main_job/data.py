"""The images of the demo. Nothing is substituted: what was asked for is loaded, or the demo stops and says why."""

import os
import socket
import threading
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import idx
from .files import ProblemError, need

if TYPE_CHECKING:
    from .prepared import Source

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")


class Images(NamedTuple):
    """A data set in memory.

    Attributes:
        train: Images, uint8 (n, height, width, channels), and labels, int32 (n,).
        test: The same of the test split.
        classes: How many classes there are.
        origin: Where they came from, for reports.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int
    origin: dict[str, Any]


def hold_out(train: tuple[np.ndarray, np.ndarray]) -> tuple[tuple, tuple]:
    """Every seventh training image apart, for validation: the others, and these; at least one stays on either side."""
    images, labels = train
    held = np.arange(len(images)) % 7 == 3
    return (images[~held], labels[~held]), (images[held], labels[held])


def default_cache() -> Path:
    """The folder for prepared data: `jaxprune` in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxprune"


def load(name: str = "digits", *, folder: Path | None = None, cache: Path) -> Images:
    """Load a data set through tensorflow-datasets, preparing it first where `cache` does not hold it yet.

    Args:
        name: One of `NAMES`; of no meaning where `folder` is given.
        folder: A folder of four IDX files to use instead.
        cache: Where the prepared records lie or go to.

    Returns:
        The images.

    Raises:
        ProblemError: If the name is unknown, a package or a file is missing, a file is damaged, there is no network, or
            the cache cannot be written.
    """
    if folder is None and name not in NAMES:
        raise ProblemError(f"There is no data set {name!r}: choose {', '.join(NAMES)}, or --data-dir with IDX files.")
    for module in ("importlib_resources", "array_record", "tensorflow_datasets"):
        need(module)
    from . import prepared  # imports tfds, which takes a second

    source = _source(name, cache.absolute()) if folder is None else _idx_source(folder.absolute(), cache.absolute())
    splits, sha256 = prepared.splits(source)
    train, test = splits["train"], splits["test"]
    origin = {
        "source": source.title,
        "sha256": sha256,
        "training images": len(train.images),
        "test images": len(test.images),
        "image shape": list(train.images.shape[1:]),
        "read through": f"tensorflow-datasets {need('tensorflow_datasets').__version__}, ArrayRecord",
    }
    return Images((train.images, train.labels), (test.images, test.labels), int(train.labels.max()) + 1, origin)


def _source(name: str, cache: Path) -> "Source":
    from .prepared import CATALOGUE, Digits, Source

    if name == "digits":
        return Source(partial(Digits, cache), Digits.folder(cache), "the digits bundled with scikit-learn")
    builder = CATALOGUE[name]
    title = f"{name} {builder.VERSION} of the tensorflow-datasets catalogue"
    check = partial(_need_network, name, sorted(builder.url_infos or ()))
    return Source(partial(builder, cache), builder.folder(cache), title, check)


def _need_network(name: str, urls: list[str]) -> None:
    if not reachable(urls[0]):
        host = urllib.parse.urlsplit(urls[0]).hostname
        advice = "connect to a network, or use --data-dir with IDX files or the bundled --dataset digits"
        raise ProblemError(f"{name} has to be downloaded and {host} cannot be reached: {advice}.")


def _idx_source(folder: Path, cache: Path) -> "Source":
    """The files are read and checked at every run; their fingerprint names the prepared copy, so it is never stale."""
    from .prepared import Idx, Source, Split

    paths = idx.find(folder)
    splits = {name: Split(*idx.read_split(paths[name, "images"], paths[name, "labels"])) for name in ("train", "test")}
    train, test = splits["train"], splits["test"]
    if train.images.shape[1:] != test.images.shape[1:] or test.labels.max() > train.labels.max():
        shapes = f"images of {train.images.shape[1:]} and {test.images.shape[1:]}"
        classes = f"classes up to {train.labels.max()} and {test.labels.max()}"
        raise ProblemError(
            f"Training and test files of {folder} do not fit ({shapes}, {classes}): take both from one data set."
        )
    config = f"sha256-{idx.fingerprint(list(paths.values()))[:16]}"
    return Source(partial(Idx, cache, config, splits), Idx.folder(cache, config), f"IDX files in {folder}")


def reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether the host of `url` (or the proxy that requests to it go through) accepts a connection.

    Args:
        url: The address of what shall be downloaded.
        seconds: When to give up. Resolving a name can hang for longer, so it happens in a thread that is left behind.

    Returns:
        True if a connection was made in time.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    bypassed = urllib.request.proxy_bypass(urllib.parse.urlsplit(url).hostname or "")
    server = urllib.parse.urlsplit(url if bypassed else urllib.request.getproxies().get(scheme, url))
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((server.hostname, server.port or _port(server.scheme)), timeout=seconds).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return connected.is_set()


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


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


def _digits(size: int) -> np.ndarray:
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


def foreign_to(shape: tuple[int, ...], white: float) -> tuple[str, np.ndarray]:
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
    name, found = ("photographs", photographs(size)[..., None]) if channels == 1 else ("digits", _digits(size))
    return name, found[:, :height, :width].astype(np.float32) * np.float32(white / 255)
