"""The command line: from a folder to a smaller one, and one sentence for each mistake."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors import flax as safetensors_flax
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from jaxprune import cli
from jaxprune.checkpoints import Folder
from jaxprune.models import pruning

from .models.test_pruning import write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of its 61 words, w0 to w60."""
    folder = write(tmp_path_factory.mktemp("cli") / "model", "llama")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    file = model.parent / "text.txt"
    _ = file.write_text(" ".join(f"w{(7 * i + i * i) % 58 + 3}" for i in range(200)))
    return file


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_inspect_lists_every_parameter_and_its_fate(model: Path, capsys: pytest.CaptureFixture[str]):
    assert run("inspect", model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": llama")
    fate = {line.split()[0]: line.split("  ")[-1] for line in lines[1:-1]}
    assert fate.keys() == Folder(model).shapes.keys()
    assert fate["model.layers.0.mlp.up_proj.weight"] == "pruned"
    assert fate["lm_head.weight"] == "kept: the head"
    assert fate["model.layers.2.input_layernorm.weight"] == "kept: a norm or bias"
    assert "would be pruned" in lines[-1]


@pytest.mark.parametrize(
    ("done", "message"), [(0, "jaxprune: interrupted\n"), (1, "new.unfinished; continue with resume=True, --resume\n")]
)
def test_an_interruption_says_what_stays(
    done: int,
    message: str,
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    turns = iter(range(9))

    def until_interrupted(*_: Any) -> tuple[dict[str, float], float]:
        if next(turns) == done:
            raise KeyboardInterrupt
        return {}, 0.0

    monkeypatch.setattr(pruning, "_prune_block", until_interrupted)
    new = tmp_path / "new"
    assert run("prune", model, "--pattern", "2:4", "--calibration", text, "--output", new, "--length", 16) == 130
    assert capsys.readouterr().err.endswith(message)
    assert Path(f"{new}.unfinished").is_dir() == bool(done)


def test_prune_then_evaluate(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    new = tmp_path / "new"
    arguments = ["--pattern", "2:4", "--calibration", text, "--text", text, "--output", new, "--length", 16]
    assert run("prune", model, *arguments, "--progress") == 0
    shown, bar = capsys.readouterr()
    assert "blocks: 100%" in bar
    assert "perplexity before: " in shown
    assert "of the parameters are zero" in shown
    report = json.loads((new / "pruning.json").read_text())
    assert report["asked"] == "2:4"
    assert [block["sparsity"] for block in report["blocks"]] == pytest.approx([0.5] * 3)
    assert report["zeros"] == sum(int((x == 0).sum()) for x in Folder(new).load().values())
    assert "<title>" in (new / "pruning.html").read_text()
    assert (new / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert run("evaluate", new, "--text", text, "--length", 16) == 0
    after = capsys.readouterr().out
    assert shown.split("perplexity after: ")[1].split(" ")[0] == after.split("perplexity: ")[1].split(" ")[0]
    assert f"{report['zeros']:,} zeros" in after


def test_slim_then_evaluate(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [
        "--mlp",
        0.5,
        "--kv-heads",
        1,
        "--drop-layers",
        1,
        "--calibration",
        text,
        "--text",
        text,
        "--length",
        16,
    ]
    assert run("slim", model, *arguments, "--output", tmp_path / "new") == 0
    shown = capsys.readouterr().out
    config = Folder(tmp_path / "new").config
    assert (config["intermediate_size"], config["num_key_value_heads"], config["num_hidden_layers"]) == (24, 1, 2)
    assert "removed blocks: " in shown
    report = json.loads((tmp_path / "new" / "slimming.json").read_text())
    assert report["removed_blocks"] == [int(np.argmin(report["influence"]))]
    assert report["parameters"] == sum(x.size for x in Folder(tmp_path / "new").load().values())
    assert "<h1>What slimming did</h1>" in (tmp_path / "new" / "slimming.html").read_text()
    assert run("evaluate", tmp_path / "new", "--text", text, "--length", 16) == 0
    after = capsys.readouterr().out
    assert shown.split("perplexity after: ")[1].split(" ")[0] == after.split("perplexity: ")[1].split(" ")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "nowhere"], "nowhere is not a folder"),
        (["evaluate", "MODEL", "--text", "nowhere.txt"], "nowhere.txt cannot be read as text"),
        (["evaluate", "MODEL", "--text", "TEXT", "--length", "150"], "has 200 tokens, at least 300 tokens"),
        (
            ["prune", "MODEL", "--sparsity", "0.5", "--calibration", "TEXT", "--output", "MODEL", "--length", "16"],
            "exists and is not overwritten",
        ),
        (
            ["prune", "MODEL", "--pattern", "3:7", "--calibration", "TEXT", "--output", "NEW", "--length", "16"],
            "self_attn.k_proj.weight: its length 32",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], sentence: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = {"MODEL": model, "TEXT": text, "NEW": tmp_path / "new"}
    assert run(*(names.get(word, word) for word in arguments)) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("jaxprune: ")
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "model", "--sparsity", "1.5", "--calibration", "t", "--output", "n"],
        ["prune", "model", "--pattern", "4:2", "--calibration", "t", "--output", "n"],
        ["prune", "model", "--calibration", "t", "--output", "n"],
        ["evaluate", "model", "--text", "t", "--length", "0"],
        ["slim", "model", "--width", "0", "--calibration", "t", "--output", "n"],
        ["slim", "model", "--drop-layers", "3,x", "--calibration", "t", "--output", "n"],
        ["grow", "model"],
    ],
)
def test_options_that_make_no_sense_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        _ = cli.main(arguments)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


def with_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    _ = file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    _ = file.write_bytes(file.read_bytes()[:-10])


def in_two_files(folder: Path, second: str) -> None:
    """Splits the folder into a.safetensors and b.safetensors; the index calls the latter `second`."""
    params = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: "a.safetensors" if "layers" in name else second for name in params}
    save_file({name: x for name, x in params.items() if files[name] == "a.safetensors"}, folder / "a.safetensors")
    save_file({name: x for name, x in params.items() if files[name] == second}, folder / "b.safetensors")
    _ = (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def silence_a_layer(folder: Path) -> None:
    """Sets a norm to zero, so that the inputs of the MLP of block 1 are zero for every token."""
    params = dict(load_file(folder / "model.safetensors"))
    params["model.layers.1.post_attention_layernorm.weight"] = np.zeros(32, np.float32)
    save_file(params, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a truncated file": (truncate, "model.safetensors is truncated or damaged"),
    "an index that names a missing file": (lambda f: in_two_files(f, "c.safetensors"), "names c.safetensors, which"),
    "an unknown family": (
        lambda f: with_config(f, model_type="bert"),
        "pass a function of your own, fn(params",
    ),
    "a config without a number": (lambda f: with_config(f, num_hidden_layers=4), "no block 3; it has blocks 0 to 2"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json; save the model's tokenizer"),
    "a damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
    "inputs that are never seen": (silence_a_layer, "never reaches the inputs of model.layers.1.mlp.down_proj.weight"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_folder_is_one_sentence_and_nothing_is_written(
    broken: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    breaking, sentence = BROKEN[broken]
    folder, new = shutil.copytree(model, tmp_path / "folder"), tmp_path / "new"
    _ = breaking(folder)
    arguments = ["--sparsity", 0.5, "--calibration", text, "--output", new, "--length", 16, "--windows", 2]
    assert run("prune", folder, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("jaxprune: ")
    assert sentence in shown
    assert shown.count("\n") == 1
    assert not new.exists()
    # A run that had finished a block can continue; one that had not leaves nothing.
    assert (tmp_path / "new.unfinished").exists() is (broken == "inputs that are never seen")


def test_a_full_disk_loses_no_finished_block(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    new, save, calls = tmp_path / "new", safetensors_flax.save_file, []

    def full(arrays: Any, file: Path, metadata: Any) -> None:
        calls.append(file)
        if len(calls) == 2:
            _ = file.write_bytes(b"half")
            raise safetensors.SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
        save(arrays, file, metadata)

    arguments = ["prune", model, "--sparsity", 0.5, "--calibration", text, "--output", new, "--length", 16]
    arguments += ["--windows", 2, "--method", "magnitude"]
    with monkeypatch.context() as patched:
        patched.setattr(safetensors_flax, "save_file", full)
        assert run(*arguments) == 2
    assert "model-00002-of-00004.safetensors cannot be written (Error while" in capsys.readouterr().err
    assert not new.exists()
    left = [file.name for file in (tmp_path / "new.unfinished").iterdir()]
    assert [name for name in left if "safetensors" in name] == ["model-00001-of-00004.safetensors"]
    assert run(*arguments, "--resume") == 0
    assert (new / "model-00004-of-00004.safetensors").stat().st_mode & 0o777 == (
        new / "config.json"
    ).stat().st_mode & 0o777


def test_the_module_is_the_command(root: Path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxprune", "inspect", "nowhere"], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jaxprune: nowhere is not a folder\n"
