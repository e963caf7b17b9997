"""The folder of a run: one run's alone, whole steps only, and every damage told by the file's name."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxprune import checkpoints
from jaxprune.checkpoints import _disk


def open_run(folder: Path, **options: Any) -> checkpoints.Run:
    params = {"w": np.arange(3.0)}
    return checkpoints.Run(folder, {"rounds": 2, **options}, params=params, key=jax.random.key(0), kind="search")


def test_steps_come_back_and_another_run_is_told(tmp_path):
    run = open_run(tmp_path / "new")
    assert run.load(0) is None
    run.save(0, {"a": np.arange(4), "b": np.array(0.5, np.float32)})
    found = open_run(tmp_path / "new").load(0)
    assert found is not None
    np.testing.assert_array_equal(found["a"], np.arange(4))
    assert found["b"].dtype == np.float32
    with pytest.raises(ValueError, match=r"another search; .* They differ in:\n  rounds: saved 2, expected 3$"):
        _ = open_run(tmp_path / "new", rounds=3)


def test_a_run_without_a_finished_step_gives_its_folder_to_another(tmp_path):
    _ = open_run(tmp_path)
    open_run(tmp_path, rounds=3).save(0, {"a": np.arange(4)})
    with pytest.raises(ValueError, match="rounds: saved 3, expected 2"):
        _ = open_run(tmp_path)


@pytest.mark.parametrize("content", ["", '{"kind": ', "[1]"])
def test_a_damaged_description_is_told_by_its_name(tmp_path, content):
    _ = open_run(tmp_path)
    _ = (tmp_path / "search.json").write_text(content)
    with pytest.raises(ValueError, match=r"search\.json (is damaged|does not describe a search).*new folder"):
        _ = open_run(tmp_path)
    assert (tmp_path / "search.json").read_text() == content


# Orbax lets the errors of the other arrays it reads at the same time go by unheard.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_step_is_told_by_its_name(tmp_path):
    run = open_run(tmp_path)
    run.save(1, {"a": np.arange(4)})
    _ = (tmp_path / "step_0001" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"step_0001 is damaged: .*remove this folder to run this step again"):
        _ = run.load(1)


def test_a_full_disk_leaves_no_description(tmp_path, monkeypatch):
    def full(path, write):
        _ = path.with_name(f".{path.name}.1.part").write_text("{")  # as a killed process leaves it
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(_disk, "write_new", full)
        with pytest.raises(OSError, match="disk full"):
            _ = open_run(tmp_path)
    assert not (tmp_path / "search.json").exists()
    _ = open_run(tmp_path)  # goes on, whatever lies there from before
    assert json.loads((tmp_path / "search.json").read_text())["rounds"] == 2
