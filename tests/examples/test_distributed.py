"""The distributed example: one process in every run, two where there is time."""

import runpy
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_one_process_on_eight_devices(root, cache, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "examples"))
    main = runpy.run_path(str(root / "examples" / "distributed.py"))["main"]
    # A multiple of 20 steps, so that both methods revise within them.
    assert main(["--steps", "20", "--batch", "32", "--cache", str(cache), "--sharded"]) == 0
    out = capsys.readouterr().out
    assert "1 processes, 8 devices" in out
    for name in ("gradual", "rigl"):
        assert f"{name}: all 1 processes hold the same masks" in out
        assert "on each of its 8 devices" in out
    assert out.count("90.00% of the pruned leaves removed") == 2


@pytest.mark.slow
def test_two_processes_hold_the_same_masks(root, cache):
    script = [sys.executable, str(root / "examples" / "distributed.py"), "--processes", "2", "--limit", "300"]
    done = subprocess.run(
        [*script, "--steps", "20", "--cache", str(cache)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if "on each of its 4 devices" in line]
    for name in ("gradual", "rigl"):
        assert f"{name}: all 2 processes hold the same masks" in done.stdout
        assert len({line.split("masks ")[1] for line in told if f": {name}:" in line}) == 1
