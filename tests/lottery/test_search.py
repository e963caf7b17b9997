import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation, checkpoints, lottery, masks
from jaxprune.lottery.search import Rounds
from tests.cases import few

KEY = jax.random.key(0)


def init(key: Any) -> Any:
    first, second = jax.random.split(key)
    return {"a": jax.random.normal(first, (4, 5)), "b": jax.random.normal(second, (5, 2)), "bias": jnp.zeros(2)}


def train(params: Any, held: Any, key: Any) -> Any:
    """Two steps of gradient descent on random data."""
    x = jax.random.normal(key, (8, 4))
    loss = lambda p: jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] + p["bias"] - x[:, :2]) ** 2)
    for _ in range(2):
        grads = masks.apply(jax.grad(loss)(params), held)
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
    return params


def evaluate(params: Any, held: Any) -> dict[str, Any]:
    return {"norm": jnp.sum(params["a"] ** 2), "kept": held["a"].sum()}


CONTROLS = {
    "reinitialised": lottery.reinitialised(init),
    "random": lottery.random_masks(),
    "shuffled": lottery.shuffled_masks(),
}


def search(key: Any = KEY, **changes: Any) -> Rounds:
    how = {name: changes.pop(name) for name in ("evaluate", "traceable") if name in changes}
    training = lottery.Training(train, **{"evaluate": evaluate, **how})
    # A round removes 40 % of what is left.
    options: dict[str, Any] = {"rounds": [0.4, 0.64], "key": key, "progress": False}
    return lottery.iterative_pruning(training, init(jax.random.key(9)), **(options | changes))


def removed(held: Any) -> list[int]:
    return [sum(int((~np.asarray(m[r])).sum()) for m in (held["a"], held["b"])) for r in range(len(held["a"]))]


@pytest.fixture(scope="module")
def found() -> Rounds:
    return jax.jit(lambda key: search(key, controls=CONTROLS))(KEY)


def test_each_round_removes_exactly_its_share_of_what_was_left(found):
    # floor(30 s + 1/2) for s = 0, 0.4 and 0.64.
    assert removed(found.ticket.masks) == [0, 12, 19]
    header, _, *rows = str(found).splitlines()
    assert header.split()[:2] == ["round", "sparsity"] and [row.split()[:2] for row in rows] == [
        ["0", "0.0%"],
        ["1", "40.0%"],
        ["2", "64.0%"],
    ]
    for name, values in found.ticket.metrics.items():
        assert name in header and f"{float(values[2]):.4g}" in rows[2]
    for name in ("a", "b"):
        held = np.asarray(found.ticket.masks[name])
        assert not (held[1:] & ~held[:-1]).any()
        assert np.count_nonzero(np.asarray(found.ticket.params[name])[~held]) == 0
        np.testing.assert_array_equal(found.start[name][2], np.where(held[2], init(jax.random.key(9))[name], 0))
    # The largest of the weights trained in the round before, over both leaves.
    size = np.concatenate([np.abs(np.asarray(found.ticket.params[n][0])).ravel() for n in ("a", "b")])
    held = np.concatenate([np.asarray(found.ticket.masks[n][1]).ravel() for n in ("a", "b")])
    assert size[held].min() > size[~held].max()
    np.testing.assert_array_equal(found.ticket.metrics["kept"], found.ticket.masks["a"].sum((1, 2)))
    assert found.ticket.masks["bias"].shape == (3,)


def test_controls_have_the_tickets_numbers_in_each_leaf(found):
    for name, control in found.controls.items():
        for leaf in ("a", "b"):
            same = np.asarray(control.masks[leaf].sum((1, 2)) == found.ticket.masks[leaf].sum((1, 2)))
            assert same.all(), name
    random, shuffled = (np.asarray(found.controls[n].masks["a"]) for n in ("random", "shuffled"))
    assert not (random[1:] & ~random[:-1]).any()  # nested
    assert (shuffled[2] & ~shuffled[1]).any()  # anew
    chex.assert_trees_all_equal(found.controls["reinitialised"].masks, found.ticket.masks)
    assert not np.allclose(found.controls["reinitialised"].params["a"][0], found.ticket.params["a"][0])
    # With all weights, random masks are no masks: the same training.
    np.testing.assert_array_equal(found.controls["random"].params["a"][0], found.ticket.params["a"][0])


@pytest.mark.slow
def test_vmapped_over_seeds_it_is_each_seed_alone(found):
    keys = jnp.stack([KEY, jax.random.key(5)])
    many = jax.jit(jax.vmap(lambda key: search(key, controls=CONTROLS)))(keys)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], many.ticket.masks), found.ticket.masks)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], many.ticket.params), found.ticket.params, rtol=1e-5)
    assert (np.asarray(many.ticket.masks["a"][0]) != np.asarray(many.ticket.masks["a"][1])).any()


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, found, monkeypatch):
    controls = {"random": CONTROLS["random"]}
    whole = search(controls=controls, folder=tmp_path / "whole")
    chex.assert_trees_all_equal(whole.ticket.masks, found.ticket.masks)
    folder, save = tmp_path / "killed", checkpoints.Run.save

    def dying(run: checkpoints.Run, number: int, arrays: dict[str, np.ndarray]) -> None:
        if number == 1:
            raise KeyboardInterrupt
        save(run, number, arrays)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.Run, "save", dying)
        _ = search(controls=controls, folder=folder, traceable=False)
    assert sorted(p.name for p in folder.iterdir()) == ["round_0000", "search.json"]
    eager = search(controls=controls, folder=folder, traceable=False)
    assert sorted(p.name for p in folder.iterdir()) == ["round_0000", "round_0001", "round_0002", "search.json"]
    chex.assert_trees_all_equal(eager.ticket.masks, whole.ticket.masks)
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = search(controls=controls, folder=folder, traceable=False)
    chex.assert_trees_all_equal(again, eager)
    assert times == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_a_folder_of_others_is_left_alone(tmp_path: Path):
    _ = (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="contains files that belong to no search"):
        _ = search(folder=tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    _ = (folder / "search.json").write_text(json.dumps({"sparsities": [0.1]}))
    with pytest.raises(ValueError, match=r"sparsities: saved \[0\.1\], expected \[0\.0, 0\.4, 0\.64\]"):
        _ = search(folder=folder)
    assert [p.name for p in folder.iterdir()] == ["search.json"]
    _ = search(folder=tmp_path / "own", rounds=0)
    with pytest.raises(ValueError, match=r"another search(.|\n)*\n  rewind\.start\.code: saved"):
        _ = search(folder=tmp_path / "own", rounds=0, rewind=lottery.learning_rate_only())


@pytest.mark.parametrize("traceable", few([True, False], True))
def test_rewinding(traceable):
    half = lambda params, key: jax.tree.map(lambda w: w / 2, params)
    keep = lambda params, held, key: jax.tree.map(lambda w: w + 1, params)
    start = init(jax.random.key(9))
    runs = {
        "early_weights": (lottery.early_weights(half), lambda w: [w / 2, w / 2, w / 2]),
        "learning_rate_only": (lottery.learning_rate_only(), lambda w: [w, w + 1, w + 2]),
        "fine_tuning": (lottery.fine_tuning(lambda p, m, key: p), lambda w: [w, w + 1, w + 1]),
    }
    for rewind, expected in runs.values():
        got = lottery.iterative_pruning(
            lottery.Training(keep, traceable=traceable),
            start,
            rounds=[0.3, 0.51],
            key=KEY,
            rewind=rewind,
            allocation=allocation.uniform,
            progress=False,
        )
        np.testing.assert_allclose(got.start["bias"], np.stack(expected(start["bias"])), rtol=1e-6)
        kept = np.asarray(got.ticket.masks["a"])
        wanted = np.where(kept, np.stack(expected(np.asarray(start["a"]))), 0)
        np.testing.assert_allclose(got.start["a"], wanted, rtol=1e-6, atol=1e-6)


def test_what_training_alone_knows_is_a_metric_too(tmp_path: Path):
    def noting(params: Any, held: Any, key: Any) -> Any:
        return train(params, held, key), {"first": params["a"].sum()}

    training = lottery.Training(noting, evaluate, has_aux=True)
    runs = [
        lottery.iterative_pruning(training, init(KEY), rounds=[0.5], key=KEY, progress=False, folder=folder)
        for folder in (None, tmp_path)
    ]
    for found in runs:
        np.testing.assert_allclose(found.ticket.metrics["first"], found.start["a"].sum((1, 2)), rtol=1e-5)
        assert sorted(found.ticket.metrics) == ["first", "kept", "norm"]
    with pytest.raises(ValueError, match="train and evaluate both return metrics named first"):
        training = lottery.Training(noting, lambda p, held: {"first": 0.0}, has_aux=True)
        _ = lottery.iterative_pruning(training, init(KEY), rounds=1, key=KEY)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="rounds must be 0 or more"):
        _ = search(rounds=-1)
    for wrong in ([0.5, 1.0], [0.0], [0.5, 0.3]):
        with pytest.raises(ValueError, match=r"rounds as sparsities must be ascending numbers in \(0, 1\), got \[0"):
            _ = search(rounds=wrong)


def test_a_number_of_rounds_removes_a_fifth_of_what_is_left_in_each():
    expected = np.array([1 - (1 - 0.2) ** r for r in range(4)], np.float32)
    np.testing.assert_array_equal(search(rounds=3).sparsity, expected)


def test_a_damaged_folder_is_told_by_its_name(tmp_path: Path):
    _ = search(folder=tmp_path, rounds=1)
    note = (tmp_path / "search.json").read_text()
    _ = (tmp_path / "search.json").write_text(note[:40])
    with pytest.raises(ValueError, match=r"search\.json is damaged"):
        _ = search(folder=tmp_path, rounds=1)
    _ = (tmp_path / "search.json").write_text(note)
    _ = search(folder=tmp_path, rounds=1)


def test_without_a_key_it_says_so():
    with pytest.raises(TypeError, match=r"iterative_pruning needs key=, a key of jax\.random"):
        _ = lottery.iterative_pruning(train, init(KEY), rounds=1)


def test_a_search_with_a_predicate_resumes(tmp_path: Path):
    # A function is known by its name: its address is another one in each process.
    for _ in range(2):
        _ = search(folder=tmp_path, rounds=1, where=lambda name, leaf: leaf.ndim == 2)
