"""The one-shot pruning examples run to their end on little data."""

import runpy
import sys

import numpy as np
import pytest


@pytest.fixture
def run(root, monkeypatch, capsys):
    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        _ = runpy.run_path(str(root / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_shakespeare(run, tmp_path):
    text = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["to be ", "or not ", "that is ", "the question "], 20_000)
    assert text.write_text("".join(words)) > 100_000
    arguments = ("--text", text, "--width", 32, "--layers", 2, "--save", tmp_path / "weights.npz")
    out = run("sparsegpt_shakespeare.py", *arguments, "--steps", 60, "--tune", 3, "--seeds", 1)
    for row in (
        "dense",
        "50 % magnitude",
        "2:4 wanda",
        "4:8 sparsegpt",
        "70 % sequential",
        "70 % sparsegpt+owl",
        "tuned",
    ):
        assert row in out
    assert (tmp_path / "weights.npz").exists()


@pytest.mark.slow
def test_resnet20(run, real_data):
    folder = real_data("resnet20_cifar10/weights.npz").parents[1]
    _ = real_data("cifar10_jpeg/half_a_5000.npz")
    out = run("sparsegpt_resnet20.py", "--data", folder, "--test", 500, "--calibration", 250, "--sparsities", 0.5)
    dense = float(out.split("dense: ")[1].split("%")[0])
    repaired = float(out.split("50% sparsegpt     ")[1].split("%")[0])
    assert dense > 75
    assert repaired > dense - 10
