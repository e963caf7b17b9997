from pathlib import Path

import pytest
from main_job import files
from main_job.files import ProblemError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_has_its_name_only_when_it_is_complete(tmp_path: Path):
    with files.new_folder(tmp_path / "a" / "results") as folder:
        assert (folder / "report").write_text("done")
        assert not (tmp_path / "a" / "results").exists()
        assert folder.name.startswith("results.unfinished-")  # what a killed run would leave
    assert names(tmp_path / "a") == ["results"]
    assert (tmp_path / "a" / "results" / "report").read_text() == "done"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_run_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), files.new_folder(tmp_path / "results") as folder:
        assert (folder / "report").write_text("half")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_left_as_it_is(tmp_path: Path, kind: str):
    path = tmp_path / "results"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ProblemError, match=r"exists already .*: choose a new folder with --output"):
        _ = files.new_folder(path).__enter__()
    assert names(tmp_path) == ["results"]


def test_a_folder_that_someone_else_makes_meanwhile_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "results"
    message = r"made by someone else meanwhile: the results lie in .*unfinished"
    with pytest.raises(ProblemError, match=message), files.new_folder(path) as folder:
        assert (folder / "mine").write_text("mine")
        path.mkdir()
        assert (path / "theirs").write_text("theirs")
    assert names(path) == ["theirs"]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ProblemError, match=r"cannot be made .*--output"):
        _ = files.new_folder(tmp_path / "file" / "results").__enter__()
