"""The slimming examples run to their end on little data."""

import numpy as np
import pytest


@pytest.mark.slow
def test_shakespeare(run, tmp_path):
    text = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["to be ", "or not ", "that is ", "the question "], 20_000)
    assert text.write_text("".join(words)) > 100_000
    arguments = ("--text", text, "--width", 32, "--layers", 2, "--steps", 60, "--distil", 30, "--save", tmp_path)
    out = run("slim_shakespeare.py", *arguments)
    rows = {line[:24].strip(): line[24:].split() for line in out[out.index("at once") :].splitlines()[1:]}
    assert set(rows) == {
        "whole", "half the heads", "half the MLP", "a quarter of the width", "one layer", "half of heads and MLP",
        "some of each",
    }  # fmt: skip
    for name, (weights, _, flops, at_once, distilled, *_) in rows.items():
        if name != "whole":
            assert float(weights) < float(rows["whole"][0]) and float(flops) > 1
            assert float(distilled) < float(at_once)
    again = run("slim_shakespeare.py", *arguments)  # from what was kept
    assert again[again.index("at once") :] == out[out.index("at once") :]


@pytest.mark.slow
def test_resnet20(run, real_data, tmp_path):
    folder = real_data("resnet20_cifar10/weights.npz").parents[1]
    _ = real_data("cifar10_jpeg/half_a_5000.npz")
    arguments = ("--data", folder, "--methods", "fpgm", "random", "--reductions", 1.5, "--seeds", 0, "--epochs", 1)
    out = run("slim_resnet20.py", *arguments, "--save", tmp_path / "cells.jsonl")
    rows = {line.split()[1]: line.split() for line in out[out.index("fewer FLOPs") :].splitlines()[1:]}
    assert set(rows) == {"fpgm", "random"}
    for row in rows.values():
        at_once, statistics, tuned = (float(row[i]) for i in (3, 7, 11))
        assert at_once < statistics < tuned and 1.5 <= float(row[0]) < 1.6
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 2
