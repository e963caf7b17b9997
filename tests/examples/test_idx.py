import gzip
from pathlib import Path

import numpy as np
import pytest
from main_job import idx
from main_job.files import ProblemError

from .conftest import encoded

IMAGES, LABELS = idx.FILES["train", "images"], idx.FILES["train", "labels"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(3,), (2, 4, 5), (2, 3, 4, 3)])
def test_reads_what_was_written(tmp_path: Path, shape: tuple[int, ...], packed: bool):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    raw = encoded(array)
    path = tmp_path / "file"
    assert path.write_bytes(gzip.compress(raw) if packed else raw)
    np.testing.assert_array_equal(idx.read(path), array)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda raw: raw[:-1], "is truncated .its header promises 40 bytes and it holds 39"),
        (lambda raw: raw[:9], "is truncated in its header"),
        (lambda raw: raw[:2], "is not an IDX file of unsigned bytes"),
        (lambda raw: b"", "is not an IDX file"),
        (lambda raw: raw + b"x", "is longer than it says"),
        (lambda raw: gzip.compress(raw)[:-9], "is truncated .its gzip stream breaks off"),
        (lambda raw: gzip.compress(raw)[:-8] + bytes(8), "is damaged .CRC"),
        (lambda raw: b"\x1f\x8b\x00" + raw, "is damaged"),
        (lambda raw: b"<html>not found</html>", "is not an IDX file"),
        (lambda raw: raw[:2] + b"\x0d" + raw[3:], "is not an IDX file of unsigned bytes"),  # floats
    ],
)
def test_damaged_files_are_explained(tmp_path: Path, cut, message: str):
    path = tmp_path / "file"
    raw = encoded(np.zeros((2, 4, 5), np.uint8))
    assert path.write_bytes(cut(raw)) is not None
    with pytest.raises(ProblemError, match=message):
        _ = idx.read(path)


def test_find_names_every_missing_file(idx_folder):
    folder = idx_folder()
    assert set(idx.find(folder)) == set(idx.FILES)
    (folder / f"{IMAGES}.gz").unlink()
    (folder / f"{LABELS}.gz").unlink()
    with pytest.raises(ProblemError, match=f"lacks {IMAGES}, {LABELS}"):
        _ = idx.find(folder)
    with pytest.raises(ProblemError, match=r"There is no folder .*nowhere: point --data-dir"):
        _ = idx.find(folder / "nowhere")


def test_a_plain_file_goes_before_a_gzipped_one(idx_folder):
    folder = idx_folder()
    assert (folder / LABELS).write_bytes(encoded(np.zeros(1, np.uint8)))
    assert idx.find(folder)["train", "labels"].name == LABELS


def test_images_and_labels_must_belong_together(idx_folder):
    folder = idx_folder()
    images, labels = folder / f"{IMAGES}.gz", folder / f"{idx.FILES['test', 'labels']}.gz"
    with pytest.raises(ProblemError, match=r"do not belong together .40 images and 10 labels"):
        _ = idx.read_split(images, labels)
    with pytest.raises(ProblemError, match="check that they are images and labels"):
        _ = idx.read_split(labels, images)


def test_the_fingerprint_follows_the_bytes(idx_folder):
    first, same, other = (list(idx.find(idx_folder(seed=s, train=n)).values()) for s, n in ((0, 40), (0, 41), (1, 40)))
    assert idx.fingerprint(first) == idx.fingerprint(first)
    assert len({idx.fingerprint(paths) for paths in (first, same, other)}) == 3
