"""Which images the demo uses. Nothing is substituted: what was asked for is loaded, or the demo stops and says why."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from . import idx, network
from .problems import ProblemError, need

if TYPE_CHECKING:
    from .cache import Source

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
    from . import cache as prepared  # imports tfds, which takes a second

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
    from .builders import CATALOGUE, Digits
    from .cache import Source

    if name == "digits":
        return Source(partial(Digits, cache), Digits.folder(cache), "the digits bundled with scikit-learn")
    builder = CATALOGUE[name]
    title = f"{name} {builder.VERSION} of the tensorflow-datasets catalogue"
    check = partial(_need_network, name, sorted(builder.url_infos or ()))
    return Source(partial(builder, cache), builder.folder(cache), title, check)


def _need_network(name: str, urls: list[str]) -> None:
    if not network.reachable(urls[0]):
        host = urlsplit(urls[0]).hostname
        advice = "connect to a network, or use --data-dir with IDX files or the bundled --dataset digits"
        raise ProblemError(f"{name} has to be downloaded and {host} cannot be reached: {advice}.")


def _idx_source(folder: Path, cache: Path) -> "Source":
    """The files are read and checked at every run; their fingerprint names the prepared copy, so it is never stale."""
    from .builders import Idx, Split
    from .cache import Source

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
