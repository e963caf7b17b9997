"""Leaves whose gradients are None: they are not trained, so they are not pruned."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import allocation, criteria, masks, schedules, training
from tests.cases import few
from tests.training.loops import STEPS, batch, init_params, loss

CUBIC = schedules.cubic(1, 5, 0.75)
METHODS: dict[str, Any] = {
    "gradual": lambda: training.gradual(CUBIC),
    "gradual global": lambda: training.gradual(CUBIC, allocation=allocation.one_ranking),
    "one_shot erk snip": lambda: training.one_shot(0.75, criterion=criteria.snip, allocation=allocation.erk),
    "acdc": lambda: training.acdc(0.75, begin=1, end=6, compressed=1, dense=1),
    "phases": lambda: training.phases(
        (0, training.gradual(CUBIC)), (6, training.rigl(0.75, 12, every=6, key=jax.random.key(0)))
    ),
}


def step(optimizer: Any, params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
    """A step that trains the second layer alone."""
    grads = jax.grad(lambda second: loss({**params, "second": second}, x))(params["second"])
    frozen = jax.tree.map(lambda _: None, params["first"])
    updates, state = optimizer.update({"first": frozen, "second": grads}, state, params)
    assert updates["first"] == frozen
    return {**params, "second": optax.apply_updates(params["second"], updates["second"])}, state


@pytest.mark.parametrize("packed", few([False, True], False), ids=["bool", "packed"])
@pytest.mark.parametrize("name", METHODS)
def test_a_frozen_leaf_keeps_its_weights_and_an_all_true_mask(name, packed):
    optimizer = jaxprune.sparsify(optax.sgd(0.1, momentum=0.9), METHODS[name](), packed=packed)
    params = start = init_params()
    state = optimizer.init(params)
    jitted = jax.jit(lambda p, s, x: step(optimizer, p, s, x))
    for i in range(STEPS):
        params, state = jitted(params, state, batch(i))
        kept = masks.unpack(jaxprune.get_masks(state))
        assert kept["first"]["kernel"].all()
        assert np.count_nonzero(params["second"]["kernel"][~kept["second"]["kernel"]]) == 0
    np.testing.assert_array_equal(params["first"]["kernel"], start["first"]["kernel"])
    # 75 % of the 32 weights that are trained.
    assert int((~masks.unpack(jaxprune.get_masks(state))["second"]["kernel"]).sum()) == 24


@pytest.mark.parametrize("make", [training.static, lambda s, key: training.rigl(s, 1000, key=key), training.set_])
def test_methods_that_start_sparse_refuse_it_and_say_how_to_leave_it_out(make):
    optimizer = jaxprune.sparsify(optax.sgd(0.1), make(0.5, key=jax.random.key(0)))
    params = init_params()
    with pytest.raises(ValueError, match=r"(?s)no gradients \(None\).*where=.*\n  first/kernel$"):
        _ = step(optimizer, params, optimizer.init(params), batch(0))


def test_nothing_but_frozen_leaves_is_named():
    optimizer = jaxprune.sparsify(optax.sgd(0.1), training.one_shot(0.5, where="first/kernel"))
    params = init_params()
    with pytest.raises(ValueError, match="only leaves whose gradients are None"):
        _ = step(optimizer, params, optimizer.init(params), batch(0))


def test_fixed_masks_of_a_frozen_leaf_are_the_users():
    params = init_params()
    pruned = jaxprune.prune(params, 0.5)
    optimizer = jaxprune.sparsify(optax.sgd(0.1, momentum=0.9), training.fixed(pruned.masks))
    params, state = step(optimizer, pruned.params, optimizer.init(params), batch(0))
    assert int((~jaxprune.get_masks(state)["first"]["kernel"]).sum()) == 24
    assert np.count_nonzero(params["first"]["kernel"]) == 24


def test_equinox_partition_with_a_frozen_layer():
    model = eqx.nn.MLP(6, 4, 8, 2, key=jax.random.key(0))
    trainable = eqx.tree_at(lambda m: m.layers[1].weight, jax.tree.map(eqx.is_inexact_array, model), False)
    optimizer = jaxprune.sparsify(optax.sgd(0.1, momentum=0.9), training.gradual(CUBIC))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    before = model.layers[1].weight

    @eqx.filter_jit
    def update(model: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        train, rest = eqx.partition(model, trainable)
        grads = eqx.filter_grad(lambda t: jnp.mean(jax.vmap(eqx.combine(t, rest))(x) ** 2))(train)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        # The updates have None at the frozen weights, so they also go onto the trained part.
        return eqx.combine(eqx.apply_updates(train, updates), rest), state

    for i in range(STEPS):
        model, state = update(model, state, batch(i))
    np.testing.assert_array_equal(model.layers[1].weight, before)
    removed = [int((~layer.weight).sum()) for layer in jaxprune.get_masks(state).layers]
    assert removed == [36, 0, 24]
    assert [int((layer.weight == 0).sum()) for layer in model.layers] == removed
