import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import data, idx, prepared
from main_job.files import ProblemError
from sklearn.datasets import load_digits
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import Size


def test_digits_are_those_of_scikit_learn(cache: Path):
    images = data.load("digits", cache=cache)
    bundled: Any = load_digits()
    testing = np.arange(1797) % 5 == 0
    np.testing.assert_array_equal(images.train[0][..., 0], bundled.images[~testing])
    np.testing.assert_array_equal(images.test[0][..., 0], bundled.images[testing])
    np.testing.assert_array_equal(images.train[1], bundled.target[~testing])
    np.testing.assert_array_equal(images.test[1], bundled.target[testing])
    assert images.classes == 10
    assert images.origin["source"] == "the digits bundled with scikit-learn"
    assert (images.origin["training images"], images.origin["test images"]) == (1437, 360)


def test_prepared_data_are_read_and_not_prepared_again(cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = data.load("digits", cache=cache)
    monkeypatch.setattr(prepared.Digits, "arrays", lambda *_: pytest.fail("prepared again"))
    again = data.load("digits", cache=cache)
    assert again.origin == first.origin


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_round_trip(idx_folder, tmp_path: Path, packed: bool):
    folder = idx_folder(packed=packed)
    paths = idx.find(folder)
    images = data.load(folder=folder, cache=tmp_path / "cache")
    for name, split in (("train", images.train), ("test", images.test)):
        np.testing.assert_array_equal(split[0][..., 0], idx.read(paths[name, "images"]))
        np.testing.assert_array_equal(split[1], idx.read(paths[name, "labels"]))
    assert images.classes == 3
    assert images.origin["source"] == f"IDX files in {folder}"


def test_the_content_has_one_fingerprint_however_it_is_stored(idx_folder, tmp_path: Path):
    plain, packed = (data.load(folder=idx_folder(packed=p), cache=tmp_path / "c") for p in (False, True))
    other = data.load(folder=idx_folder(seed=1), cache=tmp_path / "c")
    assert plain.origin["sha256"] == packed.origin["sha256"] != other.origin["sha256"]


def test_changed_files_are_never_served_from_the_cache(idx_folder, tmp_path: Path):
    folder, other = idx_folder(), idx_folder(seed=1)
    before = data.load(folder=folder, cache=tmp_path / "cache")
    for path in other.iterdir():
        _ = shutil.copy(path, folder)
    after = data.load(folder=folder, cache=tmp_path / "cache")
    assert (before.train[0] != after.train[0]).any()


def test_a_truncated_file_leaves_nothing_in_the_cache(idx_folder, tmp_path: Path):
    folder = idx_folder()
    path = folder / f"{idx.FILES['test', 'images']}.gz"
    assert path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ProblemError, match="truncated"):
        _ = data.load(folder=folder, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_splits_must_fit(idx_folder, tmp_path: Path):
    folder = idx_folder()
    larger = idx_folder(seed=1, size=7)
    for kind in ("images", "labels"):
        _ = shutil.copy(larger / f"{idx.FILES['test', kind]}.gz", folder)
    with pytest.raises(ProblemError, match=r"do not fit .images of .6, 6, 1. and .7, 7, 1."):
        _ = data.load(folder=folder, cache=tmp_path / "cache")


def test_unknown_names_are_refused(tmp_path: Path):
    with pytest.raises(ProblemError, match="no data set 'minst': choose digits, mnist, fashion_mnist, cifar10"):
        _ = data.load("minst", cache=tmp_path)


def _cut(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    assert path.write_bytes(raw)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*-train.array_record-*", _cut),
        ("*-train.array_record-*", _flip),
        ("*-test.array_record-*", Path.unlink),
        ("metadata.json", Path.unlink),
        ("dataset_info.json", _cut),
        ("features.json", Path.unlink),
    ],
)
def test_a_damaged_cache_is_prepared_again(
    idx_folder, tmp_path: Path, pattern: str, damage, capsys: pytest.CaptureFixture[str]
):
    folder, cache = idx_folder(), tmp_path / "cache"
    whole = data.load(folder=folder, cache=cache)
    (path,) = cache.rglob(pattern)
    damage(path)
    _ = capsys.readouterr()
    again = data.load(folder=folder, cache=cache)
    np.testing.assert_array_equal(again.train[0], whole.train[0])
    assert again.origin == whole.origin
    if pattern != "features.json":  # which is not needed: the builder knows its features
        assert "are damaged" in capsys.readouterr().err


def test_records_of_other_data_are_noticed(idx_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cache = tmp_path / "cache"
    folder, other = idx_folder(), idx_folder(seed=1)
    whole = data.load(folder=folder, cache=cache)
    mine = next(cache.rglob("*-train.array_record-*"))
    assert data.load(folder=other, cache=cache).origin != whole.origin
    theirs = next(path for path in cache.rglob("*-train.array_record-*") if path != mine)
    _ = shutil.copy(theirs, mine)
    np.testing.assert_array_equal(data.load(folder=folder, cache=cache).train[0], whole.train[0])
    assert "does not have the fingerprint" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made_is_explained(tmp_path: Path):
    assert (tmp_path / "file").write_text("in the way")
    with pytest.raises(ProblemError, match=r"cannot be made .*choose another folder with --cache"):
        _ = data.load("digits", cache=tmp_path / "file" / "cache")


def _refuse(*_, **__):
    raise OSError("Name or service not known")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_without_a_network_the_answer_comes_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "create_connection", _refuse)
    began = time.monotonic()
    with pytest.raises(ProblemError, match=f"{name} has to be downloaded and .* cannot be reached: connect to"):
        _ = data.load(name, cache=tmp_path)
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: _refuse(answered.wait(30)))
    began = time.monotonic()
    assert not data.reachable("https://example.org/file", seconds=0.1)
    assert time.monotonic() - began < 5
    answered.set()


def test_a_proxy_is_asked_in_place_of_the_host(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: asked.append(address) or io.BytesIO())
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert data.reachable("https://example.org/file")
    assert asked == [("proxy.example", 3128)]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server on this machine in place of the catalogue's."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def url_infos(folder: Path, url: str) -> dict[str, checksums.UrlInfo]:
    raw = {path.name: path.read_bytes() for path in folder.iterdir()}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in raw.items()}
    return {
        url + name: checksums.UrlInfo(size=Size(len(raw[name])), checksum=sha256[name], filename=name) for name in raw
    }


def test_the_catalogue_is_downloaded_and_prepared_without_tensorflow(
    idx_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = idx_folder(size=28)
    with served(folder) as url:
        infos = url_infos(folder, url)
        broken = dict.fromkeys(infos, checksums.UrlInfo(size=Size(1), checksum="0" * 64, filename="x"))
        monkeypatch.setattr(prepared.Mnist.ORIGINAL, "URL", url)
        monkeypatch.setattr(prepared.Mnist, "url_infos", broken)
        with pytest.raises(ProblemError, match=r"Preparing mnist 3.0.1 of .* failed .*checksum"):
            _ = data.load("mnist", cache=tmp_path / "cache")
        monkeypatch.setattr(prepared.Mnist, "url_infos", infos)
        images = data.load("mnist", cache=tmp_path / "cache")
    np.testing.assert_array_equal(images.train[0][..., 0], idx.read(idx.find(folder)["train", "images"]))
    again = data.load("mnist", cache=tmp_path / "cache")  # the server is gone
    assert again.origin == images.origin
    assert images.origin["source"] == "mnist 3.0.1 of the tensorflow-datasets catalogue"


def test_a_damaged_cache_that_cannot_be_fetched_again_is_kept_and_explained(
    idx_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, cache = idx_folder(size=28), tmp_path / "cache"
    with served(folder) as url:
        monkeypatch.setattr(prepared.Mnist.ORIGINAL, "URL", url)
        monkeypatch.setattr(prepared.Mnist, "url_infos", url_infos(folder, url))
        assert data.load("mnist", cache=cache).classes == 3
    (record,) = prepared.Mnist.folder(cache).glob("*-train.array_record-*")
    _cut(record)
    monkeypatch.setattr(data, "reachable", lambda _: False)
    with pytest.raises(
        ProblemError, match=r"are damaged .* and cannot be prepared again now: mnist has to be downloaded"
    ):
        _ = data.load("mnist", cache=cache)
    assert record.exists()


def test_cifar10_comes_out_of_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8), np.arange(12) % 10
    records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(pixels, labels, strict=True)]
    files = {f"data_batch_{i}.bin": b"".join(records[2 * i - 2 : 2 * i]) for i in range(1, 6)}
    folder = tmp_path / "served"
    folder.mkdir()
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name, raw in {**files, "test_batch.bin": b"".join(records[10:])}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    with served(folder) as url:
        monkeypatch.setattr(prepared.Cifar10, "url_infos", url_infos(folder, url))
        images = data.load("cifar10", cache=tmp_path / "cache")
    np.testing.assert_array_equal(images.train[0], pixels[:10])
    np.testing.assert_array_equal(images.test[0], pixels[10:])
    np.testing.assert_array_equal(images.train[1], labels[:10])


@pytest.mark.slow
def test_mnist_as_it_was_published(real_data: Callable[[str], Path], tmp_path: Path):
    folder = real_data("mnist/train-images-idx3-ubyte.gz").parent
    images = data.load(folder=folder, cache=tmp_path)
    assert (images.train[0].shape, images.test[0].shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    # Counts of each digit, as LeCun's page and many papers have them.
    assert np.bincount(images.train[1]).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(images.test[1]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_what_is_prepared_is_a_dataset_that_tfds_itself_can_open(cache: Path):
    import tensorflow_datasets as tfds

    assert data.load("digits", cache=cache).classes == 10
    opened: Any = tfds.builder_from_directory(prepared.Digits.folder(cache))
    assert len(opened.as_data_source("train[:80%]")) == 1150
    assert json.loads((prepared.Digits.folder(cache) / "metadata.json").read_text()).keys() == {"sha256"}
