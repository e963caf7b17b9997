"""The experiments on MNIST run to their end on random images, and a rerun takes what is finished from its file."""

import json

import pytest


@pytest.fixture
def arguments(idx_folder, tmp_path):
    folder = idx_folder(train=720, test=120, size=6, classes=10)
    return "--data", folder, "--output", tmp_path / "output", "--seeds", 0, 1


@pytest.mark.slow
def test_tickets(run, arguments, tmp_path):
    options = "--rounds", 2, "--steps", 20, "--look-every", 10
    out = run("tickets_mnist.py", *arguments, *options)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[0] for row in rows] == [level for level in ("100.0%", "80.0%", "64.0%") for _ in range(3)]
    assert [row[1] for row in rows[:3]] == ["ticket", "reinitialised", "random"]
    assert rows[0][2:] == rows[2][3:]  # with all weights, random masks are no masks
    found = json.loads((tmp_path / "output" / "tickets.json").read_text())["seeds"]
    assert found["0"] != found["1"]
    assert set(found["0"]["ticket"]["step"]) <= {10, 20}
    assert (tmp_path / "output" / "tickets.png").stat().st_size > 5000
    written = (tmp_path / "output" / "tickets.json").stat().st_mtime_ns
    assert run("tickets_mnist.py", *arguments, *options) == out
    assert (tmp_path / "output" / "tickets.json").stat().st_mtime_ns == written  # nothing was trained again
    with pytest.raises(SystemExit):
        _ = run("tickets_mnist.py", *arguments, "--rounds", 1, "--steps", 20, "--look-every", 10)


@pytest.mark.slow
def test_sparse_training_keeps_the_same_exact_number_by_every_method(run, arguments):
    options = "--steps", 40, "--every", 10, "--sparsities", 0.9, "--methods", "RigL", "gradual"
    out = run("sparse_training_mnist.py", *arguments, *options)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["dense", "RigL", "gradual"]
    # 36 x 300 + 300 x 100 + 100 x 10 = 41800, a tenth of them, shared out with each layer rounded.
    assert int(rows[0][2]) == 41800
    assert {row[2] for row in rows[1:]} == {rows[1][2]}
    assert abs(int(rows[1][2]) - 4180) <= 3
    assert run("sparse_training_mnist.py", *arguments, *options) == out


@pytest.mark.slow
def test_layers_at_initialisation(run, arguments):
    out = run(
        "at_initialisation_mnist.py", *arguments, "--steps", 0, "--sparsities", 0.99, "--networks", "LeNet-300-100"
    )
    lines = out.splitlines()[2:]
    assert [line[27:38].strip() for line in lines] == ["random, ERK", "magnitude", "SNIP", "GraSP", "SynFlow"]
    assert "0 of 2" in lines[4]
