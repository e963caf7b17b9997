import gzip
import runpy
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from main_job import idx


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of a worker: the digits are prepared once."""
    return tmp_path_factory.mktemp("cache")


def encoded(array: np.ndarray) -> bytes:
    """An array as the bytes of an IDX file, by the format's description."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of four IDX files; `packed` says whether they are gzipped."""

    def make(
        *, train: int = 40, test: int = 10, size: int = 6, packed: bool = True, seed: int = 0, classes: int = 3
    ) -> Path:
        rng = np.random.default_rng(seed)
        folder = tmp_path / f"idx-{seed}-{packed}-{train}-{size}"
        folder.mkdir()
        for (split, kind), name in idx.FILES.items():
            n = train if split == "train" else test
            array = rng.integers(0, 256, (n, size, size)) if kind == "images" else np.arange(n) % classes
            raw = encoded(array.astype(np.uint8))
            if packed:
                assert (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                assert (folder / name).write_bytes(raw)
        return folder

    return make


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example as from the command line and returns what it printed."""

    def call(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(root / "examples"))  # what Python does for a script
        _ = runpy.run_path(str(root / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call
