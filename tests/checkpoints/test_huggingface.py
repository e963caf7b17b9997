"""Folders as Hugging Face writes them: read, written part by part, resumed, and refused where they are damaged."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

from jaxprune.checkpoints import Folder, FolderWriter

PARAMS = {
    "model.embed_tokens.weight": jnp.arange(12.0).reshape(4, 3),
    "model.layers.0.mlp.up_proj.weight": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "steps": jnp.arange(2, dtype=jnp.int32),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder in two files, with a tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    _ = (folder / "config.json").write_text('{"model_type": "llama"}')
    _ = (folder / "tokenizer.json").write_text("{}")
    names = list(PARAMS)
    files = {"a.safetensors": names[:1], "b.safetensors": names[1:]}
    for file, inside in files.items():
        save_file({name: PARAMS[name] for name in inside}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in files.items() for name in inside}}
    _ = (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def check_params(found):
    assert found.keys() == PARAMS.keys()
    for name, array in found.items():
        assert array.dtype == PARAMS[name].dtype
        np.testing.assert_array_equal(array, PARAMS[name])


def test_reads_several_files_and_one(source: Path, tmp_path: Path):
    folder = Folder(source)
    check_params(folder.load())
    assert folder.config == {"model_type": "llama"}
    assert {name: (x.shape, x.dtype) for name, x in folder.shapes.items()} == {
        name: (x.shape, x.dtype) for name, x in PARAMS.items()
    }
    assert [path.name for path in folder.other_files()] == ["tokenizer.json"]
    single = tmp_path / "single"
    single.mkdir()
    _ = (single / "config.json").write_text("{}")
    save_file(PARAMS, single / "model.safetensors")
    check_params(Folder(single).load())


def test_casts_floating_parameters_alone(source: Path):
    found = Folder(source).load(["model.layers.0.mlp.up_proj.weight", "steps"], dtype=jnp.float32)
    assert [x.dtype for x in found.values()] == [jnp.float32, jnp.int32]


def test_what_is_written_is_read_again_and_other_files_come_along(source: Path, tmp_path: Path):
    folder, target = Folder(source), tmp_path / "new"
    names = list(PARAMS)
    with FolderWriter(target, folder.config, parts=2) as writer:
        writer.add(1, folder.load(names[2:]))
        writer.add(0, folder.load(names[:2]))
        writer.carry_over(folder)
        assert not target.exists()
    check_params(Folder(target).load())
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


def test_a_run_that_failed_goes_on_where_it_was(source: Path, tmp_path: Path):
    target, params = tmp_path / "new", Folder(source).load()
    make = lambda **more: FolderWriter(target, {}, parts=2, **{"identity": {"method": "obs"}, **more})
    with pytest.raises(KeyboardInterrupt), make() as writer:
        writer.add(0, {"steps": params.pop("steps")})
        raise KeyboardInterrupt
    assert not target.exists()
    with pytest.raises(FileExistsError, match=r"new.unfinished is left over from an earlier run; .* --resume"):
        _ = make()
    with pytest.raises(ValueError, match=r"another run.*\n  method: saved obs, expected wanda"):
        _ = make(identity={"method": "wanda"}, resume=True)
    with make(resume=True) as writer:
        assert (writer.has(0), writer.has(1)) == (True, False)
        assert writer.load(0)["steps"].tolist() == [0, 1]
        writer.add(1, params)
    check_params(Folder(target).load())


def test_a_run_without_identity_leaves_nothing_that_nobody_can_continue(tmp_path: Path):
    new, left = tmp_path / "new", tmp_path / "new.unfinished"
    with pytest.raises(KeyboardInterrupt) as interrupted, FolderWriter(new, {}, parts=2) as writer:
        writer.add(0, PARAMS)
        raise KeyboardInterrupt
    assert not hasattr(interrupted.value, "__notes__")
    assert not left.exists()
    left.mkdir()  # as a killed process leaves it
    with pytest.raises(FileExistsError, match=r"new.unfinished is left over from an earlier run; remove it$"):
        _ = FolderWriter(new, {}, parts=2, resume=True)


def test_nothing_is_written_over(source: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        _ = FolderWriter(source, {}, parts=1)
    with FolderWriter(tmp_path / "new", {}, parts=1) as writer:
        writer.add(0, PARAMS)
        with pytest.raises(FileExistsError):
            writer.add(0, PARAMS)


def test_a_part_that_is_missing_keeps_the_name_back(tmp_path: Path):
    with (
        pytest.raises(ValueError, match="part 1 of 2 was not written"),
        FolderWriter(tmp_path / "new", {}, parts=2) as w,
    ):
        w.add(0, PARAMS)
    assert not (tmp_path / "new").exists()


def test_damaged_folders_are_refused_in_one_sentence(source: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        _ = Folder(tmp_path / "nowhere")
    file = source / "b.safetensors"
    content = file.read_bytes()
    _ = file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"b.safetensors is truncated or damaged .*; copy or download it again"):
        _ = Folder(source)
    save_file({"steps": PARAMS["steps"]}, file)
    with pytest.raises(
        ValueError, match=r"says that model.layers.0.mlp.up_proj.weight is in b.safetensors, but it is not"
    ):
        _ = Folder(source)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json names b.safetensors, which are missing; download"):
        _ = Folder(source)
    _ = (source / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        _ = Folder(source)
    (source / "model.safetensors.index.json").unlink()
    _ = (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"has neither model.safetensors nor .*save_pretrained"):
        _ = Folder(source)
    _ = (source / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        _ = Folder(source)
    (source / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"source has no config.json"):
        _ = Folder(source)


def test_an_unknown_parameter_is_named(source: Path):
    with pytest.raises(KeyError, match=r"has no parameter 'model.norm.weight'"):
        _ = Folder(source).load(["model.norm.weight"])
