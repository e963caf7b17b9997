"""MADELON, where no feature matters alone: what is found, and that nothing is found where there is nothing."""

import runpy
import sys

import jax
import numpy as np
import pytest

from jaxprune import features


@pytest.fixture(scope="module")
def madelon(real_data):
    with np.load(real_data("madelon/madelon.npz")) as file:
        x, y = file["x"].astype(np.float32), file["y"].astype(np.int32)
    # All rows, no labels: the 20 span five dimensions and are like each other, the 480 are like nothing.
    found = np.abs(np.corrcoef(x.T.astype(np.float64)))
    truth = np.where(np.eye(500, dtype=bool), 0, found).max(1) > 0.5
    return x, y, truth


def test_the_file_has_twenty_features_that_span_five_dimensions(madelon):
    x, _, truth = madelon
    assert truth.sum() == 20
    found = np.corrcoef(x.T.astype(np.float64))
    others = np.abs(np.where(np.eye(500, dtype=bool), 0, found))[~truth].max()
    assert others < 0.1
    size = np.sort(np.linalg.eigvalsh(found[np.ix_(truth, truth)]))[::-1]
    assert size[4] > 2
    assert size[5] < 0.02


def test_linear_scores_miss_what_matters_and_removing_redundancy_deletes_it(madelon):
    x, y, truth = madelon
    rows = np.random.default_rng(0).permutation(2600)[:2000]
    relevance, alike = np.asarray(features.pearson(x[rows], y[rows])), np.asarray(features.correlations(x[rows]))
    hits = lambda mask: int((mask & truth).sum())
    linear = hits(features.top(relevance, 20))
    each = features.one_of_each(relevance, features.clusters(alike, 0.5))
    clusters = hits(features.top(np.where(each, relevance, -1), 20))
    chosen = np.zeros(500, bool)
    chosen[features.mrmr(relevance, alike, 20)] = True
    assert linear < 18
    assert max(clusters, hits(chosen)) < linear
    assert hits(features.top(features.relatedness(alike), 20)) == 20


def _centroid_accuracy(x, y, x_test, y_test):
    means = np.stack([x[y == k].mean(0) for k in (0, 1)])
    return (np.square(x_test[:, None] - means).sum(-1).argmin(1) == y_test).mean()


def test_where_labels_are_dealt_out_scores_of_training_rows_bring_no_benefit():
    rng = np.random.default_rng(1)
    honest, leaking = [], []
    for _ in range(30):
        x, y = rng.normal(size=(80, 400)).astype(np.float32), rng.permutation(np.arange(80) % 2)
        a, b = np.arange(40), np.arange(40, 80)
        of_training = features.top(features.pearson(x[a], y[a]), 20)
        of_all = features.top(features.pearson(np.concatenate([x[b], x[a]]), np.concatenate([y[b], y[a]])), 20)
        honest.append(_centroid_accuracy(x[a][:, of_training], y[a], x[b][:, of_training], y[b]))
        leaking.append(_centroid_accuracy(x[a][:, of_all], y[a], x[b][:, of_all], y[b]))
    # 1,200 rows, each right by chance: the standard deviation is 0.014. Scores that saw the test rows "help".
    assert abs(np.mean(honest) - 0.5) < 0.06
    assert np.mean(leaking) > 0.7


@pytest.mark.slow
def test_the_features_that_are_found_lift_the_network(root, madelon):
    example = runpy.run_path(str(root / "examples" / "features_madelon.py"))
    x, y, truth = madelon
    data, key = example["split"](x, y, 0, 2000), jax.random.key(0)
    kernel = example["train"](key, data.x, data.y, 0.4, kind="lasso", steps=2000)["first"]["kernel"]
    lasso = features.top(features.input_norms(kernel), 20)
    related = features.top(features.relatedness(features.correlations(data.x)), 20)
    assert (related & truth).sum() >= 18
    assert (lasso & truth).sum() >= 15  # 17 to 20 in five seeds
    assert example["accuracy"](data, np.ones(500, bool), key, 1000) < 0.65
    assert example["accuracy"](data, related, key, 1000) >= 0.82
    assert example["accuracy"](data, lasso, key, 1000) >= 0.82


@pytest.mark.slow
def test_the_example_runs_to_its_end_and_keeps_finished_seeds(root, real_data, tmp_path, monkeypatch, capsys):
    data = real_data("madelon/madelon.npz")
    arguments = ["--data", str(data), "--seeds", "0", "--steps", "3", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["features_madelon.py", *arguments])
    script = str(root / "examples" / "features_madelon.py")
    _ = runpy.run_path(script, run_name="__main__")
    first = capsys.readouterr().out
    assert "first-layer lasso" in first
    assert "a first layer of (20, 128)" in first
    [kept] = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    _ = runpy.run_path(script, run_name="__main__")
    timed = lambda text: [line for line in text.splitlines() if not line.startswith("seed")]
    assert timed(capsys.readouterr().out) == timed(first)
    assert kept.stat().st_mtime_ns == written
