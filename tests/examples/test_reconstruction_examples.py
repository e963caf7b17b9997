"""The one-shot pruning examples run to their end on little data."""

import runpy
import sys

import jax
import numpy as np
import pytest

from examples import sparsegpt_shakespeare as shakespeare


@pytest.fixture
def run(root, monkeypatch, capsys):
    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        _ = runpy.run_path(str(root / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["to be ", "or not ", "that is ", "the question "], 20_000)
    assert path.write_text("".join(words)) > 100_000
    return path


@pytest.mark.slow
def test_shakespeare(run, text, tmp_path):
    arguments = ("--text", text, "--width", 32, "--layers", 2, "--save", tmp_path)
    arguments += ("--steps", 60, "--tune", 3, "--seeds", 0)
    out = run("sparsegpt_shakespeare.py", *arguments)
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
    again = run("sparsegpt_shakespeare.py", *arguments)
    assert again.split("perplexity on")[1] == out.split("perplexity on")[1]


def test_a_decoder_is_trained_once_and_predicts_better_than_chance(text, tmp_path):
    read = shakespeare.read(text)
    size = shakespeare.Size(width=16, layers=1, heads=2, context=16, batch=8)
    first = shakespeare.trained(read, size, steps=40, seed=0, save=tmp_path)
    assert shakespeare.evaluation(read.test, size)(first) < read.characters
    again = shakespeare.trained(read, size, steps=40, seed=0, save=tmp_path)
    assert jax.tree.structure(first) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_resnet20(run, real_data):
    folder = real_data("resnet20_cifar10/weights.npz").parents[1]
    _ = real_data("cifar10_jpeg/half_a_5000.npz")
    out = run("sparsegpt_resnet20.py", "--data", folder, "--images", 1000, "--calibration", 250, "--seeds", 0)
    table = out.split("calibration sets\n")[1]
    dense, repaired = (float(table.split(name)[1].split("%")[0]) for name in ("dense", "50 % sparsegpt"))
    assert dense > 75
    assert repaired > dense - 10
