"""The same masks as torch.nn.utils.prune, on inputs without ties (tests/reference/torch_masks.py made them)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks

_PATH = Path(__file__).parents[1] / "reference" / "torch_masks.npz"
_FILE = np.load(_PATH)
_INPUTS = {key.removeprefix("input/"): _FILE[key] for key in _FILE if key.startswith("input/")}
_CASES = [key for key in _FILE if not key.startswith("input/")]


def _expected(case: str) -> np.ndarray:
    shape = _INPUTS[case.split("/")[1]].shape
    return np.unpackbits(_FILE[case], count=np.prod(shape)).reshape(shape).astype(bool)


def _of(method: str) -> list[str]:
    return [case for case in _CASES if case.startswith(method)]


def test_the_file_holds_every_method():
    assert [len(_of(method)) for method in ("l1/", "global/", "ln-1-", "ln-2-")] == [15, 15, 45, 45]


@pytest.mark.parametrize("case", _of("l1/"))
def test_l1_unstructured(case: str):
    _, name, amount = case.split("/")
    found = masks.select({name: jnp.abs(_INPUTS[name])}, float(amount))[name]
    np.testing.assert_array_equal(found, _expected(case))


@pytest.mark.parametrize("amount", sorted({case.split("/")[2] for case in _CASES}))
def test_global_unstructured(amount: str):
    scores = {name: jnp.abs(value) for name, value in _INPUTS.items()}
    found = masks.select_global(scores, float(amount))
    for name in scores:
        np.testing.assert_array_equal(found[name], _expected(f"global/{name}/{amount}"))


@pytest.mark.parametrize("case", _of("ln-"))
def test_ln_structured(case: str):
    method, name, amount = case.split("/")
    order, axis = (int(number) for number in method.split("-")[1:])
    # The order of the channels by sum |w|^p is that by its p-th root.
    scores = {name: jnp.abs(_INPUTS[name]) ** order}
    found = masks.select(scores, float(amount), masks.Channel(axis=axis))[name]
    np.testing.assert_array_equal(np.broadcast_to(found, _INPUTS[name].shape), _expected(case))
