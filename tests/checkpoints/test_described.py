"""How resumed runs recognise arguments: the same text in every process, another for other arguments."""

import functools
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import allocation, criteria, lottery, masks
from jaxprune.checkpoints import _disk
from jaxprune.checkpoints._described import described


def made(rate: Any, record: Any = None) -> Any:
    return lambda params: (rate, record, params)


def powered(params: Any, *, power: float) -> Any:
    return params, power


class Opaque:
    pass


@pytest.mark.parametrize(
    "one, other",
    [
        (lottery.initial_weights(), lottery.learning_rate_only()),
        (allocation.by_path({"a": 0.5}), allocation.by_path({"a": 0.1})),
        (functools.partial(powered, power=1), functools.partial(powered, power=2)),
        (made(0.1), made(0.2)),
        (made(np.arange(9)), made(np.arange(9)[::-1])),
        (lambda name, leaf: "attn" in name, lambda name, leaf: "mlp" in name),
        (masks.NM(2, 4), masks.NM(1, 4)),
        (jnp.ones(9), jnp.ones(9, jnp.bfloat16)),
        (np.arange(2000.0), np.arange(2000.0) + (np.arange(2000) == 1000)),
        ({"*/q": 0.5, "*": 0.1}, {"*": 0.1, "*/q": 0.5}),
        (criteria.magnitude, criteria.wanda),
        ("0.5", 0.5),
    ],
)
def test_other_arguments_have_another_description(one, other):
    texts = [json.dumps(described(value)) for value in (one, other)]
    assert texts[0] != texts[1] and " at 0x" not in "".join(texts)


def test_the_same_arguments_have_the_same_description():
    for make in (lambda: functools.partial(powered, power=2), lambda: made(0.1, [Opaque()]), lambda: made(Opaque())):
        assert described(make()) == described(make())
    assert described(made(0.1, [1, 2])) == described(made(0.1, []))  # what a function records
    assert described(Opaque()).endswith("Opaque (not compared)")


def test_a_difference_is_told_by_its_place(tmp_path):
    one, other = ({"allocation": described(allocation.by_path({"a": 0, "b": x}))} for x in (0.5, 0.1))
    with pytest.raises(ValueError, match=r"allocation\.closure\.rules\[1\]\[1\]: saved 0\.5, expected 0\.1$"):
        _disk.check_same(tmp_path, "search", one, other)
