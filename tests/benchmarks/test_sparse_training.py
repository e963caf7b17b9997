import json
import runpy
import sys

import pytest


@pytest.mark.slow
def test_the_benchmark_of_sparse_training_runs(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_sparse_training.py", "--quick", "--output", str(tmp_path)])
    _ = runpy.run_path(str(root / "benchmarks" / "bench_sparse_training.py"), run_name="__main__")
    found = json.loads((tmp_path / "sparse_training.json").read_text())
    assert [row["batch"] for row in found["rigl"]] == [60]
    assert all(set(row["ratios"]) == {"static", "static again", "RigL"} for row in found["rigl"])
    assert len(found["tickets"]) == 1
    assert "2 seeds at once" in capsys.readouterr().out
