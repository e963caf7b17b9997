"""The one-shot pruning examples run to their end on little data."""

import jax
import numpy as np
import pytest

from examples import sparsegpt_shakespeare as shakespeare


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["to be ", "or not ", "that is ", "the question "], 20_000)
    assert path.write_text("".join(words)) > 100_000
    return path


# Compiling is most of the time: one kind of kernel and one setting, or all of them.
@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_shakespeare(every, text, tmp_path, capsys, monkeypatch):
    if not every:
        monkeypatch.setattr(shakespeare, "BLOCKS", "blocks/up/kernel")
        monkeypatch.setattr(shakespeare, "SETTINGS", shakespeare.SETTINGS[-1:])
    arguments = ["--text", str(text), "--width", "16", "--layers", "1", "--save", str(tmp_path)]
    arguments += ["--steps", "10", "--tune", "2", "--seeds", "0"]
    shakespeare.main(arguments)
    table = capsys.readouterr().out.split("perplexity on")[1]
    for title, _, _ in shakespeare.SETTINGS:
        for method in ("magnitude", "wanda", "sparsegpt", "sequential", "sparsegpt, tuned"):
            assert f"{title:>5} {method}" in table
    dense = [line for line in table.splitlines() if line.startswith("dense")]
    assert dense[0].split()[1:] == dense[1].split()[2:]  # outlier features change nothing but how they are pruned
    if every:
        shakespeare.main(arguments)
        assert capsys.readouterr().out.split("perplexity on")[1] == table


@pytest.mark.slow
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
