"""The ensemble experiment runs to its end, and again from what it kept."""

import json
import runpy
import sys

import pytest


@pytest.mark.slow
def test_digits(root, tmp_path, monkeypatch, capsys):
    arguments = ["ensembles_digits_mnist.py", "--steps", "60", "--seeds", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.syspath_prepend(root / "examples")
    shown = []
    for _ in range(2):
        _ = runpy.run_path(str(root / "examples" / "ensembles_digits_mnist.py"), run_name="__main__")
        shown.append(capsys.readouterr().out)
    assert "trained: digits-60-2-free_tickets" in shown[0]
    assert "trained" not in shown[1]
    assert shown[0].endswith(shown[1])  # the same table
    seeds = json.loads((tmp_path / "digits-60-60-60.json").read_text())
    assert len(seeds) == 2
    for rows in seeds:
        assert rows["3 pruned 90%"]["kept"] == 3 * rows["one pruned 90%"]["kept"] < rows["one dense"]["kept"]
