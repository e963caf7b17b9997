"""The demo as a user meets it: through its command line."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import demo
import jax
import numpy as np
import pytest
from main_job import data, experiment, files, networks

from jaxprune import _tree

PROGRAM = Path(__file__).parents[2] / "examples" / "demo.py"
SPARSITIES = experiment.QUICK.sparsities
NAMES = ["dense", "dense, trained on"]
NAMES += [f"{m} {s:.0%}" for s in SPARSITIES for m in ("gradual", "one-shot, not trained on")]
NAMES += [f"{m} {s:.0%}" for s in SPARSITIES for m in ("one-shot, fine-tuned", "random, fine-tuned")]
SLIM = [f"slim, fine-tuned {times:g}x" for times in experiment.QUICK.slimmer]
NAMES += SLIM


def load(folder: Path) -> tuple[Any, Any]:
    """The parameters and the masks of one of the demo's networks on digits that is not slim."""
    model = networks.make("linen", (8, 8, 1), 10)
    return files.load_network(folder, jax.eval_shape(model.init, jax.random.key(0)))


def run(*arguments: Any) -> int:
    return demo.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def results(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run leaves behind."""
    folder = tmp_path_factory.mktemp("demo") / "results"
    assert run("--quick", "--output", folder, "--cache", cache) == 0
    return folder


@pytest.fixture(scope="module")
def report(results: Path) -> dict[str, Any]:
    return json.loads((results / "report.json").read_text())


def test_every_network_is_on_the_report_once(results: Path, report: dict[str, Any]):
    *names, ticket = (row["name"] for row in report["models"])
    assert sorted(names) == sorted(NAMES)
    assert ticket in {f"ticket {s:.0%}" for s in (0.6, 0.84, 0.936)}
    assert set(report["columns"]) >= {"sparsity", "accuracy", "nll", "ece", "effective_flops", "seconds"}
    text = (results / "report.txt").read_text()
    assert all(name in text for name in NAMES)
    assert len(list((results / "checkpoints").iterdir())) == len(NAMES) + 1
    for plot in ("accuracy.png", "layers.png", "latency.png"):
        assert (results / plot).read_bytes().startswith(b"\x89PNG")
    assert not list(results.parent.glob("*.unfinished-*"))


def test_the_report_says_which_data_which_plan_and_that_the_comparison_is_fair(results: Path, report: dict[str, Any]):
    text = (results / "report.txt").read_text()
    assert "data: the digits bundled with scikit-learn, 1,437 training and 360 test images of 8x8x1" in text
    assert "the linen CNN, seed 0, 12 steps of 128 images" in text
    assert "the same number of steps" in text
    assert len(report["data"]["sha256"]) == 64
    assert report["plan"] == {"seed": 0, "steps": 12, "batch": 128, "sparsities": list(SPARSITIES), "slimmer": [2]}


def test_the_risk_report_has_every_network_and_the_ensemble(results: Path, report: dict[str, Any]):
    risks = json.loads((results / "risk.json").read_text())
    names = [row["name"] for row in report["models"]]
    assert list(risks["models"]) == [*names, "ensemble of 3 pruned"]
    assert risks["reference"] == "dense, trained on"
    figures = risks["models"]["ensemble of 3 pruned"]["figures"]
    assert {"foreign/photographs/epistemic_uncertainty", "corrupted/noise", "nll_gap", "scaled_nll"} < set(figures)
    for row in report["models"]:
        figures = risks["models"][row["name"]]["figures"]
        assert figures["nll"]["estimate"] == pytest.approx(row["nll"], rel=1e-5)
        assert figures["accuracy"]["estimate"] == pytest.approx(row["accuracy"], abs=1e-6)
    members = next(note for note in risks["notes"] if "the ensemble: " in note).split("the ensemble: ")[1]
    kept = {row["name"]: row["kept"] for row in report["models"]}
    assert (
        sum(kept[name] for name in kept if name in members)
        == risks["models"]["ensemble of 3 pruned"]["complexity"]["kept"]
    )
    # Slim networks, and one with zeros in place of weights, are timed: the answer is the measured one.
    for name in ("gradual 90%", *SLIM):
        [faster] = [answer for answer in risks["answers"][name] if answer["question"] == "faster?"]
        assert "ms a call instead of" in faster["words"]
    html = (results / "risk.html").read_text()
    assert "data:image/png;base64," in html or not risks["forgotten"]
    assert all(name in html for name in names)
    assert (results / "risk.txt").read_text().count("ensemble of 3 pruned") > 6


def test_sparsities_are_exact_and_each_layer_is_pruned_alike_by_all_methods(report: dict[str, Any]):
    leaves = {name: cost["leaves"] for name, cost in report["complexity"].items()}
    for sparsity in SPARSITIES:
        names = [name for name in NAMES if name.endswith(f" {sparsity:.0%}")]
        assert len(names) == 4
        kept = [[leaf["kept"] for leaf in leaves[name]] for name in names]
        assert kept[0] == kept[1] == kept[2] == kept[3]
        kernels = [leaf for leaf in leaves[names[0]] if leaf["name"].endswith("kernel")]
        total = sum(leaf["total"] for leaf in kernels)
        removed = total - sum(leaf["kept"] for leaf in kernels)
        # Erdos-Renyi-Kernel rounds once for each layer.
        assert abs(removed - math.floor(sparsity * total + 0.5)) <= len(kernels)
        assert all(leaf["kept"] == leaf["total"] for leaf in leaves[names[0]] if leaf["name"].endswith("bias"))


def test_the_sparser_the_fewer_flops(report: dict[str, Any]):
    flops = {row["name"]: row["effective_flops"] for row in report["models"]}
    dense = 2 * (4 * 4 * 9 * 16) + 2 * (2 * 2 * 9 * 16 * 32) + 2 * (2 * 2 * 9 * 32 * 64)  # if nothing were padding
    assert flops["dense"] == flops["dense, trained on"] < dense + 2 * (256 * 128 + 128 * 10)
    for method in experiment.PRUNED:
        row = [flops["dense"], *(flops[f"{method} {sparsity:.0%}"] for sparsity in SPARSITIES)]
        assert row == sorted(row, reverse=True)


def test_all_start_from_one_dense_network_and_take_the_same_steps(results: Path, report: dict[str, Any]):
    steps = {row["name"]: row["steps"] for row in report["models"]}
    for name in NAMES:
        assert steps[name] == (12 if name == "dense" or "not trained on" in name else 24)
    dense, _ = load(results / "checkpoints" / "dense")
    pruned, masks = load(results / "checkpoints" / "one-shot-not-trained-on-90")
    for (name, before), after, mask in zip(
        _tree.named_leaves(dense), jax.tree.leaves(pruned), jax.tree.leaves(masks), strict=True
    ):
        np.testing.assert_array_equal(np.where(mask, before, 0), after, err_msg=name)


def test_slim_networks_are_smaller_in_every_count(results: Path, report: dict[str, Any]):
    rows = {row["name"]: row for row in report["models"]}
    dense, costs = rows["dense, trained on"], report["complexity"]
    for name, times in zip(SLIM, experiment.QUICK.slimmer, strict=True):
        assert rows[name]["effective_flops"] <= dense["effective_flops"] / times
        assert rows[name]["kept"] == sum(leaf["total"] for leaf in costs[name]["leaves"])
        assert rows[name]["kept"] < dense["kept"] / times**0.5
        assert rows[name]["milliseconds"] > 0
        assert rows[name]["kB"] < dense["kB"]
        shapes = {leaf["name"]: leaf["total"] for leaf in costs[name]["leaves"]}
        assert shapes["conv_1/kernel"] == 9 * shapes["conv_0/bias"] * shapes["conv_1/bias"]
    # The masks of a pruned network make its file smaller, not its arrays.
    assert rows["gradual 90%"]["kB"] < dense["kB"] / 4
    assert {name for name, row in rows.items() if row["milliseconds"]} == {"dense, trained on", "gradual 90%", *SLIM}


def test_a_slim_checkpoint_evaluates_to_the_numbers_of_the_report(
    results: Path, cache: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("--evaluate", results / "checkpoints" / "slim-fine-tuned-2x", "--cache", cache) == 0
    assert "The numbers are those of the report, to the last bit." in capsys.readouterr().out


def test_removed_weights_are_saved_as_exact_zeros(results: Path):
    for folder in (results / "checkpoints").iterdir():
        if folder.name.startswith("slim"):
            continue
        params, masks = load(folder)
        for leaf, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
            assert not np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)].any()


def test_a_checkpoint_evaluates_to_the_numbers_of_the_report(
    results: Path, cache: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("--evaluate", results / "checkpoints" / "gradual-90", "--cache", cache) == 0
    shown = capsys.readouterr().out
    assert "The numbers are those of the report, to the last bit." in shown
    line = next(line for line in (results / "report.txt").read_text().splitlines() if line.startswith("gradual 90%"))
    # Without the columns that only a run has: steps, seconds, kB, milliseconds.
    assert line.split()[:-4] == next(line for line in shown.splitlines() if line.startswith("gradual 90%")).split()


def test_the_accuracy_of_the_report_is_that_of_the_saved_numbers(results: Path, cache: Path, report: dict[str, Any]):
    images, labels = data.load("digits", cache=cache).test
    folder = results / "checkpoints" / "one-shot-fine-tuned-80"
    (params, _), about = load(folder), files.load_about(folder)
    network = networks.make("linen", (8, 8, 1), 10)
    logits = jax.jit(network.apply)(params, (images - about["mean"]) / np.float32(about["deviation"]))
    (row,) = (row for row in report["models"] if row["name"] == "one-shot, fine-tuned 80%")
    assert row["accuracy"] == pytest.approx(np.mean(np.argmax(np.asarray(logits), -1) == labels), abs=1e-6)


@pytest.mark.slow
def test_nnx_runs_the_same_experiment(results: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "results"
    assert run("--quick", "--model", "nnx", "--pixels", 0.5, "--output", folder, "--cache", cache) == 0
    shown = capsys.readouterr().out
    assert "32 of 64 pixels stay:" in shown
    assert shown.split("pixels stay:")[1].partition("\nmodel")[0].count("#") == 32
    linen, nnx = (json.loads((f / "report.json").read_text()) for f in (results, folder))
    assert [row["name"] for row in linen["models"]] == [row["name"] for row in nnx["models"]]
    # The widths of slim networks follow from the trained weights; all other counts from the shapes.
    kept = lambda report: [row["kept"] for row in report["models"] if row["name"] not in SLIM]
    assert kept(linen) == kept(nnx)
    assert "the nnx CNN" in (folder / "report.txt").read_text()
    assert run("--evaluate", folder / "checkpoints" / "random-fine-tuned-80", "--cache", cache) == 0
    assert "to the last bit" in capsys.readouterr().out


def problem(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run something that must stop with exit code 2, and return the one sentence that explains it."""
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith("demo.py: ")
    return line


def test_an_output_folder_that_exists_is_left_alone(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert (tmp_path / "mine").write_text("mine")
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("work was done before the folder was looked at"))
    assert "exists already" in problem(capsys, "--quick", "--output", tmp_path, "--cache", cache)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "minst"], "There is no data set 'minst': choose digits,"),
        (["--data-dir", "nowhere"], "There is no folder "),
        (["--evaluate", "nowhere"], "is no checkpoint of the demo: give a folder out of"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "results"
    assert sentence in problem(capsys, *arguments, "--output", output, "--cache", cache)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "digits", "--data-dir", "."],
        ["--model", "torch"],
        ["--steps", "0"],
        ["--pixels", "1.5"],
        ["--pixels", "some"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--unknown"],
    ],
)
def test_options_that_make_no_sense_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        _ = run(*arguments)
    assert stopped.value.code == 2
    assert "demo.py: error: " in capsys.readouterr().err


def test_an_interrupted_run_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any, **__: Any):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    assert run("--quick", "--output", tmp_path / "results", "--cache", tmp_path / "cache") == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_checkpoints_names_one(results: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    assert "choose one inside, such as checkpoints/dense." in problem(capsys, "--evaluate", results, "--cache", cache)


def test_a_damaged_checkpoint_is_explained(
    results: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(results / "checkpoints" / "dense", tmp_path / "copy")
    (copy / "about.json").write_text("{")  # pyright: ignore[reportUnusedCallResult]
    assert "is damaged" in problem(capsys, "--evaluate", copy, "--cache", cache)
    shutil.copy(results / "checkpoints" / "dense" / "about.json", copy)  # pyright: ignore[reportUnusedCallResult]
    file = copy / "network.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    _ = file.write_bytes(damaged)
    assert re.search(r"is damaged \(.*checksum", problem(capsys, "--evaluate", copy, "--cache", cache))
    os.truncate(file, 10)
    assert "is damaged (" in problem(capsys, "--evaluate", copy, "--cache", cache)
    file.unlink()
    assert re.search(r"is damaged \(.*does not exist", problem(capsys, "--evaluate", copy, "--cache", cache))


def test_other_data_must_fit_the_network_and_are_named(
    results: Path, cache: Path, idx_folder, capsys: pytest.CaptureFixture[str]
):
    checkpoint = results / "checkpoints" / "dense"
    assert run("--evaluate", checkpoint, "--data-dir", idx_folder(size=9), "--cache", cache) == 2
    assert "takes images of [8, 8, 1] in 10 classes, not [9, 9, 1] in 3" in capsys.readouterr().err
    other = idx_folder(size=8, classes=10, seed=1)
    assert run("--evaluate", checkpoint, "--data-dir", other, "--cache", cache) == 0
    assert "These are not the data it was trained with" in capsys.readouterr().out


def test_the_program_itself_says_what_is_wrong(tmp_path: Path):
    arguments = [sys.executable, str(PROGRAM), "--dataset", "minst", "--output", str(tmp_path / "results")]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("demo.py: There is no data set 'minst'")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killing_it_leaves_nothing_that_looks_finished(number: signal.Signals, cache: Path, tmp_path: Path):
    output = tmp_path / "results"
    arguments = [sys.executable, str(PROGRAM), "--output", str(output), "--cache", str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])}
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/checkpoints/dense")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(60) != 0
    assert not output.exists()
    assert all(".unfinished-" in path.name for path in tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_job_ends_in_time_with_networks_that_work(cache: Path, tmp_path: Path):
    began = time.monotonic()
    assert run("--output", tmp_path / "results", "--cache", cache) == 0
    assert time.monotonic() - began < 300
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    accuracy = {row["name"]: row["accuracy"] for row in report["models"]}
    assert accuracy["dense"] > 0.96
    assert accuracy["gradual 90%"] > 0.94
    # Random masks come close on digits: by how much they lose is within the noise of 360 test images.
    for sparsity in ("90%", "95%", "98%"):
        assert accuracy[f"one-shot, fine-tuned {sparsity}"] > accuracy[f"one-shot, not trained on {sparsity}"] + 0.2
