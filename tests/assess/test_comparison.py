"""Comparison tables."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.assess import ModelResult, comparison_table, complexity
from jaxprune.assess.metrics import Metrics

METRICS = Metrics(accuracy=jnp.float32(0.9), nll=jnp.float32(jnp.inf), brier=0.25, ece=0.0123, samples=10, bins=15)
COST = complexity(jnp.matmul, jnp.ones((4, 4)), jnp.eye(4, dtype=bool), jnp.ones((4, 2)))


def report():
    rows = [
        ModelResult("dense", METRICS),
        ModelResult("gradual", METRICS, COST, {"seconds": np.float32(1.5), "rounds": 12345}),
        ModelResult("random", None, COST, {"rounds": 3, "note": "control"}),
    ]
    return comparison_table(rows, notes=["data: digits, 10 samples"])


def test_text():
    assert str(report()).splitlines() == [
        "model    sparsity  kept  FLOPs  accuracy  NLL   Brier     ECE  seconds  rounds     note",
        "-------  --------  ----  -----  --------  ---  ------  ------  -------  ------  -------",
        "dense           -     -      -   90.00 %  inf  0.2500  0.0123        -       -        -",
        "gradual   75.00 %     4     16   90.00 %  inf  0.2500  0.0123      1.5  12,345        -",
        "random    75.00 %     4     16         -    -       -       -        -       3  control",
        "data: digits, 10 samples",
    ]


def test_json_is_strict_and_keeps_precision():
    content = json.loads(report().to_json(), parse_constant=lambda _: pytest.fail("not JSON"))
    dense, gradual, random = content["models"]
    assert dense["nll"] is None
    assert dense["sparsity"] is None
    assert gradual["ece"] == 0.0123
    assert gradual["seconds"] == 1.5
    assert random["note"] == "control"
    assert content["notes"] == ["data: digits, 10 samples"]


def test_errors():
    with pytest.raises(ValueError, match="no results"):
        _ = comparison_table([])
    with pytest.raises(ValueError, match="twice: a"):
        _ = comparison_table([ModelResult("a"), ModelResult("a")])
    with pytest.raises(ValueError, match="must not be called nll"):
        _ = comparison_table([ModelResult("a", extra={"nll": 1.0})])
