"""The same masks and weights as the published SparseGPT (tests/reference/torch_sparsegpt.py ran it)."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jaxprune import masks
from jaxprune.calibration import calibrate
from jaxprune.reconstruction import reconstruct, sparsegpt
from tests.cases import few

_FILE = np.load(Path(__file__).parents[1] / "reference" / "torch_sparsegpt.npz")
_CASES = [name for name in _FILE if name.count("/") == 1]


@pytest.fixture(scope="module")
def stats():
    return calibrate(lambda w, x: x @ w, _FILE["weight"], [_FILE["x"][:100], _FILE["x"][100:]])


def test_the_file_holds_every_case():
    assert sorted(_CASES) == ["16/0.5", "16/0.7", "16/2:4", "16/4:8", "48/0.5", "48/1:4"]


@pytest.mark.parametrize("case", few(_CASES, "16/0.7", "16/2:4"))
def test_calibrated_and_pruned_as_published(stats, case):
    block, target = case.split("/")
    want, method = _FILE[case], partial(sparsegpt, block=int(block))
    if ":" in target:
        n, m = map(int, target.split(":"))
        new = reconstruct(_FILE["weight"], stats, pattern=masks.NM(n, m), method=method)
    else:
        new = reconstruct(_FILE["weight"], stats, masks.Count.of(int((want == 0).sum())), method=method)
    np.testing.assert_array_equal(new.masks, want != 0)
    np.testing.assert_allclose(new.params, want, atol=1e-4)
