"""Masks kept as bits: the results of masks kept as bytes, in an eighth of the memory."""

from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import masks, training
from jaxprune.masks.packing import is_packed
from tests.conformance.test_methods import METHODS as ALL
from tests.conformance.test_methods import plain, train
from tests.training.loops import gradual, init_params, loss

METHODS = {**ALL, "top_kast": lambda: training.top_kast(0.5, 0.25, penalty=0.01)}
QUICK = ["rigl"]
GRADIENTS = jax.jit(jax.grad(loss))


def run(method: training.Method, packed: bool) -> tuple[Any, Any]:
    optimizer = jaxprune.sparsify(optax.sgd(0.1, momentum=0.9), method, packed=packed)

    # Operation by operation: whole steps are two programs, in which some releases of JAX contract a product and a sum
    # into one rounding, and others do not.
    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(GRADIENTS(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params = init_params()
    return train(step, params, optimizer.init(params), 0, 7)


def check(name: str) -> None:
    (params, state), (expected, other) = run(METHODS[name](), True), run(METHODS[name](), False)
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(masks.unpack(state.masks), other.masks)
    chex.assert_trees_all_equal(plain((state.inner, state.method)), plain((other.inner, other.method)))
    kept = jax.tree.leaves(jaxprune.get_masks(state), is_leaf=is_packed)
    assert all(is_packed(mask) or mask.ndim == 0 for mask in kept)
    assert any(is_packed(mask) for mask in kept)


@pytest.mark.parametrize("name", QUICK)
def test_packed_masks_change_no_bit(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name not in QUICK])
def test_packed_masks_change_no_bit_in_any_method(name):
    check(name)


def test_they_take_an_eighth_and_are_never_whole():
    params = {"w": jax.ShapeDtypeStruct((64, 512), np.float32), "b": jax.ShapeDtypeStruct((512,), np.float32)}
    sizes = []
    for packed in (True, False):
        optimizer = jaxprune.sparsify(optax.sgd(0.1), gradual(), packed=packed)
        state = jax.eval_shape(optimizer.init, params)
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.masks["w"])))
        # The step fuses the unpacking: it has no bool array of the size of a mask outside the branch that selects.
        compiled = jax.jit(optimizer.update, donate_argnums=(1, 2)).lower(params, state, params).compile()
        text = compiled.as_text()
        assert text is not None
        entry = text[text.index("ENTRY") :]
        made = [line for line in entry.splitlines() if "= pred[64,512]" in line and "parameter(" not in line]
        assert not [line for line in made if "get-tuple-element" not in line], made
    assert sizes == [64 * 64, 64 * 512]
