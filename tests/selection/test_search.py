"""Successive halving and Hyperband: who goes on, and that a search that was killed goes on where it was."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxprune import selection

KEY = jax.random.key(0)


def _zero(candidate, budget, key):
    return 0.0


def test_the_better_third_goes_on_at_each_rung():
    seen = []

    def loss(candidate, budget, key):
        seen.append((candidate, budget))
        return abs(candidate - 20) + 10 / budget

    found = selection.successive_halving(loss, range(27), key=KEY, least=1, most=9, progress=False)
    assert [c for c, b in seen if b == 1] == list(range(27))
    assert [c for c, b in seen if b == 3] == list(range(16, 25))
    assert [c for c, b in seen if b == 9] == [19, 20, 21]
    assert found.best.candidate == 20
    assert found.best.budget == 9
    assert len(found.trials) == 39


def test_a_candidate_keeps_its_key_and_others_have_other_keys():
    keys = {}

    def loss(candidate, budget, key):
        keys.setdefault(candidate, set()).add(str(jax.random.key_data(key).tolist()))
        return candidate

    _ = selection.successive_halving(loss, range(4), key=KEY, least=1, most=4, factor=2, progress=False)
    assert all(len(own) == 1 for own in keys.values())
    assert len(set.union(*keys.values())) == 4


def test_hyperband_has_the_brackets_of_the_paper():
    # Li et al. 2018, with R = 81 and eta = 3: n = ceil(5 / (s + 1) 3^s) candidates first on 81 / 3^s.
    found = selection.hyperband(lambda c, b, k: c, range, key=KEY, least=1, most=81, progress=False)
    table = {}
    for trial in found.trials:
        table.setdefault(trial.bracket, {}).setdefault(round(trial.budget), []).append(trial.candidate)
    assert {s: {b: len(c) for b, c in rungs.items()} for s, rungs in table.items()} == {
        4: {1: 81, 3: 27, 9: 9, 27: 3, 81: 1},
        3: {3: 34, 9: 11, 27: 3, 81: 1},
        2: {9: 15, 27: 5, 81: 1},
        1: {27: 8, 81: 2},
        0: {81: 5},
    }
    assert found.best.candidate == 0


def test_a_loss_that_is_nan_is_worst_and_all_nan_is_an_error():
    loss = lambda c, b, k: math.nan if c % 2 == 0 else c
    found = selection.successive_halving(loss, range(6), key=KEY, least=1, most=3, progress=False)
    assert found.best.candidate == 1
    with pytest.raises(ValueError, match="every candidate on the largest budget, 3, had a loss"):
        _ = selection.successive_halving(lambda c, b, k: math.inf, range(3), key=KEY, least=1, most=3, progress=False)


_SCRIPT = """
import sys, time, jax
from jaxprune import selection

def loss(candidate, budget, key):
    with open(sys.argv[2], "a") as file:
        file.write(f"{candidate['width']} {budget}\\n")
    time.sleep(float(sys.argv[3]))
    return (candidate["width"] - 5) ** 2 + float(jax.random.uniform(key)) / budget

found = selection.successive_halving(loss, [{"width": w} for w in range(9)], key=jax.random.key(3), least=1, most=9,
                                     journal=sys.argv[1], progress=False)
print(found.best.candidate["width"], found.best.loss)
"""


def _start(tmp_path, root, journal, calls, pause):
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path / journal), str(tmp_path / calls), str(pause)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_search_goes_on_to_the_same_result(tmp_path, root):
    whole, _ = _start(tmp_path, root, "whole", "whole_calls", 0).communicate(timeout=120)
    killed = _start(tmp_path, root, "broken", "calls", 0.2)
    calls = tmp_path / "calls"
    until = time.monotonic() + 120
    while not (calls.exists() and calls.read_text().count("\n") >= 5):
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    before = calls.read_text().splitlines()
    # A line that was cut off, as a full disk or a lost machine leaves it.
    with (tmp_path / "broken").open("a") as file:
        assert file.write('{"name": "0/0/8", "cand') > 0
    resumed, _ = _start(tmp_path, root, "broken", "calls", 0).communicate(timeout=120)
    assert resumed == whole != ""
    after = calls.read_text().splitlines()[len(before) :]
    # What had ended does not run again: the one that was running may.
    assert set(before) & set(after) <= {before[-1]}
    assert set(before) | set(after) == set((tmp_path / "whole_calls").read_text().splitlines())
    assert (tmp_path / "broken").read_text() == (tmp_path / "whole").read_text()


def test_a_journal_belongs_to_one_search(tmp_path):
    loss = lambda c, b, k: c["w"]
    run = lambda candidates, path: selection.successive_halving(
        loss, candidates, key=KEY, least=1, most=2, factor=2, journal=path, progress=False
    )
    path = tmp_path / "folder" / "journal"
    first = run([{"w": 1.0}, {"w": 2.0}], path)
    assert run([{"w": 1.0}, {"w": 2.0}], path) == first
    assert len(path.read_text().splitlines()) == 4
    with pytest.raises(ValueError, match=r"another search; they differ in:\n  candidates"):
        _ = run([{"w": 1.0}, {"w": 3.0}], path)
    other = tmp_path / "notes"
    assert other.write_text(json.dumps({"shopping": "list"}) + "\n")
    with pytest.raises(ValueError, match="not the journal of a search"):
        _ = run([{"w": 1.0}], other)
    assert "shopping" in other.read_text()


def test_candidates_are_drawn_in_their_ranges_and_again_the_same():
    space = {
        "width": selection.one_of([16, 32, 64]),
        "depth": selection.integers(1, 3),
        "rate": selection.log_uniform(1e-4, 1e-1),
        "decay": selection.uniform(0.0, 0.5),
    }
    drawn = selection.draw_candidates(space, 200, seed=1)
    assert drawn[:20] == selection.draw_candidates(space, 20, seed=1)
    assert {c["width"] for c in drawn} == {16, 32, 64}
    assert {c["depth"] for c in drawn} == {1, 2, 3}
    assert 0.3 < np.mean([c["rate"] < 10**-2.5 for c in drawn]) < 0.7
    assert all(0 <= c["decay"] <= 0.5 for c in drawn)


def test_the_progress_bar_counts_evaluations(capsys):
    _ = selection.successive_halving(lambda c, b, k: c, range(4), key=KEY, least=1, most=2, factor=2, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_the_plot_has_a_line_for_each_candidate():
    found = selection.successive_halving(
        lambda c, b, k: c, range(4), key=KEY, least=1, most=2, factor=2, progress=False
    )
    assert len(selection.halving_curves(found.trials).axes[0].get_lines()) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: selection.successive_halving(_zero, [], key=KEY, least=1, most=2, progress=False),
            "needs a candidate",
        ),
        (lambda: selection.successive_halving(_zero, [1], key=KEY, least=3, most=2), "0 < least <= most"),
        (lambda: selection.successive_halving(_zero, [1], key=KEY, least=1, most=2, factor=1), "factor above 1"),
        (lambda: selection.hyperband(_zero, lambda n: [1], key=KEY, least=1, most=9), "must give as many candidates"),
        (lambda: selection.draw_candidates({}, 1, seed=0), "something to draw"),
        (lambda: selection.one_of([]), "a value to choose from"),
        (lambda: selection.uniform(1, 1), "low < high"),
        (lambda: selection.log_uniform(0, 1), "0 < low < high"),
        (lambda: selection.integers(2, 1), "low <= high"),
        (lambda: selection.halving_curves([]), "no trial to draw"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
