"""Prepared data sets: tensorflow-datasets builders that need no TensorFlow, and the cache that they write.

The builders of the catalogue encode images as PNG through TensorFlow. The builders here store the pixels themselves in
ArrayRecord files, so that `download_and_prepare` and `as_data_source` run with NumPy alone. Each builder stores the
fingerprint of what it wrote, so that a damaged cache is noticed when it is read, and prepared again.
"""

import contextlib
import hashlib
import io
import json
import logging
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar, mnist

from . import idx
from .files import ProblemError, brief, need


class Split(NamedTuple):
    """One split: uint8 images (n, height, width, channels) and integer labels (n,)."""

    images: np.ndarray
    labels: np.ndarray


Splits = Mapping[str, Split]


def fingerprint(splits: Splits) -> str:
    """SHA-256 of what the splits hold: equal for equal images and labels in the same order, however they are stored.

    Args:
        splits: The splits; their order in the mapping does not matter.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(splits):
        images, labels = splits[name]
        digest.update(f"{name} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images, np.uint8).tobytes())
        digest.update(np.ascontiguousarray(labels, np.int64).tobytes())
    return digest.hexdigest()


class Arrays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What all builders here share; each adds `arrays`, `SHAPE` and `CLASSES`."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple[int, int, int] = (28, 28, 1)
    CLASSES = 10
    DESCRIPTION = ""

    def __init__(self, cache: Path, config: str = "arrays"):
        """Make a builder whose files lie in `cache/name/config/version`; nothing is read or written yet."""
        settings = tfds.core.BuilderConfig(name=config)
        super().__init__(data_dir=cache, config=settings, file_format="array_record")

    @classmethod
    def folder(cls, cache: Path, config: str = "arrays") -> Path:
        """Where the prepared files lie, known before the builder is made (it fails on damaged files)."""
        return cache / cls.name / config / str(cls.VERSION)

    def arrays(self, downloads: Any) -> Splits:
        """Produce the splits, from `downloads` (a tfds download manager) or from elsewhere."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8)
        label = tfds.features.ClassLabel(num_classes=self.CLASSES)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            disable_shuffling=True,  # in the order of the source: the fingerprint is of that order
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        splits = self.arrays(dl_manager)
        metadata: Any = self.info.metadata  # made in `_info`; stored and read beside the records
        metadata["sha256"] = fingerprint(splits)
        return {name: self._generate_examples(split) for name, split in splits.items()}

    def _generate_examples(self, split: Split) -> Iterator:
        for row, (image, label) in enumerate(zip(*split, strict=True)):
            yield row, {"image": image, "label": int(label)}


class Digits(Arrays, skip_registration=True):
    """The 1,797 images of handwritten digits (8 x 8, 17 grey levels) that scikit-learn bundles.

    They have no official split: every fifth image is for testing (360), the other 1,437 are for training.
    """

    SHAPE = (8, 8, 1)
    DESCRIPTION = "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), as bundled with scikit-learn."

    def arrays(self, downloads: Any) -> Splits:
        """Take the arrays from scikit-learn; nothing is downloaded."""
        del downloads
        bundled: Any = need("sklearn.datasets").load_digits()
        images = bundled.images.astype(np.uint8)[..., None]
        testing = np.arange(len(images)) % 5 == 0
        return {
            "train": Split(images[~testing], bundled.target[~testing]),
            "test": Split(images[testing], bundled.target[testing]),
        }


class Idx(Arrays, skip_registration=True):
    """Whatever four IDX files hold; `of` makes the builder for a folder of them."""

    DESCRIPTION = "Images and labels from IDX files."

    def __init__(self, cache: Path, config: str, splits: Splits):
        """Keep the arrays, which state their own shape and number of classes, until they are asked for."""
        self._splits = splits
        self.SHAPE = splits["train"].images.shape[1:]
        self.CLASSES = int(splits["train"].labels.max()) + 1
        super().__init__(cache, config)

    def arrays(self, downloads: Any) -> Splits:
        """Return the arrays that were read from the files."""
        del downloads
        return self._splits


class Mnist(Arrays, skip_registration=True):
    """The catalogue's MNIST: its files, its checksums, its version and its splits."""

    name = "mnist"
    ORIGINAL = mnist.MNIST
    VERSION = ORIGINAL.VERSION
    url_infos = ORIGINAL.url_infos

    def arrays(self, downloads: Any) -> Splits:
        """Download the four IDX files and read them."""
        urls = {key: f"{self.ORIGINAL.URL}{file}.gz" for key, file in idx.FILES.items()}
        paths = {key: Path(path) for key, path in downloads.download(urls).items()}
        return {
            name: Split(*idx.read_split(paths[name, "images"], paths[name, "labels"])) for name in ("train", "test")
        }


class FashionMnist(Mnist, skip_registration=True):
    """The catalogue's Fashion-MNIST."""

    name = "fashion_mnist"
    ORIGINAL = mnist.FashionMNIST
    VERSION = ORIGINAL.VERSION
    url_infos = ORIGINAL.url_infos


class Cifar10(Arrays, skip_registration=True):
    """The catalogue's CIFAR-10, from its binary version: 3,073 bytes a record, the label first."""

    name = "cifar10"
    SHAPE = (32, 32, 3)
    VERSION = cifar.Cifar10.VERSION
    url_infos = cifar.Cifar10.url_infos

    def arrays(self, downloads: Any) -> Splits:
        """Download the archive and read its records."""
        (url,) = dict(self.url_infos or {})
        with tarfile.open(Path(downloads.download(url)), "r:*") as archive:
            train = b"".join(self._member(archive, f"data_batch_{i}.bin") for i in range(1, 6))
            test = self._member(archive, "test_batch.bin")
        return {"train": self._records(train), "test": self._records(test)}

    @staticmethod
    def _member(archive: tarfile.TarFile, name: str) -> bytes:
        member = archive.extractfile(f"cifar-10-batches-bin/{name}") or io.BytesIO()
        return member.read()

    @staticmethod
    def _records(raw: bytes) -> Split:
        if not raw or len(raw) % 3073:
            raise ProblemError(
                f"CIFAR-10's archive holds {len(raw)} bytes of records, no multiple of 3,073: download it again."
            )
        records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
        return Split(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0])


CATALOGUE: dict[str, type[Arrays]] = {"mnist": Mnist, "fashion_mnist": FashionMnist, "cifar10": Cifar10}
"""The catalogue's data sets that the demo knows, by the catalogue's names."""


class Source(NamedTuple):
    """Where data come from.

    `make` makes the builder, which writes into the folder `prepared`; `check` raises a ProblemError if preparing cannot
    work now; `title` names the source to people.
    """

    make: Callable[[], Arrays]
    prepared: Path
    title: str
    check: Callable[[], None] = lambda: None


def splits(source: Source) -> tuple[Splits, str]:
    """The splits of a source, from what is prepared; where nothing or something damaged is there, it is prepared first.

    Args:
        source: The source.

    Returns:
        The splits, and the SHA-256 of their content.

    Raises:
        ProblemError: If the data cannot be fetched, written or read.
    """
    if source.prepared.exists():
        try:
            return _read(source)
        except Exception as error:  # a damaged file makes tfds, protobuf, json or array_record raise what they like
            damage = f"The prepared data in {source.prepared} are damaged ({brief(error)})"
        try:
            source.check()
        except ProblemError as error:
            raise ProblemError(f"{damage} and cannot be prepared again now: {error}") from error
        print(f"{damage}: preparing them again.", file=sys.stderr)
        shutil.rmtree(source.prepared)
    _prepare(source)
    return _read(source)


def _prepare(source: Source) -> None:
    source.check()
    try:
        source.prepared.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = source.prepared.parent
        raise ProblemError(f"{where} cannot be made ({error.strerror}): choose another folder with --cache.") from error
    print(f"Preparing {source.title} in {source.prepared} (once).", file=sys.stderr)
    try:
        with _quiet():
            source.make().download_and_prepare()
    except ProblemError:
        raise
    except Exception as error:  # tfds raises its own, those of requests and of the operating system
        if source.prepared.exists():  # another process was quicker
            return
        advice = "check the network and the free space, or choose another folder with --cache"
        raise ProblemError(f"Preparing {source.title} failed ({brief(error)}): {advice}.") from error


def _read(source: Source) -> tuple[Splits, str]:
    with _quiet():
        builder = source.make()
        found = {name: _split(builder, name) for name in ("train", "test")}
    expected = json.loads((source.prepared / "metadata.json").read_text())["sha256"]
    if fingerprint(found) != expected:
        raise ValueError("the content does not have the fingerprint that was written with it")
    return found, expected


def _split(builder: Arrays, name: str) -> Split:
    opened: Any = builder  # tfds decorates the next method such that types are lost
    records = opened.as_data_source(name)
    rows = records.__getitems__(range(len(records)))  # all at once: several times faster than one by one
    images = np.stack([row["image"] for row in rows])
    return Split(images, np.array([row["label"] for row in rows], np.int32))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what tfds prints and logs about its own workings to itself; its progress bars show on a terminal only."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars):
            yield
    finally:
        log.setLevel(level)
