import json
import runpy

import pytest


@pytest.mark.slow
def test_the_benchmark_of_selection_runs(root, tmp_path, capsys):
    main = runpy.run_path(str(root / "benchmarks" / "bench_selection.py"))["main"]
    main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "selection.json").read_text())
    assert found["machine"]["jax"]
    assert len(found["blocks"]) == 6
    assert "2:4 at 64 x 64" in capsys.readouterr().out
