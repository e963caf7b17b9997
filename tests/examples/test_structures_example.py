"""The search of the structures example by Optuna: a killed search goes on, and the whole example runs."""

import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

# The example's search with a loss that needs no training: it notes every call and sleeps.
_SCRIPT = """
import argparse, pathlib, runpy, sys, time
import jax

example, output, calls, pause = *sys.argv[1:4], float(sys.argv[4])
search = runpy.run_path(example)["search"]

def loss(params, *rows):
    depth, width, _ = params["blocks"]["in"].shape
    with open(calls, "a") as file:
        file.write(f"{width} {depth}\\n")
    time.sleep(pause)
    return (width - 16) ** 2 + abs(depth - 2)

unchanged = lambda key, params, *rest, **options: params
search.__globals__.update(loss=loss, train=unchanged, pruned_at=unchanged)
options = argparse.Namespace(output=pathlib.Path(output), most=9, trials=8, sparsity=0.5)
print(search(jax.random.key(0), {"train": (), "choose": ()}, options))
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_with_what_it_has(tmp_path, root, monkeypatch, capsys):
    calls = tmp_path / "calls"
    arguments = [str(root / "examples" / "structures_digits.py"), str(tmp_path), str(calls)]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}

    def trials():
        study = optuna.load_study(study_name="structure", storage=f"sqlite:///{tmp_path / 'search.db'}")
        return study, {trial.number: trial for trial in study.trials}

    killed = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments, "0.15"], env=environment, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 240
    while not (calls.exists() and calls.read_text().count("\n") >= 8):
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    _, before = trials()
    ended = [n for n, trial in before.items() if trial.state.is_finished()]
    [running] = [n for n, trial in before.items() if not trial.state.is_finished()]
    assert len(ended) >= 2
    monkeypatch.setattr(sys, "argv", ["search", *arguments, "0"])
    exec(_SCRIPT, {"__name__": "__main__"})
    assert f"{len(ended)} trials were there" in capsys.readouterr().out
    study, after = trials()
    assert all(after[n] == before[n] for n in ended)
    assert sum(t.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED) for t in study.trials) == 8
    # The candidate that was interrupted runs again, as the next one.
    assert after[running].state == optuna.trial.TrialState.FAIL
    assert after[running + 1].params == before[running].params
    assert len({str(trial.params) for trial in study.trials}) >= 7
    assert after.keys() == set(range(9))


@pytest.mark.slow
def test_the_structures_example_runs_to_its_end(run, tmp_path):
    options = "--steps 60 --tune 10 --trials 4 --most 18 --levels 0.5 0.9 --models 0.5 --seeds 0 1"
    out = run("structures_digits.py", "--output", tmp_path, *options.split())
    for part in ("dynamic programming", "influence", "4 are; the best", "1se", "front", "seed 1", "over seeds"):
        assert part in out
    files = {"sensitivity.png", "search.png", "search.db", "pareto.png"}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*")} == {
        f"seed_{seed}/{file}" for seed in (0, 1) for file in files
    }
